"""`overfeat predict`: files in, pictures with boxes and JSON out, through a model here or on a server."""

import glob
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from overfeat_tf.draw import draw_boxes
from overfeat_tf.loading import load

SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".jxl"}
BATCH = 8


def find_files(patterns: Sequence[str]) -> list[Path]:
    """List the images that files, folders (with those below) and globs name, each once, in order.

    Raises:
        ValueError: one of them names nothing.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            paths = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        elif path.is_file():
            paths = [path]
        else:
            paths = [Path(file) for file in sorted(glob.glob(pattern, recursive=True)) if Path(file).is_file()]
        if not paths:
            raise ValueError(f"expected image files; '{pattern}' names none")
        found |= dict.fromkeys(paths)
    return list(found)


def run(model: str, files: Sequence[Path], server: str | None, out: Path, least_score: float) -> list[dict]:
    """Run files through the model, write a picture for each into `out`, and return an answer for each.

    An unreadable file is reported on stderr and has its status in the answer.
    """
    out.mkdir(parents=True, exist_ok=True)
    answers = []
    names = picture_names(files)
    for file, data, answer in tqdm(_answers(model, files, server), total=len(files), unit=" images", disable=None):
        status = answer["status"].decode()
        if status:
            tqdm.write(f"overfeat: {file}: {status}", file=sys.stderr)
            answers.append({"file": str(file), "status": status, "objects": []})
            continue
        draw_boxes(data, answer, least_score=least_score).save(out / names[file])
        answers.append({"file": str(file), "status": "", "picture": str(out / names[file]), "objects": objects(answer)})
    return answers


def picture_names(files: Sequence[Path]) -> dict[Path, str]:
    """Name each file's picture: its stem, with its folder before it where two files share a stem."""
    names: dict[Path, str] = {}
    stems = [file.stem for file in files]
    for file in files:
        parts = file.parts[-2:-1] if stems.count(file.stem) > 1 else ()
        name = "_".join((*parts, file.stem))
        while f"{name}.png" in names.values():
            name += "_"
        names[file] = f"{name}.png"
    return names


def objects(answer: dict[str, np.ndarray]) -> list[dict]:
    """List an image's detections in JSON's types: label, score, box as normalised yxyx and in pixels."""
    height, width = (int(side) for side in answer["image_size"])
    return [
        {
            "label": answer["detection_class_entities"][i].decode(),
            "score": float(answer["detection_scores"][i]),
            "box": [float(edge) for edge in answer["detection_boxes"][i]],
            "box_pixels": [
                float(e * s) for e, s in zip(answer["detection_boxes"][i], (height, width) * 2, strict=True)
            ],
        }
        for i in range(int(answer["num_detections"]))
    ]


def _answers(model: str, files: Sequence[Path], server: str | None) -> Iterator[tuple[Path, bytes, dict]]:
    if server is not None:
        from serving.client import Client

        with Client(server, model) as client:
            yield from _batched(client.detect, files)
        return
    loaded = load(model)
    if "detection" in loaded.tasks:
        yield from _batched(loaded.detect, files)
    elif "localization" in loaded.tasks:
        yield from _batched(loaded.localize, files)
    else:
        raise ValueError(f"expected a model trained for localization or detection; '{model}' has {list(loaded.tasks)}")


def _batched(call, files: Sequence[Path]) -> Iterator[tuple[Path, bytes, dict]]:
    for first in range(0, len(files), BATCH):
        batch = files[first : first + BATCH]
        images = [file.read_bytes() for file in batch]
        answer = call(images)
        for row, file in enumerate(batch):
            yield file, images[row], {key: values[row] for key, values in answer.items()}
