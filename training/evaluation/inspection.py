"""What is in a data set, and what is wrong with it: every image decoded as training does, counted and compared."""

import hashlib
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import tensorflow as tf

from overfeat_tf.images.decode import decode_image, read_size
from training.evaluation.threads import map_ahead
from training.progress import progress
from training.recipes import Recipe
from training.sources import open_data
from training.sources.checks import Finding, Kind, Log, ReportFinding
from training.sources.dataset import Data
from training.sources.record import Record, Source, check_split
from training.views.coverage import Coverage, Objects, measure_coverage

TINY = 221  # pixels of the shorter side: less than a window of `accurate` (Table 3)
HUGE = 2000  # pixels of the longer side: decoding takes longer than all that comes after
EXAMPLES = 200  # findings of a kind and split that are kept; all are counted
AHEAD = 16  # images that are decoded before they are asked for
QUANTILES = (0, 10, 50, 90, 100)  # percent

See = Callable[[str, Record, list[Finding]], None]


@dataclass
class SplitCounts:
    """Counts of one split's images that can be used.

    Attributes:
        images, objects: How many.
        without_objects, without_boxes: Images that have no object, and objects that have no box.
        per_class: Objects by class name.
        heights, widths: Of the images as displayed, in pixels.
        sizes: Of the boxes, as the square root of their share of the image.
        aspects: Of the boxes, width by height in pixels.
        shared: Images that an earlier split has too, under the same id, by that split's name.
        box_images, box_sides: Of the boxes that are no crowds, the (height, width) of their images in pixels, and their
            own as shares of it.
    """

    images: int = 0
    objects: int = 0
    without_objects: int = 0
    without_boxes: int = 0
    per_class: Counter = field(default_factory=Counter)
    heights: list[int] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    sizes: list[float] = field(default_factory=list)
    aspects: list[float] = field(default_factory=list)
    shared: Counter = field(default_factory=Counter)
    box_images: list[tuple[int, int]] = field(default_factory=list)
    box_sides: list[np.ndarray] = field(default_factory=list)

    @property
    def sized_objects(self) -> Objects:
        """The objects' sizes, of which a pyramid covers some."""
        shape = (len(self.box_sides), 2)
        return Objects(*(np.reshape(np.asarray(rows, np.float32), shape) for rows in (self.box_images, self.box_sides)))

    def add(self, record: Record, size: tuple[int, int], names: Sequence[str]) -> None:
        """Count a record whose image is of (height, width) pixels."""
        self.images += 1
        self.objects += len(record.labels)
        self.without_objects += len(record.labels) == 0
        self.without_boxes += int((~record.boxed).sum())
        self.per_class.update(names[label] for label in record.labels)
        self.heights.append(size[0])
        self.widths.append(size[1])
        single = np.clip(record.boxes[record.boxed & ~record.crowd], 0, 1)
        self.box_images += [size] * len(single)
        self.box_sides += list(single[:, 2:] - single[:, :2])
        heights, widths = (record.boxes[record.boxed, 2:] - record.boxes[record.boxed, :2]).T
        self.sizes += np.sqrt(heights * widths).tolist()
        self.aspects += (widths * size[1] / (heights * size[0])).tolist()

    def as_dict(self) -> dict:
        """Return the counts in JSON's types: of each list its `QUANTILES`."""
        plain = {key: getattr(self, key) for key in ("images", "objects", "without_objects", "without_boxes")}
        lists: dict[str, Sequence[float]] = {"image_height": self.heights, "image_width": self.widths}
        lists |= {"box_size": self.sizes, "box_aspect": self.aspects}
        return {
            **plain,
            **{key: np.percentile(values, QUANTILES).round(3).tolist() for key, values in lists.items() if values},
            "per_class": dict(self.per_class),
            "shared_with": dict(self.shared),
        }


