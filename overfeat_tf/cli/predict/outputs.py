"""The outputs of `predict`: a picture, a line and a row of JSON for each image, and text files, crops and videos."""

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from PIL import Image
from tqdm import tqdm

from overfeat_tf.cli.options import JsonArray, count_of
from overfeat_tf.cli.predict.inputs import STDIN, Input, is_moving
from overfeat_tf.draw.pictures import draw_boxes, draw_classes, file_stem
from overfeat_tf.images.decode import decode_image
from overfeat_tf.images.video import CAMERA, VideoWriter
from overfeat_tf.merge.calibration import displayed
from overfeat_tf.models.tasks import CLASSIFICATION, Task

SHOWN_CLASSES = 3  # of a classifier's, in the line of an image

Outputs = dict[str, Any]  # arrays by name; of one image also numbers and bytes


class Answered(NamedTuple):
    """An image and its outputs, or the problem if there are none."""

    image: Input
    outputs: Outputs
    problem: str = ""


@dataclass(frozen=True)
class Wanted:
    """What to write beside a picture for each image.

    Attributes:
        out: The folder for pictures.
        json_file: The file for all answers.
        save_txt: Write `labels/NAME.txt` in YOLO's format, with what is shown.
        save_crops: Write what is shown as `crops/CLASS/NAME.jpg`.
        best: Print so many class names of each image to standard output instead of a line.
        every: Use every so many frames of a video.
    """

    out: Path
    json_file: Path | None = None
    save_txt: bool = False
    save_crops: bool = False
    best: int | None = None
    every: int = 1


class Writer(AbstractContextManager):
    """Writes what is wanted of each answer, counts, and names the files."""

    def __init__(self, wanted: Wanted, sources: Sequence[Path], task: Task, threshold: float, several: bool):
        self.threshold, self._wanted, self._task, self._several = threshold, wanted, task, several
        self._stems = unique_stems([_as_file(source) for source in sources])
        self._require_other_files(sources)
        self._video: tuple[Path, VideoWriter] | None = None
        self._began, self._count, self.failed = time.monotonic(), 0, 0
        self._found: Counter[str] = Counter()

    def __enter__(self) -> Self:
        self._wanted.out.mkdir(parents=True, exist_ok=True)
        self._json = JsonArray(self._wanted.json_file)
        return self

    def _require_other_files(self, sources: Sequence[Path]) -> None:
        """Raise ValueError if a picture, a sheet of stages or a video would be written over one of the sources."""
        names = [
            name for stem in self._stems.values() for name in (f"{stem}.png", f"{stages_stem(stem)}.png", f"{stem}.mp4")
        ]
        there = {os.path.realpath(file): file for name in names if (file := self._wanted.out / name).exists()}
        if both := there.keys() & {os.path.realpath(source) for source in sources}:
            raise ValueError(f"expected another --out: '{there[both.pop()]}' is one of the images to read")

    def stem(self, image: Input) -> str:
        """Return the name of an image's files, without a suffix."""
        stem = self._stems[_as_file(image.source)]
        return stem if image.number is None else f"{stem}_{image.number}"

    def sheet(self, image: Input) -> Path:
        """Return the file for the stages of an image's answer."""
        return self._wanted.out / f"{stages_stem(self.stem(image))}.png"

    def write(self, one: Answered, stages: bool = False) -> str:
        """Write an answer; return what is wrong with it, if anything."""
        image, outputs, problem = one
        status = problem or bytes(outputs["status"]).decode()
        found = objects(outputs, self.threshold, self._several) if "detection_boxes" in outputs else []
        best = classes(outputs) if "classes" in outputs else []
        files: dict[str, str] = {}
        if not status:
            try:
                files = self._write_files(image, outputs, found, best)
                if stages:
                    files["stages"] = str(self.sheet(image))
            except OSError as error:
                status = f"its picture cannot be written: {error.strerror or error}"
        where = {} if image.number is None else {"frame": image.number, "seconds": image.seconds}
        answers = {"classes": best} if self._task == CLASSIFICATION else {"objects": found}
        self._json.append({"file": str(image.source), **where, "status": status, **files, **answers})
        self._count += 1
        self.failed += bool(status)
        if not status:
            shown = Counter(each["label"] for each in found if each["shown"])
            self._found += shown if found else Counter(each["label"] for each in best[:1])
            self._print(image, found, shown, best, files["picture"])
        return status

    def _print(self, image: Input, found: list, shown: Counter, best: list, picture: str) -> None:
        if self._wanted.best is not None:
            for each in best[: self._wanted.best]:
                tqdm.write(f"{each['label']} {each['score']:.6g}", file=sys.stdout)
            if len(best) < self._wanted.best and self._count == 1:
                print(f"overfeat: the model answers {len(best)} classes, fewer than -n", file=sys.stderr)
            return
        if self._task == CLASSIFICATION:
            what = ", ".join(f"{each['label']} {each['score']:.2f}" for each in best[:SHOWN_CLASSES])
        else:
            what = ", ".join(f"{count} {label}" for label, count in shown.most_common()) or "nothing"
            what += f" ({len(found) - shown.total()} more below the threshold)" if len(found) > shown.total() else ""
        name = str(image.source) if image.number is None else f"{image.source}, {image.number}"
        # A name that is not UTF-8 is shown escaped; standard output would refuse it.
        line = os.fsencode(f"{name}: {what} -> {picture}").decode(errors="backslashreplace")
        tqdm.write(line, file=sys.stdout)

    def _write_files(self, image: Input, outputs: dict, found: list, best: list) -> dict[str, str]:
        """Write an image's picture, text and crops; return the names of the first two."""
        out, stem = self._wanted.out, self.stem(image)
        if "detection_boxes" in outputs:
            still = not is_moving(image.source)
            picture = draw_boxes(image.data, outputs, least_score=self.threshold, several=self._several, enlarge=still)
        else:
            picture = draw_classes(image.data, [(each["label"], each["score"]) for each in best])
        files = {"picture": str(self._save_picture(image, picture))}
        if self._wanted.save_txt:
            file = out / "labels" / f"{stem}.txt"
            file.parent.mkdir(exist_ok=True)
            lines = (
                yolo_lines(outputs, found)
                if "detection_boxes" in outputs
                else (f"{each['score']:.2f} {each['label']}" for each in best)
            )
            file.write_text("".join(f"{line}\n" for line in lines))
            files["labels"] = str(file)
        if self._wanted.save_crops:
            self._save_crops(image, stem, found)
        return files

    def _save_picture(self, image: Input, picture: Image.Image) -> Path:
        """Save a picture, or add it to the video that is made of a video's."""
        if not is_moving(image.source):
            path = self._wanted.out / f"{self.stem(image)}.png"
            picture.save(path)
            return path
        path = self._wanted.out / f"{self._stems[_as_file(image.source)]}.mp4"
        if self._video is None or self._video[0] != path:
            self._end_video()
            self._video = path, VideoWriter(path, (image.fps or 1.0) / self._wanted.every)
        self._video[1].write(np.asarray(picture.convert("RGB")))
        return path

    def _save_crops(self, image: Input, stem: str, found: list) -> None:
        pixels = decode_image(image.data)[0].numpy()
        for number, each in enumerate((each for each in found if each["shown"]), start=1):
            top, left, bottom, right = (round(edge) for edge in each["box_pixels"])
            if (crop := pixels[top:bottom, left:right]).size:
                folder = self._wanted.out / "crops" / file_stem(each["label"].lstrip(".") or "_")
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(crop).save(folder / f"{stem}_{number}.jpg", quality=95)

    def _end_video(self) -> None:
        if self._video is not None:
            self._video[1].close()

    def summary(self) -> str:
        """Say in a line how many images there were, what was found, and where the pictures are."""
        seconds = time.monotonic() - self._began
        failed = f", {self.failed} without an answer" if self.failed else ""
        names = [f"{count} {label}" for label, count in self._found.most_common(10)]
        found = ", ".join(names + ["..."] * (len(self._found) > len(names))) or "nothing found"
        rate = self._count / max(seconds, 1e-9)
        took = f"{count_of(self._count, 'image')} in {seconds:.1f} s ({rate:.1f} a second){failed}"
        return f"{took}: {found}; pictures in {self._wanted.out}"

    def __exit__(self, *_: Any) -> None:
        self._end_video()
        self._json.__exit__()


