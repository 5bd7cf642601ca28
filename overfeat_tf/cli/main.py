"""The `overfeat` command: its verbs, their options and the exit status."""

import gc
import json
import logging
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from overfeat_tf import require_own_packages
from overfeat_tf.arguments import suggest
from overfeat_tf.cli.batch.command import batch
from overfeat_tf.cli.benchmarks.command import benchmark
from overfeat_tf.cli.evaluate import calibrate, evaluate
from overfeat_tf.cli.options import (
    COUNT,
    FILE,
    FOLDER,
    STRIDE_HELP,
    STRIDES,
    Changes,
    Connection,
    Number,
    connection_options,
    inference_options,
    last_option,
    load_tensorflow,
    require_server,
    server_option,
    task_option,
    with_changes,
)
from overfeat_tf.cli.serving import check, serve
from overfeat_tf.cli.train import inspect, settings, train

MOST_CHARACTERS = 2000  # of an error's line: TensorFlow's have no end
# The exceptions that our code raises for the user's mistakes.
USER_ERRORS = (ValueError, ImportError, FileNotFoundError, NotADirectoryError)
# Errors of these modules are shown as one line. TensorFlow's are about a full disk and the like.
REPORTED_MODULES = ("serving.", "training.", "overfeat_tf.", "tensorflow.python.framework.errors")


class Verbs(click.Group):
    """A group that suggests the nearest verb for an unknown one."""

    def resolve_command(self, context, args):
        """Return the verb, or raise UsageError with a suggestion."""
        try:
            return super().resolve_command(context, args)
        except click.UsageError:
            known = self.list_commands(context)
            hint = suggest(args[0], known) or f", one of {', '.join(known)}"
            raise click.UsageError(f"expected a verb; got '{args[0]}'{hint}", context) from None


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="overfeat-tf")
def overfeat() -> None:
    """OverFeat: train one ConvNet to classify, localize and detect, and serve it over gRPC."""


for _verb in (train, settings, evaluate, calibrate, inspect, serve, check, batch, benchmark):
    overfeat.add_command(_verb)