class Inspection:
    """What an inspection has found: counts by split, findings by split and kind."""

    def __init__(self) -> None:
        self.source = ""
        self.class_names: tuple[str, ...] = ()
        self.counts: dict[str, SplitCounts] = {}
        self.totals: Counter[tuple[str, Kind]] = Counter()
        self.findings: dict[tuple[str, Kind], list[Finding]] = defaultdict(list)
        self.coverage: dict[str, Coverage] = {}
        self.recipe: Recipe | None = None
        self._split = ""
        self._of_image: dict[str, list[Finding]] = defaultdict(list)  # waiting for the split's next records
        self._first: dict[bytes, tuple[str, str, tuple[int, ...]]] = {}  # split, id and classes by the bytes' digest

    def add(self, finding: Finding) -> None:
        """Count a finding of the split under inspection: a source's report."""
        key = (self._split, finding.kind)
        self.totals[key] += 1
        if len(self.findings[key]) < EXAMPLES:
            self.findings[key].append(finding)
            self._of_image[finding.name].append(finding)

    @property
    def faults(self) -> int:
        """Number of findings that should be fixed."""
        return sum(count for (_, kind), count in self.totals.items() if kind.fault)

    def first_fault(self) -> str:
        """Return the first fault in words; "" without any."""
        for (split, kind), found in self.findings.items():
            if kind.fault:
                return f"{split}: {found[0]}"
        return ""

    def look(self, source: Source, split: str, limit: int | None = None, see: See | None = None) -> None:
        """Count and check a split's records; `see` gets the split, each readable record and what it has wrong."""
        self._split, self.counts[split] = split, SplitCounts()
        self._of_image.clear()
        # In threads rather than in a tf.data pipeline, each of which takes a second to make.
        sized = map_ahead(_sized, source.records(split, limit), os.cpu_count(), AHEAD)
        for record, size, status in progress(sized, f"inspect {split}"):
            if status:
                self.add(Finding(Kind.UNREADABLE, record.image_id, status.decode()))
            else:
                self._check(record, size)
                self.counts[split].add(record, size, source.class_names)
            found = self._of_image.pop(record.image_id, [])
            if see is not None and not status:
                see(split, record, found)

    def compare_classes(self, limited: bool = False) -> None:
        """Find classes whose names look alike and, of all images, those of no objects or of one of several splits."""
        alike: dict[str, str] = {}
        for name in self.class_names:
            other = alike.setdefault(_plain(name), name)
            if other != name:
                self._split = next(iter(self.counts))
                self.add(Finding(Kind.ALIKE, ascii(name), f"and {other!a}"))
            if limited:
                continue
            having = [split for split, counts in self.counts.items() if counts.per_class[name]]
            if not having:
                self._split = next(iter(self.counts))
                self.add(Finding(Kind.NO_OBJECTS, name, "in none of the splits that were looked at"))
            if len(having) == 1 and len(self.counts) > 1:
                self._split = having[0]
                self.add(Finding(Kind.ONE_SPLIT, name, f"{self.counts[having[0]].per_class[name]} objects"))

    def measure_coverage(self, recipe: Recipe) -> None:
        """Measure which objects of each split a recipe's scales cover; scales=auto goes by its training split."""
        self.recipe, preset = recipe, recipe.network
        boxed = {split: counts.sized_objects for split, counts in self.counts.items() if counts.box_sides}
        if not boxed:
            return
        scales = recipe.scales_for(preset, boxed.get(recipe.train_split, next(iter(boxed.values()))))
        for split, objects in boxed.items():
            self.coverage[split] = measure_coverage(objects, preset, scales, recipe.matching)

    def as_dict(self) -> dict:
        """Return everything in JSON's types; of the findings the first `EXAMPLES` of a kind and split."""
        return {
            "source": self.source,
            "classes": list(self.class_names),
            "quantiles": list(QUANTILES),
            "splits": {split: counts.as_dict() for split, counts in self.counts.items()},
            "recipe": self.recipe.name if self.recipe else "",
            "coverage": {split: asdict(coverage) for split, coverage in self.coverage.items()},
            "faults": self.faults,
            "findings": [
                {
                    "split": split,
                    "kind": kind.words,
                    "action": kind.action,
                    "fault": kind.fault,
                    "count": self.totals[split, kind],
                    "examples": [{"name": one.name, "detail": one.detail} for one in found],
                }
                for (split, kind), found in self.findings.items()
            ],
        }

    def _check(self, record: Record, size: tuple[int, int]) -> None:
        name = record.image_id
        if min(size) < TINY or max(size) > HUGE:
            self.add(Finding(Kind.TINY if min(size) < TINY else Kind.HUGE, name, f"{size[1]}x{size[0]} pixels"))
        orientation = read_size(record.image_bytes)[2]
        if orientation != 1:
            self.add(Finding(Kind.TURNED, name, f"{orientation}: boxes are taken in the image as displayed"))
        digest = hashlib.blake2b(record.image_bytes, digest_size=16).digest()
        classes = tuple(sorted(set(record.labels.tolist())))
        split, other, others = self._first.setdefault(digest, (self._split, name, classes))
        if (split, other) == (self._split, name):
            return
        if other == name:  # one image in several lists
            self.counts[self._split].shared[split] += 1
        elif classes != others:
            named = (" ".join(self.class_names[label] for label in labels) or "none" for labels in (classes, others))
            self.add(Finding(Kind.TWO_CLASSES, name, "{}, but {} as {} of {}".format(*named, other, split)))
        else:
            kind = Kind.DUPLICATE if split == self._split else Kind.LEAK
            self.add(Finding(kind, name, f"the same bytes as {other} of {split}"))


