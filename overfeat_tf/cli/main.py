"""The `overfeat` command: its verbs, their options and the exit status."""

import gc
import json
import logging
import os
import sys
from pathlib import Path

import click

from overfeat_tf.cli.batch.command import batch
from overfeat_tf.cli.benchmarks.command import benchmark
from overfeat_tf.cli.options import (
    FILE,
    FOLDER,
    Changes,
    Connection,
    connection_options,
    inference_options,
    last_option,
    load_tensorflow,
    option_name,
    require_server,
    with_changes,
)
from overfeat_tf.cli.runs import calibrate, evaluate, inspect, settings, train
from overfeat_tf.cli.serving import check, serve
from overfeat_tf.shadowing import require_own_packages
from overfeat_tf.suggestion import suggest

# The exceptions that our code raises for the user's mistakes.
MOST_CHARACTERS = 2000  # of an error's line: TensorFlow's have no end
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
    """Run the system end to end: train, evaluate, export, serve over gRPC, detect, score, draw."""
    load_tensorflow()
    from overfeat_tf.cli.demo import run

    run(out)


@overfeat.command()
@click.argument("network")
def info(network: str) -> None:
    """Print a network like the paper's tables: layers, sizes, parameters, connections, stride, scales."""
    load_tensorflow()
    from overfeat_tf.cli.info import table

    click.echo(table(network))


@overfeat.command()
@click.argument("runs", metavar="RUN...", type=FOLDER, nargs=-1, required=True)
@click.option("--to", type=FOLDER, required=True, help="saved_models/NAME; the model is served under NAME.")
@click.option("--version", type=click.IntRange(min=1), help="Version number [the highest plus one].")
@click.option(
    "--metrics", type=FILE, help="Figures for the model card, from `overfeat evaluate --json` [the run's own]."
)
@last_option
@inference_options
def export(
    runs: tuple[Path, ...], to: Path, version: int | None, metrics: Path | None, last: bool, changes: Changes
) -> None:
    """Write a SavedModel version for TF Serving. Several RUNs become one committee that classifies.

    By default --arithmetic is what runs fastest on this machine within the allowed error: `bfloat16`, with weights of
    half the size, on processors that multiply it faster; else `winograd` on x86 CPUs and `direct` elsewhere. Set it
    if the model will run on another kind of machine. The model card has the time, memory and error of each that may pay
    on this machine.
    """
    load_tensorflow()
    from overfeat_tf.models.loading import load_run, read_config
    from overfeat_tf.models.model import SPLIT, Model
    from serving.export.card import read_metrics, run_figures, run_weights
    from serving.export.exporter import export as export_model

    figures = read_metrics(metrics) if metrics else run_figures(runs[0], last) if len(runs) == 1 else None
    loaded = [load_run(run, last) for run in runs]
    configs = [read_config(run) for run in runs]
    trainings = [{**(config.get("training") or {}), "weights": run_weights(config, last)} for config in configs]
    if len(runs) == 1:
        model, file = with_changes(loaded[0], changes, runs[0]), runs[0] / SPLIT
        split = json.loads(file.read_text()) if file.is_file() else None
        click.echo(export_model(model, to, version, trainings[0], figures, measure=True, split=split))
        return
    committee = with_changes(Model.committee(loaded), changes)
    names = ", ".join(str(one.get("name")) for one in trainings)
    data = ", ".join(dict.fromkeys(str(one.get("data")) for one in trainings))
    training = {"name": f"committee of {names}", "data": data, "members": trainings}
    click.echo(export_model(committee, to, version, training, figures, measure=True))


