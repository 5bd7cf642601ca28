"""`overfeat predict`: files in, pictures with boxes and JSON out, through a model here or on a server."""

import glob
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from overfeat_tf.cli.options import Changes, with_changes
from overfeat_tf.decode import decode_image
from overfeat_tf.draw import draw_boxes, draw_classes
from overfeat_tf.draw_stages import draw_stages
from overfeat_tf.loading import Exported, load
from overfeat_tf.model import Model
from overfeat_tf.stages import StagedModel

SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".jxl"}
BATCH = 8


def find_files(patterns: Sequence[str]) -> list[Path]:
    """List the images that files, folders (with those below) and globs name, each once, in order.

    Raises:
        ValueError: one of them names nothing.
    """
    found: dict[str, Path] = {}
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
        for path in paths:
            found.setdefault(os.path.abspath(path), path)
    return list(found.values())


def run(
    model: str,
    files: Sequence[Path],
    server: str | None,
    out: Path,
    least_score: float,
    changes: Changes,
    stages: bool = False,
) -> list[dict]:
    """Run files through the model, write a picture for each into `out`, and return an answer for each.

    An unreadable file is reported on stderr and has its status in the answer. With `stages`, which needs a run, each
    gets a second picture, of what its answer came from.
    """
    names = picture_names(files)
    if server is not None:
        answered = _served(model, files, server)
    elif stages:
        sheets = {file: out / stages_name(name) for file, name in names.items()}
        answered = _in_stages(with_changes(load(model), changes), sheets, least_score)
    else:
        answered = _answered(with_changes(load(model), changes), files)
    out.mkdir(parents=True, exist_ok=True)
    answers = []
    for file, data, answer in tqdm(answered, total=len(files), unit=" images", disable=None):
        status = answer["status"].decode()
        found = {"objects": objects(answer)} if "detection_boxes" in answer else {"classes": classes(answer)}
        if status:
            tqdm.write(f"overfeat: {file}: {status}", file=sys.stderr)
            answers.append({"file": str(file), "status": status, **found})
            continue
        if "objects" in found:
            picture = draw_boxes(data, answer, least_score=least_score)
        else:
            picture = draw_classes(data, [(one["label"], one["score"]) for one in found["classes"]])
        picture.save(out / names[file])
        pictures = {"picture": str(out / names[file])}
        if stages:
            pictures["stages"] = str(out / stages_name(names[file]))
        answers.append({"file": str(file), "status": "", **pictures, **found})
    return answers


def picture_names(files: Sequence[Path]) -> dict[Path, str]:
    """Name each file's picture: its stem, with its folder before it where two files share a stem.

    No picture is named as another's sheet of stages.
    """
    names: dict[Path, str] = {}
    taken: set[str] = set()
    stems = [file.stem for file in files]
    for file in files:
        parts = file.parts[-2:-1] if stems.count(file.stem) > 1 else ()
        name = "_".join((*parts, file.stem))
        while {f"{name}.png", stages_name(f"{name}.png")} & taken:
            name += "_"
        names[file] = f"{name}.png"
        taken |= {names[file], stages_name(names[file])}
    return names


def stages_name(picture: str) -> str:
    """Name the sheet of stages beside a picture."""
    return f"{picture.removesuffix('.png')}.stages.png"


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


def classes(answer: dict[str, np.ndarray]) -> list[dict]:
    """List an image's classes in JSON's types, best first: label and score."""
    pairs = zip(answer["classes"], answer["scores"], strict=True)
    return [{"label": label.decode(), "score": float(score)} for label, score in pairs if label]


def _answered(model: Model | Exported, files: Sequence[Path]) -> Iterator[tuple[Path, bytes, dict]]:
    for task, call in (("detection", model.detect), ("localization", model.localize)):
        if task in model.tasks:
            return _batched(call, files)
    return _batched(lambda images: _with_status(images, model.classify(images)), files)


def _in_stages(
    model: Model | Exported, sheets: dict[Path, Path], least_score: float
) -> Iterator[tuple[Path, bytes, dict]]:
    """Answer images one at a time, drawing the stages of each answer into its sheet."""
    staged = StagedModel(model)
    if staged.task == "classification":
        print("overfeat: the run was trained to classify only: its stages end with the class scores", file=sys.stderr)
    return (_in_stages_one(staged, file, sheet, least_score) for file, sheet in sheets.items())


def _in_stages_one(staged: StagedModel, file: Path, sheet: Path, least_score: float) -> tuple[Path, bytes, dict]:
    data = file.read_bytes()
    answer, stages = staged(data)
    if stages is not None:
        draw_stages(data, stages, staged.model, least_score).save(sheet)
    return file, data, answer


def _served(name: str, files: Sequence[Path], server: str) -> Iterator[tuple[Path, bytes, dict]]:
    from serving.client import Client

    with Client(server, name) as client:
        signatures = client.metadata()
        for call in (client.detect, client.localize):
            if call.__name__ in signatures:
                yield from _batched(call, files)
                return
        yield from _batched(lambda images: _with_status(images, _named(client.classify(images))), files)


def _named(rows: Sequence[Sequence[tuple[str, float]]]) -> dict[str, np.ndarray]:
    """Give the Classify RPC's answer the names of the signature's."""
    labels = [[label.encode() for label, _ in row] for row in rows]
    return {"classes": np.array(labels, object), "scores": np.array([[score for _, score in row] for row in rows])}


def _with_status(images: Sequence[bytes], answer: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Add why images have no class: the signature `classify` has no room for it."""
    read = [any(label for label in row) for row in answer["classes"]]
    statuses = [b"" if ok else decode_image(image)[1].numpy() for ok, image in zip(read, images, strict=True)]
    return {**answer, "status": np.array(statuses, object)}


def _batched(call, files: Sequence[Path]) -> Iterator[tuple[Path, bytes, dict]]:
    for first in range(0, len(files), BATCH):
        batch = files[first : first + BATCH]
        images = [file.read_bytes() for file in batch]
        answer = call(images)
        for row, file in enumerate(batch):
            yield file, images[row], {key: values[row] for key, values in answer.items()}
