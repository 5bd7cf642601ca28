"""The images below a folder, listed by their names alone, and found where annotations say they are elsewhere."""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from overfeat_tf.images.files import JUNK, SUFFIXES, walk
from training.sources.checks import Finding, Kind, ReportFinding

# What lies beside images and is none of them. A file of any other suffix, or without one, may be an image.
NO_IMAGES = (
    *(".txt", ".md", ".html", ".log", ".xml", ".json", ".yaml", ".yml", ".csv", ".tsv", ".pbtxt"),
    *(".npy", ".npz", ".mat", ".pkl", ".py", ".ini", ".db", ".cache"),
)
# Folders of images that tell each pixel's class, named as the images are: never taken for these.
MASKS = {"masks", "trimaps", "segmentationclass", "segmentationobject"}
SAMPLE = 100  # images that tell in which folder all are
URL = re.compile(r"[a-z][a-z0-9+.-]+://[^/?#]*([^?#]*)", re.IGNORECASE)  # urlsplit refuses some
LOCAL_FILES = re.compile(r".*/local-files/\?d=")  # Label Studio's address of a file on its own disk


def is_junk(name: str) -> bool:
    """Return whether a file or folder is hidden, or one of `JUNK`: no data of the user's."""
    return name in JUNK or name.startswith(".")


def _is_passed_over(folder: str) -> bool:
    return is_junk(folder) or folder.lower() in MASKS


def is_file(path: Path) -> bool:
    """Return whether there is a file; False for names that the file system can't have."""
    return os.path.isfile(path)  # Path's own raises OSError where a name is too long


def is_dir(path: Path) -> bool:
    """Return whether there is a folder; False for names that the file system can't have."""
    return os.path.isdir(path)


def images_below(root: Path, below: str, report: ReportFinding) -> list[str]:
    """List the images in the folder `below` and its folders, by folder and name: their paths in `root`.

    Args:
        root: The folder that paths start from.
        below: A folder in it; "" for all of it.
        report: Is told of files that may be images and are not taken, of folders that can't be read, and of links that
            are not followed: those into `root`, which might lead in a circle.
    """

    def unread(error: OSError) -> None:
        name = os.path.relpath(error.filename, root)
        report(Finding(Kind.NOT_TAKEN, printable(name), f"{error.strerror}: {printable(error.filename)}"))

    found = []
    for folder, _, files, links in _walk(root, below, unread):
        where = os.path.relpath(folder, root)
        prefix = "" if where == "." else f"{where}/"
        for link in links:
            report(
                Finding(Kind.NOT_TAKEN, printable(prefix + link), "a link to a folder of the set; it is not followed")
            )
        for file in sorted(name for name in files if not is_junk(name)):
            name = prefix + file
            if not is_image(file):
                if not file.lower().endswith(NO_IMAGES):
                    report(Finding(Kind.NOT_TAKEN, printable(name), f"no suffix of {', '.join(SUFFIXES)}"))
            elif is_utf8(name):
                found.append(name)
            else:
                report(Finding(Kind.NOT_TAKEN, printable(name), "the name is not UTF-8; rename it"))
    return found


def files_below(root: Path, suffixes: Sequence[str], depth: int | None = None) -> Iterator[Path]:
    """Yield the files below a folder that end in one of the suffixes, by folder and name, without `JUNK`.

    `depth` counts the folders that are entered at most, below the first.
    """
    for folder, folders, files, _ in _walk(root):
        if depth is not None and len(Path(folder).relative_to(root).parts) >= depth:
            folders.clear()
        yield from (
            Path(folder, name)
            for name in sorted(files)
            if name.lower().endswith(tuple(suffixes)) and not is_junk(name) and is_utf8(name)
        )


def _walk(
    root: Path, below: str = "", onerror: Callable[[OSError], None] | None = None
) -> Iterator[tuple[str, list[str], list[str], list[str]]]:
    """Walk the folder `below`, by name, and what links lead to outside of `root`; the fourth are other links."""
    inside = os.path.join(os.path.realpath(root), "")
    for folder, folders, files, links in walk(root / below, onerror):
        linked = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        links += [n for n in linked if os.path.join(os.path.realpath(os.path.join(folder, n)), "").startswith(inside)]
        folders[:] = [name for name in folders if name not in links and not _is_passed_over(name)]
        yield folder, folders, files, sorted(link for link in links if not is_junk(link))