def main() -> None:
    """Run the command. Exit with 2 on a user's mistake and 1 on a failure, each with one line on stderr."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    for library in ("absl", "tensorboard", "tensorflow"):
        logging.getLogger(library).setLevel(logging.ERROR)
    status = _run()
    # Free what the error's frames held. A tf.data iterator that reads from Python may otherwise hang at the exit of the
    # interpreter: it waits for a thread that no longer runs.
    gc.collect()
    sys.exit(status)


def _run() -> int | str | None:
    """Run the command and return its exit status."""
    try:
        require_own_packages()
        overfeat()
    except SystemExit as error:
        return error.code
    except USER_ERRORS as error:
        return _fail(error, 2)
    except (OSError, RuntimeError, FloatingPointError) as error:
        return _fail(error, 1)
    except Exception as error:
        if type(error).__module__.startswith(REPORTED_MODULES):
            return _fail(error, 1)
        raise
    return 0


def _fail(error: BaseException, status: int) -> int:
    if os.environ.get("OVERFEAT_TRACEBACK"):
        raise error
    line = " ".join(str(getattr(error, "message", error)).split()) or type(error).__name__
    click.echo(f"overfeat: {line[:MOST_CHARACTERS]}", err=True)
    return status


@overfeat.command()
@click.option(
    "--out", type=FOLDER, default=Path("demo"), show_default=True, help="Folder for everything that it writes."
)
def demo(out: Path) -> None:
    """Train, evaluate, export, serve and detect in one go.

    Trains the preset `tiny` on scikit-learn's digits, scattered over photographs, serves it over gRPC, and scores and
    draws its answers. Takes 5 to 15 minutes on two cores. The same command resumes an interrupted one.
    """
    load_tensorflow()
    from overfeat_tf.cli.demo import run

    run(out)


@overfeat.command()
@click.argument("network")
def info(network: str) -> None:
    """Print a network like the paper's tables.

    NETWORK is a preset (tiny, thumbnail, small, fast, accurate), a model of keras.applications, keras_hub:PRESET or a
    .keras file. Prints layers, sizes, parameters, connections, strides and scales, for 1000 classes.
    """
    load_tensorflow()
    from overfeat_tf.cli.info import table

    click.echo(table(network))


@overfeat.command()
@click.argument("runs", metavar="RUN...", type=FOLDER, nargs=-1, required=True)
@click.option("--to", type=FOLDER, required=True, help="saved_models/NAME; the model is served under NAME.")
@click.option("--version", type=COUNT, help="Version number [the highest plus one].")
@click.option("--metrics", type=FILE, help="Figures for the model card, from `evaluate --json` [the run's own].")
@last_option
@inference_options
def export(
    runs: tuple[Path, ...], to: Path, version: int | None, metrics: Path | None, last: bool, changes: Changes
) -> None:
    """Write a SavedModel version for TF Serving. Several RUNs become one committee that classifies.

    By default --arithmetic is what runs fastest on this machine within the allowed error: `bfloat16`, with weights of
    half the size, on processors that multiply it faster; else `winograd` on x86 CPUs and `direct` elsewhere. Set it
    if the model will run on another kind of machine. The model card compares the time, memory and error of those that
    may be faster on this machine.
    """
    load_tensorflow()
    from overfeat_tf.models.loading import load_run, read_config
    from overfeat_tf.models.model import SPLIT, Model
    from serving.export.card import read_metrics, run_figures, run_weights
    from serving.export.exporter import export as export_model

    figures, split = read_metrics(metrics) if metrics else None, None
    loaded = [load_run(run, last) for run in runs]
    configs = [read_config(run) for run in runs]
    trainings = [{**(config.get("training") or {}), "weights": run_weights(config, last)} for config in configs]
    if len(runs) == 1:
        model, training, file = with_changes(loaded[0], changes, runs[0]), trainings[0], runs[0] / SPLIT
        split = json.loads(file.read_text()) if file.is_file() else None
        figures = run_figures(runs[0], last) if metrics is None else figures
    else:
        model = with_changes(Model.committee(loaded), changes)
        names = ", ".join(str(one.get("name")) for one in trainings)
        data = ", ".join(dict.fromkeys(str(one.get("data")) for one in trainings))
        training = {"name": f"committee of {names}", "data": data, "members": trainings}
    click.echo(export_model(model, to, version, training, figures, measure=True, split=split))


@overfeat.command()
@click.argument("model")
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@server_option
@click.option("--out", type=FOLDER, default=Path("predictions"), show_default=True, help="Folder for the pictures.")
@click.option("--json", "json_file", type=FILE, help="Also write the answers to this file, each once it is known.")
@click.option("--save-txt", is_flag=True, help="Also write the drawn boxes as labels/NAME.txt, in YOLO's format.")
@click.option("--save-crops", is_flag=True, help="Also cut the drawn boxes out, as crops/CLASS/NAME_NUMBER.jpg.")
@click.option("-n", "best", type=COUNT, metavar="N", help="Print only the N best class names and their scores.")
@click.option("--every", type=COUNT, default=1, show_default=True, metavar="N", help="Use every Nth frame of a video.")
@click.option("--threshold", type=Number(0, 1), help="Minimum score of a box to draw [the model's display threshold].")
@task_option
@click.option("--stages", is_flag=True, help="Also draw the stages of each answer, as in Fig. 6; needs a run.")
@last_option
@connection_options
@inference_options
def predict(
    model: str,
    images: tuple[str, ...],
    server: str | None,
    threshold: float | None,
    task: str | None,
    stages: bool,
    last: bool,
    changes: Changes,
    connection: Connection,
    **wanted: Any,
) -> None:
    """Find objects in images, or name what is in them.

    Prints a line for each image, and writes a picture with boxes, labels and scores. MODEL is a run, or a SavedModel
    (saved_models/NAME or one of its versions).

    IMAGE is a file, a folder, a glob, or `-` for standard input: one image, or any number of PPM images one after the
    other. With OpenCV (pip install opencv-python-headless) it may also be a video, or `camera:0`, which Ctrl-C ends.

    A picture shows the boxes that score at least the model's display threshold, which gives the best F1 on its
    validation split. It is 0.5 for a model without calibration, and with --server, because a server does not report it.
    The JSON has all boxes and says which are shown.
    """
    require_server(server, connection, last)
    load_tensorflow()
    from overfeat_tf.cli.predict.inputs import find_inputs
    from overfeat_tf.cli.predict.outputs import Wanted
    from overfeat_tf.cli.predict.run import run

    found = find_inputs(images, wanted["out"])
    failed = run(model, found, server, Wanted(**wanted), threshold, changes, stages, connection, task, last)
    sys.exit(1 if failed else 0)


@overfeat.command()
@click.argument("model", type=FOLDER)
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@click.option(
    "--out",
    type=FILE,
    required=True,
    help="FILE.npz, FILE.h5 or FILE.txt. An existing file is replaced once the new one is complete.",
)
@click.option("--layer", metavar="NAME", help="A layer that `overfeat info` prints [the second full layer].")
@click.option("--stride", type=click.Choice(STRIDES), default="coarse", show_default=True, help=STRIDE_HELP)
@click.option(
    "--scales",
    metavar="native|1,2,...",
    default="native",
    show_default=True,
    help="The image's own size, or numbers of the scales, as `info` prints them.",
)
@last_option
def features(
    model: Path, images: tuple[str, ...], out: Path, layer: str | None, stride: str, scales: str, last: bool
) -> None:
    """Extract a layer's output for images.

    Writes an array float32 [h, w, C] for each image: the output before the layer's rectifier. MODEL is a run, or a
    SavedModel, which has only the default layer, stride and scale. IMAGE is a file, a folder, a glob, or `-` for
    standard input: one image, or any number of PPM images one after the other.

    The key of an array is the image's file name, with parent folders where names coincide. With several scales the keys
    are NAME/scale1 and so on. FILE.txt uses the text format of the authors' 2013 release; FILE.names.txt lists the keys
    of its blocks, one per line.
    """
    load_tensorflow()
    from overfeat_tf.cli.features import check_suffix, extract_files, parse_scales
    from overfeat_tf.cli.predict.inputs import spooled
    from overfeat_tf.models.loading import load

    with spooled(images) as files:
        check_suffix(out)
        result = extract_files(load(model, last), files, out, layer, stride == "fine", parse_scales(scales))
    click.echo(f"{out}: {result}", err=True)
    click.echo(out)
    sys.exit(1 if result.unreadable else 0)


@overfeat.command()
@click.argument("file", type=FILE)
@click.option("--labels", type=FILE, required=True, help="Class names in the order of its outputs, one per line.")
@click.option("--run", type=FOLDER, required=True, help="Folder of the new run.")
@click.option("--side", type=COUNT, help="Side of its training images in pixels [its input's, or 224].")
def import_keras(file: Path, labels: Path, run: Path, side: int | None) -> None:
    """Turn a Keras classifier into a run.

    FILE is a .keras file. Its last layer becomes the convolutional head, so that the run classifies densely: it votes
    over all windows of several scales (3.3).
    """
    load_tensorflow()
    from overfeat_tf.models.keras_classifier import import_keras as read

    read(file, labels, run, side)
    _echo_imported(run, file.stem)


@overfeat.command()
@click.argument("file", type=FILE)
@click.option(
    "--preset", metavar="fast|accurate", required=True, help="fast for net_weight_0, accurate for net_weight_1."
)
@click.option("--run", type=FOLDER, required=True, help="Folder of the new run.")
@click.option(
    "--labels",
    type=FILE,
    help="The 1000 class names in the order of the ILSVRC2012 development kit's IDs, one per line, or its meta.mat.",
)
def import_weights(file: Path, preset: str, run: Path, labels: Path | None) -> None:
    """Convert weights of the authors' 2013 release into a run.

    FILE is the release's net_weight_0 or net_weight_1, which you download yourself.
    """
    load_tensorflow()
    from overfeat_tf.models.release_weights import import_weights as read
    from overfeat_tf.models.release_weights import released

    read(file, released(preset), run, labels)
    _echo_imported(run, preset)


def _echo_imported(run: Path, name: str) -> None:
    command = f"overfeat export {shlex.quote(str(run))} --to {shlex.quote(f'saved_models/{name}')}"
    click.echo(f"{run}: imported; export it with: {command}", err=True)
    click.echo(run)
