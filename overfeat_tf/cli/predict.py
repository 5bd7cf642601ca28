"""`overfeat predict`: files in, pictures with boxes and JSON out, through a model here or on a server."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from overfeat_tf.cli.image_files import read_image
from overfeat_tf.cli.options import Changes, Connection, with_changes
from overfeat_tf.draw.pictures import draw_boxes, draw_classes
from overfeat_tf.draw.stage_sheet import draw_stages
from overfeat_tf.images.decode import decode_image
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
    """A file, its bytes, and a task's outputs for it, or in their place why there are none."""

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
) -> list[dict]:
    """Run files through the model, write a picture for each into `out`, and return an answer for each.

    A file that cannot be read, or that the server refuses, is reported on stderr and has its status in the answer.
    Pictures show the boxes that score at least `threshold`: the model's own if None, 0.5 where a server answers, which
    does not tell it. Of detections that overlap they show the best, unless `changes` ask for several. With `stages`,
    which needs a run, each file gets a second picture, of what its answer came from. The task is the last of
    classification, localization and detection that the model was trained for, or the one that is asked for.
    """
    names = picture_names(files)
    show_several = changes.get("one_box_per_object") is False
    loaded = load(model) if server is None else None
    if loaded is not None:
        # A SavedModel's answer has all boxes already, as a rule; its options cannot be changed.
        loaded = with_changes(loaded, changes if isinstance(loaded, Model) else without_showing(changes))
    if threshold is None:
        threshold = loaded.display_threshold if loaded is not None else UNCALIBRATED_THRESHOLD
    if loaded is None:
        answered = _served(model, files, str(server), connection or {}, task)
    elif stages:
        sheets = {file: out / stages_name(name) for file, name in names.items()}
        answered = _in_stages(loaded, sheets, threshold, task)
    else:
        answered = _answered(loaded, files, task)
    out.mkdir(parents=True, exist_ok=True)
    answers = []
    with Progress(len(files)) as progress:
        for file, data, outputs, problem, answered_task in answered:
            # Localization gives each of the best classes a box, which may well be the same.
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


def without_showing(changes: Changes) -> Changes:
    """Return inference options without the one that asks to show overlapping detections, which any model can."""
    return {key: value for key, value in changes.items() if key != "one_box_per_object" or value}


def _found(outputs: dict[str, np.ndarray], threshold: float, several: bool) -> dict[str, list[dict]]:
    """List what an image's outputs say in JSON's types, under what they are; nothing where there are none."""
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
    """Name each file's picture: its stem, with its folder before it where two files share a stem.

    No picture is named as another's sheet of stages.
    """
    names: dict[Path, str] = {}
    taken: set[str] = set()
    stems = Counter(file.stem for file in files)
    tried: Counter[str] = Counter()  # of each name, so that files of one name do not try all those before them again
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
    """Name the sheet of stages beside a picture."""
    return f"{picture.removesuffix('.png')}.stages.png"


def objects(answer: dict[str, np.ndarray], threshold: float, several: bool = False) -> list[dict]:
    """List an image's detections in JSON's types: label, score, whether it is shown, box normalised and in pixels."""
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
    """List an image's classes in JSON's types, best first: label and score."""
    pairs = zip(answer["classes"], answer["scores"], strict=True)
    return [{"label": label.decode(), "score": float(score)} for label, score in pairs if label]


def _answered(model: Model | Exported, files: Sequence[Path], task: str | None) -> Iterator[Answered]:
    chosen = BY_NAME[choose_task(model, task)]
    return _batched(_call(model, chosen), files, chosen.name)


def _in_stages(
    model: Model | Exported, sheets: dict[Path, Path], threshold: float, task: str | None
) -> Iterator[Answered]:
    """Answer images one at a time, drawing the stages of each answer into its sheet."""
    staged = StagedModel(model, task)
    if staged.task == CLASSIFICATION.name:
        print("overfeat: classification has no boxes: its stages end with the class scores", file=sys.stderr)
    return (_in_stages_one(staged, file, sheet, threshold) for file, sheet in sheets.items())


def _in_stages_one(staged: StagedModel, file: Path, sheet: Path, threshold: float) -> Answered:
    data, problem = read_image(file)
    if problem:
        return Answered(file, data, {}, problem)
    answer, stages = staged(data)
    if stages is not None:
        draw_stages(data, stages, staged.model, threshold).save(sheet)
    return Answered(file, data, answer, task=staged.task)


def _served(
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
    """Add why images have no class: the signature `classify` has no room for it."""
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