@overfeat.command()
@click.argument("model")
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@click.option(
    "--server", metavar="HOST:PORT,...", help="Use a server, or several; MODEL is then the name of their model."
)
@click.option("--out", type=FOLDER, default=Path("predictions"), show_default=True, help="Folder for the pictures.")
@click.option(
    "--json", "json_file", type=FILE, help="Also write the answers to this file, each as soon as it is known."
)
@click.option("--save-txt", is_flag=True, help="Also write what is shown as labels/NAME.txt, in YOLO's format.")
@click.option("--save-crops", is_flag=True, help="Also write what is shown as crops/CLASS/NAME_NUMBER.jpg.")
@click.option(
    "-n",
    "best",
    type=click.IntRange(min=1),
    metavar="N",
    help="Print the N best class names of a classifier, and their scores.",
)
@click.option("--every", type=click.IntRange(min=1), default=1, help="Use every so many frames of a video [1].")
@click.option(
    "--threshold", type=click.FloatRange(0, 1), help="Minimum score of a box to draw [the model's display threshold]."
)
@click.option(
    "--task",
    metavar="NAME",
    help="classification, localization or detection [the last that MODEL was trained for]. A run that localizes can "
    "also detect.",
)
@click.option(
    "--stages", is_flag=True, help="Also draw the stages of each answer, like the paper's Fig. 6; needs a run."
)
@last_option
@connection_options
@inference_options
def predict(
    model: str,
    images: tuple[str, ...],
    server: str | None,
    out: Path,
    json_file: Path | None,
    save_txt: bool,
    save_crops: bool,
    best: int | None,
    every: int,
    threshold: float | None,
    task: str | None,
    stages: bool,
    last: bool,
    changes: Changes,
    connection: Connection,
) -> None:
    """Find objects in images. Prints a line for each; writes pictures with boxes, labels and scores, and JSON.

    IMAGE is a file, a folder, a glob, `-` for images on standard input (PPM, one after the other, or one image), and
    with OpenCV (pip install opencv-python-headless) a video or `camera:0`, which Ctrl-C ends.

    A picture shows the boxes that score at least the model's display threshold, which gives the best F1 on its
    validation split. It is 0.5 for a model without calibration, and with --server, because a server does not report it.
    The JSON has all boxes and says which are shown.
    """
    if server is not None and stages:
        raise ValueError("expected no --stages with --server, which returns only answers; use the model's run")
    require_server(server, connection, last)
    load_tensorflow()
    from overfeat_tf.cli.inputs import find_inputs
    from overfeat_tf.cli.predict import Wanted, run, without_display_option

    if server is not None and (rejected := without_display_option(changes)):
        given = ", ".join(map(option_name, rejected))
        raise ValueError(f"expected no {given} with --server; a served model keeps the options of its export")

    wanted = Wanted(out, json_file, save_txt, save_crops, best, every)
    failed = run(model, find_inputs(images), server, wanted, threshold, changes, stages, connection, task, last)
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
@click.option("--stride", type=click.Choice(["coarse", "fine"]), default="coarse", show_default=True)
@click.option("--scales", metavar="native|1,2,...", default="native", show_default=True, help="Scales to extract at.")
def features(model: Path, images: tuple[str, ...], out: Path, layer: str | None, stride: str, scales: str) -> None:
    """Extract a layer's output, before its rectifier, for images: float32 [h, w, C] each.

    IMAGE is a file, a folder, a glob, or `-` for images on standard input (PPM, one after the other, or one image).

    The key of an array is the image's file name, with parent folders where names coincide. With several scales the keys
    are NAME/scale1 and so on. FILE.txt uses the text format of the authors' 2013 release; FILE.names.txt lists the keys
    of its blocks, one per line.
    """
    load_tensorflow()
    from overfeat_tf.cli.features import check_suffix, extract_files, parse_scales
    from overfeat_tf.cli.inputs import spooled
    from overfeat_tf.models.loading import load

    with spooled(images) as files:
        check_suffix(out)
        result = extract_files(load(model), files, out, layer, stride == "fine", parse_scales(scales))
    rate = result.images / result.seconds
    click.echo(f"{out}: {result.images} images, {result.unreadable} unreadable, {rate:.1f} images/s", err=True)
    click.echo(out)
    sys.exit(1 if result.unreadable else 0)


@overfeat.command()
@click.argument("file", type=FILE)
@click.option("--labels", type=FILE, required=True, help="Class names in the order of its outputs, a line each.")
@click.option("--run", type=FOLDER, required=True, help="The run's folder, a new one.")
@click.option("--side", type=click.IntRange(min=1), help="Side of its training images in pixels [its input's, or 224].")
def import_keras(file: Path, labels: Path, run: Path, side: int | None) -> None:
    """Turn a Keras classifier, a .keras FILE, into a run that classifies densely at several scales."""
    load_tensorflow()
    from overfeat_tf.models.keras_classifier import import_keras as read

    read(file, labels, run, side)
    click.echo(f"{run}: imported; export it with: overfeat export {run} --to saved_models/{file.stem}", err=True)
    click.echo(run)


@overfeat.command()
@click.argument("file", type=FILE)
@click.option(
    "--preset", metavar="fast|accurate", required=True, help="fast for net_weight_0, accurate for net_weight_1."
)
@click.option("--run", type=FOLDER, required=True, help="The folder of the new run.")
@click.option(
    "--labels",
    type=FILE,
    help="A file of 1000 names in the order of the development kit's IDs, one per line, or its meta.mat.",
)
def import_weights(file: Path, preset: str, run: Path, labels: Path | None) -> None:
    """Convert a weight FILE of the authors' 2013 release, which you download yourself, into a run."""
    load_tensorflow()
    from overfeat_tf.models.release_weights import import_weights as read
    from overfeat_tf.models.release_weights import released

    read(file, released(preset), run, labels)
    click.echo(f"{run}: imported; export it with: overfeat export {run} --to saved_models/{preset}", err=True)
    click.echo(run)
