"""Draw the views of a record, with their targets: crops, single windows, parts of a scale, or whole scales."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import log

import tensorflow as tf

from overfeat_tf.network.presets import Preset
from overfeat_tf.options import SCALE_FITS
from training.sources.record import Record
from training.views.augmentation import Picture, ViewOptions, below, random_picture
from training.views.pyramid import Pyramid, draw_image, square_side
from training.views.targets import BACKGROUND, IGNORED, Matching, pack_edges, window_origins

# Drawings whose functions are kept: tracing them takes a second, and a stage makes several pipelines.
KEPT = 16
SHORTEST = 256 / 221  # windows to an image's shorter side, where a crop of it has to show its class (3.1)
# Batches from one that shows an image to the next that does: ten in a row of the same images would pull one way. With
# what is drawn ahead that takes 2 GB of memory for `fast` at the paper's batch of 128, in proportion for smaller ones.
APART = 4
# Times the shorter side. Of an image longer yet, crops show the middle alone: all of a strip of 2 x 3000 pixels, 18 kB
# of PNG, would be 1 GB once its shorter side is the paper's 256.
LONGEST = 20

Example = tuple[tf.Tensor, tf.Tensor | dict[str, tf.Tensor]]  # pixels and targets


@dataclass(frozen=True)
class Drawing:
    """What views are drawn of.

    Attributes:
        preset: The network.
        scales: (height, width) of the scales that inference scans.
        matching: Which windows show an object.
        views: How images are changed, and how views are chosen.
        side: Side in pixels of views of a part; those of single windows and of whole scales have their own.
        fine: Whether the windows of these views are at fine stride.
        scale_fit: How inference fits images to scales, of `options.SCALE_FITS`.
    """

    preset: Preset
    scales: tuple[tuple[int, int], ...]
    matching: Matching
    views: ViewOptions
    side: int = 0
    fine: bool = True
    scale_fit: str = SCALE_FITS[0]


@dataclass(frozen=True)
class Views:
    """The views that a stage sees of a record.

    Attributes:
        shows: Returns whether a record has anything to show.
        draw: Draws a decoded record's views from a seed, int32 [2]: a tuple of examples, as many for each record.
        apart: Batches from one that shows an image to the next that does.
        partners: How many of the records that follow a view may show too.
    """

    shows: Callable[[Record], bool]
    draw: Callable[[tf.Tensor, dict], tuple[Example, ...]]
    apart: int = 1
    partners: int = 0


def draw_views(views: Views, seed: int, record: dict) -> tuple:
    """Draw the views of a decoded record, by its place; those of an image that can't be read have no targets."""
    drawn = views.draw(view_seed(seed, record["place"]), record)

    def masked(target: tf.Tensor) -> tf.Tensor:
        """Return a target that all losses and metrics leave out, unless the image was read."""
        return tf.where(record["status"] == "", target, tf.cast(IGNORED, target.dtype))

    return tuple((pixels, tf.nest.map_structure(masked, targets)) for pixels, targets in drawn)


def view_seed(seed: int, place: tf.Tensor) -> tf.Tensor:
    """Return the seed [2] of the views of the record at place int64 [2], the same in any process."""
    return tf.random.fold_in(tf.random.fold_in([seed, 0], place[0]), place[1])


def has_objects(record: Record) -> bool:
    """Return whether a record has an object that is no crowd."""
    return not record.crowd.all()


def has_boxes(record: Record) -> bool:
    """Return whether each object of a record has a box."""
    return bool(record.boxed.all())


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


