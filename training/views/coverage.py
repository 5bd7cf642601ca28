"""Which objects a pyramid of scales can find, and the pyramid that a data set needs (4.2, 5)."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

import numpy as np
import tensorflow as tf

from overfeat_tf.images.decode import read_size
from overfeat_tf.network.presets import Preset
from overfeat_tf.scan.pyramid import fit_scale
from training.sources.record import Source
from training.views.targets import Matching

Scales = tuple[tuple[int, int], ...]

STEP = 1.4  # from scale to scale (4.2)
TARGET_COVERAGE = 0.99  # share of the objects that chosen scales cover
# Share of them that chosen scales still cover without the smallest, and without the largest: nearly every object then
# shows at two sizes. mAP50 on 73 pictures of cards was 0.79 so, 0.75 with one scale fewer.
TARGET_COVERAGE_AT_TWO_SCALES = 0.95
COST_COUNTS_FROM = 0.5  # share of them below which those that no scales cover count before the cost
WARN_BELOW = 0.95  # share of the objects below which a user is warned
MIN_SCALES = 3  # scales, whose votes are averaged: with one alone the paper's error is a point higher (Table 2)
# Times the preset's largest scale: up to sixteen times its arithmetic, and only where objects need it. On mosaics of
# nine photographs of cards, whose objects are a twentieth to a fifth of the picture, 2.0 covers half.
MAX_SCALE_FACTOR = 4.0
REPORT_COST_FROM = 2.0  # times the arithmetic of the preset's own scales, from which the log says so
ANCHORS = 4  # ladders that are tried, a fraction of a step apart
IMAGES = 500  # of a split that are looked at: a share of 0.98 is then known to within 0.01


@dataclass(frozen=True)
class Objects:
    """The objects of some images.

    Attributes:
        images: float32 [n, 2], the height and width in pixels of each object's image.
        sides: float32 [n, 2], each object's height and width as a share of its image's.
    """

    images: np.ndarray
    sides: np.ndarray

    @property
    def shares(self) -> np.ndarray:
        """The objects' longer sides over their images' longer sides: float [n]."""
        return (self.images * self.sides).max(axis=1) / self.images.max(axis=1)


@dataclass(frozen=True)
class Coverage:
    """How many objects appear at a size at which windows are to find them, at some scale.

    Attributes:
        objects: How many objects there are.
        found, too_small, too_large: Shares of them, in 0..1; the latter two at every scale.
        smallest, median, largest: The objects' longer side over their image's longer side: 1st, 50th and 99th
            percentile.
        scales: (height, width) of the scales.
        cost: Their area over that of the preset's own scales, and so the scan's arithmetic.
    """

    objects: int
    found: float
    too_small: float
    too_large: float
    smallest: float
    median: float
    largest: float
    scales: Scales
    cost: float

    def lines(self) -> Iterator[str]:
        """Render the figures in two lines."""
        sizes = ", ".join(f"{height}x{width}" for height, width in self.scales)
        yield f"scales {sizes}: windows find {self.found:.1%} of {self.objects} objects at their best sizes"
        yield (
            f"objects' longer side over the picture's: {self.smallest:.2f} to {self.largest:.2f} (1st to 99th "
            f"percentile), median {self.median:.2f}; too small {self.too_small:.1%}, too large {self.too_large:.1%}"
        )

    def cost_remark(self) -> Iterator[str]:
        """Say in a line what the scales cost, from `REPORT_COST_FROM` on."""
        if self.cost > REPORT_COST_FROM:
            yield (
                f"a scan of these scales takes {self.cost:.1f} times the arithmetic of the network's own: --set "
                "scales=SIZES without the largest takes less, and finds fewer of the small objects"
            )

    def warning(self, chosen: str) -> Iterator[str]:
        """Say in a line what to do, where a smaller share than `WARN_BELOW` is covered.

        Args:
            chosen: The recipe's `scales`.
        """
        if self.found >= WARN_BELOW:
            return
        advice = "--set scales=auto chooses scales for them"
        if chosen == "auto":
            step, nearest = (STEP, max) if self.too_small >= self.too_large else (1 / STEP, min)
            height, width = nearest(self.scales, key=_area)
            wanted = (round(height * step), round(width * step))
            sides = sorted([*self.scales, wanted], key=_area)
            sizes = ",".join(f"{h}" if h == w else f"{h}x{w}" for h, w in sides)
            more = 1 + _area(wanted) / sum(map(_area, self.scales))
            advice = f"--set scales={sizes} covers more, for {more:.1f} times the arithmetic"
            if step > 1:
                advice += "; or tile the images"
        yield f"fewer than {WARN_BELOW:.0%} of the objects are covered: {advice}"


def read_objects(source: Source, split: str) -> Objects:
    """Read the sizes of a split's objects, from its first `IMAGES` images; crowds and objects without a box are not."""
    images, sides = [np.zeros((0, 2), np.float32)], [np.zeros((0, 2), np.float32)]
    for record in islice(source.records(split), IMAGES):
        boxes = np.clip(record.boxes[record.boxed & ~record.crowd], 0, 1)
        with suppress(ValueError):  # an image that can't be read is reported where it is used
            height, width = read_size(record.image_bytes)[1]
            images.append(np.tile(np.array([height, width], np.float32), (len(boxes), 1)))
            sides.append(boxes[:, 2:] - boxes[:, :2])
    return Objects(np.concatenate(images), np.concatenate(sides))


