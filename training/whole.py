"""Whole images at several scales for detection: every window of a scan learns what it is to answer (5)."""

import math

import tensorflow as tf

from overfeat_tf import boxes as box_ops
from overfeat_tf.presets import Preset
from training import augment, pipeline
from training.order import Bookmarks, dealt_batches
from training.targets import Matching, window_origins


def whole_batches(
    data: tf.data.Dataset,
    preset: Preset,
    matching: Matching,
    views: pipeline.ViewOptions,
    batch: int,
    fine: bool,
    seed: int,
    marks: Bookmarks | None = None,
) -> tf.data.Dataset:
    """Batch whole images, each at every scale, a batch of each scale in turn.

    A scale's view is a square of its longer side in Table 5, filled by the image from the top left. How far is drawn
    between the scale below and this one, so that all sizes between are seen too.

    Args:
        data: Records, in the order that they are to be read; those with a class that has no box are left out.
        preset: The network.
        matching: Which windows show an object.
        views: How the images are changed: stretch, colour, mirror.
        batch: Views in a batch.
        fine: Whether windows are at fine stride.
        seed: Of all that is random.
        marks: The step to begin with, if `data` begins with its place.

    Returns:
        (pixels [B, S, S, 3], {"scores", "boxes"}) as of `pipeline.spatial_batches`, S another in each batch.
    """
    sides = view_sides(preset)
    origins = {side: window_origins(preset, side, fine) for side in sides}

    def draw(record: dict) -> tuple[tf.Tensor, tuple]:
        place, image = record["place"], record["image"]
        size = tf.cast(tf.shape(image)[:2], tf.float32)
        boxes = record["boxes"] * tf.concat([size, size], axis=0)

        def view(seed: tf.Tensor, side: int, below: int) -> tuple:
            seeds = tf.unstack(tf.random.split(seed, 4))
            shown, edges = _mirrored(seeds[0], image, boxes) if views.mirror else (image, boxes)
            squeeze = tf.exp(tf.random.stateless_uniform([2], seeds[1], -0.5, 0.5) * math.log1p(views.stretch))
            length = tf.exp(tf.random.stateless_uniform([], seeds[2], math.log(below), math.log(side)))
            # From the first pixel on, as the scan has it: of an image as small as a window, one window sees all.
            frame = tf.concat([[0.0, 0.0], size * squeeze * (length / tf.reduce_max(size))], axis=0)
            drawn = augment.show(seeds[3], shown, edges, frame, side, preset.mean, views.colour)
            return pipeline.answered(drawn, record["labels"], record["crowd"], preset, matching, origins[side])

        seeds = tf.unstack(tf.random.split(pipeline.view_seed(seed, place), len(sides)))
        return place, tuple(map(view, seeds, sides, [preset.window, *sides[:-1]]))

    decoded = pipeline.decoded(pipeline.all_boxed(data))
    drawn = decoded.map(draw, num_parallel_calls=pipeline.CORES, deterministic=True)
    return dealt_batches(drawn, batch, marks)


def view_sides(preset: Preset) -> list[int]:
    """List the side of each scale's view, in pixels."""
    return [max(scale) for scale in preset.scales]


def _mirrored(seed: tf.Tensor, image: tf.Tensor, boxes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Mirror an image [H, W, 3] and its boxes, in pixels, left to right half of the time."""
    heads = tf.random.stateless_uniform([], seed) < 0.5
    width = tf.cast(tf.shape(image)[1], tf.float32)
    reverse = tf.stack([False, heads, False])
    return tf.raw_ops.Reverse(tensor=image, dims=reverse), tf.where(heads, box_ops.flip(boxes, width), boxes)
