"""What sources share: image files, which are listed first and then read one by one, and examples, read as they come."""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from overfeat_tf.images.files import read_image
from training.sources.checks import Finding, Kind, ReportFinding, read_file
from training.sources.listing import Locator, is_utf8, printable
from training.sources.record import Record, check_split, mixed


class Entry(NamedTuple):
    """An image of a split: its id, and whatever its source needs to read it."""

    name: str
    detail: Any = None


class NamedSource:
    """A source with a name and a report. A subclass sets `splits`, `class_names` and `boxed`."""

    splits: tuple[str, ...]
    class_names: tuple[str, ...]
    boxed: bool

    def __init__(self, name: str, report: ReportFinding):
        self.name, self._report = name, report
        self._findings: list[Finding] = []  # of the whole source, to be reported

    @cached_property
    def _classes(self) -> dict[str, int]:
        """Labels by the names that annotations have."""
        return {name: label for label, name in enumerate(self.class_names)}


class ExampleSource(NamedSource):
    """A source whose splits are streams of examples, each with an id and an image, in the order of their files.

    A subclass has `_examples`, `_image` and `_record`.
    """

    def records(
        self, split: str, limit: int | None = None, keep: Callable[[str], bool] | None = None
    ) -> Iterator[Record]:
        """Yield the split's records, the first `limit` of them, of those whose ids `keep` takes."""
        check_split(self, split)
        _ = self.class_names  # which may find something
        while self._findings:
            self._report(self._findings.pop(0))
        examples = self._examples(split, self._report)
        for name, example in islice((pair for pair in examples if keep is None or keep(pair[0])), limit):
            record = self._record(name, example)
            if record is not None:
                yield record

    def images(self, split: str) -> Iterator[tuple[str, Callable[[], bytes]]]:
        """Yield the ids of the split's images, and what gives their bytes."""
        for name, example in self._examples(split):
            yield name, partial(self._image, example)

    def _examples(self, split: str, report: ReportFinding | None = None) -> Iterator[tuple[str, Any]]:
        """Yield the split's examples and their ids, each id once."""
        raise NotImplementedError

    def _image(self, example: Any) -> bytes:
        raise NotImplementedError

    def _record(self, name: str, example: Any) -> Record | None:
        """Make the record of an example; None, reported, where that can't be done."""
        raise NotImplementedError


class FileSource(NamedSource):
    """A source whose splits are lists of image files. The order is fixed and mixed.

    A subclass sets `splits` and `class_names`, has `_list` and `_read`, and `_locator` or its own `_locate`. What the
    lists have wrong is reported when the first records of the split begin, and what the source has wrong with the first
    of all.
    """

    boxed = True
    _locator: Callable[[str], Locator]  # of a split

    def __init__(self, name: str, report: ReportFinding):
        super().__init__(name, report)
        self._listed = cache(self._tidy_list)

    def records(
        self, split: str, limit: int | None = None, keep: Callable[[str], bool] | None = None
    ) -> Iterator[Record]:
        """Yield the split's records, the first `limit` of them, of those whose ids `keep` takes."""
        check_split(self, split)
        _ = self.class_names  # which may find something
        entries, findings = self._listed(split)
        for pending in (self._findings, findings):
            while pending:
                self._report(pending.pop(0))
        for entry in islice((entry for entry in entries if keep is None or keep(entry.name)), limit):
            path = self._locate(split, entry)
            if path is None:
                self._report_missing(split, entry)
                continue
            data = read_file(path, entry.name, self._report)
            record = self._read(split, entry, data) if data is not None else None
            if record is not None:
                yield record

    def images(self, split: str) -> list[tuple[str, Callable[[], bytes]]]:
        """Return the ids of the split's annotated images, and what reads their bytes, b"" where they can't be read."""
        entries = self._listed(split)[0]
        return [(entry.name, partial(self._peek, split, entry)) for entry in entries if self._is_annotated(entry)]

    def _is_annotated(self, entry: Entry) -> bool:
        return True

    def _peek(self, split: str, entry: Entry) -> bytes:
        path = self._locate(split, entry)
        return read_image(path)[0] if path is not None else b""

    def _list(self, split: str, report: ReportFinding) -> list[Entry]:
        """List the split's images, and report what is wrong with the list."""
        raise NotImplementedError

    def _locate(self, split: str, entry: Entry) -> Path | None:
        """Return the path of an image's file; None where there is none."""
        return self._locator(split).find(entry.name)

    def _read(self, split: str, entry: Entry, data: bytes) -> Record | None:
        """Make the record of an image; None, reported, where that can't be done."""
        raise NotImplementedError

    def _report_missing(self, split: str, entry: Entry) -> None:
        detail = f"no file of that name below '{self._locator(split).root}', or several"
        self._report(Finding(Kind.MISSING_IMAGE, entry.name, detail))

    def _tidy_list(self, split: str) -> tuple[list[Entry], list[Finding]]:
        """List each image once, mixed, and what is wrong with the list."""
        findings: list[Finding] = []
        entries = self._list(split, findings.append)
        for name, count in Counter(entry.name for entry in entries).items():
            if not is_utf8(name):
                findings.append(Finding(Kind.NOT_TAKEN, printable(name), "the name is not UTF-8; rename it"))
            elif count > 1:
                findings.append(Finding(Kind.LISTED_TWICE, name, f"{count} times in '{split}'"))
        unique = {entry.name: entry for entry in reversed(entries) if is_utf8(entry.name)}
        return mixed(list(unique.values())[::-1]), findings


class IdSource(FileSource):
    """A source of files whose annotations call the classes by ids."""

    @property
    def _named(self) -> dict[str, str]:
        """Class names by what annotations call them."""
        raise NotImplementedError

    @cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self._named.values())

    @cached_property
    def _classes(self) -> dict[str, int]:
        return {key: label for label, key in enumerate(self._named)}
