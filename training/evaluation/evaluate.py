"""Score a model - a run, a SavedModel or a server - on a split of a source."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Protocol

import numpy as np

from overfeat_tf.images.decode import decode_image
from overfeat_tf.models.predictor import Predictor
from training.evaluation.metrics import Answer
from training.progress import progress
from training.sources.record import Record, Source, check_classes, check_split
from training.tasks import TRAINED_TASKS

GUESSES = 5  # that top-5 error counts


class BoxPredictor(Protocol):
    """Whatever has the inference calls over encoded images: a loaded model or a serving client."""

    def detect(self, images: list[bytes]) -> Answer: ...

    def localize(self, images: list[bytes]) -> Answer: ...


class NamedClassifier(Protocol):
    """A client: gives each image's classes and scores by name, best first; none for one that can't be read."""

    def classify(self, images: Sequence[bytes]) -> list[list[tuple[str, float]]]: ...


class ByName:
    """A served classifier, which has no boxes and tells classes by name alone, as one that localizes."""

    def __init__(self, client: NamedClassifier, class_names: Sequence[str]):
        """Take the data's class names, in their order.

        Raises:
            ValueError: two of them are the same.
        """
        self._client = client
        self._numbers = {name: number for number, name in enumerate(class_names, start=1)}
        if len(self._numbers) < len(class_names):
            raise ValueError("expected classes of different names, by which a server tells them: evaluate the run")

    def detect(self, images: list[bytes]) -> Answer:
        """Refuse: there is nothing to detect with."""
        raise ValueError("expected a server's model that detects; this one classifies alone")

    def localize(self, images: list[bytes]) -> Answer:
        """Return the classes that were named, with boxes of no size.

        Raises:
            ValueError: the model knows a class that the data do not have.
        """
        rows = [[pair for pair in row if pair[0]] for row in self._client.classify(images)]
        ranks, scores = np.zeros((len(images), GUESSES)), np.zeros((len(images), GUESSES))
        for number, row in enumerate(rows):
            unknown = [name for name, _ in row if name not in self._numbers]
            if unknown:
                raise ValueError(f"expected the data's classes; the model on the server knows '{unknown[0]}'")
            for rank, (name, score) in enumerate(row[:GUESSES]):
                ranks[number, rank], scores[number, rank] = self._numbers[name], score
        return _guesses(ranks, scores, [b"" if row else b"the server could not read it" for row in rows])


def guesses_call(model: BoxPredictor, placing: bool) -> Callable[[list[bytes]], Answer]:
    """Choose the call that gives classes by falling vote, with a box each if they are for `placing`.

    A run's regressor may not have been fitted yet.
    """
    return partial(_classified, model) if isinstance(model, Predictor) and not placing else model.localize


def served_tasks(signatures: Iterable[str]) -> tuple[str, ...]:
    """Tell the protocols that a served model answers, by its signatures."""
    known = set(signatures)
    return tuple(name for name, task in TRAINED_TASKS.items() if task.signatures & known)


def _classified(model: Predictor, images: list[bytes]) -> Answer:
    """Return each image's classes by falling vote as `localize` does, with boxes of no size.

    From probabilities rather than names, since two classes may share one.
    """
    decoded = [decode_image(image) for image in images]
    statuses = [status.numpy() for _, status in decoded]
    readable = [row for row, status in enumerate(statuses) if not status]
    ranks, scores = np.zeros((len(images), GUESSES)), np.zeros((len(images), GUESSES))
    if readable:
        probabilities = model.classify([decoded[row][0].numpy() for row in readable])["probs"]
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, :GUESSES]
        ranks[readable, : best.shape[1]] = best + 1
        scores[readable, : best.shape[1]] = np.take_along_axis(probabilities, best, axis=1)
    return _guesses(ranks, scores, statuses)


def _guesses(ranks: np.ndarray, scores: np.ndarray, statuses: list[bytes]) -> Answer:
    return {
        "status": np.array(statuses, object),
        "num_detections": (ranks > 0).sum(axis=1),
        "detection_classes": ranks,
        "detection_scores": scores,
        "detection_boxes": np.zeros((*ranks.shape, 4)),
    }


See = Callable[[Record, Answer], None]
PROTOCOLS = tuple(TRAINED_TASKS)
BATCH = 8  # images a call: enough to hide a server's latency, few enough to bound memory


def evaluate(
    model: BoxPredictor,
    source: Source,
    split: str,
    protocols: Sequence[str] = ("detection",),
    limit: int | None = None,
    seen: See | None = None,
    quiet: bool = False,
    watching: Mapping[str, Sequence[See]] | None = None,
    title: str = "evaluate",
    display_threshold: float | None = None,
) -> dict[str, float]:
    """Run a split through the model and score it; memory grows by some hundred bytes a detection, no more.

    Args:
        model: The model.
        source, split, limit: What to score on: the first `limit` images.
        protocols: Of `PROTOCOLS`.
        seen: Also called with each record and its detections.
        quiet: Show no progress.
        watching: Also called with each record and its answer, by the protocol whose answer it is.
        title: What the progress says is being done.
        display_threshold: The score from which the model's detections are shown; None leaves out the figures of those.

    Returns:
        The figures by name, and "images", how many were scored; "unreadable" where some could not be.

    Raises:
        ValueError: unknown protocol or split, an empty split, one without any object, or a protocol that needs boxes
            where there are none, or other classes than the model's.
    """
    unknown = [name for name in protocols or [""] if name not in PROTOCOLS]
    if unknown:
        raise ValueError(f"expected protocols of {', '.join(PROTOCOLS)}; got '{unknown[0]}'")
    check_split(source, split)
    placing = [name for name in protocols if name != "classification"]
    if placing and not source.boxed:
        raise ValueError(f"expected boxes to score {placing[0]} by; {source.name} has classes alone")
    chosen = [name for name in ("detection", *PROTOCOLS[:-1]) if name in protocols]
    metrics = {
        name: [make(source.class_names, display_threshold) for make in TRAINED_TASKS[name].metrics] for name in chosen
    }
    sees = {name: [*(metric.process for metric in metrics[name]), *(watching or {}).get(name, ())] for name in chosen}
    calls: list[tuple[Callable[[list[bytes]], Answer], list[See]]] = []
    if "detection" in chosen:
        calls.append((model.detect, [*sees["detection"], *([seen] if seen is not None else [])]))
    if guessing := [see for name in chosen if name != "detection" for see in sees[name]]:
        calls.append((guesses_call(model, "localization" in chosen), guessing))
    images = unreadable = 0
    scored = _scored(calls, _batches(source.records(split, limit)), source)
    for lost in progress(scored, f"{title} {split}", limit, quiet):
        images, unreadable = images + 1, unreadable + lost
    if images == 0:
        raise ValueError(f"expected images in split '{split}' of {source.name}; there are none")
    counts = {"images": images, **({"unreadable": unreadable} if unreadable else {})}
    return {name: value for kinds in metrics.values() for metric in kinds for name, value in metric.evaluate()} | counts


def require_fit(labels: Sequence[str], tasks: Sequence[str], source: Source, protocols: Sequence[str]) -> None:
    """Check that a model can be scored on a source by the protocols.

    Raises:
        ValueError: other classes, or a protocol that the model was not trained for.
    """
    check_classes(labels, source)
    missing = [name for name in protocols if name in PROTOCOLS and name not in tasks]
    if missing:
        raise ValueError(f"expected a model trained for {missing[0]}; this one was for {', '.join(tasks) or 'nothing'}")


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


def _scored(
    calls: Sequence[tuple[Callable[[list[bytes]], Answer], list[See]]], batches: Iterator[list[Record]], source: Source
) -> Iterator[bool]:
    """Show each image's answers to the observers, and yield whether it could not be read."""
    for batch in batches:
        images, unread = [record.image_bytes for record in batch], np.zeros(len(batch), bool)
        for call, watchers in calls:
            answers = call(images)
            _check_names(answers, source)
            _show(batch, answers, watchers)
            unread |= answers["status"] != b""
        yield from unread.tolist()


def _show(batch: list[Record], answers: Answer, watchers: Sequence[See]) -> None:
    for row, record in enumerate(batch):
        answer = {key: values[row] for key, values in answers.items()}
        for see in watchers:
            see(record, answer)


def _batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    while batch := list(islice(records, BATCH)):
        yield batch
