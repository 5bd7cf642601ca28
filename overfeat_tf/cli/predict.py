"""`overfeat predict`: run image files through a local or served model; write pictures with boxes and JSON."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from overfeat_tf.cli.options import Changes, Connection, with_changes
from overfeat_tf.draw.pictures import draw_boxes, draw_classes
from overfeat_tf.draw.stage_sheet import draw_stages
from overfeat_tf.images.decode import decode_image
from overfeat_tf.images.files import read_image
from overfeat_tf.merge.calibration import UNCALIBRATED_THRESHOLD, displayed
from overfeat_tf.models.loading import Exported, load
from overfeat_tf.models.model import Model
from overfeat_tf.models.predictor import Predictor, choose_task
from overfeat_tf.models.staged_model import StagedModel
from overfeat_tf.models.tasks import BY_NAME, CLASSIFICATION, LOCALIZATION, Task
from training.progress import Progress

BATCH = 8

Call = Callable[[Sequence[bytes]], dict[str, np.ndarray]]


class Answered(NamedTuple):
    """A file, its bytes, and the outputs of a task, or the problem if there are none."""

    file: Path
    data: bytes
    outputs: dict[str, np.ndarray]
    problem: str = ""
    task: str = ""


def run(
    model: str,
    files: Sequence[Path],
    server: str | None,
    out: Path,
    threshold: float | None,
    changes: Changes,
    stages: bool = False,
    connection: Connection | None = None,
    task: str | None = None,
    last: bool = False,
) -> list[dict]:
    """Run files through the model, write a picture for each into `out`, and return one answer for each.

    A file that cannot be read, or that the server rejects, is reported on stderr, and its answer has the status.
    Pictures show the boxes that score at least `threshold`. By default this is the model's display threshold, and 0.5
    for a server, which does not report it. Of overlapping detections they show the best, unless `changes` ask for
    several. `stages` needs a run and adds a second picture per file with the stages of its answer. The default task is
    the last that the model was trained for.
    """
    names = picture_names(files)
    show_several = changes.get("one_box_per_object") is False
    loaded = load(model, last) if server is None else None
    if loaded is not None:
        # A SavedModel usually returns all boxes already, and its options cannot be changed.
        loaded = with_changes(loaded, changes if isinstance(loaded, Model) else without_display_option(changes))
    if threshold is None:
        threshold = loaded.display_threshold if loaded is not None else UNCALIBRATED_THRESHOLD
    if loaded is None:
        answered = _answer_by_server(model, files, str(server), connection or {}, task)
    elif stages:
        sheets = {file: out / stages_name(name) for file, name in names.items()}
        answered = _answer_in_stages(loaded, sheets, threshold, task)
    else:
        answered = _answer(loaded, files, task)
    out.mkdir(parents=True, exist_ok=True)
    answers = []
    with Progress(len(files)) as progress:
        for file, data, outputs, problem, answered_task in answered:
            # Localization returns a box for each of the best classes, and these boxes may coincide.
            several = show_several or answered_task == LOCALIZATION.name
            status = problem or bytes(outputs["status"]).decode()
            if status:
                progress.report(file, status)
            pictures = {} if status else {"picture": str(out / names[file])}
            found = _found(outputs, threshold, several)
            if not status:
                _draw(data, outputs, found, threshold, several).save(out / names[file])
            if stages and not status:
                pictures["stages"] = str(out / stages_name(names[file]))
            answers.append({"file": str(file), "status": status, **pictures, **found})
            progress.advance(1)
    kind = "classes" if any("classes" in answer for answer in answers) else "objects"
    return [{**answer, kind: answer.get(kind, [])} for answer in answers]


def without_display_option(changes: Changes) -> Changes:
    """Return the inference options without --several-per-object, which every model supports."""
    return {key: value for key, value in changes.items() if key != "one_box_per_object" or value}


def _found(outputs: dict[str, np.ndarray], threshold: float, several: bool) -> dict[str, list[dict]]:
    """Return an image's objects or classes in JSON's types, under that key; an empty dict without outputs."""
    if not outputs:
        return {}
    if "detection_boxes" in outputs:
        return {"objects": objects(outputs, threshold, several)}
    return {"classes": classes(outputs)}


def _draw(
    data: bytes, outputs: dict[str, np.ndarray], found: dict[str, list[dict]], threshold: float, several: bool
) -> Image.Image:
    if "objects" in found:
        return draw_boxes(data, outputs, least_score=threshold, several=several)
    return draw_classes(data, [(one["label"], one["score"]) for one in found["classes"]])


def picture_names(files: Sequence[Path]) -> dict[Path, str]:
    """Name each file's picture by its stem, with its folder in front if files share a stem.

    No picture has the name of another file's sheet of stages.
    """
    names: dict[Path, str] = {}
    taken: set[str] = set()
    stems = Counter(file.stem for file in files)
    tried: Counter[str] = Counter()  # suffixes tried for each name, so that many files of one name stay fast
    for file in files:
        parts = file.parts[-2:-1] if stems[file.stem] > 1 else ()
        plain = name = "_".join((*parts, file.stem))
        while {f"{name}.png", stages_name(f"{name}.png")} & taken:
            tried[plain] += 1
            name = f"{plain}_{tried[plain] + 1}"
        names[file] = f"{name}.png"
        taken |= {names[file], stages_name(names[file])}
    return names


def stages_name(picture: str) -> str:
    """Return the name of the sheet of stages for a picture."""
    return f"{picture.removesuffix('.png')}.stages.png"


def objects(answer: dict[str, np.ndarray], threshold: float, several: bool = False) -> list[dict]:
    """Return an image's detections in JSON's types: label, score, shown, box (normalised) and box_pixels."""
    height, width = (int(side) for side in answer["image_size"])
    count = int(answer["num_detections"])
    shown = displayed(answer["detection_boxes"][:count], answer["detection_scores"][:count], threshold, several)
    return [
        {
            "label": answer["detection_class_entities"][i].decode(),
            "score": float(answer["detection_scores"][i]),
            "shown": bool(shown[i]),
            "box": [float(edge) for edge in answer["detection_boxes"][i]],
            "box_pixels": [
                float(e * s) for e, s in zip(answer["detection_boxes"][i], (height, width) * 2, strict=True)
            ],
        }
        for i in range(count)
    ]


def classes(answer: dict[str, np.ndarray]) -> list[dict]:
    """Return an image's classes in JSON's types, best first: label and score."""
    pairs = zip(answer["classes"], answer["scores"], strict=True)
    return [{"label": label.decode(), "score": float(score)} for label, score in pairs if label]


def _answer(model: Model | Exported, files: Sequence[Path], task: str | None) -> Iterator[Answered]:
    chosen = BY_NAME[choose_task(model, task)]
    return _batched(_call(model, chosen), files, chosen.name)


def _answer_in_stages(
    model: Model | Exported, sheets: dict[Path, Path], threshold: float, task: str | None
) -> Iterator[Answered]:
    """Run images one at a time and draw the stages of each answer into its sheet."""
    staged = StagedModel(model, task)
    if staged.task == CLASSIFICATION.name:
        print("overfeat: classification has no boxes, so its stages end with the class scores", file=sys.stderr)
    return (_answer_one_in_stages(staged, file, sheet, threshold) for file, sheet in sheets.items())


def _answer_one_in_stages(staged: StagedModel, file: Path, sheet: Path, threshold: float) -> Answered:
    data, problem = read_image(file)
    if problem:
        return Answered(file, data, {}, problem)
    answer, stages = staged(data)
    if stages is not None:
        draw_stages(data, stages, staged.model, threshold).save(sheet)
    return Answered(file, data, answer, task=staged.task)


def _answer_by_server(
    name: str, files: Sequence[Path], server: str, connection: Connection, task: str | None
) -> Iterator[Answered]:
    from serving.client.client import Client
    from serving.client.pipelining import Unsent, in_order

    with Client(server, name, **connection) as client:
        chosen = BY_NAME[choose_task(client, task)]
        images = ((file, *read_image(file)) for file in files)
        for sent in in_order(_call(client, chosen), (Unsent(*image) for image in images)):
            yield Answered(sent.item, sent.image, sent.outputs, sent.problem, chosen.name)


def _call(model: Predictor, task: Task) -> Call:
    if task == CLASSIFICATION:
        return lambda images: _with_status(images, model.classify(images))
    return getattr(model, task.call)


def _with_status(images: Sequence[bytes], answer: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Add the status of each image, which the signature `classify` does not return."""
    read = [any(label for label in row) for row in answer["classes"]]
    statuses = [b"" if ok else decode_image(image)[1].numpy() for ok, image in zip(read, images, strict=True)]
    return {**answer, "status": np.array(statuses, object)}


def _batched(call: Call, files: Sequence[Path], task: str) -> Iterator[Answered]:
    for first in range(0, len(files), BATCH):
        read = [(file, *read_image(file)) for file in files[first : first + BATCH]]
        images = [data for _, data, problem in read if not problem]
        outputs = call(images) if images else {}
        rows = iter(range(len(images)))
        for file, data, problem in read:
            row = None if problem else next(rows)
            found = {} if row is None else {key: values[row] for key, values in outputs.items()}
            yield Answered(file, data, found, problem, task)
