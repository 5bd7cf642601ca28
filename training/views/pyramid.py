"""The pyramid that training sees: windows of the scales that inference scans, drawn by the same function.

A view is made in three steps. `augmentation.random_picture` makes a picture of an image: a part of it, stretched,
perhaps mirrored. `Pyramid` lays the picture out at the scales of the scan, by `scan.pyramid.fit_scale`: same canvas,
same padding, same grid of windows. `Pyramid.draw` cuts a square out of one canvas, at a place where windows of the scan
begin, in one resampling, and changes its colours.
"""

from math import ceil

import tensorflow as tf

from overfeat_tf.network.presets import Preset
from overfeat_tf.options import SCALE_FITS
from overfeat_tf.scan.pyramid import exact_scale, fit_scale
from training.views.augmentation import Picture, below
from training.views.targets import Matching, WindowTargets, assign, centred_shift, home_scales, reachable_centres


class Pyramid:
    """A picture at the scales that inference scans.

    Attributes:
        sizes: int32 [K, 2], the picture's height and width at each scale, in pixels.
        canvases: int32 [K, 2], those of the canvas that it is padded to.
        boxes: float32 [K, n, 4] yxyx, the objects in the pixels of each scale.
        home: bool [K, n], the scales that each object belongs to.
    """

    def __init__(
        self,
        preset: Preset,
        matching: Matching,
        scales: tuple[tuple[int, int], ...],
        picture: Picture,
        jitter: tf.Tensor | float = 1.0,
        scale_fit: str = SCALE_FITS[0],
    ):
        """Lay a picture out at scales (height, width), whose sides `jitter` changes unless they are exact."""
        self.preset, self.matching, self.picture = preset, matching, picture
        if scale_fit == "aspect":
            heights, widths = tf.unstack(tf.constant(scales, tf.float32) * jitter, axis=1)
            self.sizes, self.canvases = fit_scale(preset, (heights, widths), picture.size)
        else:
            self.sizes = self.canvases = tf.stack([exact_scale(scale, picture.size)[0] for scale in scales])
        extents = tf.cast(tf.concat([self.sizes, self.sizes], axis=1), tf.float32)
        self.boxes = picture.boxes * extents[:, None]
        self.home = home_scales(preset, matching, self.boxes)

    def home_of(self, chance: tf.Tensor, subject: tf.Tensor) -> tf.Tensor:
        """Draw one of the scales that an object belongs to: int32 scalar."""
        homes = tf.where(self.home[:, subject])[:, 0]
        return tf.cast(homes[below(chance, tf.size(homes))], tf.int32)

    def scale_of_any_window(self, chance: tf.Tensor) -> tf.Tensor:
        """Draw the scale of a window of the scan, all windows being equally likely: int32 scalar."""
        windows = (self.canvases - self.preset.window) // self.preset.fine_stride + 1
        up_to = tf.cast(tf.cumsum(tf.reduce_prod(windows, axis=1)), tf.float32)
        return tf.minimum(tf.searchsorted(up_to, chance[None] * up_to[-1], side="right")[0], tf.size(up_to) - 1)

    def positive_window(self, chances: tf.Tensor, scale: tf.Tensor, subject: tf.Tensor) -> tf.Tensor:
        """Draw a positive window of an object at a scale: its first pixel, int32 [2], on the grid of fine windows.

        `chances` is float32 [2], as of the views.
        """
        step, window, box = self.preset.fine_stride, float(self.preset.window), self.boxes[scale, subject]
        shift = centred_shift(self.preset, self.matching)
        middle = reachable_centres(self.preset, box[None], self.canvases[scale])[0] - window / 2.0
        # Enough of the object along either axis: one at the picture's edge is at the window's edge too.
        enough = self.matching.visible**0.5 * tf.minimum(box[2:] - box[:2], window)
        low = tf.math.ceil(tf.maximum(middle - shift, box[:2] + enough - window) / step - 1e-4)
        high = tf.floor(tf.minimum(middle + shift, box[2:] - enough) / step + 1e-4)
        last, nearest = (self.canvases[scale] - self.preset.window) // step, tf.round(middle / step)
        low, high = (tf.where(low > high, nearest, limit) for limit in (low, high))
        low, high = (tf.clip_by_value(tf.cast(limit, tf.int32), 0, last) for limit in (low, high))
        return step * (low + below(chances, high - low + 1))

    def view_around(self, chances: tf.Tensor, scale: tf.Tensor, window: tf.Tensor, side: int, fine: bool) -> tf.Tensor:
        """Draw the first pixel int32 [2] of a view of `side` pixels that has the window at int32 [2] on its grid."""
        step = self.preset.stride(fine)
        count = self.preset.window_count(side, fine)
        # The view begins so many windows before: not before the canvas, and no further back than it is long.
        most = tf.minimum(window // step, count - 1)
        least = tf.minimum(tf.maximum(-((self._last_view(scale, count, step) - window) // step), 0), most)
        return window - step * (least + below(chances, most - least + 1))

    def view_anywhere(self, chances: tf.Tensor, scale: tf.Tensor, side: int, fine: bool) -> tf.Tensor:
        """Draw the first pixel int32 [2] of any view of `side` pixels of a scale."""
        step, count = self.preset.stride(fine), self.preset.window_count(side, fine)
        places = self._last_view(scale, count, step) // self.preset.fine_stride + 1
        return self.preset.fine_stride * below(chances, places)

    def _last_view(self, scale: tf.Tensor, count: int, step: int) -> tf.Tensor:
        """Return the last first pixel [2] of a view of so many windows: all windows of the canvas are in some view."""
        grid = self.preset.fine_stride
        beyond = self.canvases[scale] - self.preset.window - (count - 1) * step
        return tf.maximum(-(-beyond // grid) * grid, step - grid)

    def draw(self, chances: tf.Tensor, scale: tf.Tensor, first: tf.Tensor, side: int, colour: float) -> tf.Tensor:
        """Draw the square of `side` pixels of a scale that begins at pixel int32 [2]: float32 [side, side, 3].

        `chances` is float32 [5], of the colours.
        """
        top_left = tf.cast(-first, tf.float32)
        frame = tf.concat([top_left, top_left + tf.cast(self.sizes[scale], tf.float32)], axis=0)
        return draw_image(chances, self.picture.pixels, frame, side, self.preset.mean, colour)

    def targets(self, scale: tf.Tensor, first: tf.Tensor, grid: tf.Tensor) -> WindowTargets:
        """Assign targets to the windows float32 [h, w, 2], first pixels in a view that begins at pixel int32 [2]."""
        picture, origins = self.picture, grid + tf.cast(first, tf.float32)
        objects = (self.boxes[scale], picture.labels, picture.crowd, self.home[scale])
        return assign(self.preset, self.matching, *objects, self.canvases[scale], origins)


def resample(image: tf.Tensor, frame: tf.Tensor, side: int, fill: float) -> tf.Tensor:
    """Draw an image [H, W, 3] so that its edges fall on `frame` (yxyx, in view pixels) of a [side, side, 3] view.

    Antialiased, like the scan's own resizing, so that training and inference see the same pixels.
    """
    sides = tf.shape(image)[:2]
    scale = (frame[2:] - frame[:2]) / tf.cast(sides, tf.float32)
    # Only what the view sees, and what its filter reaches: resampling costs as much as its input is tall.
    reach = 2.0 * tf.maximum(1.0 / scale, 1.0)
    first = tf.clip_by_value(tf.cast(tf.floor(-frame[:2] / scale - reach), tf.int32), 0, sides - 1)
    last = tf.clip_by_value(tf.cast(tf.math.ceil((side - frame[:2]) / scale + reach), tf.int32), first + 1, sides)
    pixels = tf.raw_ops.ScaleAndTranslate(
        images=tf.cast(image[first[0] : last[0], first[1] : last[1]], tf.float32)[None],
        size=[side, side],
        scale=scale,
        translation=frame[:2] + tf.cast(first, tf.float32) * scale,
        kernel_type="triangle",
        antialias=True,
    )[0]
    return tf.where(shows_image(frame, side), pixels, fill)


def shows_image(frame: tf.Tensor, side: int) -> tf.Tensor:
    """Return which pixels of a view show the image at `frame` and not what lies beyond it: bool [side, side, 1]."""
    centres = tf.range(side, dtype=tf.float32) + 0.5
    rows, columns = ((centres > frame[axis]) & (centres < frame[axis + 2]) for axis in (0, 1))
    return (rows[:, None] & columns[None, :])[..., None]


def jitter_colour(chances: tf.Tensor, pixels: tf.Tensor, strength: float) -> tf.Tensor:
    """Change brightness, contrast and each channel's gain by up to `strength` (0 = not at all); 0..255 in and out.

    `chances` is float32 [5], each in 0..1; at 0.5 nothing changes.
    """
    gains = 1.0 + strength * (2.0 * chances - 1.0)
    mean = tf.reduce_mean(pixels)
    changed = (pixels - mean) * gains[0] + mean * gains[1]
    return tf.clip_by_value(changed * gains[2:], 0.0, 255.0)


def draw_image(
    chances: tf.Tensor, image: tf.Tensor, frame: tf.Tensor, side: int, fill: float, colour: float
) -> tf.Tensor:
    """Draw an image [H, W, 3] as `resample` does and change its colours, but not those of the padding."""
    pixels = jitter_colour(chances, resample(image, frame, side, fill), colour)
    return tf.ensure_shape(tf.where(shows_image(frame, side), pixels, fill), [side, side, 3])


def square_side(preset: Preset, scale: tuple[int, int]) -> int:
    """Return the side of the square that a scale's canvases are shown in: of 4:3 pictures it holds them all.

    Wider pictures are shown in part.
    """
    wanted = (scale[0] * scale[1]) ** 0.5 * (4 / 3) ** 0.5
    steps = max(0, ceil((wanted - preset.smallest_input) / preset.coarse_stride - 0.5))
    return preset.smallest_input + preset.coarse_stride * steps
