"""Random pictures of an image: a part of it, stretched, mirrored, turned, one of four in a mosaic, or painted over.

All are pure functions of chances, numbers in 0..1. A view draws all its chances at once from its seed: a pipeline gives
the same batches again after a restart, and small operations, which add up here, are few. Boxes stay true: where an
image is turned, a box holds the turned corners of the one before.
"""

from dataclasses import dataclass, replace
from math import log, pi
from typing import NamedTuple

import tensorflow as tf

from overfeat_tf import boxes as box_ops
from overfeat_tf.arguments import check_range
from overfeat_tf.images.decode import decode_image

CUT, GONE = 0.5, 0.1  # least share of an object that is left in a picture for it to be learnt, and to count at all
PARTNERS = 3  # images besides its own in a mosaic
SMALLEST = 32  # pixels of the shorter side, below which an image is no part of a mosaic
ERASED, ASPECT = (0.02, 0.2), 3.0  # least and greatest share of a picture; greatest aspect (Zhong et al. 2020)


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
        vertical_flip: Whether to turn pictures upside down, half of them: for views from above, or of cells.
        rotation: Greatest angle in degrees by which an image is turned, either way; an object's box grows around it.
        mosaic: Share of the views that show four images as the quarters of one, so that objects appear half as large.
        erasing: Share of the views in which a rectangle is painted over; an object is not learnt if it hides more than
            half of it.
        whole_image: Whether localization and detection see each image once at every scale (5), as much of it as fits
            the scale's square, rather than `per_image` views of a part. `object_share` is not used then.
        plain: Whether classification sees plain crops of the whole image and their mirror images (3.1,
            `drawing.plain_crops`), `per_image` of each, rather than windows that show an object. Of the other changes
            it sees the mirror images alone, and boxes are not used.
    """

    per_image: int = 5
    object_share: float = 0.8
    stretch: float = 0.15
    zoom: float = 1.3
    scale_jitter: float = 1.18
    colour: float = 0.2
    mirror: bool = True
    whole_image: bool = False
    plain: bool = False
    vertical_flip: bool = False
    rotation: float = 0.0
    mosaic: float = 0.0
    erasing: float = 0.0

    def __post_init__(self) -> None:
        check_range("views.per_image", self.per_image, self.per_image >= 1, "1 or more")
        check_range("views.object_share", self.object_share, 0 <= self.object_share <= 1, "from 0 to 1")
        check_range("views.stretch", self.stretch, self.stretch >= 0, "0 or more")
        check_range("views.zoom", self.zoom, self.zoom >= 1, "1 or more")
        check_range("views.scale_jitter", self.scale_jitter, self.scale_jitter >= 1, "1 or more")
        check_range("views.rotation", self.rotation, 0 <= self.rotation <= 180, "from 0 to 180 degrees")
        check_range("views.mosaic", self.mosaic, 0 <= self.mosaic <= 1, "from 0 to 1")
        check_range("views.erasing", self.erasing, 0 <= self.erasing <= 1, "from 0 to 1")
        check_range("views.colour", self.colour, 0 <= self.colour <= 1, "from 0 to 1")

    @property
    def validating(self) -> "ViewOptions":
        """The options of the views that training is validated on: one of each image, or one at each scale."""
        return replace(self, per_image=1, mirror=False, vertical_flip=False, rotation=0.0, mosaic=0.0, erasing=0.0)

    @property
    def partners(self) -> int:
        """How many further images a view may show."""
        return PARTNERS if self.mosaic > 0 else 0


class Picture(NamedTuple):
    """An image as one might have taken it.

    Attributes:
        pixels: uint8 [H, W, 3].
        size: float32 [2], height and width that it counts as: those of `pixels`, stretched.
        boxes: float32 [n, 4] yxyx, normalised and clipped to the picture.
        labels: int32 [n].
        crowd: bool [n]: COCO's crowds, and objects that are cut off too far to be learnt.
    """

    pixels: tf.Tensor
    size: tf.Tensor
    boxes: tf.Tensor
    labels: tf.Tensor
    crowd: tf.Tensor


class Scene(NamedTuple):
    """An image and its n objects: pixels uint8 [H, W, 3], boxes float32 [n, 4] normalised, labels int32, crowd bool."""

    pixels: tf.Tensor
    boxes: tf.Tensor
    labels: tf.Tensor
    crowd: tf.Tensor


def random_picture(
    chances: tf.Tensor,
    image: tf.Tensor,
    record: dict[str, tf.Tensor],
    subject: tf.Tensor,
    options: ViewOptions,
    fill: float = 0.0,
) -> tuple[Picture, tf.Tensor]:
    """Make a random picture of an image.

    Args:
        chances: float32 [15], each in 0..1; without rotation, mosaic, erasing and vertical flip the first 6 will do.
        image: uint8 [H, W, 3].
        record: With "boxes" float32 [n, 4] normalised yxyx, "labels" int32 [n] and "crowd" bool [n]; and "boxed" and
            "partners" where there are to be mosaics (`mosaic`).
        subject: int32 scalar, the object that the picture keeps; -1 for none.
        options: How much of what is changed.
        fill: Value of the pixels that show nothing.

    Returns:
        The picture, and the subject's index in it (-1 for none).
    """
    boxes, labels, crowd = record["boxes"], record["labels"], record["crowd"]
    if options.mosaic > 0 and "partners" in record:
        scene = Scene(image, boxes, labels, crowd)
        large = tf.reduce_min(tf.shape(image)[:2]) >= SMALLEST
        wanted = (chances[6] < options.mosaic) & large & tf.reduce_all(record["boxed"])
        image, boxes, labels, crowd = tf.cond(
            wanted, lambda: mosaic(chances[7], scene, record["partners"], fill), lambda: scene
        )
    if options.rotation > 0:
        image, boxes = rotate((2.0 * chances[8] - 1.0) * (options.rotation * pi / 180.0), image, boxes, fill)
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
    if options.vertical_flip:
        turned = chances[9] < 0.5
        image = tf.raw_ops.Reverse(tensor=image, dims=tf.stack([turned, False, False]))
        top, left, bottom, right = tf.unstack(clipped, axis=1)
        clipped = tf.where(turned, tf.stack([1.0 - bottom, left, 1.0 - top, right], axis=1), clipped)
    if options.erasing > 0:
        pixels, hidden = erase(chances[11:15], image, clipped, index, CUT, fill)
        erased = chances[10] < options.erasing
        image, crowd = tf.where(erased, pixels, image), crowd | (erased & (1.0 - hidden < CUT))
    squeeze = tf.exp((chances[4:6] - 0.5) * log(1.0 + options.stretch))
    size = tf.cast(tf.shape(image)[:2], tf.float32) * squeeze
    return Picture(image, size, clipped, labels, crowd), index


def mosaic(position: tf.Tensor, scene: Scene, partners: dict[str, tf.Tensor], fill: float) -> Scene:
    """Lay an image and three others out as the quarters of one of the same size, each in its own aspect.

    Args:
        position: In 0..1: which quarter is the image's own.
        scene: The image and its objects, which come first in what is returned.
        partners: "image_bytes" string [3]; "boxes", "labels" and "crowd" of all their objects, and "owner", int32 [m],
            which of the three each is in. An image that can't be read leaves its quarter empty.
        fill: Value of the pixels that no image covers.
    """
    height, width = tf.unstack(tf.shape(scene.pixels)[:2])
    middle = tf.stack([height, width]) // 2
    own = tf.minimum(tf.cast(position * 4.0, tf.int32), 3)
    total, covered = tf.zeros_like(scene.pixels), tf.zeros([height, width, 1], tf.uint8)
    boxes, labels, crowds = [], [], []
    for number in range(PARTNERS + 1):
        quarter = (own + number) % 4
        second = tf.stack([quarter // 2, quarter % 2])  # whether it is below, and to the right of, the middle
        quarter_size = tf.where(second > 0, tf.stack([height, width]) - middle, middle)
        pixels = scene.pixels
        objects = (scene.boxes, scene.labels, scene.crowd)
        if number:
            pixels = decode_image(partners["image_bytes"][number - 1])[0]
            mine = (partners["owner"] == number - 1) & (tf.size(pixels) > 0)
            objects = tuple(tf.boolean_mask(partners[key], mine) for key in ("boxes", "labels", "crowd"))
        size = tf.cast(tf.maximum(tf.shape(pixels)[:2], 1), tf.float32)
        factor = tf.reduce_min(tf.cast(quarter_size, tf.float32) / size)
        extent = tf.minimum(tf.maximum(tf.cast(tf.round(size * factor), tf.int32), 1), quarter_size)
        first = tf.where(second > 0, middle, middle - extent)

        def shrunk(pixels: tf.Tensor = pixels, extent: tf.Tensor = extent) -> tf.Tensor:
            return tf.cast(tf.image.resize(pixels, extent, antialias=True) + 0.5, tf.uint8)

        def empty(extent: tf.Tensor = extent) -> tf.Tensor:
            return tf.cast(tf.fill(tf.concat([extent, [3]], 0), round(fill)), tf.uint8)

        part = tf.cond(tf.size(pixels) > 0, shrunk, empty)
        around = tf.stack([first, tf.stack([height, width]) - first - extent], axis=1)
        around = tf.concat([around, [[0, 0]]], axis=0)
        total += tf.pad(part, around)
        covered += tf.pad(tf.ones_like(part[..., :1]), around)
        shift, scale = (tf.cast(tf.concat([pair, pair], 0), tf.float32) for pair in (first, extent))
        boxes.append((shift + objects[0] * scale) / tf.cast(tf.stack([height, width] * 2), tf.float32))
        labels.append(objects[1])
        crowds.append(objects[2])
    pixels = tf.where(covered > 0, total, tf.cast(round(fill), tf.uint8))
    return Scene(pixels, tf.concat(boxes, 0), tf.concat(labels, 0), tf.concat(crowds, 0))


def rotate(angle: tf.Tensor, pixels: tf.Tensor, boxes: tf.Tensor, fill: float) -> tuple[tf.Tensor, tf.Tensor]:
    """Turn an image uint8 [H, W, 3] by an angle in radians, anticlockwise; the picture grows, so that nothing is lost.

    Returns:
        The pixels, and the boxes [n, 4] around the turned corners of `boxes`, normalised.
    """
    sides = tf.cast(tf.shape(pixels)[:2], tf.float32)
    cosine, sine = tf.cos(angle), tf.sin(angle)
    extents = tf.abs(tf.stack([[cosine, sine], [sine, cosine]]))
    grown = tf.math.ceil(tf.linalg.matvec(extents, sides) - 1e-3)
    (cy, cx), (ny, nx) = tf.unstack(sides / 2.0), tf.unstack(grown / 2.0)
    # From the centre of each new pixel to where it was, which lies clockwise.
    to_x = [cosine, -sine, cx - 0.5 - cosine * (nx - 0.5) + sine * (ny - 0.5)]
    to_y = [sine, cosine, cy - 0.5 - sine * (nx - 0.5) - cosine * (ny - 0.5)]
    turned = tf.raw_ops.ImageProjectiveTransformV3(
        images=pixels[None],
        transforms=tf.stack([*to_x, *to_y, 0.0, 0.0])[None],
        output_shape=tf.cast(grown, tf.int32),
        fill_value=fill,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )[0]
    corners = tf.stack([tf.gather(boxes, pair, axis=1) for pair in ((0, 1), (0, 3), (2, 1), (2, 3))], axis=1)
    y, x = tf.unstack(corners * sides - sides / 2.0, axis=-1)  # [n, 4], from the middle
    moved = tf.stack([cosine * y - sine * x + ny, sine * y + cosine * x + nx], axis=-1) / grown
    return turned, tf.concat([tf.reduce_min(moved, axis=1), tf.reduce_max(moved, axis=1)], axis=1)


def erase(
    chances: tf.Tensor, pixels: tf.Tensor, boxes: tf.Tensor, subject: tf.Tensor, most: float, fill: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Paint a rectangle over a picture, but not where it would hide more than `most` of the object `subject`.

    Args:
        chances: float32 [4] in 0..1: the rectangle's area, aspect, top and left.
        pixels: uint8 [H, W, 3].
        boxes: float32 [n, 4], normalised.
        subject: int32 scalar; -1 for none.
        most: A share.
        fill: Value of the painted pixels.

    Returns:
        The pixels, and the share of each box that is hidden: float32 [n].
    """
    area = ERASED[0] + (ERASED[1] - ERASED[0]) * chances[0]
    aspect = tf.exp((2.0 * chances[1] - 1.0) * log(ASPECT))
    extent = tf.minimum(tf.sqrt(tf.stack([area * aspect, area / aspect])), 1.0)
    corner = chances[2:4] * (1.0 - extent)
    rectangle = tf.concat([corner, corner + extent], axis=0)
    hidden = tf.math.divide_no_nan(box_ops.intersection(rectangle, boxes), box_ops.area(boxes))
    done = tf.reduce_all(tf.where(tf.range(tf.size(hidden)) == subject, hidden, 0.0) <= most)
    sides = tf.cast(tf.shape(pixels)[:2], tf.float32)
    rows, columns = (
        (rectangle[axis] <= place) & (place < rectangle[axis + 2])
        for axis, place in enumerate((tf.range(sides[axis]) + 0.5) / sides[axis] for axis in (0, 1))
    )
    painted = done & (rows[:, None] & columns[None, :])[..., None]
    return tf.where(painted, tf.cast(round(fill), tf.uint8), pixels), tf.where(done, hidden, 0.0)


def below(chances: tf.Tensor, limits: tf.Tensor) -> tf.Tensor:
    """Turn chances in 0..1 into whole numbers from 0 to below limits int32, each at least 1; a product may round up."""
    return tf.minimum(tf.cast(chances * tf.cast(limits, tf.float32), tf.int32), limits - 1)