def measure_coverage(objects: Objects, preset: Preset, scales: Scales, matching: Matching) -> Coverage:
    """Measure which objects appear at a size within `matching.sizes` at one of the scales."""
    longer = _in_windows(objects, preset, scales)  # [K, n]
    least, most = matching.sizes
    found = ((longer >= least) & (longer <= most)).any(axis=0)
    small, large = (longer < least).all(axis=0), (longer > most).all(axis=0)
    # Between two scales that are far apart an object may be too small for one and too large for the other.
    gap = ~(found | small | large)
    count = longer.shape[1]
    covered, too_small, too_large = (float(p.mean()) if count else float("nan") for p in (found, small | gap, large))
    marks = np.percentile(objects.shares, (1, 50, 99)).tolist() if count else [float("nan")] * 3
    cost = sum(map(_area, scales)) / sum(map(_area, preset.scales))
    return Coverage(count, covered, too_small, too_large, marks[0], marks[1], marks[2], tuple(scales), cost)


def choose_scales(objects: Objects, preset: Preset, matching: Matching) -> Scales:
    """Choose the scales, at least `MIN_SCALES` and `STEP` apart, that cover the objects at the least cost.

    They cover `TARGET_COVERAGE` of the objects, and `TARGET_COVERAGE_AT_TWO_SCALES` of them without the smallest scale,
    and without the largest: what is found at two scales accumulates more evidence, and better boxes (4.3), than what is
    found at one. The cost is the area of the canvases; of equal cost (no canvas is smaller than a window), the largest
    scales. Where no scales up to `MAX_SCALE_FACTOR` times the preset's cover so many, those that cover most. If that is
    fewer than `COST_COUNTS_FROM`, the cost counts less than how near the others come to a size that is found.

    Returns:
        Sizes (height, width) in pixels, smallest first; the preset's own where there are no objects.

    Raises:
        ValueError: `matching.sizes` that no such scales show, as those in pixels.
    """
    if not len(objects.sides):
        return preset.scales
    first = matching.sizes[0] * preset.window
    # Smaller still, and the longest object, which is longer than this in a picture that is not square, is too small.
    first *= min(1.0, matching.sizes[0] / float(_in_windows(objects, preset, [(round(first),) * 2]).max()))
    last = MAX_SCALE_FACTOR * max(map(_area, preset.scales)) ** 0.5
    count = int(np.log(last / first) / np.log(STEP) * ANCHORS) + 1
    if count <= ANCHORS * (MIN_SCALES - 1):
        raise ValueError(
            f"expected matching.sizes in window sides ({preset.window} pixels each), such that scales up to {last:.0f} "
            f"pixels show them; got {matching.sizes}"
        )
    ladder = [round(first * STEP ** (number / ANCHORS)) for number in range(count)]
    squares = [(side, side) for side in ladder]
    longer, costs = _in_windows(objects, preset, squares), _areas(objects, preset, squares)
    least, most = matching.sizes
    found = (longer >= least) & (longer <= most)
    beyond = np.log(np.maximum(least / np.maximum(longer, 1e-6), np.maximum(longer / most, 1)))  # 0 where found
    best: tuple[tuple[float, ...], Sequence[int]] | None = None
    for start in range(len(squares)):
        for stop in range(start + ANCHORS * (MIN_SCALES - 1), len(squares), ANCHORS):
            numbers = range(start, stop + 1, ANCHORS)
            covered, without_smallest, without_largest = (
                float(found[list(some)].any(axis=0).mean()) for some in (numbers, numbers[1:], numbers[:-1])
            )
            twice = min(without_smallest, without_largest, TARGET_COVERAGE_AT_TWO_SCALES)
            missed_by = float(beyond[list(numbers)].min(axis=0).mean()) if covered < COST_COUNTS_FROM else 0.0
            merit = (min(covered, TARGET_COVERAGE), twice, -missed_by, -float(costs[list(numbers)].sum()), start)
            if best is None or merit > best[0]:
                best = merit, numbers
    assert best is not None
    return tuple(squares[number] for number in best[1])


def parse_scales(text: str) -> Scales:
    """Read sizes such as "117,165,229x325": a side in pixels, or height x width.

    Raises:
        ValueError: text that is none, or sizes below one pixel.
    """
    try:
        pairs = [tuple(int(side) for side in part.split("x")) for part in text.split(",")]
        sizes = tuple((pair[0], pair[-1]) for pair in pairs)
        if any(len(pair) > 2 or min(pair) < 1 for pair in pairs):
            raise ValueError
    except ValueError:
        known = "auto, preset, or sizes such as 117,165,229x325"
        raise ValueError(f"expected scales to be {known}; got '{text}'") from None
    return tuple(sorted(sizes, key=_area))


def _area(size: tuple[int, ...]) -> int:
    return size[0] * size[1]


def _in_windows(objects: Objects, preset: Preset, scales: Scales | list[tuple[int, int]]) -> np.ndarray:
    """Return the longer sides of objects at each scale, in window sides: [K, n]."""
    images, index = np.unique(objects.images, axis=0, return_inverse=True)
    sizes = [fit_scale(preset, scale, tf.constant(images))[0].numpy()[index.ravel()] for scale in scales]
    return np.stack([(size * objects.sides).max(axis=1) for size in sizes]) / preset.window


def _areas(objects: Objects, preset: Preset, scales: list[tuple[int, int]]) -> np.ndarray:
    """Return the mean area in pixels of each scale's canvas: [K]."""
    images, counts = np.unique(objects.images, axis=0, return_counts=True)
    canvases = [fit_scale(preset, scale, tf.constant(images))[1].numpy().prod(axis=1) for scale in scales]
    return np.stack([np.average(areas, weights=counts) for areas in canvases])
