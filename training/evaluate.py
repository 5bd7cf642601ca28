"""Score anything that answers - a run, a SavedModel, a server - on a split of a source."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Protocol

import numpy as np
from tqdm import tqdm

from overfeat_tf.callables import Callables
from overfeat_tf.decode import decode_image
from training.average_precision import IlsvrcDetection, VocDetection
from training.metrics import Answer, CocoDetection, Guesses, Metric
from training.sources.record import Record, Source, check_split

PROTOCOLS = ("classification", "localization", "detection")
GUESSES = 5  # that top-5 error counts
BATCH = 8  # images a call: enough to hide a server's latency, few enough to bound memory


class Answering(Protocol):
    """Whatever has the inference calls over encoded images: a loaded model or a serving client."""

    def detect(self, images: list[bytes]) -> Answer: ...

    def localize(self, images: list[bytes]) -> Answer: ...


def evaluate(
    model: Answering,
    source: Source,
    split: str,
    protocols: Sequence[str] = ("detection",),
    limit: int | None = None,
    seen: Callable[[Record, Answer], None] | None = None,
    quiet: bool = False,
) -> dict[str, float]:
    """Run a split through the model and score it; memory does not grow with the split.

    Args:
        model: What answers.
        source, split, limit: What to score on: the first `limit` images.
        protocols: Of `PROTOCOLS`.
        seen: Also called with each record and its detections.
        quiet: Show no progress.

    Returns:
        The figures by name, and "images", how many were scored; "unreadable" where some could not be.

    Raises:
        ValueError: unknown protocol or split, an empty split, one without any object, or a protocol that needs boxes
            where there are none, or other classes than the model's.
    """
    unknown = [name for name in protocols if name not in PROTOCOLS]
    if unknown:
        raise ValueError(f"expected protocols of {', '.join(PROTOCOLS)}; got '{unknown[0]}'")
    check_split(source, split)
    placing = [name for name in protocols if name != "classification"]
    if placing and not source.boxed:
        raise ValueError(f"expected boxes to score {placing[0]} by; {source.name} has classes alone")
    kinds: tuple[Callable[[Sequence[str]], Metric], ...] = (CocoDetection, VocDetection, IlsvrcDetection)
    detection = [kind(source.class_names) for kind in kinds if "detection" in protocols]
    guesses: list[Metric] = [Guesses()] if {"classification", "localization"} & set(protocols) else []
    # A run's regressor may not have been fitted yet; a server tells its classes by `localize` alone.
    guess: Callable[[list[bytes]], Answer] = model.localize
    if isinstance(model, Callables) and "localization" not in protocols:
        guess = partial(_classified, model)
    counts = {"images": 0, "unreadable": 0}
    progress = tqdm(source.records(split, limit), desc=f"evaluate {split}", unit=" images", disable=quiet or None)
    for batch in _batches(iter(progress)):
        images, unread = [record.image_bytes for record in batch], np.zeros(len(batch), bool)
        for metrics, call in ((detection, model.detect), (guesses, guess)):
            if metrics:
                answers = call(images)
                _check_names(answers, source)
                _process(metrics, batch, answers, seen if metrics is detection else None)
                unread |= answers["status"] != b""
        counts["images"] += len(batch)
        counts["unreadable"] += int(unread.sum())
    if counts["images"] == 0:
        raise ValueError(f"expected images in split '{split}' of {source.name}; there are none")
    if counts["unreadable"] == 0:
        del counts["unreadable"]
    figures = {name: value for metric in detection for name, value in metric.evaluate()}
    errors = {name: value for metric in guesses for name, value in metric.evaluate()}
    wanted = {"classification": "top", "localization": "localization"}
    chosen = tuple(prefix for name, prefix in wanted.items() if name in protocols)
    figures |= {name: value for name, value in errors.items() if name.startswith(chosen)}
    if "localization" in protocols and "localization1_error" not in figures:
        raise ValueError(f"expected boxes in split '{split}' of {source.name}; its images have classes alone")
    return {**figures, **counts}


def require_fit(labels: Sequence[str], tasks: Sequence[str], source: Source, protocols: Sequence[str]) -> None:
    """Check that a model can be scored on a source by the protocols.

    Raises:
        ValueError: other classes, or a protocol that the model was not trained for.
    """
    if tuple(labels) != tuple(source.class_names):
        raise ValueError(
            f"expected the model's {len(labels)} classes ({', '.join(labels[:5])}...); "
            f"{source.name} has {len(source.class_names)} ({', '.join(source.class_names[:5])}...)"
        )
    missing = [name for name in protocols if name in PROTOCOLS and name not in tasks]
    if missing:
        raise ValueError(f"expected a model trained for {missing[0]}; this one was for {', '.join(tasks) or 'nothing'}")


def served_tasks(signatures: Iterable[str]) -> tuple[str, ...]:
    """Tell the protocols that a served model answers, by its signatures; a server ranks classes by `localize` alone."""
    known = set(signatures)
    return tuple(
        name
        for name, call in {"classification": "localize", "localization": "localize", "detection": "detect"}.items()
        if call in known
    )


def _check_names(answers: Answer, source: Source) -> None:
    """Raise ValueError where an answer names a class otherwise than the source: a server tells its classes so alone."""
    for classes, entities in zip(
        answers["detection_classes"], answers.get("detection_class_entities", ()), strict=False
    ):
        for number, entity in zip(classes.astype(int), entities, strict=True):
            known = source.class_names[number - 1] if 0 < number <= len(source.class_names) else "no class"
            if number and entity.decode(errors="replace") != known:
                raise ValueError(
                    f"expected the classes of {source.name} ({known} is number {number}); "
                    f"the model's number {number} is '{entity.decode(errors='replace')}'"
                )


def fixed_box_map50(source: Source, train_split: str, split: str) -> float:
    """Score a box that never moves: the training split's mean box, for every class, by its frequency.

    What a detector has to beat before its figure means anything.

    Raises:
        ValueError: unknown split, or one without any object.
    """
    boxes, labels = [], []
    for record in source.records(train_split):
        boxes.append(record.boxes[record.boxed])
        labels.append(record.labels[record.boxed])
    if not any(map(len, labels)):
        raise ValueError(f"expected objects in split '{train_split}' of {source.name}; there are none")
    mean = np.concatenate(boxes).mean(axis=0)
    shares = np.bincount(np.concatenate(labels), minlength=len(source.class_names)) / sum(map(len, labels))
    order = np.argsort(-shares)
    answer = {
        "image_size": np.array([1000, 1000]),
        "num_detections": np.array(len(order)),
        "detection_boxes": np.tile(mean, (len(order), 1)),
        "detection_scores": shares[order],
        "detection_classes": order + 1.0,
    }
    metric = CocoDetection(source.class_names)
    for record in source.records(split):
        metric.process(record, answer)
    return dict(metric.evaluate())["map50"]


def _classified(model: Callables, images: list[bytes]) -> Answer:
    """Give each image's classes by falling vote as `localize` does, with boxes of no size.

    From probabilities rather than names, since two classes may share one.
    """
    decoded = [decode_image(image) for image in images]
    statuses = [status.numpy() for _, status in decoded]
    readable = [row for row, status in enumerate(statuses) if not status]
    ranks = np.zeros((len(images), GUESSES))
    if readable:
        probabilities = model.classify([decoded[row][0].numpy() for row in readable])["probs"]
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, :GUESSES] + 1
        ranks[readable, : best.shape[1]] = best
    return {
        "status": np.array(statuses, object),
        "num_detections": (ranks > 0).sum(axis=1),
        "detection_classes": ranks,
        "detection_boxes": np.zeros((*ranks.shape, 4)),
    }


def _process(metrics: Sequence[Metric], batch: list[Record], answers: Answer, seen: Callable | None) -> None:
    for row, record in enumerate(batch):
        answer = {key: values[row] for key, values in answers.items()}
        for metric in metrics:
            metric.process(record, answer)
        if seen is not None:
            seen(record, answer)


def _batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    while batch := list(islice(records, BATCH)):
        yield batch
