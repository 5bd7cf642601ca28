"""The images below a folder by their names alone, which for a million take seconds; what is passed over is reported."""

import os
from pathlib import Path

from training.sources.checks import Finding, Kind, ReportFinding

# What lies beside images and is none of them. A file of any other suffix, or without one, may be an image.
NO_IMAGES = (
    *(".txt", ".md", ".html", ".log", ".xml", ".json", ".yaml", ".yml", ".csv", ".tsv"),
    *(".npy", ".npz", ".mat", ".pkl", ".py", ".ini", ".db"),
)


def images_below(root: Path, below: str, suffixes: tuple[str, ...], report: ReportFinding) -> list[str]:
    """List the images in the folder `below` and its folders, by folder and name: their paths in `root`.

    Args:
        root: The folder that paths start from.
        below: A folder in it; "" for all of it.
        suffixes: What an image's name ends in, in lower case; names are compared without case.
        report: Is told of files that may be images and are not taken, and of folders that can't be read.
    """

    def unread(error: OSError) -> None:
        name = os.path.relpath(error.filename, root)
        report(Finding(Kind.NOT_TAKEN, printable(name), f"{error.strerror}: {printable(error.filename)}"))

    found = []
    for folder, folders, files in os.walk(root / below, onerror=unread):
        folders.sort()
        where = os.path.relpath(folder, root)
        prefix = "" if where == "." else f"{where}/"
        for link in (name for name in folders if os.path.islink(os.path.join(folder, name))):  # might lead in a circle
            report(Finding(Kind.NOT_TAKEN, printable(prefix + link), "a link to a folder; links are not followed"))
        for file in sorted(files):
            name, lower = prefix + file, file.lower()
            if not lower.endswith(suffixes):
                if not lower.startswith(".") and not lower.endswith(NO_IMAGES):
                    report(Finding(Kind.NOT_TAKEN, printable(name), f"no suffix of {', '.join(suffixes)}"))
            elif is_utf8(name):
                found.append(name)
            else:
                report(Finding(Kind.NOT_TAKEN, printable(name), "the name is not UTF-8; rename it"))
    return found


def is_utf8(name: str) -> bool:
    """Return whether a name can be a string of TensorFlow's; the operating system takes any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(name: str) -> str:
    r"""Return a name as a finding may have it: bytes that are not UTF-8 as \xe9."""
    return os.fsencode(name).decode(errors="backslashreplace")