def inspect(
    open_with: Callable[[ReportFinding], Source],
    splits: Sequence[str] | None = None,
    limit: int | None = None,
    see: See | None = None,
) -> Inspection:
    """Inspect a source's splits, all if left out, the first `limit` images of each.

    Memory grows by some hundred bytes an image: those that tell duplicates. Duplicates are images of the same bytes.

    Args:
        open_with: Opens the source with a report.
        splits: Their names.
        limit: Most images a split.
        see: Called with each split's readable records and what is wrong with them.

    Raises:
        ValueError: no such source or split.
    """
    inspection = Inspection()
    source = open_with(inspection.add)
    for split in splits or ():
        check_split(source, split)
    inspection.source, inspection.class_names = source.name, source.class_names
    for split in splits or source.splits:
        inspection.look(source, split, limit, see)
    inspection.compare_classes(limit is not None)
    return inspection


def open_faultless(data: Data, class_names: Sequence[str] | None, splits: Sequence[str]) -> Source:
    """Open data, and check every image and object of some of its splits, those that it has.

    Args:
        data, class_names: As for `open_data`, not yet open.
        splits: Their names.

    Raises:
        ValueError: there are faults; the message has the first. Or a source that is open already.
    """
    if not isinstance(data, str | tf.data.Dataset | Mapping):
        raise ValueError("expected a SOURCE such as 'voc:DIR' or tf.data to check strictly; got a source that is open")
    reports: list[ReportFinding] = [Log()]
    source = open_data(data, class_names, lambda finding: reports[-1](finding))

    def opened(report: ReportFinding) -> Source:
        reports.append(report)
        return source

    found = inspect(opened, [split for split in splits if split in source.splits])
    reports.pop()
    if found.faults:
        rest = f"; all of them: overfeat inspect {data}" if isinstance(data, str) else ""
        got = f"got {found.faults} in {source.name}, the first in {found.first_fault()}"
        raise ValueError(f"expected data without faults; {got}{rest}")
    return source


def _plain(name: str) -> str:
    """Return a class's name without what can't be seen in it: case, white space, and characters of no width."""
    return "".join(c for c in unicodedata.normalize("NFKC", name).casefold() if unicodedata.category(c)[0] not in "CZ")


def _sized(record: Record) -> tuple[Record, tuple[int, int], bytes]:
    """Return a record with its decoded image's height and width, so that no pixels wait, and its status."""
    image, status = decode_image(record.image_bytes)
    height, width, _ = image.shape
    return record, (height, width), status.numpy()
