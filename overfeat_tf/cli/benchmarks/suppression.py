"""Merging beside non-maximum suppression, on the same predictions of a trained detector."""

import logging
import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from overfeat_tf.images.decode import decode_image
from overfeat_tf.models.batches import ONE_IMAGE
from overfeat_tf.models.inference import Candidates, detect, merge_candidates
from overfeat_tf.models.model import Model
from overfeat_tf.options import InferenceOptions
from training.evaluation.average_precision import CocoDetection
from training.sources.record import Record, Source

IOUS = (0.2, 0.3, 0.4, 0.5, 0.6)  # suppression is shown with each, merging with what its run says

log = logging.getLogger(__name__)

# (boxes [n, 4] normalised, scores [n], classes [n]) of an image's candidates, its size (height, width) given
Combine = Callable[[Candidates, tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]


class Scored(NamedTuple):
    """How good a way of combining candidates is, and the seconds that each image took."""

    map50: float
    map: float
    times: list[float]


class Predictions:
    """A detector's candidates for the images of a split, before anything is merged or suppressed.

    Args:
        model: The run.
        source, split, limit: The images.
    """

    def __init__(self, model: Model, source: Source, split: str, limit: int | None = None):
        self.options, self._classes = model.options, source.class_names
        self._images: list[tuple[Record, Candidates, tf.Tensor]] = []
        network = model.network

        @tf.function(input_signature=[ONE_IMAGE], autograph=False)
        def candidates(image: tf.Tensor) -> Candidates:
            found = detect(network, image, model.options).candidates
            assert found is not None  # detection has them
            return found

        for record in islice(source.records(split), limit):
            pixels, status = decode_image(tf.constant(record.image_bytes))
            if status == "":
                self._images.append((record, candidates(pixels), tf.shape(pixels)[:2]))
        log.info("%s %s: %d images, %d candidates", source.name, split, len(self._images), self.count)

    @property
    def count(self) -> int:
        """How many candidates there are in all."""
        return sum(len(candidates.scores) for _, candidates, _ in self._images)

    def score(self, combine: Combine) -> Scored:
        """Combine each image's candidates, and score the answers."""
        traced = tf.function(combine, autograph=False, reduce_retracing=True)
        metric, times = CocoDetection(self._classes), []
        for record, candidates, size in self._images:
            traced(candidates, size)  # traced for this number of candidates, if need be
            start = time.perf_counter()
            boxes, scores, classes = (values.numpy() for values in traced(candidates, size))
            times.append(time.perf_counter() - start)
            answer = {
                "image_size": size.numpy(),
                "num_detections": np.array(len(scores)),
                "detection_boxes": boxes,
                "detection_scores": scores,
                "detection_classes": classes,
            }
            metric.process(record, answer)
        figures = dict(metric.evaluate())
        return Scored(figures["map50"], figures["map"], times)


def merging(options: InferenceOptions) -> Combine:
    """Merge as `detect` does."""

    def combine(candidates: Candidates, size: tf.Tensor):
        merged = merge_candidates(candidates, size, options)
        return tuple(values[: options.max_detections] for values in (merged.boxes, merged.scores, merged.classes))

    return combine


def suppression(iou: float, classes: int, most: int) -> Combine:
    """Suppress with `tf.image.combined_non_max_suppression`, class by class."""

    def combine(candidates: Candidates, size: tf.Tensor):
        boxes = tf.clip_by_value(candidates.boxes, 0.0, 1.0)
        scores = candidates.scores[:, None] * tf.one_hot(candidates.classes - 1, classes)
        kept = tf.image.combined_non_max_suppression(
            boxes[None, :, None], scores[None], most, most, iou_threshold=iou, score_threshold=1e-6
        )
        count = kept.valid_detections[0]
        return kept.nmsed_boxes[0, :count], kept.nmsed_scores[0, :count], kept.nmsed_classes[0, :count] + 1.0

    return combine


def compare(predictions: Predictions, classes: int, ious: Sequence[float] = IOUS) -> dict[str, Scored]:
    """Score merging as the run has it and suppression at each IoU."""
    options = predictions.options
    ways = {"merging": merging(options)}
    ways |= {f"suppression, IoU {iou}": suppression(iou, classes, options.max_detections) for iou in ious}
    return {name: predictions.score(combine) for name, combine in ways.items()}
