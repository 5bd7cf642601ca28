"""The splits of a set: what folders and files are named for them, and a part held out for validation where none is."""

import hashlib
import io
import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import cached_property
from glob import escape, glob
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from overfeat_tf.models.model import CONFIG, SPLIT
from training.progress import progress
from training.sources.listing import MASKS, folders_below
from training.sources.record import Record, Source, check_split

NAMES = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "valset", "minival", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "testset"), "test"),
}
NEUTRAL = ("set", "data", "images", "imgs", "labels", "annotations")  # beside them in the name of a split's folder
HOLE = "{split}"
IMAGES = ("JPEGImages", "images", "Images", "imgs", "img")  # folders of images, by preference
# Folders that are parts of a set and no classes, in lower case.
PARTS = {"images", "imgs", "img", "jpegimages", "labels", "annotations", "annots", "xmls", "imagesets"}
PARTS |= MASKS
DEPTH = 3  # folders below the one that is named, in which annotations and images are looked for
ALL = "all"  # both splits of a divided source

SHARE, MOST = 0.15, 0.2  # of the images that are held out: aimed at, and at most
LEAST_IMAGES = 5  # of which one is a fifth
COMPARED = 20_000  # images, at most, that are compared by their content: some 3 ms each
SLOW = 1000  # images from which the comparing is shown as progress
SIDE = 16  # pixels of the thumbnails that are compared
# The correlation of two thumbnails' luma from which images are near-duplicates. Re-encoded, scaled or brighter copies
# have 0.98 and more; of 200 and 363 different photographs 1 in 100 pairs with its nearest has 0.95. Where the first
# would join half of the images, as of one fixed camera, the next is taken; beyond them, only equal files are joined.
ALIKE = (0.95, 0.98, 0.995, 2.0)
FLAT = 2.0  # standard deviation of the luma below which there is nothing to compare but the colour

log = logging.getLogger(__name__)


def split_of(name: str, folder: bool = False) -> str | None:
    """Return the split that a name has in it: "val" for `instances_val2017`, `valid` or `Raccoon_validation`.

    With `folder` nothing else may be in the name but digits and `NEUTRAL` words, as in `train2017`.
    """
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^A-Za-z\d\s_.-]+", name)
    found = [NAMES[word.lower()] for word in words if word.lower() in NAMES]
    others = [word for word in words if word.lower() not in (*NAMES, *NEUTRAL) and not word.isdigit()]
    return found[0] if found and not (folder and (others or len(found) > 1)) else None


