"""A table of boxes, as the tutorials of the Object Detection API have it and Roboflow exports it: `csv:FILE`."""

import csv
import io
import math
from collections import defaultdict
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from training.sources.checks import AnnotatedObject, Finding, Kind, ReportFinding, are_shares, make_record
from training.sources.file_source import Entry, FileSource
from training.sources.listing import best_locator, files_below, is_dir, is_file, normal_path
from training.sources.record import Record
from training.sources.splits import DEPTH, HOLE, by_split, fill_hole, folders_around, split_of
from training.sources.text import ContentError, is_set, one_line, read_head, read_text, to_float

# What a column may be called, in lower case and without "_" and spaces.
COLUMNS = {
    "filename": ("filename", "file", "image", "imagename", "imagepath", "path", "img", "imageid"),
    "class": ("class", "label", "classname", "labelname", "category", "name"),
    "xmin": ("xmin", "x1", "left"),
    "ymin": ("ymin", "y1", "top"),
    "xmax": ("xmax", "x2", "right"),
    "ymax": ("ymax", "y2", "bottom"),
}
# Columns that may be missing: the image's size in pixels, and flags of an object, as Open Images calls them too.
SIZE = ("width", "height")
FLAGS = {
    "difficult": ("difficult", "isdifficult"),
    "crowd": ("iscrowd", "isgroupof"),
    "truncated": ("truncated", "istruncated"),
    "occluded": ("occluded", "isoccluded"),
}
OPTIONAL = {name: (name,) for name in SIZE} | FLAGS
EDGES = ("ymin", "xmin", "ymax", "xmax")
FORM = "filename,width,height,class,xmin,ymin,xmax,ymax"


class CsvTable(FileSource):
    """Tables with a row for each object: `filename,width,height,class,xmin,ymin,xmax,ymax`.

    One file is one split, named by the split that its name has in it, else "train"; `{split}` in the path stands for
    every split, as in `data/{split}_labels.csv` or Roboflow's `{split}/_annotations.csv`; a folder stands for all
    tables in it. Boxes are pixels from 0; where all are at most 1, shares of the image. `FLAGS` may have columns. A row
    without a class and a box is of an image without objects. Images are looked for in the folders around the table.
    Classes are sorted.

    Raises:
        ValueError: no such file, or other columns.
    """

    def __init__(self, rest: str, report: ReportFinding):
        super().__init__(f"csv:{rest}", report)
        path = Path(rest)
        if HOLE in rest:
            self._files = {split: Path(rest.replace(HOLE, word)) for split, word in fill_hole(rest).items()}
        elif is_dir(path):
            self._files = by_split(csv_files_in(path), path, "csv:FILE")
        else:
            self._files = {split_of(path.stem) or split_of(path.parent.name, folder=True) or "train": path}
        if not self._files or not all(map(is_file, self._files.values())):
            raise ValueError(f"expected csv:FILE, a table with the columns {FORM}; there is none in '{rest}'")
        self._root = path if is_dir(path) else None
        self._bad_rows: dict[str, list[Finding]] = {}
        self._rows = cache(self._read_rows)
        for split in self._files:
            self._rows(split)
        self.splits = tuple(self._files)
        self._locator = cache(
            lambda split: best_locator(
                folders_around(self._files[split], self._root or self._files[split].parent, split),
                list(self._rows(split)),
            )
        )

    @cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        rows = [row for split in self.splits for rows in self._rows(split).values() for row in rows]
        names = sorted({row["class"] for row in rows if not _is_empty(row)} - {""})
        if not names:
            raise ValueError(f"expected classes in {self.name}; there are none")
        return tuple(names)

    @cached_property
    def _normalised(self) -> bool:
        """Whether boxes are shares of the image."""
        rows = [row for split in self.splits for rows in self._rows(split).values() for row in rows]
        return are_shares(np.array([_corners(row) for row in rows]))

    def _list(self, split: str, report: ReportFinding) -> list[Entry]:
        for finding in self._bad_rows[split]:
            report(finding)
        return [Entry(name) for name in self._rows(split)]

    def _read(self, split: str, entry: Entry, data: bytes) -> Record | None:
        rows = self._rows(split)[entry.name]
        sizes = {(to_float(row.get("width", "")), to_float(row.get("height", ""))) for row in rows}
        sizes = {size for size in sizes if not any(map(math.isnan, size))}
        if len(sizes) > 1:
            found = " and ".join(f"{width:g}x{height:g}" for width, height in sorted(sizes))
            self._report(Finding(Kind.BAD_ANNOTATION, entry.name, f"{self._files[split]}: its rows have sizes {found}"))
            return None
        objects = [
            AnnotatedObject(
                row["class"],
                _corners(row),
                where=f"line {row['line']}",
                **{flag: is_set(row[flag]) for flag in FLAGS.keys() & row.keys()},  # type: ignore[arg-type]
            )
            for row in rows
            if not _is_empty(row)
        ]
        stated = next(iter(sizes), (0.0, 0.0))
        return make_record(
            data, entry.name, objects, self._classes, self._report, stated=stated, normalised=self._normalised
        )

    def _read_rows(self, split: str) -> dict[str, list[dict[str, str]]]:
        """Return a table's rows by their images, in its order; those that can't be used are kept as findings."""
        path = self._files[split]
        (_, header), *lines = _table(path, read_text(path)) or [(1, [])]
        columns = _columns(header)
        if missing := [name for name in COLUMNS if name not in columns]:
            found = ", ".join(header[:12]) or "nothing"
            raise ValueError(
                f"expected the columns {FORM} in the first line of '{path}'; got {found:.120}, without "
                f"{', '.join(missing)}"
            )
        rows = defaultdict(list)
        names: dict[str, str] = {}  # the first spelling of each path
        self._bad_rows[split] = []
        for number, line in lines:
            row = {name: line[place].strip() if place < len(line) else "" for name, place in columns.items()}
            wrong = "" if row["filename"] else "no file name"
            if any(line[len(header) :]):
                wrong = f"{len(line)} values for {len(header)} columns: put a name with a comma into quotes"
            if wrong:
                self._bad_rows[split].append(Finding(Kind.BAD_ANNOTATION, f"{path.name}, line {number}", wrong))
                continue
            complete = max(columns[edge] for edge in EDGES) < len(line)  # else the end of the line is missing
            row |= {"class": one_line(row["class"]), "line": str(number), "complete": "yes" * complete}
            rows[names.setdefault(normal_path(row["filename"]), row["filename"])].append(row)
        return dict(rows)


