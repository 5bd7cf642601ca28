"""Calibration: from accumulated scores (4.3) to the probability that a box is right."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from overfeat_tf import boxes as box_ops
from overfeat_tf.options import InferenceOptions

UNCALIBRATED_THRESHOLD = 0.5  # s / (1 + s) of one fully certain window
LEAST = 1e-12  # of evidence, so that it has a logarithm
RIVAL_IOU = 0.4  # boxes that overlap this much compete for one object; 0.3 and 0.5 measured within 0.002 mAP
RIVALS = 100  # boxes of most evidence that others compete with, however many are answered
# Options that change neither the boxes nor the evidence behind them.
WITHOUT_EFFECT = ("scores", "one_box_per_object", "arithmetic", "images_at_once", "max_detections")


@dataclass(frozen=True)
class Calibration:
    """A monotone map from the evidence for a merged box to the probability that the box is right.

    Right means an IoU of at least 0.5 with an object of its class that no better box has found. The probability is

        sigmoid(slope log(s) + contest log(share) + offset)

    where s is the box's accumulated score and share is s over the sum of the accumulated scores of the boxes that
    overlap it, itself included (`evidence_shares`): several classes at one place can't all be right, nor can repeats of
    one. With slope 1 and zeros it is s / (1 + s), which models without a calibration answer.

    Attributes:
        slope, contest: Weights, at least 0, so that more evidence never lowers a score.
        offset: Constant term.
        threshold: The display threshold: the score of the best F1 on the images that the map was fitted on.
        accumulated_threshold: The same of s / (1 + s), for options with accumulated scores.
        options: The inference options that the map was fitted with; others gather other sums.
        images, detections: How many the map was fitted on.
    """

    slope: float = 1.0
    contest: float = 0.0
    offset: float = 0.0
    threshold: float = UNCALIBRATED_THRESHOLD
    accumulated_threshold: float = UNCALIBRATED_THRESHOLD
    options: Mapping[str, Any] = field(default_factory=dict)
    images: int = 0
    detections: int = 0

    def __post_init__(self) -> None:
        if not (self.slope >= 0 and self.contest >= 0):
            raise ValueError(f"expected weights of at least 0; got slope {self.slope}, contest {self.contest}")
        for value in (self.threshold, self.accumulated_threshold):
            if not 0 <= value <= 1:
                raise ValueError(f"expected thresholds from 0 to 1; got {value}")

    def __call__(self, scores: tf.Tensor, boxes: tf.Tensor) -> tf.Tensor:
        """Return the probabilities float32 [n] of an image's accumulated scores [n], falling, with boxes [n, 4]."""
        evidence = tf.math.log(tf.maximum(scores, LEAST))
        share = tf.math.log(tf.maximum(evidence_shares(scores, boxes), LEAST))
        return tf.sigmoid(self.slope * evidence + self.contest * share + self.offset)

    def changed_options(self, options: InferenceOptions) -> list[str]:
        """Return the names of the options that matter to the map and differ from those that it was fitted with."""
        now = relevant_options(options)
        return [key for key, value in self.options.items() if key in now and now[key] != value]

    def config(self) -> dict:
        """Describe the map in JSON's types."""
        return asdict(self)

    @classmethod
    def from_config(cls, config: Mapping | None) -> "Calibration | None":
        """Build the map from `config`; None where there is none, as in runs that were never calibrated."""
        return cls(**config) if config else None


def evidence_shares(scores: tf.Tensor, boxes: tf.Tensor) -> tf.Tensor:
    """Return each accumulated score's share [n] of its own and those of the boxes that overlap its box.

    These are among the first `RIVALS`, so that a share does not depend on how many boxes there are in all.

    Args:
        scores: Accumulated scores float32 [n], falling.
        boxes: float32 [n, 4] yxyx.
    """
    rivals = scores[:RIVALS]
    competing = tf.cast(box_ops.iou(boxes[:, None], boxes[None, :RIVALS]) >= RIVAL_IOU, scores.dtype)
    competing = tf.linalg.set_diag(competing, tf.zeros_like(rivals))  # itself, which a box without area misses
    return tf.math.divide_no_nan(scores, scores + tf.linalg.matvec(competing, rivals))


def saturating(scores: tf.Tensor) -> tf.Tensor:
    """Return s / (1 + s) of accumulated scores s: in 0..1, and 0.5 for the evidence of one fully certain window."""
    return scores / (1.0 + scores)


def relevant_options(options: InferenceOptions) -> dict[str, Any]:
    """Return the options that boxes and evidence depend on, in JSON's types."""
    kept = {key: value for key, value in asdict(options).items() if key not in WITHOUT_EFFECT}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in kept.items()}


def displayed(boxes: np.ndarray, scores: np.ndarray, threshold: float, several: bool = False) -> np.ndarray:
    """Return which of an image's detections are worth showing: bool [n].

    Those are the ones that score at least `threshold` and overlap none that scores better: one object, one box.

    Args:
        boxes: float32 [n, 4] yxyx.
        scores: float32 [n].
        threshold: The least score.
        several: Whether overlapping ones are shown too.
    """
    shown = scores >= threshold
    if not several and shown.any():
        apart = tf.image.non_max_suppression(boxes, scores, len(scores), RIVAL_IOU).numpy()
        shown = shown & np.isin(np.arange(len(scores)), apart)
    return shown


def display_threshold(config: Mapping) -> float:
    """Return the score from which a detection of a model is worth showing, from what `Model.config` gives."""
    calibration = Calibration.from_config(config.get("calibration"))
    if calibration is None:
        return UNCALIBRATED_THRESHOLD
    accumulated = config.get("options", {}).get("scores") == "accumulated"
    return calibration.accumulated_threshold if accumulated else calibration.threshold
