"""Publishing of version folders: written to a staging folder that servers ignore, then renamed into place.

An export locks its staging folder for as long as it lives, so that later exports can tell abandoned folders, which they
remove, from those in use.
"""

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from serving.version_folders import MAX_VERSION, is_version

PARTIAL = ".partial"


def taken_versions(base: Path) -> list[int]:
    """List the version numbers that are taken in a model's folder, in order; gaps stay gaps."""
    return sorted({int(path.name) for path in base.glob("*") if is_version(path.name)})


def check_version(base: Path, version: int | None) -> None:
    """Raise ValueError unless a version is new, or None, which stands for the one after the highest."""
    taken = taken_versions(base)
    if version is not None and (not 1 <= version <= MAX_VERSION or version in taken):
        raise ValueError(f"expected a new version from 1 to 2^63 - 1; got {version}, there are {taken} in '{base}'")


@contextmanager
def staging_dir(base: Path) -> Iterator[Path]:
    """Make a staging folder in a model's folder, and remove it at the end unless it was published.

    Staging folders of killed exports are removed first.
    """
    base.mkdir(parents=True, exist_ok=True)
    with _locked(base):  # an unlocked new folder would look abandoned to another export
        for path in base.glob(f".*{PARTIAL}"):
            with suppress(FileNotFoundError), _locked(path, wait=False) as abandoned:  # or another has removed it
                if abandoned:
                    shutil.rmtree(path, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(PARTIAL, ".", base))
        lock = _locked(folder)
        lock.__enter__()
    try:
        folder.chmod(base.stat().st_mode & 0o777)  # mkdtemp's is for its owner alone; servers are other users
        yield folder
    finally:
        lock.__exit__(None, None, None)
        shutil.rmtree(folder, ignore_errors=True)  # not there any more where it was published


def publish(folder: Path, base: Path, version: int | None, describe: Callable[[int], None]) -> Path:
    """Rename a staging folder to a version, the only step that servers see.

    Args:
        folder: A complete staging folder.
        base: The model's folder.
        version: The number; the one after the highest if None, whatever others publish meanwhile.
        describe: Adds the files that depend on the number.

    Raises:
        ValueError: another has published this number meanwhile.
    """
    while True:
        with _locked(base):
            check_version(base, version)
            number = version or max(taken_versions(base), default=0) + 1
            describe(number)
            for path in [*folder.rglob("*"), folder]:
                _sync(path)  # else a machine that loses power may keep the name and lose the bytes
            try:
                folder.rename(base / str(number))
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                continue  # on a file system without locks another was faster
            _sync(base)
            return base / str(number)


@contextmanager
def _locked(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Lock a folder until the block or the process ends; yield whether that succeeded.

    On network file systems without locks nobody waits, and nothing is removed.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            ours = True
        except OSError:
            ours = False
        yield ours
    finally:
        os.close(handle)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
