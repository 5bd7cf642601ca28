"""Scores as probabilities: how well they tell the chance of being right, and the map that makes them."""

import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from overfeat_tf.merge.calibration import (
    LEAST,
    RIVALS,
    UNCALIBRATED_THRESHOLD,
    Calibration,
    evidence_shares,
    relevant_options,
)
from overfeat_tf.models.model import Model
from training.evaluation.metrics import Answer, Rows, match_answer
from training.sources.record import Record, Source
from training.views.reading import mix

log = logging.getLogger(__name__)

BINS = 15  # of equal width, from 0 to 1 (Guo et al. 2017)


class Reliability:
    """Expected calibration error: the mean gap between score and share of right detections over bins of score.

    A detection is right where it is matched at an IoU of 0.5 to an object of its class; those matched to `difficult`
    objects and crowds do not count. All detections that the model returns count, faint ones too: of a model that
    returns many of them they outweigh those that it is sure of, so look at the table as well.
    """

    def __init__(self) -> None:
        self._count, self._right, self._score = np.zeros(BINS, int), np.zeros(BINS, int), np.zeros(BINS)

    def process(self, record: Record, answer: Answer) -> None:
        """Add an image and its detections."""
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
        yield "calibration_error", float(gaps.sum() / total) if total else math.nan
        for number, (count, right, score) in enumerate(zip(self._count, self._right, self._score, strict=True)):
            yield f"reliability/{number:02}/count", int(count)
            yield f"reliability/{number:02}/score", float(score / count) if count else math.nan
            yield f"reliability/{number:02}/right", float(right / count) if count else math.nan


IMAGES = 200  # from 50 on the calibration error on other images stays about 0.025 (digits)
BATCH = 8
STEPS = 100  # of Newton's method; some ten are enough
# Of slope, contest, offset. The penalty draws the map towards s / (1 + s) with the weight of a few detections: it stays
# finite where all of them are right, or none is. More evidence always scores more.
PRIOR, PENALTY, LEAST_WEIGHTS = np.array([1.0, 0.0, 0.0]), np.array([0.5, 0.5, 0.05]), np.array([0.1, 0.0, -np.inf])


def calibrate(model: Model, source: Source, split: str, images: int = IMAGES, seed: int = 0) -> Calibration | None:
    """Run a finished detector over held-out images, match what it finds to the truth, and fit its calibration.

    Args:
        model: The detector, with the inference options to calibrate for.
        source, split: Images that it was not fitted on; those that have a class without a box are left out.
        images: How many at most; running the detector on them is all that this costs.
        seed: Which images, of a split that has more.

    Returns:
        None where there is nothing to fit on; the log says why.
    """
    if split not in source.splits or not source.boxed:
        log.warning("scores are not calibrated: expected boxes in split '%s' of %s; there are none", split, source.name)
        return None
    # As it is, if it answers so already: its functions may have been traced by the validation of its training.
    changes: dict[str, Any] = {"one_box_per_object": False, "max_detections": max(model.options.max_detections, RIVALS)}
    plain = model.calibration is None and model.options == replace(model.options, **changes)
    detector = model if plain else model.with_options(scores="accumulated", **changes)
    found, objects, seen = Rows(score="f8", share="f8", right="?"), 0, 0
    boxed = (record for record in mix(source.records(split), (seed,)) if record.boxed.all())
    drawn = islice(boxed, images)
    while batch := list(islice(drawn, BATCH)):
        answers = detector.detect([record.image_bytes for record in batch])
        for row, record in enumerate(batch):
            answer = {key: values[row] for key, values in answers.items()}
            matches = match_answer(record, answer)
            counted, count = ~matches.ignored, len(matches.ignored)
            saturated = answer["detection_scores"][:count]
            scores = (saturated / (1.0 - saturated)).astype(np.float32)
            shares = evidence_shares(scores, answer["detection_boxes"][:count]).numpy()
            found.append(int(counted.sum()), score=scores[counted], share=shares[counted], right=matches.right[counted])
            objects += int((~record.difficult).sum())
        seen += len(batch)
    rows = found.table()
    if not objects or not len(rows):
        log.warning(
            "scores are not calibrated: %d images of split '%s' have %d objects, in which %d boxes were found",
            *(seen, split, objects, len(rows)),
        )
        return None
    fitted = fit_calibration(rows["score"], rows["share"], rows["right"], objects)
    return replace(fitted, options=relevant_options(model.options), images=seen)


