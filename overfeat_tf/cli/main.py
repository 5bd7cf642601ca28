"""The command line: verbs, options and exit statuses; what they do is elsewhere."""

import gc
import logging
import os
import sys
from pathlib import Path

import click

from overfeat_tf.cli.benchmark import benchmark
from overfeat_tf.cli.options import (
    FILE,
    FOLDER,
    Changes,
    Connection,
    connection_options,
    inference_options,
    load_tensorflow,
    option_name,
    require_server,
    with_changes,
    write_json,
)
from overfeat_tf.cli.runs import calibrate, evaluate, inspect, train
from overfeat_tf.cli.serving import serve
from overfeat_tf.suggestion import suggest

# Mistakes of the user's, by the exceptions that our own code raises for them.
MISTAKES = (ValueError, ImportError, FileNotFoundError, NotADirectoryError)
# Where errors come from that have a line for whoever ran the command; TensorFlow's are of a full disk and the like.
OURS = ("serving.", "training.", "overfeat_tf.", "tensorflow.python.framework.errors")


class Verbs(click.Group):
    """A group that names the nearest verb when it knows none of that name."""

    def resolve_command(self, context, args):
        """Find a verb."""
        try:
            return super().resolve_command(context, args)
        except click.UsageError:
            known = self.list_commands(context)
            hint = suggest(args[0], known) or f", one of {', '.join(known)}"
            raise click.UsageError(f"expected a verb; got '{args[0]}'{hint}", context) from None


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="overfeat-tf")
def overfeat() -> None:
    """OverFeat: classify, localize and detect with one ConvNet, from boxed images to boxes over gRPC."""


for _verb in (train, evaluate, calibrate, inspect, serve, benchmark):
    overfeat.add_command(_verb)


def main() -> None:
    """Run the command; exit 2 on a mistake of the user's, 1 on a failure, each with one line on stderr."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    for library in ("absl", "tensorboard", "tensorflow"):
        logging.getLogger(library).setLevel(logging.ERROR)
    status = _run()
    # What the error's frames held is gone by now. A tf.data iterator that reads from Python and is left to the
    # interpreter's own end waits there for a thread that can run no more, now and then for ever.
    gc.collect()
    sys.exit(status)


def _run() -> int | str | None:
    """Run the command and give its exit status."""
    try:
        overfeat()
    except SystemExit as end:
        return end.code
    except MISTAKES as error:
        return _fail(error, 2)
    except (OSError, RuntimeError, FloatingPointError) as error:
        return _fail(error, 1)
    except Exception as error:
        if type(error).__module__.startswith(OURS):
            return _fail(error, 1)
        raise
    return 0


def _fail(error: BaseException, status: int) -> int:
    if os.environ.get("OVERFEAT_TRACEBACK"):
        raise error
    line = " ".join(str(getattr(error, "message", error)).split()) or type(error).__name__
    click.echo(f"overfeat: {line[:500]}", err=True)
    return status


@overfeat.command()
@click.option("--out", type=FOLDER, default=Path("demo"), show_default=True, help="Where everything goes.")
def demo(out: Path) -> None:
    """Do the main job end to end: train, evaluate, export, serve over gRPC, detect, score, draw."""
    load_tensorflow()
    from overfeat_tf.cli.demo import run

    run(out)


@overfeat.command()
@click.argument("preset")
def info(preset: str) -> None:
    """Print a network as the paper's tables have it: layers, sizes, parameters, connections, stride, scales."""
    load_tensorflow()
    from overfeat_tf.cli.info import table

    click.echo(table(preset))


@overfeat.command()
@click.argument("runs", metavar="RUN...", type=FOLDER, nargs=-1, required=True)
@click.option("--to", type=FOLDER, required=True, help="saved_models/NAME; NAME is the served model's.")
@click.option("--version", type=click.IntRange(min=1), help="The one after the highest if left out.")
@click.option(
    "--metrics", type=FILE, help="Figures for the card, from `overfeat evaluate --json`; the run's own if left out."
)
@inference_options
def export(runs: tuple[Path, ...], to: Path, version: int | None, metrics: Path | None, changes: Changes) -> None:
    """Write a SavedModel version that TF Serving loads; several RUNs become a committee that classifies.

    Without --arithmetic it is transformed where this machine computes on an x86 CPU alone, else direct: choose it for
    other machines. The card has time and memory of both.
    """
    load_tensorflow()
    from overfeat_tf.models.loading import load_run, read_config
    from overfeat_tf.models.model import Model
    from serving.export.card import read_metrics, run_figures
    from serving.export.exporter import export as write

    figures = read_metrics(metrics) if metrics else run_figures(runs[0]) if len(runs) == 1 else None
    loaded = [load_run(run) for run in runs]
    described = [read_config(run).get("training") or {} for run in runs]
    if len(runs) == 1:
        click.echo(write(with_changes(loaded[0], changes), to, version, described[0], figures, measure=True))
        return
    committee = with_changes(Model.committee(loaded), changes)
    names = ", ".join(str(one.get("name")) for one in described)
    data = ", ".join(dict.fromkeys(str(one.get("data")) for one in described))
    training = {"name": f"committee of {names}", "data": data, "members": described}
    click.echo(write(committee, to, version, training, figures, measure=True))


