"""Records to batches: the tf.data pipelines of the three stages."""

import os
from collections.abc import Callable
from dataclasses import dataclass

import tensorflow as tf

from overfeat_tf.images.decode import decode_image
from overfeat_tf.network.presets import Preset
from overfeat_tf.options import SCALE_FITS
from training.losses import pack_edges
from training.order import Bookmarks, dealt_batches, records
from training.sources.checks import Finding, Kind, Log
from training.targets import BACKGROUND, Matching, window_origins
from training.views import (
    Picture,
    Pyramid,
    ViewOptions,
    below,
    draw_image,
    random_jitter,
    random_picture,
    square_side,
)

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # Linux has it
SHORTEST = 256 / 221  # windows to an image's shorter side, where a crop of it has to show its class (3.1)


@dataclass(frozen=True)
class Drawing:
    """What views are drawn of.

    Attributes:
        preset: The network.
        scales: (height, width) of the scales that inference scans.
        matching: Which windows show an object.
        views: How images are changed, and how views are chosen.
        scale_fit: How inference fits images to scales, of `options.SCALE_FITS`.
    """

    preset: Preset
    scales: tuple[tuple[int, int], ...]
    matching: Matching
    views: ViewOptions
    scale_fit: str = SCALE_FITS[0]


def classification_batches(
    data: tf.data.Dataset, drawing: Drawing, batch: int, seed: int, marks: Bookmarks | None = None
) -> tf.data.Dataset:
    """Batch single windows, each positive for an object, with its class: (pixels [B, window, window, 3], labels [B]).

    A class without a box is shown by a crop of its image (3.1), and crowds are not shown. Begins with the step of
    `marks`, if `data` begins with their place.
    """
    side = drawing.preset.window
    one_window = tf.zeros([1, 1, 2])

    def draw(seed: tf.Tensor, record: dict) -> tuple[tf.Tensor, tf.Tensor]:
        chances = _Chances(seed)
        subject = _random_object(chances.take(), record)
        pyramid, index = _random_pyramid(chances, record, subject, drawing)
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

    with_objects = data.filter(lambda record: tf.reduce_any(~record["crowd"]))
    views = [draw] * drawing.views.per_image
    return dealt_batches(_drawn(with_objects, views, seed), batch, marks)


def spatial_batches(
    data: tf.data.Dataset,
    drawing: Drawing,
    batch: int,
    side: int,
    fine: bool,
    seed: int,
    marks: Bookmarks | None = None,
    voting_only: bool = False,
) -> tf.data.Dataset:
    """Batch larger views with the targets of their windows: (pixels [B, side, side, 3], {"scores", "boxes"}).

    "scores" is int32 [B, h, w] for `DetectionLoss`, "boxes" float32 [B, h, w, 5] for `BoxLoss`. Images that have a
    class without a box are left out: nobody knows which windows show it. VOC's `difficult` objects are learnt like all
    others.

    Args:
        data: Records, in the order in which they are to be read.
        drawing: What is drawn. With `views.whole`, a batch of each scale in turn, of `square_side` pixels; else views
            of `side` pixels, of which `views.object_share` show a positive window.
        batch: Views in a batch.
        side: Side of a view of a part, in pixels.
        fine: Whether windows are at fine stride.
        seed: Of all that is random.
        marks: The step to begin with, if `data` begins with its place.
        voting_only: Whether boxes are learnt only at windows that are not background. In detection, background windows
            have no vote. Many of them show several small objects at once, whose boxes cannot all be told: without
            them, mAP on digit scenes after 400 steps is 0.57 rather than 0.47.
    """
    boxed = data.filter(lambda record: tf.reduce_all(record["boxed"]))
    if drawing.views.whole:
        views = [_view_of_scale(drawing, number, fine, voting_only) for number in range(len(drawing.scales))]
    else:
        views = [_view_of_part(drawing, side, fine, voting_only)] * drawing.views.per_image
    return dealt_batches(_drawn(boxed, views, seed), batch, marks)


def _view_of_part(drawing: Drawing, side: int, fine: bool, voting_only: bool) -> Callable:
    """Make the function that draws a view of a part: around a positive window, or anywhere."""
    grid = window_origins(drawing.preset, side, fine)

    def draw(seed: tf.Tensor, record: dict) -> tuple:
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
        return pixels, _targets(pyramid, scale, first, grid, voting_only)

    return draw


def _view_of_scale(drawing: Drawing, number: int, fine: bool, voting_only: bool) -> Callable:
    """Make the function that draws a scale's canvas, or as much of it as fits the scale's square."""
    side = square_side(drawing.preset, drawing.scales[number])
    grid, scale = window_origins(drawing.preset, side, fine), tf.constant(number)

    def draw(seed: tf.Tensor, record: dict) -> tuple:
        chances = _Chances(seed)
        pyramid, _ = _random_pyramid(chances, record, tf.constant(-1), drawing)
        first = pyramid.view_anywhere(chances.take(2), scale, side, fine)
        pixels = pyramid.draw(chances.take(5), scale, first, side, drawing.views.colour)
        return pixels, _targets(pyramid, scale, first, grid, voting_only)

    return draw