@lru_cache(KEPT)
def object_windows(drawing: Drawing) -> Views:
    """Show single windows, each positive for an object, with its class: (pixels [window, window, 3], label []).

    A class without a box is shown by a crop of its image (3.1), and crowds are not shown.
    """
    side = drawing.preset.window
    one_window = tf.zeros([1, 1, 2])

    def draw(seed: tf.Tensor, record: dict) -> Example:
        chances = _Chances(seed)
        subject = _random_object(chances.take(), record)
        kept = tf.where(record["boxed"][subject], subject, -1)  # a class without a box is not in one place
        pyramid, index = _random_pyramid(chances, record, kept, drawing)
        scale_chance, window_chances, colour_chances = chances.take(), chances.take(2), chances.take(5)

        def shown() -> tuple[tf.Tensor, tf.Tensor]:
            scale = pyramid.home_of(scale_chance, index)
            first = pyramid.positive_window(window_chances, scale, index)
            # Of several objects the window may show another one better.
            label = pyramid.targets(scale, first, one_window).labels[0, 0] - 1
            label = tf.where(label >= 0, label, record["labels"][subject])
            return pyramid.draw(colour_chances, scale, first, side, drawing.views.colour), label

        def cropped() -> tuple[tf.Tensor, tf.Tensor]:
            crop = _random_crop(window_chances, colour_chances, pyramid.picture, drawing)
            return crop, record["labels"][subject]

        return tf.cond(record["boxed"][subject], shown, cropped)

    return Views(has_objects, _each([draw] * drawing.views.per_image), partners=drawing.views.partners)


@lru_cache(KEPT)
def window_maps(drawing: Drawing, scores: bool = True, voting_only: bool = False) -> Views:
    """Show larger views with the targets of their windows: (pixels [side, side, 3], {"scores", "boxes"}).

    "scores" is int32 [h, w] for `DetectionLoss`, "boxes" float32 [h, w, 5] for `BoxLoss`. Images that have a class
    without a box are left out: nobody knows which windows show it. VOC's `difficult` objects are learnt like all
    others.

    Args:
        drawing: What is drawn. With `views.whole_image`, a view of each scale in turn, of `square_side` pixels; else
            views of `side` pixels, `views.object_share` of them around a positive window.
        scores: Whether to give "scores".
        voting_only: Whether boxes are learnt only at windows that are not background. In detection, background windows
            have no vote. Many of them show several small objects at once, whose boxes cannot all be told: without
            them, mAP on digit scenes after 400 steps is 0.57 rather than 0.47.
    """

    def targets(pyramid: Pyramid, scale: tf.Tensor, first: tf.Tensor, grid: tf.Tensor) -> dict[str, tf.Tensor]:
        found = pyramid.targets(scale, first, grid)
        box_classes = found.box_classes
        if voting_only:
            box_classes = tf.where(found.labels == BACKGROUND, 0, box_classes)
        boxes = {"boxes": pack_edges(found.edges, box_classes)}
        return {"scores": found.labels, **boxes} if scores else boxes

    def part() -> Callable:
        """Make the function that draws a view of a part: around a positive window, or anywhere."""
        side, fine = drawing.side, drawing.fine
        grid = window_origins(drawing.preset, side, fine)

        def draw(seed: tf.Tensor, record: dict) -> Example:
            chances = _Chances(seed)
            subject = _random_object(chances.take(), record)
            subject = tf.where(chances.take() < drawing.views.object_share, subject, -1)
            pyramid, index = _random_pyramid(chances, record, subject, drawing)
            scale_chance, window_chances, view_chances = chances.take(), chances.take(2), chances.take(2)

            def around() -> tuple[tf.Tensor, tf.Tensor]:
                scale = pyramid.home_of(scale_chance, index)
                window = pyramid.positive_window(window_chances, scale, index)
                return scale, pyramid.view_around(view_chances, scale, window, side, fine)

            def anywhere() -> tuple[tf.Tensor, tf.Tensor]:
                scale = pyramid.scale_of_any_window(scale_chance)
                return scale, pyramid.view_anywhere(view_chances, scale, side, fine)

            scale, first = tf.cond(index >= 0, around, anywhere)
            pixels = pyramid.draw(chances.take(5), scale, first, side, drawing.views.colour)
            return pixels, targets(pyramid, scale, first, grid)

        return draw

    def at_scale(number: int) -> Callable:
        """Make the function that draws a scale's canvas, or as much of it as fits the scale's square."""
        side = square_side(drawing.preset, drawing.scales[number])
        grid, scale = window_origins(drawing.preset, side, drawing.fine), tf.constant(number)

        def draw(seed: tf.Tensor, record: dict) -> Example:
            chances = _Chances(seed)
            pyramid, _ = _random_pyramid(chances, record, tf.constant(-1), drawing)
            first = pyramid.view_anywhere(chances.take(2), scale, side, drawing.fine)
            pixels = pyramid.draw(chances.take(5), scale, first, side, drawing.views.colour)
            return pixels, targets(pyramid, scale, first, grid)

        return draw

    if drawing.views.whole_image:
        views = [at_scale(number) for number in range(len(drawing.scales))]
    else:
        views = [part()] * drawing.views.per_image
    return Views(has_boxes, _each(views), partners=drawing.views.partners)


