"""How well scores of detections tell the probability of being right: reliability table and calibration error."""

from collections.abc import Iterator, Sequence

import numpy as np

from training.detection_matching import match_answer
from training.metrics import Answer
from training.sources.record import Record

BINS = 15  # of equal width, from 0 to 1 (Guo et al. 2017)


class Reliability:
    """Expected calibration error: the mean gap between score and share of right detections over bins of score.

    A detection is right where it is matched at an IoU of 0.5 to an object of its class; those matched to `difficult`
    objects and crowds do not count. All detections that the model returns count, faint ones too: of a model that
    returns many of them they outweigh those that it is sure of, so look at the table as well.
    """

    def __init__(self, class_names: Sequence[str] = ()):
        self._count, self._right, self._score = np.zeros(BINS, int), np.zeros(BINS, int), np.zeros(BINS)

    def process(self, record: Record, answer: Answer) -> None:
        """Add an image and its detections; one with a class without a box counts for nothing."""
        if not record.boxed.all():
            return
        matches = match_answer(record, answer)
        scores = answer["detection_scores"][: len(matches.truth)].astype(float)
        self.add(scores[~matches.ignored], matches.right[~matches.ignored])

    def add(self, scores: np.ndarray, right: np.ndarray) -> None:
        """Add detections that count: scores in 0..1 [n] and whether each is right, bool [n]."""
        bins = np.clip((scores * BINS).astype(int), 0, BINS - 1)
        self._count += np.bincount(bins, minlength=BINS)
        self._right += np.bincount(bins[right], minlength=BINS)
        self._score += np.bincount(bins, weights=scores, minlength=BINS)

    def evaluate(self) -> Iterator[tuple[str, float]]:
        """Yield calibration_error (nan without detections) and the table of bins 00 to 14, lowest scores first.

        Of each bin reliability/BIN/count, reliability/BIN/score (their mean) and reliability/BIN/right (the share of
        right ones); the last two are nan in an empty bin.
        """
        total = int(self._count.sum())
        gaps = np.abs(self._score - self._right)
        yield "calibration_error", float(gaps.sum() / total) if total else float("nan")
        for number, (count, right, score) in enumerate(zip(self._count, self._right, self._score, strict=True)):
            yield f"reliability/{number:02}/count", int(count)
            yield f"reliability/{number:02}/score", float(score / count) if count else float("nan")
            yield f"reliability/{number:02}/right", float(right / count) if count else float("nan")
