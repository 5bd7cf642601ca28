"""The folder of a run: held by one process, with enough disk space, and consistent whenever that process dies."""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from overfeat_tf.models.model import CONFIG, SPLIT

LOCK = ".lock"
RECORDS = "records"  # the copy of the images for a data service
NEW_CONFIG, NEW_WEIGHTS, OLD_WEIGHTS = f"{CONFIG}.new", "weights.new", "weights.old"


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Make the run's folder, and keep it from other processes until the block or the process ends, however it ends.

    The kernel lets go of the lock, so none is ever left behind.

    Raises:
        ValueError: another process holds it.
        OSError: it cannot be written in.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=run) as probe:
            probe.write(b"0")
        (run / LOCK).touch()
    except OSError as error:
        raise OSError(f"expected a folder to write in; got '{run}': {error.strerror}; choose another --run") from None
    with open(run / LOCK, "r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = lock.read().strip() or "unknown"
            raise ValueError(
                f"expected one process in '{run}'; process {holder} trains there: wait for it, or use another --run"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def require_disk_space(run: Path, needed: int) -> None:
    """Raise OSError unless the disk has space for the `needed` bytes of a run, beyond what it holds already."""
    files = (path for path in run.rglob("*") if path.is_file() and run / RECORDS not in path.parents)
    there = sum(path.stat().st_size for path in files)  # the copy of the images is not part of what is needed
    free, missing = shutil.disk_usage(run).free, needed - there
    if free < missing:
        raise OSError(
            f"expected {_gigabytes(missing)} free on the disk of '{run}', for weights, checkpoints and logs; "
            f"got {_gigabytes(free)}: make space, or use another --run"
        )


def write_config(run: Path, config: dict) -> None:
    """Write the configuration beside and rename it into place."""
    (run / NEW_CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    os.replace(run / NEW_CONFIG, run / CONFIG)


def commit(run: Path, config: dict, save_weights) -> None:
    """Replace weights and configuration together: `recover` finds the old or the new pair, whenever the process dies.

    The rename of the configuration decides; before it, the old weights are kept aside. `save_weights` writes the new
    ones into the folder that it is given.
    """
    save_weights(run / NEW_WEIGHTS)
    (run / NEW_CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    if (run / "weights").exists():
        (run / "weights").rename(run / OLD_WEIGHTS)
    else:
        (run / OLD_WEIGHTS).mkdir()  # empty: there were none
    (run / NEW_WEIGHTS).rename(run / "weights")
    os.replace(run / NEW_CONFIG, run / CONFIG)
    shutil.rmtree(run / OLD_WEIGHTS, ignore_errors=True)


def recover(run: Path) -> None:
    """Finish or undo what a killed process has left half done, and remove what is left of a run that did not begin.

    Its split and its copy of the images may be those of other data.
    """
    if not (run / CONFIG).is_file():
        (run / SPLIT).unlink(missing_ok=True)
        shutil.rmtree(run / RECORDS, ignore_errors=True)
    old = run / OLD_WEIGHTS
    if old.exists() and (run / NEW_CONFIG).exists():  # not yet decided: back to the old pair
        if (run / "weights").exists():
            shutil.rmtree(run / "weights")
        if any(old.iterdir()):
            old.rename(run / "weights")
    for leftover in (old, run / NEW_WEIGHTS):
        if leftover.exists():
            shutil.rmtree(leftover)
    (run / NEW_CONFIG).unlink(missing_ok=True)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
