"""Options and helpers that several verbs share."""

import errno
import json
import logging
import math
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

import click

from overfeat_tf.options import ARITHMETICS, LOCALIZE_BY, SCALE_FITS, SCORES, VIEWS, InferenceOptions

_log = logging.getLogger(__name__)

Changes = dict[str, Any]
Connection = dict[str, Any]  # arguments of serving's Client: certificates, token, version or label

AUTO = "auto"  # of --arithmetic
FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
COUNT = click.IntRange(min=1)
STRIDES = ("coarse", "fine")
STRIDE_HELP = "Stride of the windows (3.3)."
SOURCE_HELP = "The data; `overfeat inspect --help` lists the forms of SOURCE"


class Number(click.FloatRange):
    """A number in a range; click's own takes nan and infinity."""

    def convert(self, value, param, ctx):
        """Return the number, or fail where it is not finite."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"expected a finite number; got {value!r}", param, ctx)
        return number


server_option = click.option(
    "--server", metavar="HOST:PORT,...", help="Use a server, or several; MODEL is then the name of their model."
)
task_option = click.option(
    "--task",
    metavar="NAME",
    help="classification, localization or detection [the last that MODEL was trained for]. A run that localizes can "
    "also detect.",
)
last_option = click.option(
    "--last", is_flag=True, help="Use the run's weights of its last step [those that validated best]."
)


def inference_options(verb: Callable) -> Callable:
    """Add the inference options to a verb. Its argument `changes` holds the chosen ones, by their field names.

    Raises:
        ValueError: a value that `InferenceOptions` rejects.
    """

    @wraps(verb)
    def gathered(*args, stride, **kwargs):
        given = {field.name: kwargs.pop(field.name) for field in fields(InferenceOptions) if field.name in kwargs}
        given["fine"] = stride and stride == "fine"
        changes = {key: value for key, value in given.items() if value is not None}
        InferenceOptions(**{key: value for key, value in changes.items() if value != AUTO})
        return verb(*args, changes=changes, **kwargs)

    for option in (
        click.option(
            "--arithmetic",
            type=click.Choice((AUTO, *ARITHMETICS)),
            help="How to compute the layers [auto: what runs fastest on this machine].",
        ),
        click.option(
            "--images-at-once",
            type=COUNT,
            help="Images of a batch to run together if their canvases are equal [1; 8 with a GPU].",
        ),
        click.option(
            "--scores",
            type=click.Choice(SCORES),
            help="Detection scores: calibrated probabilities, or s / (1 + s) of the accumulated score s (4.3).",
        ),
        click.option(
            "--one-box-per-object/--several-per-object",
            default=None,
            help="Return the best of overlapping boxes, or all of them [several]. `predict` draws the best.",
        ),
        click.option("--max-detections", type=int, help="Maximum number of boxes per image."),
        click.option("--merge-threshold", type=float, help="Merge boxes up to this match score (t in 4.3)."),
        click.option(
            "--max-windows",
            type=int,
            help="Maximum number of windows to merge, most confident first; with --flips twice as many.",
        ),
        click.option("--min-score", type=float, help="Minimum score of the windows that vote in detection."),
        click.option("--top-k", type=int, help="Classes that each scale proposes, and guesses per answer (4.3 a)."),
        click.option(
            "--localize-by",
            type=click.Choice(LOCALIZE_BY),
            help="Rank classes by their vote, or by the accumulated scores of their boxes (4.3).",
        ),
        click.option(
            "--scale-fit",
            type=click.Choice(SCALE_FITS),
            help="Keep the image's aspect at each scale, or stretch it to the scale's exact size (Table 5).",
        ),
        click.option("--views", type=click.Choice(VIEWS), help="Scan scales densely, or classify crops (Table 2)."),
        click.option("--flips/--no-flips", default=None, help="Also scan the mirror image."),
        click.option("--stride", type=click.Choice(STRIDES), help=STRIDE_HELP),
        click.option(
            "--scales", callback=_numbers, metavar="1,2,...", help="Numbers of the scales, as `info` prints them."
        ),
    ):
        gathered = option(gathered)
    return gathered


def option_name(field: str) -> str:
    """Return the option for a field of `InferenceOptions`, such as --stride for `fine`."""
    return "--" + {"fine": "stride"}.get(field, field).replace("_", "-")


def connection_options(verb: Callable) -> Callable:
    """Add the options for connecting to a server to a verb. Its argument `connection` holds the chosen ones."""

    @wraps(verb)
    def gathered(*args, token_file: Path | None, **kwargs):
        from serving.connections import read_token

        given = {name: kwargs.pop(name) for name in ("ca_cert", "client_cert", "client_key", "version", "label")}
        given["token"] = token_file and read_token(token_file)
        if given["version"] is not None and given["label"] is not None:
            raise ValueError("expected either --version or --label; got both")
        return verb(*args, connection={key: value for key, value in given.items() if value is not None}, **kwargs)

    for option in (
        click.option("--label", help="Use the version with this label, such as `stable`."),
        click.option("--version", type=COUNT, help="Use this version [the newest]."),
        click.option("--client-key", type=FILE, help="The private key of the client certificate, PEM."),
        click.option("--client-cert", type=FILE, help="The client certificate, PEM, for servers that require one."),
        click.option("--token-file", type=FILE, help="A file with the token that the server requires."),
        click.option("--ca-cert", type=FILE, help="Use TLS and trust the authority of this certificate, PEM."),
    ):
        gathered = option(gathered)
    return gathered


def require_server(server: str | None, connection: Connection, last: bool) -> None:
    """Raise ValueError if there are options for a server but no --server, or a run's with one."""
    if server is not None and last:
        raise ValueError("expected no --last with --server: a served model has one set of weights")
    if server is None and connection:
        names = {"token": "token-file"}
        given = ", ".join(f"--{names.get(name, name).replace('_', '-')}" for name in connection)
        raise ValueError(f"expected --server with {given}; got none")


