"""How whatever answers - a run, a SavedModel, a server - is asked for its best guesses at an image's class."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol

import numpy as np

from overfeat_tf.images.decode import decode_image
from overfeat_tf.models.predictor import Predictor
from training.metrics import Answer

GUESSES = 5  # that top-5 error counts


class Answering(Protocol):
    """Whatever has the inference calls over encoded images: a loaded model or a serving client."""

    def detect(self, images: list[bytes]) -> Answer: ...

    def localize(self, images: list[bytes]) -> Answer: ...


class Naming(Protocol):
    """A client: gives each image's classes and scores by name, best first; none for one that can't be read."""

    def classify(self, images: Sequence[bytes]) -> list[list[tuple[str, float]]]: ...


class ByName:
    """A served classifier, which has no boxes and tells classes by name alone, as one that localizes."""

    def __init__(self, client: Naming, class_names: Sequence[str]):
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
        """Give the classes that were named, with boxes of no size.

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


def asked_for_guesses(model: Answering, placing: bool) -> Callable[[list[bytes]], Answer]:
    """Choose the call that gives classes by falling vote, with a box each if they are for `placing`.

    A run's regressor may not have been fitted yet.
    """
    return partial(_classified, model) if isinstance(model, Predictor) and not placing else model.localize


def served_tasks(signatures: Iterable[str]) -> tuple[str, ...]:
    """Tell the protocols that a served model answers, by its signatures."""
    known = set(signatures)
    calls = {"classification": {"classify", "localize"}, "localization": {"localize"}, "detection": {"detect"}}
    return tuple(name for name, any_of in calls.items() if any_of & known)


def _classified(model: Predictor, images: list[bytes]) -> Answer:
    """Give each image's classes by falling vote as `localize` does, with boxes of no size.

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