@overfeat.command()
@click.argument("address", metavar="HOST:PORT")
@click.option("--model", required=True, help="The model's name on the server.")
@click.option("--requests", type=click.IntRange(min=1), default=20, show_default=True, help="How many to time.")
@click.option("--json", "json_file", type=FILE, help="Also write the report there.")
@connection_options
def check(address: str, model: str, requests: int, json_file: Path | None, connection: Connection) -> None:
    """Check a server: ready, signatures as expected, one request each, p50 and p95."""
    load_tensorflow()
    from serving.client.check import check as inspect

    report = inspect(address, model, requests=requests, **connection)
    click.echo("\n".join(report.lines()))
    write_json(json_file, report.as_dict())
    sys.exit(0 if report.ok else 1)


@overfeat.command()
@click.argument("model")
@click.argument("images", nargs=-1, required=True)
@click.option("--server", metavar="HOST:PORT", help="Ask a server; MODEL is then the model's name there.")
@click.option("--out", type=FOLDER, default=Path("predictions"), show_default=True, help="Where the pictures go.")
@click.option("--json", "json_file", type=FILE, help="Also write the answers there.")
@click.option(
    "--threshold", type=click.FloatRange(0, 1), help="Least score of a box to draw; the model's own if left out."
)
@click.option(
    "--task",
    metavar="NAME",
    help="classification, localization or detection; the last that MODEL was trained for if left out. A run that "
    "localizes detects too.",
)
@click.option(
    "--stages", is_flag=True, help="Also draw what each answer came from, as the paper's Fig. 6; needs a run."
)
@connection_options
@inference_options
def predict(
    model: str,
    images: tuple[str, ...],
    server: str | None,
    out: Path,
    json_file: Path | None,
    threshold: float | None,
    task: str | None,
    stages: bool,
    changes: Changes,
    connection: Connection,
) -> None:
    """Find objects in IMAGES (files, folders, globs): pictures with boxes, labels and scores, and JSON.

    Pictures show boxes from the model's display threshold up, the score of the best F1 on its validation split; 0.5
    where the model is not calibrated, and with --server, which does not tell it. The JSON has all boxes, and whether
    each is shown.
    """
    if server is not None and stages:
        raise ValueError("expected no --stages with --server, which gives answers alone; use the model's run")
    require_server(server, connection)
    load_tensorflow()
    from overfeat_tf.cli.image_files import find_files
    from overfeat_tf.cli.predict import run, without_showing

    if server is not None and (refused := without_showing(changes)):
        given = ", ".join(map(option_name, refused))
        raise ValueError(f"expected no {given} with --server; the served model has the options of its export")

    answers = run(model, find_files(images), server, out, threshold, changes, stages, connection, task)
    write_json(json_file, answers)
    sys.exit(1 if any(answer["status"] for answer in answers) else 0)


@overfeat.command()
@click.argument("model", type=FOLDER)
@click.argument("images", nargs=-1, required=True)
@click.option(
    "--out",
    type=FILE,
    required=True,
    help="FILE.npz, FILE.h5 or FILE.txt; replaced, once complete, where there is one.",
)
@click.option("--layer", metavar="NAME", help="As `overfeat info` prints it; the second full layer if left out.")
@click.option("--stride", type=click.Choice(["coarse", "fine"]), default="coarse", show_default=True)
@click.option(
    "--scales", metavar="native|1,2,...", default="native", show_default=True, help="Sizes to show images at."
)
def features(model: Path, images: tuple[str, ...], out: Path, layer: str | None, stride: str, scales: str) -> None:
    """Extract a layer's output, before its rectifier, for IMAGES (files, folders, globs), float32 [h, w, C] each.

    An array's key is its image's file name, with as many folders before it as tell it apart; with several scales
    NAME/scale1 and so on. FILE.txt has the text format of the authors' 2013 release, and the keys of its blocks, a
    line each, are in FILE.names.txt.
    """
    load_tensorflow()
    from overfeat_tf.cli.features import parse_scales, run
    from overfeat_tf.cli.image_files import find_files

    done = run(model, find_files(images), out, layer, stride == "fine", parse_scales(scales))
    rate = done.images / done.seconds
    click.echo(f"{out}: {done.images} images, {done.unreadable} unreadable, {rate:.1f} images/s", err=True)
    click.echo(out)
    sys.exit(1 if done.unreadable else 0)


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
    click.echo(f"{run}: imported; serve it after: overfeat export {run} --to saved_models/{file.stem}", err=True)
    click.echo(run)


@overfeat.command()
@click.argument("file", type=FILE)
@click.option("--preset", metavar="fast|accurate", required=True, help="fast for net_weight_0, accurate for _1.")
@click.option("--run", type=FOLDER, required=True, help="The run's folder, a new one.")
@click.option("--labels", type=FILE, help="1000 names in the development kit's ID order, a line each, or its meta.mat.")
def import_weights(file: Path, preset: str, run: Path, labels: Path | None) -> None:
    """Turn a weight FILE of the authors' 2013 release, of your own download, into a run."""
    load_tensorflow()
    from overfeat_tf.models.release_weights import import_weights as read
    from overfeat_tf.models.release_weights import released

    read(file, released(preset), run, labels)
    click.echo(f"{run}: imported; serve it after: overfeat export {run} --to saved_models/{preset}", err=True)
    click.echo(run)