def unique_stems(files: Sequence[Path]) -> dict[Path, str]:
    """Return the stem that names each file's outputs: its own, cut if long, after its folder's if files share one.

    None is that of another file's sheet of stages.
    """
    stems: dict[Path, str] = {}
    taken: set[str] = set()
    counts = Counter(file.stem for file in files)
    tried: Counter[str] = Counter()  # suffixes tried for each stem, so that many files of one name stay fast
    for file in files:
        parts = file.parts[-2:-1] if counts[file.stem] > 1 else ()
        plain = stem = file_stem("_".join((*parts, file.stem)))
        while {stem, stages_stem(stem)} & taken:
            tried[plain] += 1
            stem = f"{plain}_{tried[plain] + 1}"
        stems[file] = stem
        taken |= {stem, stages_stem(stem)}
    return stems


def stages_stem(stem: str) -> str:
    """Return the stem of the sheet of stages beside a picture."""
    return f"{stem}.stages"


def objects(answer: dict[str, np.ndarray], threshold: float, several: bool = False) -> list[dict]:
    """Return an image's detections in JSON's types: label, score, shown, box (normalised) and box_pixels."""
    count = int(answer["num_detections"])
    boxes, scores = answer["detection_boxes"][:count], answer["detection_scores"][:count]
    pixels = boxes * np.tile(answer["image_size"], 2).astype(np.float32)
    shown = displayed(boxes, scores, threshold, several)
    return [
        {
            "label": answer["detection_class_entities"][i].decode(),
            "score": float(scores[i]),
            "shown": bool(shown[i]),
            "box": boxes[i].tolist(),
            "box_pixels": pixels[i].tolist(),
        }
        for i in range(count)
    ]


def yolo_lines(answer: dict[str, np.ndarray], found: list[dict]) -> Iterator[str]:
    """Yield a line for each object that is shown, in YOLO's format: class from 0, centre, width and height."""
    for number, each in enumerate(found):
        if each["shown"]:
            ymin, xmin, ymax, xmax = each["box"]
            centre = f"{(xmin + xmax) / 2:.6f} {(ymin + ymax) / 2:.6f} {xmax - xmin:.6f} {ymax - ymin:.6f}"
            yield f"{int(answer['detection_classes'][number]) - 1} {centre}"


def _as_file(source: Path) -> Path:
    """Return the path by whose name a source's files are named: `camera0` for `camera:0`."""
    return Path({STDIN: "stdin"}.get(str(source), str(source).replace(CAMERA, "camera", 1)))


def classes(answer: dict[str, np.ndarray]) -> list[dict]:
    """Return an image's classes in JSON's types, best first: label and score."""
    pairs = zip(answer["classes"], answer["scores"], strict=True)
    return [{"label": label.decode(), "score": float(score)} for label, score in pairs if label]