def names_of_splits(names: Iterable[str]) -> list[str]:
    """Return the names that differ by the split in them alone, and are of training and others: seg_train, seg_test."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for name in names:
        if split := split_of(name):
            rest = "".join(word for word in re.split(r"[\s_.-]+", name) if word.lower() not in NAMES)
            found[rest].setdefault(split, name)
    return [name for same in found.values() if "train" in same and len(same) > 1 for name in same.values()]


def split_of_path(parts: Sequence[str]) -> str | None:
    """Return the split of the first folder in a path that is named for one."""
    return next((split for part in parts if (split := split_of(part, folder=True))), None)


def fill_hole(pattern: str) -> dict[str, str]:
    """Return what stands for `{split}` in a path, by split, for all files that there are."""
    written = re.escape(pattern).replace(re.escape(HOLE), "(?P<split>[^/]+)", 1).replace(re.escape(HOLE), "(?P=split)")
    found = (re.fullmatch(written, path) for path in sorted(glob(escape(pattern).replace(HOLE, "*"))))
    words = [match["split"] for match in found if match]
    return {split_of(word, folder=True) or word: word for word in words}


def by_split(files: Sequence[Path], folder: Path, form: str) -> dict[str, Path]:
    """Return a folder's files of annotations by split, after their own names or their folders', else "train".

    Raises:
        ValueError: two of one split; `form` is the SOURCE that names one.
    """
    found: dict[str, Path] = {}
    for path in files:
        split = split_of(path.stem) or split_of_path(path.relative_to(folder).parts[:-1]) or "train"
        if split in found:
            both = f"'{found[split]}' and '{path}'"
            raise ValueError(f"expected one file of annotations for a split; {both} are of '{split}': write {form}")
        found[split] = path
    return {split: found[split] for split in dict.fromkeys(NAMES.values()) if split in found}


def folders_around(path: Path, root: Path, split: str | None = None) -> list[Path]:
    """Return the folders where the images of a file of annotations may be, the likeliest first, the root last."""

    def fitting(above: Path, folders: Iterable[Path]) -> list[Path]:
        splits = {folder: split_of_path(folder.relative_to(above).parts) for folder in folders}
        own = [folder for folder in splits if split and splits[folder] == split]
        return own + [folder for folder in splits if splits[folder] is None]

    found = [path.parent, *fitting(root, folders_below(root, DEPTH))]
    if path.parent == root:  # a file alone, or a folder of annotations: the folders of images and of splits beside it
        above = Path(os.path.abspath(root)).parent
        beside = [f for f in folders_below(above, 1) if f.name in IMAGES or split_of(f.name, folder=True)]
        inner = [f for each in beside for f in folders_below(each, 1) if each.name in IMAGES or f.name in IMAGES]
        found += fitting(above, beside + inner)
    return [*dict.fromkeys(found), root]


class Dividable(Source, Protocol):
    """A source that can be divided: it gives its records by their ids, and its images without their records."""

    def records(
        self, split: str, limit: int | None = None, keep: Callable[[str], bool] | None = None
    ) -> Iterator[Record]: ...

    def images(self, split: str) -> Iterable[tuple[str, Callable[[], bytes]]]: ...


class Divided:
    """A source of one list, of whose images 10 to 20 % are held out as the split "val".

    Which ones depends on their names and content and on the seed. Near-duplicates are on one side: variants of one
    image by Roboflow (`NAME.rf.HASH.jpg`), and images that look alike, as they are or mirrored (of more than
    `COMPARED` images only the names are compared). Where there are too few different images, none is held out.

    Args:
        source: The source.
        held_out: The ids of those held out, if that is settled.
        seed: Another seed is another choice.
    """

    def __init__(self, source: Dividable, held_out: Sequence[str] | None = None, seed: int = 0):
        self.undivided, self.name, self.seed = source, source.name, seed
        self._settled = held_out

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.undivided.class_names

    @property
    def boxed(self) -> bool:
        return self.undivided.boxed

    @property
    def splits(self) -> tuple[str, ...]:
        """The split "train", and "val" if it has images."""
        return ("train", "val") if self.held_out else ("train",)

    @property
    def united(self) -> tuple[str, ...]:
        """The name by which both can be asked for together."""
        return (ALL,) if self.held_out else ()

    @cached_property
    def held_out(self) -> frozenset[str]:
        """The ids of the images held out."""
        if self._settled is not None:
            return frozenset(self._settled)
        (split,) = self.undivided.splits
        total = sum(1 for _ in self.undivided.images(split))
        chosen = frozenset(_choose(self.undivided.images(split), total, self.seed))
        if chosen:
            how = "near-duplicates on one side" if total <= COMPARED else "near-duplicates recognised by file name only"
            log.info(
                "%s has one list of images: %d of %d (%.0f %%) are held out as split 'val', by seed %d, %s; "
                "--split all means all of them",
                *(self.name, len(chosen), total, 100 * len(chosen) / total, self.seed, how),
            )
        return chosen

    def records(self, split: str, limit: int | None = None) -> Iterator[Record]:
        """Yield the split's records, the first `limit` of them."""
        check_split(self, split)
        (only,) = self.undivided.splits
        return self.undivided.records(only, limit, None if split == ALL else self._membership(split))

    def images(self, split: str) -> Iterator[tuple[str, Callable[[], bytes]]]:
        """Yield the ids of the split's images, and what gives their bytes."""
        (only,), belongs = self.undivided.splits, self._membership(split)
        return ((name, read) for name, read in self.undivided.images(only) if split == ALL or belongs(name))

    def _membership(self, split: str) -> Callable[[str], bool]:
        """Return what tells whether the image of an id belongs to "train" or "val"."""
        held_out = self.held_out
        return lambda name: (name in held_out) == (split == "val")


def divide(source: Source) -> Source:
    """Return a source with a part held out, if it has one list of images that is not named for another split."""
    if len(source.splits) != 1 or split_of(source.splits[0]) in ("val", "test") or not hasattr(source, "images"):
        return source
    return Divided(source)  # type: ignore[arg-type]


def settle(source: Source, run: Path, val_split: str = "val") -> Source:
    """Return a source divided as the run's folder has it stored, or for a run that begins, as it divides itself.

    The same goes for the folder of an export, and for data that has moved since. A start that failed before the run's
    configuration was written settles nothing. Where `val_split`, the recipe's, is another than "val", a run that begins
    holds nothing out. A source that is not `Divided` is returned as it is.
    """
    if not isinstance(source, Divided):
        return source
    if (run / SPLIT).is_file() and (run / CONFIG).is_file():
        stored = json.loads((run / SPLIT).read_text())
        if stored["source"] == source.name or _moved(source, stored):
            return Divided(source.undivided, stored["val"], stored["seed"])
    return source if val_split == "val" else Divided(source.undivided, ())


