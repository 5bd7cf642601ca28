"""Plain crops of whole images for classification: shortest side 256, five random crops and their flips (3.1)."""

import tensorflow as tf

from training.views.augmentation import below
from training.views.drawing import Drawing, Example, Views, has_objects

# Batches from one that shows an image to the next that does: ten in a row of the same images would pull one way. With
# what is drawn ahead that takes 2 GB of memory for `fast` at the paper's batch of 128, in proportion for smaller ones.
APART = 4

# Times the shorter side. Of an image longer yet, crops show the middle alone: all of a strip of 2 x 3000 pixels, 18 kB
# of PNG, would be 1 GB once its shorter side is the paper's 256.
LONGEST = 20


def plain_crops(drawing: Drawing) -> Views:
    """Show crops with their image's class: (pixels uint8 [window, window, 3], label int32 []).

    `views.per_image` crops of each image, and with `views.mirror` their mirror images besides. An image of several
    classes is shown as each in turn at random; a crowd gives it none. Pixels stay bytes until they are on the device:
    a quarter of the memory to write here, and to copy there.
    """
    preset, views = drawing.preset, drawing.views

    def draw(seed: tf.Tensor, record: dict) -> tuple[Example, ...]:
        labels = tf.boolean_mask(record["labels"], ~record["crowd"])
        # All that is random in one draw: small operations add up where an image takes a millisecond.
        chances = tf.random.stateless_uniform([views.per_image, 4], seed)
        crops = random_crops(chances[:, :3], shrink(record["image"], preset.shorter_side), preset.window, views.mirror)
        chosen = tf.gather(labels, below(chances[:, 3], tf.size(labels)))
        return tuple(zip(crops, tf.unstack(chosen) * (len(crops) // views.per_image), strict=True))

    return Views(has_objects, draw, APART)


def shrink(image: tf.Tensor, shorter: int) -> tf.Tensor:
    """Resize an image uint8 [H, W, 3] to a shorter side of `shorter` pixels, uint8.

    By the mean of areas where it shrinks to less than half, else bilinearly: antialiasing by a wider filter, as the
    scan's, would cost more than decoding. Of an image more than `LONGEST` times as long as it is wide, the middle.
    """
    sides = tf.shape(image)[:2]
    least = tf.reduce_min(sides)
    size = tf.minimum(sides, LONGEST * least)
    image = tf.slice(image, tf.concat([(sides - size) // 2, [0]], 0), tf.concat([size, [3]], 0))
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


def random_crops(chances: tf.Tensor, image: tf.Tensor, window: int, mirror: bool) -> list[tf.Tensor]:
    """Cut n squares of `window` pixels from uint8 [H, W, 3], and with `mirror` their mirror images.

    Args:
        chances: float32 [n, 3] in 0..1, of each square its top, its left, and (the first's for all) whether the mirror
            images come first.
        image: At least as large as the window.
        window: Side of a square.
        mirror: Whether to give the mirror images too.

    Returns:
        uint8 [window, window, 3] each; with `mirror` the second half shows the first mirrored, in the same order.
    """
    height, width = tf.unstack(tf.shape(image)[:2])
    tops = tf.unstack(below(chances[:, 0], height - window + 1))
    lefts = tf.unstack(below(chances[:, 1], width - window + 1))

    def cut(rows: tf.Tensor, top: tf.Tensor, left: tf.Tensor) -> tf.Tensor:
        return tf.reshape(tf.slice(rows, [top, 3 * left], [window, 3 * window]), [window, window, 3])

    rows = tf.reshape(image, [height, 3 * width])  # as two dimensions, a slice copies whole rows
    if not mirror:
        return [cut(rows, top, left) for top, left in zip(tops, lefts, strict=True)]
    # The image is mirrored, once, rather than each crop of it; by Reverse, a tenth of the time of a slice backwards.
    turned = tf.reshape(tf.raw_ops.Reverse(tensor=image, dims=[False, True, False]), tf.shape(rows))
    first = chances[0, 2] < 0.5
    sides = tf.cond(first, lambda: (rows, turned), lambda: (turned, rows))

    def half(side: tf.Tensor, as_it_is: tf.Tensor) -> list[tf.Tensor]:
        across = [tf.where(as_it_is, left, width - window - left) for left in lefts]
        return [cut(side, top, left) for top, left in zip(tops, across, strict=True)]

    return half(sides[0], first) + half(sides[1], ~first)
