"""Plain crops of whole images for classification: shortest side 256, five random crops and their flips (3.1)."""

import tensorflow as tf

from overfeat_tf.presets import Preset
from training import pipeline
from training.order import Bookmarks, mixed_batches


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
        seed: Of the crops, and of the order of the views.
        marks: The step to begin with, if `data` begins with its place.
    """

    def draw(record: dict) -> tuple[tf.Tensor, tuple[tf.Tensor, tf.Tensor]]:
        place = record["place"]
        crop_seed, label_seed = tf.unstack(tf.random.split(pipeline.view_seed(seed, place)))
        crops = random_crops(crop_seed, shrink(record["image"], preset.shorter_side), preset.window, views)
        count = views.per_image * (2 if views.mirror else 1)
        chosen = tf.random.stateless_uniform([count], label_seed, 0, tf.size(record["labels"]), tf.int32)
        places = tf.concat([tf.tile(place[None], [count, 1]), tf.range(count, dtype=tf.int64)[:, None]], axis=1)
        return places, (crops, tf.gather(record["labels"], chosen))

    classed = data.filter(lambda record: tf.size(record["labels"]) > 0)
    # One decode for all views of an image: it costs more than they do.
    drawn = pipeline.decoded(classed).map(draw, num_parallel_calls=pipeline.CORES, deterministic=True).unbatch()
    return mixed_batches(drawn, batch, seed, marks)


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
    resize = tf.cond(
        least > 2 * shorter,
        lambda: tf.raw_ops.ResizeArea(images=image[None], size=to),
        lambda: bilinear(images=image[None], size=to, half_pixel_centers=True),
    )
    return tf.cast(resize[0] + 0.5, tf.uint8)


def random_crops(seed: tf.Tensor, image: tf.Tensor, window: int, views: pipeline.ViewOptions) -> tf.Tensor:
    """Cut `views.per_image` squares of `window` pixels from uint8 [H, W, 3], and with `mirror` their mirror images.

    Returns:
        uint8 [n, window, window, 3]: the crops, then their mirror images in the same order.
    """
    spare = tf.shape(image)[:2] - window + 1
    corners = tf.cast(tf.random.stateless_uniform([views.per_image, 2], seed) * tf.cast(spare, tf.float32), tf.int32)
    corners = tf.minimum(corners, spare - 1)
    crops = [_cut(image, corners[i], window) for i in range(views.per_image)]
    if views.mirror:
        # The image is mirrored, once, rather than each crop of it: their pixels are the same.
        mirrored = image[:, ::-1]
        last = tf.shape(image)[1] - window
        crops += [
            _cut(mirrored, tf.stack([corners[i, 0], last - corners[i, 1]]), window) for i in range(views.per_image)
        ]
    return tf.stack(crops)


def _cut(image: tf.Tensor, corner: tf.Tensor, window: int) -> tf.Tensor:
    return tf.ensure_shape(image[corner[0] : corner[0] + window, corner[1] : corner[1] + window], [window, window, 3])
