"""What verbs share: kinds of options, the options of every inference call, results for programs, a quiet start."""

import json
import logging
import math
import os
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Any

import click

from overfeat_tf.options import ARITHMETICS, LOCALIZE_BY, SCALE_FITS, SCORES, VIEWS, InferenceOptions

_log = logging.getLogger(__name__)

Changes = dict[str, Any]
Connection = dict[str, Any]  # what serving's Client takes: whom to trust, what to show, which version to ask

_INFERENCE = tuple(field.name for field in fields(InferenceOptions))

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)


def inference_options(verb: Callable) -> Callable:
    """Give a verb the options of inference; its argument `changes` has what was chosen, by the names of the fields.

    Raises:
        ValueError: a value that `InferenceOptions` refuses.
    """

    @wraps(verb)
    def gathered(*args, stride, **kwargs):
        given = {name: kwargs.pop(name) for name in _INFERENCE if name in kwargs}
        given["fine"] = stride and stride == "fine"
        changes = {key: value for key, value in given.items() if value is not None}
        InferenceOptions(**changes)
        return verb(*args, changes=changes, **kwargs)

    for option in (
        click.option("--arithmetic", type=click.Choice(ARITHMETICS), help="Which one suits this machine, if left out."),
        click.option(
            "--scores",
            type=click.Choice(SCORES),
            help="Of detection: probabilities, or s / (1 + s) of the summed votes s.",
        ),
        click.option(
            "--one-box-per-object/--several-per-object",
            default=None,
            help="Answer with the best of boxes that overlap, or with all [several]; `predict` shows the best.",
        ),
        click.option("--max-detections", type=int, help="Boxes in an answer of detection."),
        click.option("--merge-threshold", type=float, help="Boxes merge up to this match score (the t of 4.3)."),
        click.option("--max-windows", type=int, help="So many windows are merged, the most confident ones."),
        click.option("--min-score", type=float, help="Windows of at least this score vote in detection."),
        click.option("--top-k", type=int, help="Classes that a scale proposes, and guesses of an answer (4.3 a)."),
        click.option(
            "--localize-by",
            type=click.Choice(LOCALIZE_BY),
            help="Rank classes by their vote, or by the accumulated scores of all their windows' boxes (4.3).",
        ),
        click.option(
            "--scale-fit",
            type=click.Choice(SCALE_FITS),
            help="Keep the image's aspect at each scale, or stretch it to the scale's exact size (Table 5).",
        ),
        click.option("--views", type=click.Choice(VIEWS), help="Scales scanned densely, or crops (Table 2)."),
        click.option("--flips/--no-flips", default=None, help="Also the mirror image."),
        click.option("--stride", type=click.Choice(("coarse", "fine")), help="Of the windows (3.3)."),
        click.option("--scales", callback=_numbers, metavar="1,2,...", help="Scales by number, as in `info`."),
    ):
        gathered = option(gathered)
    return gathered


def option_name(field: str) -> str:
    """Return the command line's option of a field of `InferenceOptions`: --stride for `fine`."""
    return "--" + {"fine": "stride"}.get(field, field).replace("_", "-")


def connection_options(verb: Callable) -> Callable:
    """Give a verb the options of how to ask a server; what was chosen comes as its argument `connection`."""

    @wraps(verb)
    def gathered(*args, token_file: Path | None, **kwargs):
        from serving.client.channel import read_token

        given = {name: kwargs.pop(name) for name in ("ca_cert", "client_cert", "client_key", "version", "label")}
        given["token"] = token_file and read_token(token_file)
        if given["version"] is not None and given["label"] is not None:
            raise ValueError("expected --version or --label; got both")
        return verb(*args, connection={key: value for key, value in given.items() if value is not None}, **kwargs)

    for option in (
        click.option("--label", help="Ask the version that has this label, such as `stable`."),
        click.option("--version", type=click.IntRange(min=1), help="Ask this version; the newest if left out."),
        click.option("--client-key", type=FILE, help="Its private key, PEM."),
        click.option("--client-cert", type=FILE, help="Your own certificate, PEM, for servers that ask for one."),
        click.option("--token-file", type=FILE, help="A file that holds the token that the server asks for."),
        click.option("--ca-cert", type=FILE, help="Speak TLS, and trust what this PEM file's certificate has signed."),
    ):
        gathered = option(gathered)
    return gathered


def require_server(server: str | None, connection: Connection) -> None:
    """Raise ValueError where no server is asked and yet it is said how."""
    if server is None and connection:
        names = {"token": "token-file"}
        given = ", ".join(f"--{names.get(name, name).replace('_', '-')}" for name in connection)
        raise ValueError(f"expected --server with {given}; got none")


def with_changes(model, changes: Changes):
    """Give a loaded run other inference options than its own; without a choice, the arithmetic that suits this machine.

    Raises:
        ValueError: options for a SavedModel, whose own are part of it, or scales that the network does not have.
    """
    from overfeat_tf.compute.execution import suits_this_machine
    from overfeat_tf.models.model import Model

    if not changes and not isinstance(model, Model):
        return model
    for network in require_run(model).networks:
        InferenceOptions(scales=changes.get("scales")).scale_sizes(network.preset)
    changed = model.with_options(**{"arithmetic": suits_this_machine(), **changes})
    if changed.calibration and changed.options.scores == "calibrated":
        others = changed.calibration.changed_options(changed.options)
        if others:
            names = ", ".join(others)
            _log.info("scores were calibrated with other %s: `overfeat calibrate` with these options fits them", names)
    return changed


def require_run(model):
    """Return the model if it is a run, whose inference options can be chosen.

    Raises:
        ValueError: it is another.
    """
    from overfeat_tf.models.model import Model

    if not isinstance(model, Model):
        raise ValueError(
            "expected a run where inference options are chosen, such as --scales or --min-score;"
            " a SavedModel has those of its export"
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
    """Write a result where a program wants it; what is not a number is null, since JSON has no name for it."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def _finite(value: object) -> object:
    """Put None for every float that is not finite."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def split_names(text: str | None, default: tuple[str, ...]) -> tuple[str, ...]:
    """Split a comma-separated option."""
    return tuple(name.strip() for name in text.split(",") if name.strip()) if text else default


def load_tensorflow() -> None:
    """Import TensorFlow and start it, without the notes that it writes to stderr before logging can be set.

    They come from C++ and heed no setting, hence the detour by the file descriptor. What goes wrong still comes as
    an exception.
    """
    terminal, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        import tensorflow as tf

        if not os.environ.get("TF_CONFIG"):  # several workers have to be joined first
            tf.config.list_logical_devices()
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(nowhere)
