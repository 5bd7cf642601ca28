"""Records to batches: the tf.data pipelines of the three stages."""

import os
from dataclasses import dataclass

import tensorflow as tf

from overfeat_tf.decode import decode_image
from overfeat_tf.presets import Preset
from training import augment
from training.limits import check_range
from training.losses import pack_edges
from training.order import Bookmarks, dealt_batches, records
from training.sources.checks import Finding, Kind, Log
from training.targets import Matching, assign, window_origins

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # Linux has it
SHORTEST = 256 / 221  # windows to an image's shorter side, where a crop of it has to show its class (3.1)


@dataclass(frozen=True)
class ViewOptions:
    """How views are drawn from an image.

    Attributes:
        per_image: Views from one decoding (3.1: 5 crops).
        object_share: Share of the views of an image with objects that are centred on one; the rest, and all of an
            image without, are anywhere at any of the pyramid's scales.
        stretch: Most that the aspect is changed, as a factor less 1.
        colour: Most that brightness, contrast and each channel's gain are changed.
        mirror: Whether to mirror left to right (3.1); not where that changes the class, as with digits.
        whole: Whether detection sees whole images, once at each of the preset's scales (5, `training.whole`), rather
            than `per_image` views of a part. `object_share` has no part in it.
        plain: Whether classification sees plain crops of the whole image and their mirror images (3.1,
            `training.crops`), `per_image` of each, rather than views placed on objects. Stretch, colour and boxes have
            no part in it.
    """

    per_image: int = 5
    object_share: float = 0.8
    stretch: float = 0.15
    colour: float = 0.2
    mirror: bool = True
    whole: bool = False
    plain: bool = False

    def __post_init__(self) -> None:
        check_range("views.per_image", self.per_image, self.per_image >= 1, "1 or more")
        check_range("views.object_share", self.object_share, 0 <= self.object_share <= 1, "from 0 to 1")
        check_range("views.stretch", self.stretch, self.stretch >= 0, "0 or more")
        check_range("views.colour", self.colour, 0 <= self.colour <= 1, "from 0 to 1")


def classification_batches(
    data: tf.data.Dataset,
    preset: Preset,
    matching: Matching,
    views: ViewOptions,
    batch: int,
    seed: int,
    marks: Bookmarks | None = None,
) -> tf.data.Dataset:
    """Window-sized views, each of one object, with its class: (pixels [B, window, window, 3], labels [B]).

    A class without a box is shown by a crop of its image (3.1), and crowds are not shown. Begins with the step of
    `marks`, if `data` begins with their place.
    """

    def example(view: augment.View, label: tf.Tensor, _: tf.Tensor, __: tf.Tensor):
        return view.pixels, label

    slack = matching.shift * preset.window
    with_objects = data.filter(lambda record: tf.reduce_any(~record["crowd"]))
    drawn = _views(with_objects, preset, matching, views, preset.window, slack, 1.0, seed, example)
    return dealt_batches(drawn, batch, marks)


def spatial_batches(
    data: tf.data.Dataset,
    preset: Preset,
    matching: Matching,
    views: ViewOptions,
    batch: int,
    side: int,
    fine: bool,
    seed: int,
    marks: Bookmarks | None = None,
) -> tf.data.Dataset:
    """Larger views with what every window of them should answer: (pixels [B, side, side, 3], {"scores", "boxes"}).

    "scores" is int32 [B, h, w] for `DetectionLoss`, "boxes" float32 [B, h, w, 5] for `BoxLoss`. Images that have a
    class without a box are left out: nobody knows which windows show it. Views are centred on objects that are no
    crowds; VOC's `difficult` ones are learnt like all others.
    """
    origins = window_origins(preset, side, fine)

    def example(view: augment.View, _: tf.Tensor, labels: tf.Tensor, crowd: tf.Tensor):
        return answered(view, labels, crowd, preset, matching, origins)

    slack = (side - preset.window) / 2.0
    drawn = _views(all_boxed(data), preset, matching, views, side, slack, views.object_share, seed, example)
    return dealt_batches(drawn, batch, marks)


def all_boxed(data: tf.data.Dataset) -> tf.data.Dataset:
    """Leave out the images that have a class without a box."""
    return data.filter(lambda record: tf.reduce_all(record["boxed"]))


