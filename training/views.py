"""The views that training sees: windows of the scales that inference scans, drawn by the same function.

A view is made in three steps. `random_picture` makes a picture of an image: a part of it, stretched, perhaps mirrored.
`Pyramid` lays the picture out at the scales of the scan, by `overfeat_tf.scan.pyramid.fit_scale`: same canvas, same padding,
same grid of windows. `draw` cuts a square out of one canvas, at a place where windows of the scan begin, in one
resampling, and changes its colours.

Everything is a pure function of chances, numbers in 0..1 that a view draws all at once from its seed: a pipeline gives
the same batches again after a restart, and small operations, which add up here, are few.
"""

from dataclasses import dataclass
from math import ceil, log
from typing import NamedTuple

import tensorflow as tf

from overfeat_tf import boxes as box_ops
from overfeat_tf.network import geometry
from overfeat_tf.network.presets import Preset
from overfeat_tf.options import SCALE_FITS
from overfeat_tf.scan.pyramid import exact_scale, fit_scale
from training import augment
from training.limits import check_range
from training.targets import Matching, WindowTargets, assign, centred_shift, home_scales, reachable_centres

CUT, GONE = 0.5, 0.1  # least share of an object that is left in a picture for it to be learnt, and to count at all


@dataclass(frozen=True)
class ViewOptions:
    """How views are drawn from an image.

    Attributes:
        per_image: Views from one decoding (3.1: 5 crops).
        object_share: Share of the views of an image with objects that show a positive window; the rest, and all of an
            image without objects, are anywhere, where any window of the scan is as likely as any other.
        stretch: Greatest change of the aspect, as a factor less 1.
        zoom: Greatest factor by which a part of the image is enlarged to be the picture; an object is kept in it.
        scale_jitter: Greatest factor by which the sides of the pyramid are changed, up or down; half a step of it,
            1.4 ** 0.5, shows objects at all sizes between two scales.
        colour: Greatest change of brightness, contrast and each channel's gain.
        mirror: Whether to mirror left to right (3.1); not where that changes the class, as with digits.
        whole: Whether localization and detection see each image once at every scale (5), as much of it as fits the
            scale's square, rather than `per_image` views of a part. `object_share` is not used then.
        plain: Whether classification sees plain crops of the whole image and their mirror images (3.1,
            `training.crops`), `per_image` of each, rather than windows that show an object. Stretch, zoom, colour and
            boxes are not used then.
    """

    per_image: int = 5
    object_share: float = 0.8
    stretch: float = 0.15
    zoom: float = 1.3
    scale_jitter: float = 1.18
    colour: float = 0.2
    mirror: bool = True
    whole: bool = False
    plain: bool = False

    def __post_init__(self) -> None:
        check_range("views.per_image", self.per_image, self.per_image >= 1, "1 or more")
        check_range("views.object_share", self.object_share, 0 <= self.object_share <= 1, "from 0 to 1")
        check_range("views.stretch", self.stretch, self.stretch >= 0, "0 or more")
        check_range("views.zoom", self.zoom, self.zoom >= 1, "1 or more")
        check_range("views.scale_jitter", self.scale_jitter, self.scale_jitter >= 1, "1 or more")
        check_range("views.colour", self.colour, 0 <= self.colour <= 1, "from 0 to 1")


class Picture(NamedTuple):
    """An image as one might have taken it.

    Attributes:
        pixels: uint8 [H, W, 3].
        size: float32 [2], height and width that it counts as: those of `pixels`, stretched.
        boxes: float32 [n, 4] yxyx, normalised and clipped to the picture.
        labels: int32 [n].
        crowd: bool [n]: COCO's crowds, and objects of which too little is left to be learnt.
    """

    pixels: tf.Tensor
    size: tf.Tensor
    boxes: tf.Tensor
    labels: tf.Tensor
    crowd: tf.Tensor


