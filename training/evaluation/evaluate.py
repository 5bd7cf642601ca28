"""Score a model - a run, a SavedModel or a served model - on a split of a source."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice

import numpy as np

from overfeat_tf.arguments import suggest
from overfeat_tf.images.decode import decode_image
from overfeat_tf.models.predictor import Predictor
from overfeat_tf.models.tasks import CLASSIFICATION, DETECTION, LOCALIZATION
from training.evaluation.metrics import Answer
from training.evaluation.threads import map_ahead
from training.progress import progress
from training.sources.record import Record, Source, check_classes, check_split
from training.tasks import TRAINED_TASKS

Callback = Callable[[Record, Answer], None]
Call = Callable[[list[bytes]], Answer]
PROTOCOLS = tuple(TRAINED_TASKS)
BATCH = 8  # images a call: enough to hide a server's latency, few enough to bound memory
GUESSES = 5  # that top-5 error counts


def evaluate(
    model: Predictor,
    source: Source,
    split: str,
    protocols: Sequence[str] = ("detection",),
    limit: int | None = None,
    quiet: bool = False,
    callbacks: Mapping[str, Sequence[Callback]] | None = None,
    title: str = "evaluate",
    display_threshold: float | None = None,
) -> dict[str, float]:
    """Run a split through the model and score it; memory grows by some hundred bytes a detection, no more.

    Args:
        model: The model.
        source, split, limit: What to score on: the first `limit` images.
        protocols: Of `PROTOCOLS`.
        quiet: Show no progress.
        callbacks: Called with each record and its answer, by the protocol whose answer it is. Records that have a class
            without a box are only for classification, as for the metrics.
        title: What the progress says is being done.
        display_threshold: The score from which the model's detections are shown; None leaves out the figures of those.

    Returns:
        The figures by name, and "images", how many were scored; "unreadable" where some could not be.

    Raises:
        ValueError: unknown protocol or split, an empty split, one without any object, or a protocol that needs boxes
            where there are none, or other classes than the model's.
    """
    _check_protocols(protocols)
    check_split(source, split)
    placing = [name for name in protocols if name != "classification"]
    if placing and not source.boxed:
        raise ValueError(f"expected boxes to score {placing[0]} by; {source.name} has classes alone")
    chosen = [name for name in ("detection", *PROTOCOLS[:-1]) if name in protocols]
    metrics = {
        name: [make(source.class_names, display_threshold) for make in TRAINED_TASKS[name].metrics] for name in chosen
    }
    called = {
        name: [*(metric.process for metric in metrics[name]), *(callbacks or {}).get(name, ())] for name in chosen
    }
    called |= {name: [_where_boxed(callback) for callback in called[name]] for name in placing}
    calls: list[tuple[Call, list[Callback]]] = []
    if DETECTION.name in chosen:
        calls.append((model.detect, called[DETECTION.name]))
    if guessed := [callback for name in chosen if name != DETECTION.name for callback in called[name]]:
        # Classes come with boxes only where boxes are scored: a run's regressor may not have been fitted yet.
        boxes = LOCALIZATION.name in chosen or CLASSIFICATION.name not in model.tasks
        calls.append((model.localize if boxes else lambda images: _classify(model, source, images), guessed))
    images = unreadable = 0
    scored = _scored(calls, _batches(source.records(split, limit)), source, model.concurrency)
    for lost in progress(scored, f"{title} {split}", limit, quiet):
        images, unreadable = images + 1, unreadable + lost
    if images == 0:
        raise ValueError(f"expected images in split '{split}' of {source.name}; there are none")
    counts = {"images": images, **({"unreadable": unreadable} if unreadable else {})}
    return {name: value for kinds in metrics.values() for metric in kinds for name, value in metric.evaluate()} | counts


def _where_boxed(callback: Callback) -> Callback:
    return lambda record, answer: callback(record, answer) if record.boxed.all() else None


def require_fit(labels: Sequence[str], tasks: Sequence[str], source: Source, protocols: Sequence[str]) -> None:
    """Check that a model can be scored on a source by the protocols.

    Raises:
        ValueError: other classes, no such protocol, or one that the model was not trained for.
    """
    _check_protocols(protocols)
    check_classes(labels, source)
    missing = [name for name in protocols if name not in tasks]
    if missing:
        raise ValueError(f"expected a model trained for {missing[0]}; this one was for {', '.join(tasks) or 'nothing'}")


def _check_protocols(protocols: Sequence[str]) -> None:
    unknown = [name for name in protocols or [""] if name not in PROTOCOLS]
    if unknown:
        hint = suggest(unknown[0], PROTOCOLS)
        raise ValueError(f"expected protocols of {', '.join(PROTOCOLS)}; got '{unknown[0]}'{hint}")


def _check_names(answers: Answer, source: Source) -> None:
    """Raise ValueError where an answer names a class otherwise than the source: a server has no list of classes."""
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


def _classify(model: Predictor, source: Source, images: list[bytes]) -> Answer:
    """Return each image's classes by falling vote as `localize` does, with boxes of no size.

    By probabilities rather than names, since two classes may share one, unless names are all that the model tells.

    Raises:
        ValueError: classes of the data share a name, or lack one that the model tells.
    """
    ranks, scores = np.zeros((len(images), GUESSES)), np.zeros((len(images), GUESSES))
    if model.labels:
        decoded = [decode_image(image) for image in images]
        statuses = [status.numpy() for _, status in decoded]
        readable = [row for row, status in enumerate(statuses) if not status]
        if readable:
            probabilities = model.classify([decoded[row][0].numpy() for row in readable])["probs"]
            best = np.argsort(-probabilities, axis=1, kind="stable")[:, :GUESSES]
            ranks[readable, : best.shape[1]] = best + 1
            scores[readable, : best.shape[1]] = np.take_along_axis(probabilities, best, axis=1)
    else:
        numbers = {name: number for number, name in enumerate(source.class_names, start=1)}
        if len(numbers) < len(source.class_names):
            raise ValueError("expected classes of different names, by which a server tells them: evaluate the run")
        answer = model.classify(images)
        names = [[name.decode(errors="replace") for name in row if name] for row in answer["classes"][:, :GUESSES]]
        unknown = [name for row in names for name in row if name not in numbers]
        if unknown:
            raise ValueError(f"expected the data's classes; the model on the server knows '{unknown[0]}'")
        for row, told in enumerate(names):
            ranks[row, : len(told)] = [numbers[name] for name in told]
            scores[row, : len(told)] = answer["scores"][row, : len(told)]
        statuses = [b"" if told else b"the server could not read it" for told in names]
    return {
        "status": np.array(statuses, object),
        "num_detections": (ranks > 0).sum(axis=1),
        "detection_classes": ranks,
        "detection_scores": scores,
        "detection_boxes": np.zeros((*ranks.shape, 4)),
    }


def _scored(
    calls: Sequence[tuple[Call, list[Callback]]], batches: Iterator[list[Record]], source: Source, concurrency: int
) -> Iterator[bool]:
    """Give each image's answers to the callbacks, in order, and yield whether it could not be read."""
    for batch, answered in _answered([call for call, _ in calls], batches, concurrency):
        unread = np.zeros(len(batch), bool)
        for answers, (_, callbacks) in zip(answered, calls, strict=True):
            _check_names(answers, source)
            for row, record in enumerate(batch):
                answer = {key: values[row] for key, values in answers.items()}
                for callback in callbacks:
                    callback(record, answer)
            unread |= answers["status"] != b""
        yield from unread.tolist()


def _answered(
    calls: Sequence[Call], batches: Iterator[list[Record]], concurrency: int
) -> Iterator[tuple[list[Record], list[Answer]]]:
    """Yield batches with the answers of each call, in order; `concurrency` batches at a time."""

    def answer(batch: list[Record]) -> tuple[list[Record], list[Answer]]:
        images = [record.image_bytes for record in batch]
        return batch, [call(images) for call in calls]

    return map(answer, batches) if concurrency == 1 else map_ahead(answer, batches, concurrency, concurrency)


def _batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    while batch := list(islice(records, BATCH)):
        yield batch
