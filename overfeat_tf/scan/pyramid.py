"""Views of an image: a pyramid of scales, or crops of the window's size (3.3, Table 5)."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import tensorflow as tf

from overfeat_tf.network.presets import Preset
from overfeat_tf.options import SCALE_FITS, InferenceOptions

# A strip longer than this is squeezed to it: a scale's cost stays within a few times that of a square image.
MAX_ASPECT = 64.0
RELEASE_SIDE = 231  # shorter side, for both networks of the authors' 2013 release


class Views(NamedTuple):
    """Views of one size, cut from the image resized to one size.

    Attributes:
        pixels: float32 [V, h, w, 3], 0..255.
        origins: float32 [V, 2], top and left of each view in the resized image (or its mirror image), in pixels.
        size: int32 [2], height and width of the resized image; what a view shows beyond it is padding.
        mirrored: For each view, whether it is cut from the mirror image.
    """

    pixels: tf.Tensor
    origins: tf.Tensor
    size: tf.Tensor
    mirrored: tuple[bool, ...]


def draw_views(preset: Preset, image: tf.Tensor, options: InferenceOptions) -> list[Views]:
    """Draw all views of an image [H, W, 3] that the options ask for.

    Returns:
        For dense scans, one group for each scale, of the image and, with flips, its mirror image; for crops, one group.
    """
    if options.views != "dense":
        return [_draw_crops(preset, image, options)]
    mirrored, pixels = mirrored_views(options), tf.cast(image, tf.float32)
    draw = _scale_drawing(preset, options.scale_fit, options.flips)
    drawn = (draw(pixels, tf.constant(scale)) for scale in options.scale_sizes(preset))
    return [Views(views, tf.zeros([len(mirrored), 2]), size, mirrored) for views, size in drawn]


@cache
def _scale_drawing(preset: Preset, fit: str, flips: bool) -> Callable:
    """Return the tf.function that draws the views of an image float32 [H, W, 3] at a scale int32 [2].

    All scales and signatures share it: tracing the resizing of each would make a third of a graph.
    """

    def draw(image: tf.Tensor, scale: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        canvas, size = draw_scale(preset, scale, image, fit)
        views = [canvas]
        if flips:
            # Mirrored within its own content, so that the padding stays at the right.
            views.append(tf.concat([tf.reverse(canvas[:, : size[1]], [1]), canvas[:, size[1] :]], axis=1))
        return tf.stack(views), size

    return tf.function(
        draw, [tf.TensorSpec([None, None, 3], tf.float32), tf.TensorSpec([2], tf.int32)], autograph=False
    )


def mirrored_views(options: InferenceOptions) -> tuple[bool, ...]:
    """Tell for each view of a group of `draw_views` whether it is cut from the mirror image."""
    flips = (False, True) if options.flips or options.views == "ten" else (False,)
    crops = 5 if options.views == "ten" else 1
    return tuple(mirrored for mirrored in flips for _ in range(crops))


def fit_scale(preset: Preset, scale, image_size: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Fit an image to a scale: about the scale's area, the image's aspect, sides that suit the stride (Table 5).

    The area rather than a side is kept, so that a scale costs the same whatever the aspect. A side is stretched by
    at most half a coarse stride; where it would still be shorter than the smallest input it is padded instead, so
    that a strip keeps its shape.

    Args:
        preset: The network.
        scale: (height, width) in pixels, as in Table 5; each a number or a tensor [...] of several scales'.
        image_size: [..., 2] of any real dtype, heights and widths; only their ratio matters.

    Returns:
        int32 [..., 2] and int32 [..., 2]: the sizes to resize to, and those to pad to below and right.
    """
    sides = tf.cast(image_size, tf.float64)  # float32 would round some halves the other way
    aspect = tf.clip_by_value(sides[..., 0] / sides[..., 1], 1 / MAX_ASPECT, MAX_ASPECT)
    area = tf.cast(scale[0] * scale[1], tf.float64)
    wanted = tf.sqrt(tf.stack([area * aspect, area / aspect], axis=-1))
    steps = tf.maximum(tf.round((wanted - preset.smallest_input) / preset.coarse_stride), 0)
    canvas = preset.smallest_input + preset.coarse_stride * tf.cast(steps, tf.int32)
    stretched = wanted >= tf.cast(canvas, tf.float64) - preset.coarse_stride / 2
    natural = tf.maximum(tf.cast(tf.round(wanted), tf.int32), 1)
    return tf.where(stretched, canvas, natural), canvas