def random_picture(
    chances: tf.Tensor, image: tf.Tensor, record: dict[str, tf.Tensor], subject: tf.Tensor, options: ViewOptions
) -> tuple[Picture, tf.Tensor]:
    """Make a random picture of an image.

    Args:
        chances: float32 [6], each in 0..1.
        image: uint8 [H, W, 3].
        record: With "boxes" float32 [n, 4] normalised yxyx, "labels" int32 [n] and "crowd" bool [n].
        subject: int32 scalar, the object that the picture keeps; -1 for none.
        options: How much of what is changed.

    Returns:
        The picture, and the subject's index in it (-1 for none).
    """
    boxes, labels, crowd = record["boxes"], record["labels"], record["crowd"]
    sides = tf.cast(tf.shape(image)[:2], tf.float32)
    everything = tf.constant([0.0, 0.0, 1.0, 1.0])
    kept = tf.cond(subject >= 0, lambda: box_ops.clip(boxes[subject]), lambda: tf.constant([0.5, 0.5, 0.5, 0.5]))

    part = everything
    if options.zoom > 1:
        extent = tf.maximum(tf.exp(-chances[0] * log(options.zoom)), tf.reduce_max(kept[2:] - kept[:2]))
        first, last = tf.maximum(kept[2:] - extent, 0.0), tf.minimum(kept[:2], 1.0 - extent)
        # A part that need not keep an object lies anywhere.
        first, last = (tf.where(subject >= 0, edge, other) for edge, other in ((first, 0.0), (last, 1.0 - extent)))
        corner = first + chances[1:3] * tf.maximum(last - first, 0.0)
        edges = tf.concat([tf.floor(corner * sides + 1e-3), tf.math.ceil((corner + extent) * sides - 1e-3)], axis=0)
        edges = tf.clip_by_value(edges, 0.0, tf.concat([sides, sides], axis=0))
        part = edges / tf.concat([sides, sides], axis=0)
        top, left, bottom, right = tf.unstack(tf.cast(edges, tf.int32))
        image = image[top:bottom, left:right]

    lengths = tf.concat([part[2:] - part[:2]] * 2, axis=0)
    placed = (boxes - tf.concat([part[:2], part[:2]], axis=0)) / lengths
    clipped = box_ops.clip(placed)
    share = tf.math.divide_no_nan(box_ops.area(clipped), box_ops.area(placed))
    share = tf.where(tf.range(tf.size(labels)) == subject, 1.0, share)
    there = tf.where(share >= GONE)[:, 0]
    cut_off = crowd | (share < CUT)
    index = tf.where(subject >= 0, tf.math.count_nonzero(there < tf.cast(subject, tf.int64), dtype=tf.int32), -1)
    clipped, labels, crowd = (tf.gather(values, there) for values in (clipped, labels, cut_off))

    if options.mirror:
        mirrored = chances[3] < 0.5
        image = tf.raw_ops.Reverse(tensor=image, dims=tf.stack([False, mirrored, False]))
        clipped = tf.where(mirrored, box_ops.flip(clipped), clipped)
    squeeze = tf.exp((chances[4:6] - 0.5) * log(1.0 + options.stretch))
    size = tf.cast(tf.shape(image)[:2], tf.float32) * squeeze
    return Picture(image, size, clipped, labels, crowd), index


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
        """Lay a picture out.

        Args:
            preset: The network.
            matching: Which windows show an object.
            scales: (height, width) of the scales, in pixels.
            picture: What is laid out.
            jitter: A factor on the sides of all scales; exact ones are as they are.
            scale_fit: Of `options.SCALE_FITS`.
        """
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
        step = geometry.stride(self.preset, fine)
        count = geometry.window_count(self.preset, side, fine)
        # The view begins so many windows before: not before the canvas, and no further back than it is long.
        most = tf.minimum(window // step, count - 1)
        least = tf.minimum(tf.maximum(-((self._last_view(scale, count, step) - window) // step), 0), most)
        return window - step * (least + below(chances, most - least + 1))

    def view_anywhere(self, chances: tf.Tensor, scale: tf.Tensor, side: int, fine: bool) -> tf.Tensor:
        """Draw the first pixel int32 [2] of any view of `side` pixels of a scale."""
        step, count = geometry.stride(self.preset, fine), geometry.window_count(self.preset, side, fine)
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


def draw_image(
    chances: tf.Tensor, image: tf.Tensor, frame: tf.Tensor, side: int, fill: float, colour: float
) -> tf.Tensor:
    """Draw an image [H, W, 3] as `augment.resample` does and change its colours, but not those of the padding."""
    pixels = augment.jitter_colour(chances, augment.resample(image, frame, side, fill), colour)
    return tf.ensure_shape(tf.where(augment.shows_image(frame, side), pixels, fill), [side, side, 3])


def random_jitter(chance: tf.Tensor, factor: float) -> tf.Tensor:
    """Return a factor on the pyramid's sides, log-uniform from 1 / `factor` to `factor`."""
    return tf.exp((2.0 * chance - 1.0) * log(factor))


def square_side(preset: Preset, scale: tuple[int, int]) -> int:
    """Return the side of the square that a scale's canvases are shown in: of 4:3 pictures it holds them all.

    Wider pictures are shown in part.
    """
    wanted = (scale[0] * scale[1]) ** 0.5 * (4 / 3) ** 0.5
    steps = max(0, ceil((wanted - preset.smallest_input) / preset.coarse_stride - 0.5))
    return preset.smallest_input + preset.coarse_stride * steps


def below(chances: tf.Tensor, limits: tf.Tensor) -> tf.Tensor:
    """Turn chances in 0..1 into whole numbers from 0 to below limits int32, each at least 1; a product may round up."""
    return tf.minimum(tf.cast(chances * tf.cast(limits, tf.float32), tf.int32), limits - 1)