def folders_below(root: Path, depth: int) -> Iterator[Path]:
    """Yield the folders below a folder, those that are entered at most `depth` deep, without `JUNK` and masks."""
    try:
        with os.scandir(root) as entries:  # which tells folders without looking at each file
            names = sorted(entry.name for entry in entries if entry.is_dir() and not _is_passed_over(entry.name))
    except OSError:
        return
    for folder in (root / name for name in names if is_utf8(name)):
        yield folder
        if depth > 1:
            yield from folders_below(folder, depth - 1)


class Locator:
    """Finds the images that annotations name, wherever their tool has kept them.

    A path is tried in each of the folders as it is, then decoded: from a URL, %20, backslashes, or a disk C:.
    Otherwise the file below `root` is taken whose last folders match most of the path, if there is only one. A match of
    the name alone counts only if no other of the `stated` paths has that name.

    Attributes:
        root: The folder below which files are looked for by their names.
    """

    def __init__(self, folders: Sequence[Path], root: Path, stated: Iterable[str]):
        self._folders, self.root, self._stated = folders, root, stated

    def find(self, stated: str) -> Path | None:
        """Return the image's file; None where there is none, or several fit."""
        for form in dict.fromkeys((stated, decoded(stated))):
            for folder in self._folders:
                if is_file(folder / form):
                    return folder / form
        wanted = [_plain(part) for part in PurePosixPath(decoded(stated)).parts]
        if not wanted:
            return None
        alike = self._by_stem.get(_stem(wanted[-1]), [])
        named = [path for path in alike if _plain(path.name) == wanted[-1]] or alike  # else of another suffix
        shared = [_shared_end(wanted[:-1], path) for path in named]
        if not named or (max(shared) == 0 and self._claims[_stem(wanted[-1])] > 1):
            return None
        best = [path for path, count in zip(named, shared, strict=True) if count == max(shared)]
        best.sort(key=lambda path: SUFFIXES.index(path.suffix.lower()))
        return best[0] if len(best) == 1 or len({path.parent.resolve() for path in best}) == 1 else None

    @cached_property
    def _claims(self) -> Counter[str]:
        """How many of the annotations' images have a name."""
        return Counter(_stem(PurePosixPath(decoded(path)).name) for path in dict.fromkeys(self._stated))

    @cached_property
    def _by_stem(self) -> dict[str, list[Path]]:
        found = defaultdict(list)
        for path in files_below(self.root, SUFFIXES):
            found[_stem(path.name)].append(path)
        return found


def best_locator(folders: Sequence[Path], stated: Sequence[str]) -> Locator:
    """Return what finds images in any of the folders, first in that which has most of the first ones.

    What none of them has by its own path is looked for below that folder, or else below the last.
    """
    hits = [sum(is_file(folder / decoded(name)) for name in stated[:SAMPLE]) for folder in folders]
    best = folders[hits.index(max(hits))] if any(hits) else folders[-1]
    return Locator([best, *folders], best, stated)


def decoded(path: str) -> str:
    """Return a path with slashes, without the URL's parts and the disk that it may begin with."""
    path = LOCAL_FILES.sub("", path.strip())
    if (url := URL.match(path)) is not None:
        path = url[1]
    return re.sub(r"^[a-zA-Z]:", "", unquote(path).replace("\\", "/"))


def normal_path(path: str) -> str:
    """Return a path in the form that all spellings of it share: decoded, without "./"."""
    return str(PurePosixPath(decoded(path)))


def is_image(name: str) -> bool:
    """Return whether a file's suffix is one of an image."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def is_utf8(name: str) -> bool:
    """Return whether a name can be a string of TensorFlow's; the operating system takes any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(name: str) -> str:
    r"""Return a name as a finding may have it: bytes that are not UTF-8 as \xe9."""
    try:
        return os.fsencode(name).decode(errors="backslashreplace")
    except UnicodeEncodeError:  # a lone surrogate, as JSON may have
        return name.encode(errors="backslashreplace").decode()


def _stem(name: str) -> str:
    """Return a name without its suffix, if that is an image's: "a.b" is a stem, as of "a.b.jpg"."""
    return _plain(os.path.splitext(name)[0] if is_image(name) else name)


def _plain(name: str) -> str:
    """Return a name without its case, and with accents in one form: archives that macOS writes have them apart."""
    return unicodedata.normalize("NFC", name).casefold()


def _shared_end(folders: Sequence[str], path: Path) -> int:
    """Count how many folders above a file are those at the end of `folders`."""
    count = 0
    for wanted, there in zip(reversed(folders), reversed(path.parent.parts), strict=False):
        if wanted != _plain(there):
            break
        count += 1
    return count
