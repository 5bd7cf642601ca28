"""Plain crops of whole images for classification: shortest side 256, five random crops and their flips (3.1)."""

import tensorflow as tf

from overfeat_tf.presets import Preset
from training import pipeline
from training.order import Bookmarks, dealt_batches

# Batches from one that shows an image to the next that does: ten in a row of the same images would pull one way. With
# blocks drawn ahead that takes 5 GB of memory for `fast` at the paper's batch of 128, in proportion for smaller ones.
APART = 4


def crop_batches(
    data: tf.data.Dataset,
    preset: Preset,
    views: pipeline.ViewOptions,
    batch: int,
    seed: int,
    marks: Bookmarks | None = None,
) -> tf.data.Dataset:
    """Batch crops with their image's class: (pixels uint8 [B, window, window, 3], labels int32 [B]).

    An image of several classes is shown as each in turn at random. Pixels stay bytes until they are on the device: a
    quarter of the memory to write here, and to copy there.

    Args:
        data: Records, in the order that they are to be read.
        preset: Gives the window, and the shorter side that images are resized to.
        views: `per_image` crops of each image, and with `mirror` their mirror images besides.
        batch: Views in a batch.
        seed: Of the crops.
        marks: The step to begin with, if `data` begins with its place.
    """

    def draw(record: dict) -> tuple[tf.Tensor, tuple]:
        place = record["place"]
        crop_seed, label_seed = tf.unstack(tf.random.split(pipeline.view_seed(seed, place)))
        crops = random_crops(crop_seed, shrink(record["image"], preset.shorter_side), preset.window, views)
        chosen = tf.random.stateless_uniform([len(crops)], label_seed, 0, tf.size(record["labels"]), tf.int32)
        return place, tuple(zip(crops, tf.unstack(tf.gather(record["labels"], chosen)), strict=True))

    classed = data.filter(lambda record: tf.size(record["labels"]) > 0)
    # One decode for all views of an image: it costs more than they do.
    drawn = pipeline.decoded(classed).map(draw, num_parallel_calls=pipeline.CORES, deterministic=True)
    return dealt_batches(drawn, batch, marks, APART)


def shrink(image: tf.Tensor, shorter: int) -> tf.Tensor:
    """Resize an image uint8 [H, W, 3] to a shorter side of `shorter` pixels, uint8.

    By the mean of areas where it shrinks to less than half, else bilinearly: antialiasing by a wider filter, as the
    scan's, would cost more than decoding.
    """
    size = tf.shape(image)[:2]
    least = tf.reduce_min(size)
    # In whole numbers, rounded: a side must not fall a pixel short of the window.
    to = (2 * size * shorter + least) // (2 * least)
    bilinear = tf.raw_ops.ResizeBilinear
    pixels = tf.cast(image, tf.float32)[None]  # of bytes it resizes at two thirds of the rate, this cast included
    resize = tf.cond(
        least > 2 * shorter,
        lambda: tf.raw_ops.ResizeArea(images=pixels, size=to),
        lambda: bilinear(images=pixels, size=to, half_pixel_centers=True),
    )
    return tf.cast(resize[0] + 0.5, tf.uint8)


def random_crops(seed: tf.Tensor, image: tf.Tensor, window: int, views: pipeline.ViewOptions) -> list[tf.Tensor]:
    """Cut `views.per_image` squares of `window` pixels from uint8 [H, W, 3], and with `mirror` their mirror images.

    Returns:
        uint8 [window, window, 3] each; with `mirror` the second half shows the first mirrored, in the same order.
            Which of the two are as the image is, is random.
    """
    corner_seed, side_seed = tf.unstack(tf.random.split(seed))
    spare = tf.shape(image)[:2] - window + 1
    corners = tf.random.stateless_uniform([views.per_image, 2], corner_seed) * tf.cast(spare, tf.float32)
    corners = tf.unstack(tf.minimum(tf.cast(corners, tf.int32), spare - 1))
    if not views.mirror:
        return [_cut(image[None], 0, corner, window) for corner in corners]
    # The image is mirrored, once, rather than each crop of it; by Reverse, a tenth of the time of a slice backwards.
    sides = tf.stack([image, tf.raw_ops.Reverse(tensor=image, dims=[False, True, False])])
    first = tf.unstack(tf.random.stateless_uniform([views.per_image], side_seed, 0, 2, tf.int32))

    def shown(corner: tf.Tensor, side: tf.Tensor) -> tf.Tensor:
        across = tf.where(side == 0, corner[1], tf.shape(image)[1] - window - corner[1])
        return _cut(sides, side, tf.stack([corner[0], across]), window)

    pairs = list(zip(corners, first, strict=True))
    return [shown(corner, side) for corner, side in pairs] + [shown(corner, 1 - side) for corner, side in pairs]


def _cut(images: tf.Tensor, index: tf.Tensor | int, corner: tf.Tensor, window: int) -> tf.Tensor:
    view = images[index, corner[0] : corner[0] + window, corner[1] : corner[1] + window]
    return tf.ensure_shape(view, [window, window, 3])
