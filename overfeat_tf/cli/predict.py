"""`overfeat predict`: run images and videos through a local or served model; write pictures with boxes, and JSON."""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import tensorflow as tf
from PIL import Image
from tqdm import tqdm

from overfeat_tf.cli.inputs import STDIN, Input, is_moving, read_inputs
from overfeat_tf.cli.options import Changes, Connection, JsonArray, count_of, option_name, with_changes
from overfeat_tf.draw.pictures import draw_boxes, draw_classes, file_stem
from overfeat_tf.draw.stages import StagedModel, draw_stages
from overfeat_tf.images.decode import decode_image
from overfeat_tf.images.video import CAMERA, VideoWriter, opencv
from overfeat_tf.merge.calibration import displayed
from overfeat_tf.models.loading import load
from overfeat_tf.models.model import Model
from overfeat_tf.models.predictor import Predictor, choose_task
from overfeat_tf.models.tasks import BY_NAME, CLASSIFICATION, LOCALIZATION, Task
from serving.errors import reason
from training.progress import Progress

BATCH = 8
SHOWN_CLASSES = 3  # of a classifier's, in the line of an image

Outputs = dict[str, Any]  # arrays by name; of one image also numbers and bytes
Call = Callable[[Sequence[bytes]], Outputs]  # of a batch


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


def run(
    model: str,
    sources: Sequence[Path],
    server: str | None,
    wanted: Wanted,
    threshold: float | None,
    changes: Changes,
    stages: bool = False,
    connection: Connection | None = None,
    task: str | None = None,
    last: bool = False,
) -> int:
    """Run images through the model and write a picture of each; return how many have no answer or no picture.

    Each image gets a line, and its answer is in the JSON file as soon as it is known. An image that cannot be read, or
    that the server rejects, is reported on stderr, and its answer has the status. Pictures show the boxes that score at
    least `threshold`. By default this is the model's display threshold, 0.5 for a server, which does not report it, and
    0 for localization, whose guesses are all drawn. Of overlapping detections they show the best, unless `changes` ask
    for several. `stages` needs a run and adds a second picture per file with the stages of its answer. The default task
    is the last that the model was trained for.
    """
    if server is not None:
        if stages:
            raise ValueError("expected no --stages with --server, which returns only answers; use the model's run")
        if rejected := _without_display_option(changes):
            given = ", ".join(map(option_name, rejected))
            raise ValueError(f"expected no {given} with --server; a served model keeps the options of its export")
    if any(map(is_moving, sources)):
        opencv()
        if stages:
            raise ValueError("expected images with --stages; got a video or a camera")
    if wanted.best is not None:
        task = task or CLASSIFICATION.name
        if task != CLASSIFICATION.name:
            raise ValueError(f"expected --task classification with -n; got {task}")
    with ExitStack() as stack:
        predictor: Predictor
        if server is not None:
            from serving.client.client import Client

            predictor = stack.enter_context(Client(server, model, **(connection or {})))
        else:
            predictor = _load(model, changes, wanted.best, last)
        chosen = BY_NAME[choose_task(predictor, task)]
        if chosen == CLASSIFICATION and (wanted.save_crops or threshold is not None):
            given = "--save-crops" if wanted.save_crops else "--threshold"
            raise ValueError(f"expected {given} with a task that has boxes; classification has none")
        if threshold is None:
            threshold = predictor.least_score(chosen)
        # Localization returns a box for each of the best classes, and these boxes may coincide.
        several = changes.get("one_box_per_object") is False or chosen == LOCALIZATION
        images, call = read_inputs(sources, wanted.every), encoded_call(predictor, chosen)
        writer = Writer(wanted, sources, chosen, threshold, several)
        if server is not None:
            answered = _answer_by_server(call, images, predictor.concurrency)
        elif stages:
            answered = _answer_in_stages(StagedModel(predictor, chosen.name), images, writer)
        else:
            answered = _answer(call, images, BATCH if all(source.is_file() for source in sources) else 1)
        unknown = any(is_moving(source) or str(source) == STDIN for source in sources)
        stack.enter_context(writer)
        progress = stack.enter_context(Progress(None if unknown else len(sources)))
        if any(str(source).startswith(CAMERA) for source in sources):
            stack.enter_context(suppress(KeyboardInterrupt))  # a camera has no other end
        for one in answered:
            if problem := writer.write(one, stages):
                progress.report(one.image.source, problem)
            progress.advance(1)
    print(f"overfeat: {writer.summary()}", file=sys.stderr)
    return writer.failed