def exact_scale(scale: tuple[int, int] | tf.Tensor, image_size: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return a scale's own size, whatever the image's aspect, as Table 5 has it.

    Table 5 lists sizes at least as wide as they are high, and the paper does not say how it shows a taller image.
    Here an image that is higher than wide gets the size turned on its side, 317x281 for 281x317: it has as many
    windows, and is stretched no more than its transpose.

    Args:
        scale: (height, width) in pixels, as in Table 5: two numbers, or int32 [2].
        image_size: int32 [2], height and width in pixels, at least 1.

    Returns:
        int32 [2] and int32 [2]: the size to resize to, and that of the canvas, which is the same.
    """
    size = tf.where(image_size[0] > image_size[1], tf.sort(scale, direction="DESCENDING"), scale)
    return size, size


def draw_scale(
    preset: Preset, scale: tuple[int, int] | tf.Tensor, image: tf.Tensor, fit: str = SCALE_FITS[0]
) -> tuple[tf.Tensor, tf.Tensor]:
    """Resize an image [H, W, 3] to a scale, antialiased, and pad it with the mean pixel.

    Args:
        preset: The network.
        scale: (height, width) in pixels, as in Table 5: two numbers, or int32 [2].
        image: The image, 0..255.
        fit: Of `options.SCALE_FITS`: `fit_scale` or `exact_scale`.

    Returns:
        The canvas float32 [h, w, 3], and the int32 [2] size of the image on it.
    """
    image_size = tf.shape(image)[:2]
    resized, canvas = fit_scale(preset, scale, image_size) if fit == "aspect" else exact_scale(scale, image_size)
    return pad(preset, _resize(image, resized), canvas), resized


def pad(preset: Preset, pixels: tf.Tensor, size: tf.Tensor | int) -> tf.Tensor:
    """Pad pixels [H, W, 3] below and right with the mean pixel where they are smaller than `size`, [2] or a side."""
    spare = tf.maximum(size - tf.shape(pixels)[:2], 0)
    return tf.pad(pixels, [[0, spare[0]], [0, spare[1]], [0, 0]], constant_values=preset.mean)


def _draw_crops(preset: Preset, image: tf.Tensor, options: InferenceOptions) -> Views:
    """Draw the centre crop, or the four corners and the centre, of the image's central square (Table 2).

    The image is resized to a shorter side of `preset.shorter_side`, and its central square of that side is what the
    crops are cut from, as the authors' script does: a wide image's corners are those of its middle. "release"
    is the release's command line: the network takes the whole square, in which it has one window, at the top left.
    """
    window, release = preset.window, options.views == "release"
    side = max(RELEASE_SIDE, window) if release else preset.shorter_side
    sides = tf.cast(tf.shape(image)[:2], tf.float64)
    wanted = sides * side / tf.reduce_min(sides)
    size = tf.cast(tf.floor(tf.minimum(wanted, side * MAX_ASPECT) + 0.5), tf.int32)
    first = (size - side) // 2
    square = (_resize_as_release if release else _resize)(image, size)[
        first[0] : first[0] + side, first[1] : first[1] + side
    ]
    square = tf.ensure_shape(square, [side, side, 3])
    last = side - window  # never negative: the square holds a window
    corners = [(0, 0), (0, last), (last, 0), (last, last)] if options.views == "ten" else []
    places = [(0, 0)] if release else [*corners, (last // 2, last // 2)]
    mirrors = dict.fromkeys(mirrored_views(options))
    crops = [
        (tf.reverse(square, [1]) if mirrored else square)[y : y + window, x : x + window]
        for mirrored in mirrors
        for y, x in places
    ]
    # In the mirror image the square begins as far from the left as it ends from the right in the image.
    starts = [tf.stack([first[0], size[1] - side - first[1]]) if mirrored else first for mirrored in mirrors]
    origins = tf.concat([start + tf.constant(places) for start in starts], axis=0)
    return Views(tf.stack(crops), tf.cast(origins, tf.float32), size, mirrored_views(options))


def _resize(image: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    return tf.image.resize(tf.cast(image, tf.float32), size, antialias=True)


def _resize_as_release(image: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Resize as ImageMagick, which the release calls: by Lanczos' filter or, to enlarge, Mitchell's; to 8 bits.

    It resizes one axis, cuts what is out of range, and resizes the other: the width first unless the image shrinks to
    less than 0.265 of its area.
    """
    before = tf.shape(image)[:2]
    share = tf.cast(tf.reduce_prod(size), tf.float32) / tf.cast(tf.reduce_prod(before), tf.float32)
    between = tf.where([share > 0.265, share <= 0.265], before, size)

    def resized(method: str) -> tf.Tensor:
        pixels = tf.cast(image, tf.float32)
        for target in (between, size):
            pixels = tf.clip_by_value(tf.image.resize(pixels, target, method, antialias=True), 0.0, 255.0)
        return tf.round(pixels)

    return tf.cond(share > 1.0, lambda: resized("mitchellcubic"), lambda: resized("lanczos3"))