def _moved(source: Divided, stored: dict) -> bool:
    """Return whether a stored division is of this source elsewhere: of its kind, its last name and its images."""
    here, there = (re.split(r"[:/]", name) for name in (source.name, stored["source"]))
    if (here[0], here[-1]) != (there[0], there[-1]):
        return False
    (split,), held_out = source.undivided.splits, set(stored["val"])
    return any(name in held_out for name, _ in source.undivided.images(split))


def store(source: Source, run: Path) -> None:
    """Write into a run's folder which images a `Divided` source holds out, unless it has that already."""
    if isinstance(source, Divided) and not (run / SPLIT).is_file():
        content = {"source": source.name, "seed": source.seed, "val": sorted(source.held_out)}
        (run / f"{SPLIT}.new").write_text(json.dumps(content, indent=1) + "\n")
        os.replace(run / f"{SPLIT}.new", run / SPLIT)


def _choose(images: Iterable[tuple[str, Callable[[], bytes]]], total: int, seed: int) -> list[str]:
    """Return the names of the images to hold out; none where no group of near-duplicates is small enough."""
    if total < LEAST_IMAGES:
        return []
    names, luma, digests = [], [], []
    for name, read in progress(images, "compare images", total, quiet=total < SLOW):
        data = read() if total <= COMPARED else b""
        names.append(name)
        luma.append(_thumbnail(data))
        digests.append(hashlib.blake2b(data, digest_size=16).digest() if data else name.encode())
    groups = _groups(names, np.reshape(luma, (len(names), -1)), digests)
    rng = np.random.default_rng(seed)
    held_out: list[int] = []
    for index in rng.permutation(len(groups)):
        if len(held_out) + len(groups[index]) <= MOST * len(names):
            held_out += groups[index]
        if len(held_out) >= SHARE * len(names):
            break
    return [names[index] for index in held_out]


def _thumbnail(data: bytes) -> np.ndarray:
    """Return an image's luma, float32 [SIDE, SIDE] in 0..255; nan where it can't be read."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.draft("L", (4 * SIDE, 4 * SIDE))
            small = opened.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
        return np.asarray(small, np.float32)
    except Exception:  # of any damage; it is reported where the image is used
        return np.full((SIDE, SIDE), np.nan, np.float32)


def _groups(names: Sequence[str], luma: np.ndarray, digests: Sequence[bytes]) -> list[list[int]]:
    """Return the places of near-duplicates together: by name, by equal bytes, and by thumbnails [n, SIDE * SIDE]."""
    deviation = luma.std(axis=1, keepdims=True)
    plain = np.nan_to_num((luma - luma.mean(axis=1, keepdims=True)) / np.maximum(deviation, FLAT) / SIDE)
    mirrored = plain.reshape(-1, SIDE, SIDE)[:, :, ::-1].reshape(len(plain), -1)
    flat = np.where(deviation[:, 0] < FLAT, np.round(luma.mean(axis=1) / 8), -1.0 - np.arange(len(names)))
    named = _components([_numbered(each) for each in (map(_original, names), digests, flat.tolist())])
    for threshold in ALIKE:
        group = named.copy()
        if threshold <= 1 and len(names) <= COMPARED:
            for start in range(0, len(plain), 1024):
                part = plain[start : start + 1024]
                for alike in np.maximum(part @ plain.T, part @ mirrored.T) > threshold:
                    joined = np.unique(group[alike])
                    if len(joined) > 1:
                        group[np.isin(group, joined)] = joined[0]
        _, counts = np.unique(group, return_counts=True)
        if counts.max() <= len(names) / 2:
            break
    return [part.tolist() for part in np.split(np.argsort(group, kind="stable"), np.cumsum(counts)[:-1])]


def _numbered(values: Iterable[Hashable]) -> np.ndarray:
    """Number values by their first occurrence, equal ones alike: int [n]."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values])


def _components(keys: Sequence[np.ndarray]) -> np.ndarray:
    """Number the places that share any of their keys, each int [n] from 0, by the first such place: int [n]."""
    group, before = np.arange(len(keys[0])), None
    while before is None or (group != before).any():
        before = group
        for key in keys:
            least = np.full(key.max() + 1, len(key))
            np.minimum.at(least, key, group)
            group = least[key]
    return group


def _original(name: str) -> str:
    """Return the name of the image that Roboflow's variants are made from: before `.rf.HASH`."""
    return re.sub(r"\.rf\.[^/]*$", "", name)
