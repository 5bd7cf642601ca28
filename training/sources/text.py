"""Text as people and their tools write it: byte order marks, UTF-16, numbers and flags in quotes, stray white space."""

import codecs
import math
import re
from pathlib import Path

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
HEAD = 1 << 16  # bytes that tell what a file is
NUMBER = re.compile(r"[+-]?(\d+)(\.\d*)?", re.ASCII)  # plainly written: neither 1_2 nor 12e4, which may be ids
NOT_SET = ("", "0", "false", "no", "n", "f", "off", "none", "null", "nan", "unspecified")


class ContentError(ValueError):
    """What a file has in it is wrong, and not which SOURCE it was given to."""


def read_text(path: Path) -> str:
    """Read a file of UTF-8 text, with or without a byte order mark, or of UTF-16 or UTF-32.

    Raises:
        ContentError: the file is no such text.
        OSError: it can't be read.
    """
    data = path.read_bytes()
    try:
        return data.decode(_encoding(data))
    except UnicodeDecodeError as error:
        byte = f"byte {data[error.start]:#04x} at {error.start}"
        raise ContentError(f"expected text in UTF-8 in '{path}'; got {byte}: save it as UTF-8") from None


def read_head(path: Path) -> str:
    """Read the beginning of a text file, to tell what it is; what is in no encoding of `read_text` is replaced.

    Raises:
        OSError: it can't be read.
    """
    with path.open("rb") as file:
        data = file.read(HEAD)
    return data.decode(_encoding(data), errors="replace")


def _encoding(data: bytes) -> str:
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in data[:2]:  # UTF-16 without a mark
        encoding = "utf-16-be" if data[:1] == b"\0" else "utf-16-le"
    return encoding


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file that have something in them, without the white space around.

    Raises:
        ContentError, OSError: as `read_text`.
    """
    lines = (line.strip().strip("\ufeff") for line in re.split(r"[\r\n]+", read_text(path)))  # not at U+2028 or others
    return [line for line in lines if line]


def one_line(name: object) -> str:
    """Return a class's name in one line of UTF-8: a line break in it would be two classes in `labels.txt`."""
    return " ".join(str(name).encode(errors="backslashreplace").decode().split())


def is_set(value: object) -> bool:
    """Return whether a flag is set: a bool, a number above 0 (-1 is "unknown" in Open Images), or either as text."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    number = as_number(value)
    if isinstance(number, str):
        return number.lower() not in NOT_SET
    return number > 0 if isinstance(number, int | float) else bool(number)


def to_float(text: str | None) -> float:
    """Return the number that a text spells; nan where it spells none."""
    try:
        return float(text or "")
    except ValueError:
        return math.nan


def as_number(value: object) -> object:
    """Convert text to an int or a float; return anything else unchanged."""
    if not isinstance(value, str):
        return value
    plain = value.strip()
    if (spelt := NUMBER.fullmatch(plain)) is None:
        return plain
    fraction = (spelt[2] or "").strip(".0")
    return float(plain) if fraction else int(plain.partition(".")[0])