def _targets(pyramid: Pyramid, scale, first, grid: tf.Tensor, voting_only: bool) -> dict[str, tf.Tensor]:
    targets = pyramid.targets(scale, first, grid)
    box_classes = targets.box_classes
    if voting_only:
        box_classes = tf.where(targets.labels == BACKGROUND, 0, box_classes)
    return {"scores": targets.labels, "boxes": pack_edges(targets.edges, box_classes)}


class _Chances:
    """The random numbers of one view, in 0..1, drawn at once and handed out one after the other."""

    COUNT = 20

    def __init__(self, seed: tf.Tensor):
        self._drawn, self._taken = tf.random.stateless_uniform([self.COUNT], seed), 0

    def take(self, count: int = 0) -> tf.Tensor:
        """Return the next `count` as float32 [count], or the next one as a scalar."""
        first, self._taken = self._taken, self._taken + max(count, 1)
        assert self._taken <= self.COUNT
        return self._drawn[first : self._taken] if count else self._drawn[first]


def _random_object(chance: tf.Tensor, record: dict) -> tf.Tensor:
    """Draw one of a record's objects that are no crowds: its index, int32 scalar; -1 where there is none."""
    single = tf.concat([tf.where(~record["crowd"])[:, 0], [-1]], axis=0)  # the last where there is no other
    return tf.cast(single[below(chance, tf.maximum(tf.size(single) - 1, 1))], tf.int32)


def _random_pyramid(chances: _Chances, record: dict, subject: tf.Tensor, drawing: Drawing) -> tuple[Pyramid, tf.Tensor]:
    """Make a random picture of a record's image, at all scales; and the subject's index in it."""
    picture, index = random_picture(chances.take(6), record["image"], record, subject, drawing.views)
    jitter = random_jitter(chances.take(), drawing.views.scale_jitter)
    scales = (drawing.scales, picture, jitter, drawing.scale_fit)
    return Pyramid(drawing.preset, drawing.matching, *scales), index


def _random_crop(place: tf.Tensor, colours: tf.Tensor, picture: Picture, drawing: Drawing) -> tf.Tensor:
    """Draw a window anywhere in a picture shrunk to `SHORTEST` windows (3.1): float32 [window, window, 3]."""
    window = drawing.preset.window
    extent = picture.size * (SHORTEST * window / tf.reduce_min(picture.size))
    top_left = -place * (extent - window)
    frame = tf.concat([top_left, top_left + extent], axis=0)
    return draw_image(colours, picture.pixels, frame, window, drawing.preset.mean, drawing.views.colour)


def decoded(data: tf.data.Dataset) -> tf.data.Dataset:
    """Decode records' images, as "image" uint8 [H, W, 3]; those that can't be read are skipped, with a line each."""
    log = Log()  # of each image once, in however many passes it comes

    def report(name: bytes, status: bytes) -> bool:
        log(Finding(Kind.UNREADABLE, name.decode(), status.decode()))
        return False

    def decode(record: dict) -> dict:
        image, status = decode_image(record["image_bytes"])
        return {
            "image": image,
            "status": status,
            "id": record["image_id"],
            **{k: record[k] for k in ("place", "boxes", "labels", "boxed", "crowd")},
        }

    def readable(record: dict) -> tf.Tensor:
        what = [record["id"], record["status"]]
        return tf.cond(record["status"] == "", lambda: True, lambda: tf.numpy_function(report, what, tf.bool))

    return _placed(data).map(decode, num_parallel_calls=CORES, deterministic=True).filter(readable)


def _drawn(data: tf.data.Dataset, views: list[Callable], seed: int) -> tf.data.Dataset:
    """Decode each record once and draw its views: (place, what each of `views` makes of a seed and the record)."""

    traced = {view: tf.function(view, autograph=False) for view in views}  # once, however many views it draws

    def draw(record: dict) -> tuple:
        seeds = tf.unstack(tf.random.split(view_seed(seed, record["place"]), len(views)))
        return record["place"], tuple(traced[view](each, record) for view, each in zip(views, seeds, strict=True))

    # In a fixed number of threads: tf.data's own tuning gains nothing over one for each core, and was seen to take
    # up to 22 s to let go of a pipeline that ends.
    return decoded(data).map(draw, num_parallel_calls=CORES, deterministic=True)


def view_seed(seed: int, place: tf.Tensor) -> tf.Tensor:
    """Return the seed [2] of the views of the record at place int64 [2], whoever draws them and when."""
    return tf.random.fold_in(tf.random.fold_in([seed, 0], place[0]), place[1])


def _placed(data: tf.data.Dataset) -> tf.data.Dataset:
    """Number records that do not come from `order.records`."""
    if "place" in data.element_spec:
        return data
    return data.enumerate().map(lambda index, record: {"place": tf.stack([0, index]), **record})


__all__ = ["Drawing", "ViewOptions", "classification_batches", "records", "spatial_batches"]