def fit_calibration(scores: np.ndarray, shares: np.ndarray, right: np.ndarray, objects: int) -> Calibration:
    """Fit the map to detections, by logistic regression with a penalty.

    Args:
        scores: Accumulated scores s, float [n], n at least 1.
        shares: As `evidence_shares` gives them, float [n].
        right: Whether each detection is right, bool [n].
        objects: How many objects there were to find.
    """
    terms = np.stack([np.log(np.maximum(scores, LEAST)), np.log(np.maximum(shares, LEAST)), np.ones(len(scores))], 1)
    weights, free = PRIOR.copy(), np.array([True, True, True])
    for _ in LEAST_WEIGHTS:  # a weight that would fall too low is held there, and the others are fitted again
        weights[free] = _logistic(terms, right, weights, free)
        low = free & (weights < LEAST_WEIGHTS)
        if not low.any():
            break
        weights[low], free[low] = LEAST_WEIGHTS[low], False
    slope, contest, offset = (float(weight) for weight in weights)
    best, _ = _best_f1(1.0 / (1.0 + np.exp(-terms @ weights)), right, objects)
    _, accumulated = _best_f1(scores / (1.0 + scores), right, objects)
    # Of scores that are probabilities, F1 is best from half of its own best value on (Lipton et al. 2014).
    threshold = best / 2.0 if best > 0.0 else UNCALIBRATED_THRESHOLD
    return Calibration(slope, contest, offset, threshold, accumulated, detections=len(scores))


def _logistic(terms: np.ndarray, right: np.ndarray, weights: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Fit the free weights by Newton's method, and return them. A step that makes the loss worse is halved."""
    fitted, columns = weights.copy(), terms[:, free]

    def loss(candidate: np.ndarray) -> float:
        logits = terms @ candidate
        return float(
            (np.logaddexp(0.0, logits) - right * logits).sum() + (PENALTY * (candidate - PRIOR) ** 2).sum() / 2
        )

    for _ in range(STEPS):
        chances = 1.0 / (1.0 + np.exp(-np.clip(terms @ fitted, -30.0, 30.0)))
        gradient = columns.T @ (chances - right) + (PENALTY * (fitted - PRIOR))[free]
        curvature = (columns * (chances * (1.0 - chances))[:, None]).T @ columns + np.diag(PENALTY[free])
        step = np.linalg.solve(curvature, gradient)
        least, before = loss(fitted), fitted.copy()
        while np.abs(step).max() >= 1e-9:
            fitted[free] = before[free] - step
            if loss(fitted) <= least:
                break
            step /= 2.0
        else:
            return before[free]
    return fitted[free]


def _best_f1(scores: np.ndarray, right: np.ndarray, objects: int) -> tuple[float, float]:
    """Return the best F1 over all thresholds, and the threshold midway to the next lower score."""
    ranking = np.argsort(-scores, kind="stable")
    f1 = 2.0 * np.cumsum(right[ranking]) / (np.arange(1, len(ranking) + 1) + objects)
    last = int(f1.argmax())
    if f1[last] <= 0.0:
        return 0.0, UNCALIBRATED_THRESHOLD
    lower = scores[ranking[last + 1]] if last + 1 < len(ranking) else scores[ranking[last]]
    return float(f1[last]), float(scores[ranking[last]] + lower) / 2.0