def csv_files_in(folder: Path) -> list[Path]:
    """List the tables of boxes in a folder and below."""

    def fits(path: Path) -> bool:
        try:
            first = read_head(path).splitlines()[:1]
            return COLUMNS.keys() <= _columns(_table(path, "".join(first))[0][1]).keys()
        except (ValueError, OSError, IndexError):
            return False

    return [path for path in files_below(folder, (".csv",), DEPTH) if fits(path)]


def _table(path: Path, text: str) -> list[tuple[int, list[str]]]:
    """Return the rows of a table with the numbers of their (last) lines, without those that are empty.

    Values are separated by "," or, as some languages' spreadsheets have it, by ";" or tabs.

    Raises:
        ContentError: the text of the file `path` is no table.
    """
    separator = max(",;\t", key="".join(text.splitlines()[:1]).count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        return [(reader.line_num, row) for row in reader if any(row)]
    except csv.Error as error:
        raise ContentError(f"expected a table in '{path}'; got, in line {reader.line_num}: {error}") from None


def _columns(header: Sequence[str]) -> dict[str, int]:
    plain = [name.strip().lower().replace("_", "").replace(" ", "") for name in header]
    known = {**COLUMNS, **OPTIONAL}.items()
    return {name: plain.index(alias) for name, aliases in known for alias in reversed(aliases) if alias in plain}


def _is_empty(row: dict[str, str]) -> bool:
    """Return whether a row is of an image without objects: it has no edges, and perhaps a class such as "none"."""
    return not any(row[edge] for edge in EDGES) and not (row["class"] and not row["complete"])


def _corners(row: dict[str, str]) -> tuple[float, float, float, float]:
    return tuple(to_float(row[edge]) for edge in EDGES)  # type: ignore[return-value]