def _each(views: list[Callable[[tf.Tensor, dict], Example]]) -> Callable[[tf.Tensor, dict], tuple[Example, ...]]:
    """Draw each view of a record by a seed of its own."""
    traced = {view: tf.function(view, autograph=False) for view in views}  # once, however many views it draws

    def draw(seed: tf.Tensor, record: dict) -> tuple[Example, ...]:
        seeds = tf.unstack(tf.random.split(seed, len(views)))
        return tuple(traced[view](own, record) for view, own in zip(views, seeds, strict=True))

    return draw


class _Chances:
    """The random numbers of one view, in 0..1, drawn at once and handed out one after the other."""

    COUNT, FURTHER = 20, 9

    def __init__(self, seed: tf.Tensor):
        self._seed, self._drawn, self._taken = seed, tf.random.stateless_uniform([self.COUNT], seed), 0

    def take(self, count: int = 0) -> tf.Tensor:
        """Return the next `count` as float32 [count], or the next one as a scalar."""
        first, self._taken = self._taken, self._taken + max(count, 1)
        assert self._taken <= self.COUNT
        return self._drawn[first : self._taken] if count else self._drawn[first]

    def further(self) -> tf.Tensor:
        """Return `FURTHER` numbers that only some options ask for; the others do not depend on them."""
        return tf.random.stateless_uniform([self.FURTHER], tf.random.fold_in(self._seed, 1))


def _random_object(chance: tf.Tensor, record: dict) -> tf.Tensor:
    """Draw one of a record's objects that are no crowds: its index, int32 scalar; -1 where there is none."""
    single = tf.concat([tf.where(~record["crowd"])[:, 0], [-1]], axis=0)  # the last where there is no other
    return tf.cast(single[below(chance, tf.maximum(tf.size(single) - 1, 1))], tf.int32)


def _random_pyramid(chances: _Chances, record: dict, subject: tf.Tensor, drawing: Drawing) -> tuple[Pyramid, tf.Tensor]:
    """Make a random picture of a record's image, at all scales; and the subject's index in it."""
    numbers, views = chances.take(6), drawing.views
    if views.mosaic or views.rotation or views.vertical_flip or views.erasing:
        numbers = tf.concat([numbers, chances.further()], axis=0)
    picture, index = random_picture(numbers, record["image"], record, subject, views, drawing.preset.mean)
    jitter = tf.exp((2.0 * chances.take() - 1.0) * log(views.scale_jitter))  # log-uniform around 1
    return Pyramid(drawing.preset, drawing.matching, drawing.scales, picture, jitter, drawing.scale_fit), index


def _random_crop(place: tf.Tensor, colours: tf.Tensor, picture: Picture, drawing: Drawing) -> tf.Tensor:
    """Draw a window anywhere in a picture shrunk to `SHORTEST` windows (3.1): float32 [window, window, 3]."""
    window = drawing.preset.window
    extent = picture.size * (SHORTEST * window / tf.reduce_min(picture.size))
    top_left = -place * (extent - window)
    frame = tf.concat([top_left, top_left + extent], axis=0)
    return draw_image(colours, picture.pixels, frame, window, drawing.preset.mean, drawing.views.colour)


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