def with_changes(model, changes: Changes, run: Path | None = None):
    """Return a run with other inference options. Those that are not chosen and only change the speed suit this machine.

    Args:
        model: The run's model, or a SavedModel.
        changes: The options.
        run: The run's folder, which keeps the arithmetic that was chosen for this machine.

    Raises:
        ValueError: options for a SavedModel, which has those of its export; or scales that the network does not have.
    """
    from overfeat_tf.compute.choice import choose_arithmetic, choose_for_run, images_at_once
    from overfeat_tf.models.model import Model

    if not changes and not isinstance(model, Model):
        return model
    for network in require_run(model).networks:
        InferenceOptions(scales=changes.get("scales")).scale_sizes(network.preset)
    arithmetic = changes.get("arithmetic", AUTO)
    if arithmetic == AUTO and changes.get("views", model.options.views) == "release":
        arithmetic = "direct"  # to the release's own digits
    elif arithmetic == AUTO:
        arithmetic, reason = choose_for_run(model.networks, run) if run else choose_arithmetic(model.networks)
        if reason:
            _log.info("arithmetic %s: %s", arithmetic, reason)
    changed = model.with_options(**{"images_at_once": images_at_once(), **changes, "arithmetic": arithmetic})
    calibrated = changed.calibration if changed.options.scores == "calibrated" else None
    if calibrated and (names := ", ".join(calibrated.changed_options(changed.options))):
        _log.info("scores were calibrated with other %s: run `overfeat calibrate` with these options", names)
    return changed


def require_run(model):
    """Return the model if it is a run, whose inference options can be changed.

    Raises:
        ValueError: it is not a run.
    """
    from overfeat_tf.models.model import Model

    if not isinstance(model, Model):
        raise ValueError(
            "expected a run for inference options such as --scales or --min-score;"
            " a SavedModel keeps those of its export"
        )
    return model


def _numbers(context: click.Context, option: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise click.BadParameter(f"expected numbers of scales such as 1,2; got '{text}'", context, option) from None


def write_json(path: Path | None, value: object) -> None:
    """Write a result as JSON, if there is a path. Numbers that are not finite become null."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


class JsonArray(AbstractContextManager):
    """A file with a JSON array that is complete after each item, so that a later failure loses none.

    A pipe or a terminal gets the same text; its last line comes at the end.
    """

    def __init__(self, path: Path | None):
        self._path, self._items, self._end = path, 0, 1
        self._file: Any = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb", buffering=0)
            self._file.write(b"[]\n" if self._file.seekable() else b"[")

    def append(self, value: object) -> None:
        """Add an item, on a line of its own."""
        if self._file is None:
            return
        item = (",\n" if self._items else "\n").encode() + json.dumps(_finite(value), allow_nan=False).encode()
        if not self._file.seekable():
            self._file.write(item)
        else:
            try:
                self._write(item + b"\n]\n")
            except OSError:
                with suppress(OSError):  # keep what was complete
                    self._file.truncate(self._end)
                    self._write(b"\n]\n" if self._items else b"]\n")
                raise
        self._items, self._end = self._items + 1, self._end + len(item)

    def _write(self, data: bytes) -> None:
        self._file.seek(self._end)
        if self._file.write(data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def __exit__(self, *_: Any) -> None:
        if self._file is not None:
            if not self._file.seekable():
                self._file.write(b"\n]\n" if self._items else b"]\n")
            self._file.close()


def _finite(value: object) -> object:
    """Replace every float that is not finite by None."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Processed(NamedTuple):
    """The numbers of images that were run and that could not be read, and seconds."""

    images: int
    unreadable: int
    seconds: float

    def __str__(self) -> str:
        rate = self.images / max(self.seconds, 1e-9)
        return f"{count_of(self.images, 'image')}, {self.unreadable} unreadable, {rate:.1f} a second"


def count_of(count: int, noun: str) -> str:
    """Return a number with its noun, as 1 image or 2 images."""
    return f"{count} {noun}{'s' * (count != 1)}"


def split_names(text: str | None, default: tuple[str, ...]) -> tuple[str, ...]:
    """Split a comma-separated option; return the default if there is none."""
    return default if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def load_tensorflow(start: bool = True) -> None:
    """Import TensorFlow, and start it, without the notes that it prints to stderr before logging is configured.

    They come from C++ and no setting hides them, so the file descriptor is redirected. Errors still come as exceptions.
    """
    terminal, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        import tensorflow as tf

        if start and not os.environ.get("TF_CONFIG"):  # with several workers, the strategy must start it
            tf.config.list_logical_devices()
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(null)
