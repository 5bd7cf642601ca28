"""Score anything that answers - a run, a SavedModel, a server - on a split of a source."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice

import numpy as np

from training.answering import Answering, asked_for_guesses
from training.average_precision import IlsvrcDetection, VocDetection
from training.detection_recall import DetectionRecall
from training.metrics import Answer, CocoDetection, Guesses, Metric
from training.progress import progress
from training.reliability import Reliability
from training.sources.record import Record, Source, check_classes, check_split

See = Callable[[Record, Answer], None]
# A line a metric, made from class names and display threshold, by the protocol that asks for it.
METRICS: dict[str, tuple[Callable[[Sequence[str], float | None], Metric], ...]] = {
    "classification": (lambda names, _: Guesses(names, kinds=("top",)),),
    "localization": (lambda names, _: Guesses(names, kinds=("localization",)),),
    "detection": (
        lambda names, _: CocoDetection(names),
        lambda names, _: VocDetection(names),
        lambda names, _: IlsvrcDetection(names),
        DetectionRecall,
        lambda names, _: Reliability(names),
    ),
}
PROTOCOLS = tuple(METRICS)
BATCH = 8  # images a call: enough to hide a server's latency, few enough to bound memory


def evaluate(
    model: Answering,
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
        model: What answers.
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
    metrics = {name: [make(source.class_names, display_threshold) for make in METRICS[name]] for name in chosen}
    sees = {name: [*(metric.process for metric in metrics[name]), *(watching or {}).get(name, ())] for name in chosen}
    calls: list[tuple[Callable[[list[bytes]], Answer], list[See]]] = []
    if "detection" in chosen:
        calls.append((model.detect, [*sees["detection"], *([seen] if seen is not None else [])]))
    if guessing := [see for name in chosen if name != "detection" for see in sees[name]]:
        calls.append((asked_for_guesses(model, "localization" in chosen), guessing))
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
    """Show each image's answers to those who watch; then tell of it whether it could not be read."""
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