def _load(model: str, changes: Changes, best: int | None, last: bool) -> Predictor:
    """Load a run with other inference options and as many guesses as are wanted, or a SavedModel as it is."""
    loaded = load(model, last)
    if isinstance(loaded, Model):
        return with_changes(loaded, changes if best is None else {"top_k": best, **changes}, Path(model))
    # A SavedModel usually returns all boxes already, and its options cannot be changed.
    return with_changes(loaded, _without_display_option(changes))


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


def _without_display_option(changes: Changes) -> Changes:
    """Return the inference options without --several-per-object, which every model supports."""
    return {key: value for key, value in changes.items() if key != "one_box_per_object" or value}


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


def _answer(call: Call, images: Iterable[Input], batch: int) -> Iterator[Answered]:
    """Run images in batches."""
    images = iter(images)
    while group := list(islice(images, batch)):
        answers = iter(answer_each(call, [image.data for image in group if not image.problem]))
        for image in group:
            yield Answered(image, {} if image.problem else next(answers), image.problem)


def answer_each(call: Call, images: Sequence[bytes]) -> list[Outputs]:
    """Return each image's outputs; one that the model fails for, or memory has no room for, has a status alone."""
    if not images:
        return []
    try:
        outputs = call(images)
    except tf.errors.OpError as error:
        if len(images) == 1:
            return [{"status": reason(error.message).encode()}]
        return [answer for image in images for answer in answer_each(call, [image])]
    return [{key: values[row] for key, values in outputs.items()} for row in range(len(images))]


def _answer_in_stages(staged: StagedModel, images: Iterable[Input], writer: Writer) -> Iterator[Answered]:
    """Run images one at a time and draw the stages of each answer into its sheet."""
    if staged.task == CLASSIFICATION.name:
        print("overfeat: classification has no boxes, so its stages end with the class scores", file=sys.stderr)
    for image in images:
        if image.problem:
            yield Answered(image, {}, image.problem)
            continue
        answer, stages = staged(image.data)
        problem = ""
        if stages is not None:
            try:
                draw_stages(image.data, stages, staged.model, writer.threshold).save(writer.sheet(image))
            except OSError as error:
                answer, problem = {}, f"its stages cannot be written: {error.strerror or error}"
        yield Answered(image, answer, problem)


def _answer_by_server(call: Call, images: Iterable[Input], concurrency: int) -> Iterator[Answered]:
    """Run images in concurrent requests of one."""
    from serving.client.pipelining import Unsent, in_order

    unsent = (Unsent(image, image.data, image.problem) for image in images)
    for sent in in_order(call, unsent, concurrency):
        yield Answered(sent.item, sent.outputs, sent.problem)


def encoded_call(model: Predictor, task: Task) -> Call:
    """Return the call that answers a task for encoded images, with the status of each."""
    if task == CLASSIFICATION:
        return lambda images: _with_status(images, model.classify(images))
    return getattr(model, task.call)


def _with_status(images: Sequence[bytes], answer: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Add the status of each image, which the signature `classify` does not return."""
    read = [any(label for label in row) for row in answer["classes"]]
    statuses = [b"" if ok else decode_image(image)[1].numpy() for ok, image in zip(read, images, strict=True)]
    return {**answer, "status": np.array(statuses, object)}