def answered(
    view: augment.View, labels: tf.Tensor, crowd: tf.Tensor, preset: Preset, matching: Matching, origins: tf.Tensor
) -> tuple:
    """Give a view's pixels, and what each of its windows should answer."""
    targets = assign(preset, matching, view.boxes, labels, crowd, view.frame, origins)
    return view.pixels, {"scores": targets.labels, "boxes": pack_edges(targets.edges, targets.taught)}


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


def _views(data, preset: Preset, matching: Matching, views: ViewOptions, side, slack, object_share, seed, example):
    """Decode each record once and draw `views.per_image` views of it: (place, what `example` makes of each)."""

    def draw(record: dict) -> tuple:
        image = record["image"]
        size = tf.cast(tf.shape(image)[:2], tf.float32)
        boxes = record["boxes"] * tf.concat([size, size], axis=0)
        place = record["place"]
        seeds = tf.random.split(view_seed(seed, place), views.per_image)
        return place, tuple(_view(seeds[i], record, image, size, boxes) for i in range(views.per_image))

    def _view(seed, record, image, size, boxes):
        seeds = tf.unstack(tf.random.split(seed, 6))
        labels, boxed, crowd = record["labels"], record["boxed"], record["crowd"]
        single = tf.where(~crowd)[:, 0]
        on_object = (tf.size(single) > 0) & (tf.random.stateless_uniform([], seeds[0]) < object_share)
        drawn = tf.random.stateless_uniform([], seeds[1], 0, tf.maximum(tf.size(single), 1), tf.int32)

        def subject():
            choice = single[drawn]
            return *_subject(seeds[2], size, boxes[choice], boxed[choice], preset, matching), labels[choice]

        box, length, label = tf.cond(on_object, subject, lambda: (*_anywhere(seeds[2], size, preset), -1))
        frame = augment.random_frame(seeds[3], size, box, length, side, slack, views.stretch)
        view = augment.show(seeds[4], image, boxes, frame, side, preset.mean, views.colour)
        if views.mirror:
            view = augment.random_mirror(seeds[5], view)
        return example(view, label, labels, crowd)

    # In a fixed number of threads: tf.data's own tuning gains nothing over one for each core, and was seen to take
    # up to 22 s to let go of a pipeline that ends.
    return decoded(data).map(draw, num_parallel_calls=CORES, deterministic=True)


def view_seed(seed: int, place: tf.Tensor) -> tf.Tensor:
    """Give the seed [2] of the views of the record at place int64 [2], whoever draws them and when."""
    return tf.random.fold_in(tf.random.fold_in([seed, 0], place[0]), place[1])


def _placed(data: tf.data.Dataset) -> tf.data.Dataset:
    """Number records that do not come from `order.records`."""
    if "place" in data.element_spec:
        return data
    return data.enumerate().map(lambda index, record: {"place": tf.stack([0, index]), **record})


def _subject(seed: tf.Tensor, size: tf.Tensor, box: tf.Tensor, boxed: tf.Tensor, preset: Preset, matching: Matching):
    """Return what a view of one object shows: its box and the box's length after; without a box, a crop of the image.

    The crop is of a window from the image shrunk to `SHORTEST` windows (3.1): a pixel anywhere, and its length.
    """
    point = tf.random.stateless_uniform([2], seed) * size
    crop = tf.concat([point - 0.5, point + 0.5], axis=0), SHORTEST * preset.window / tf.reduce_min(size)
    return tf.cond(boxed, lambda: (box, _object_length(seed, preset, matching)), lambda: crop)


def _object_length(seed: tf.Tensor, preset: Preset, matching: Matching) -> tf.Tensor:
    """Draw the longer side that an object gets in a view, in pixels, log-uniform over what a window is to find."""
    low, high = (tf.math.log(size * preset.window) for size in matching.sizes)
    return tf.exp(tf.random.stateless_uniform([], seed, low, high))


def _anywhere(seed: tf.Tensor, size: tf.Tensor, preset: Preset) -> tuple[tf.Tensor, tf.Tensor]:
    """Pick a point of the image and one of the pyramid's scales: a box of a pixel there and its length after."""
    point_seed, scale_seed = tf.unstack(tf.random.split(seed, 2))
    point = tf.random.stateless_uniform([2], point_seed) * size
    areas = tf.constant([float(h * w) for h, w in preset.scales])
    area = areas[tf.random.stateless_uniform([], scale_seed, 0, len(preset.scales), tf.int32)]
    return tf.concat([point - 0.5, point + 0.5], axis=0), tf.sqrt(area / tf.reduce_prod(size))


__all__ = ["ViewOptions", "classification_batches", "records", "spatial_batches"]
