"""The command line: verbs, options and exit statuses; what they do is elsewhere."""

import difflib
import json
import logging
import os
import sys
from pathlib import Path

import click

from overfeat_tf.cli.options import Changes, inference_options, with_changes
from overfeat_tf.cli.quiet import load_tensorflow

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
# Mistakes of the user's, by the exceptions that our own code raises for them.
MISTAKES = (ValueError, ImportError, FileNotFoundError, NotADirectoryError)


class Verbs(click.Group):
    """A group that names the nearest verb when it knows none of that name."""

    def resolve_command(self, context, args):
        """Find a verb."""
        try:
            return super().resolve_command(context, args)
        except click.UsageError:
            near = difflib.get_close_matches(args[0], self.list_commands(context), n=1)
            hint = f"; did you mean '{near[0]}'?" if near else f", one of {', '.join(self.list_commands(context))}"
            raise click.UsageError(f"expected a verb; got '{args[0]}'{hint}", context) from None


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="overfeat-tf")
def overfeat() -> None:
    """OverFeat: classify, localize and detect with one ConvNet, from boxed images to boxes over gRPC."""


def main() -> None:
    """Run the command; exit 2 on a mistake of the user's, 1 on a failure, each with one line on stderr."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    for library in ("absl", "tensorflow"):
        logging.getLogger(library).setLevel(logging.ERROR)
    try:
        overfeat()
    except MISTAKES as error:
        _fail(error, 2)
    except (OSError, RuntimeError, FloatingPointError) as error:
        _fail(error, 1)
    except Exception as error:
        if type(error).__module__.startswith(("serving.", "training.", "overfeat_tf.")):
            _fail(error, 1)
        raise


def _fail(error: BaseException, status: int) -> None:
    if os.environ.get("OVERFEAT_TRACEBACK"):
        raise error
    line = " ".join(str(error).split()) or type(error).__name__
    click.echo(f"overfeat: {line[:500]}", err=True)
    sys.exit(status)


def write_json(path: Path | None, value: object) -> None:
    """Write a result where a program wants it."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, indent=2) + "\n")


def split_names(text: str | None, default: tuple[str, ...]) -> tuple[str, ...]:
    """Split a comma-separated option."""
    return tuple(name.strip() for name in text.split(",") if name.strip()) if text else default


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
@click.argument("recipe")
@click.option("--data", metavar="SOURCE", help="The recipe's own if left out; as for `inspect`.")
@click.option("--run", type=FOLDER, help="The run's folder [runs/RECIPE]; run again with the same to resume.")
@click.option("--stage", metavar="NAMES", help="Of classification,localization,detection; all if left out.")
@click.option(
    "--set", "settings", metavar="KEY=VALUE", multiple=True, help="Change the recipe, e.g. detection.steps=99."
)
@click.option("--from", "start", type=FOLDER, help="A run whose weights a new run starts from, where they fit.")
@click.option("--profile", is_flag=True, help="Trace a few steps of each stage for TensorBoard's profiler.")
@click.option("--strict", is_flag=True, help="First look at all of the data, and stop where any of it can't be used.")
def train(
    recipe: str,
    data: str | None,
    run: Path | None,
    stage: str | None,
    settings: tuple[str, ...],
    start: Path | None,
    profile: bool,
    strict: bool,
) -> None:
    """Fit a RECIPE with model.fit; the same command takes up a broken run."""
    load_tensorflow()
    from training.inspection import require_faultless
    from training.recipes import get_recipe, override
    from training.sources import open_source
    from training.train import TASKS
    from training.train import train as fit

    chosen = override(get_recipe(recipe), list(settings))
    if data is None and chosen.data is None:
        raise ValueError(f"expected --data SOURCE: the recipe '{recipe}' has no data of its own")
    folder, spec = run or Path("runs") / recipe, data or str(chosen.data)
    if strict:
        require_faultless(spec, (chosen.train_split, chosen.val_split))
    fit(chosen, open_source(spec), folder, split_names(stage, TASKS), start, profile)
    click.echo(f"{folder}: trained; look at it with: tensorboard --logdir {folder / 'logs'}", err=True)


@overfeat.command()
@click.argument("model", type=FOLDER)
@click.option("--data", metavar="SOURCE", required=True, help="As for `inspect`.")
@click.option("--split", default="val", show_default=True)
@click.option("--protocol", metavar="NAMES", help="Of classification,localization,detection; the model's last task.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many images.")
@inference_options
@click.option("--json", "json_file", type=FILE, help="Also write the figures there.")
def evaluate(
    model: Path,
    data: str,
    split: str,
    protocol: str | None,
    limit: int | None,
    json_file: Path | None,
    changes: Changes,
) -> None:
    """Score MODEL, a run or a SavedModel directory, by the field's metrics."""
    load_tensorflow()
    from overfeat_tf.loading import load
    from training.evaluate import PROTOCOLS, require_fit
    from training.evaluate import evaluate as score
    from training.sources import open_source

    loaded, source = with_changes(load(model), changes), open_source(data)
    protocols = split_names(protocol, tuple(name for name in PROTOCOLS if name in loaded.tasks)[-1:])
    require_fit(loaded.labels, loaded.tasks, source, protocols)
    figures = score(loaded, source, split, protocols, limit)
    for name, value in figures.items():
        click.echo(f"{name:24} {value:.4f}" if isinstance(value, float) else f"{name:24} {value}")
    write_json(json_file, figures)


@overfeat.command()
@click.argument("runs", metavar="RUN...", type=FOLDER, nargs=-1, required=True)
@click.option("--to", type=FOLDER, required=True, help="saved_models/NAME; NAME is the served model's.")
@click.option("--version", type=click.IntRange(min=1), help="The next free one if left out.")
@inference_options
def export(runs: tuple[Path, ...], to: Path, version: int | None, changes: Changes) -> None:
    """Write a SavedModel version that TF Serving loads; several RUNs become a committee that classifies."""
    load_tensorflow()
    from overfeat_tf.loading import load_run, read_config
    from overfeat_tf.model import Model
    from serving.export import export as write

    loaded = [load_run(run) for run in runs]
    described = [read_config(run).get("training") or {} for run in runs]
    if len(runs) == 1:
        click.echo(write(with_changes(loaded[0], changes), to, version, described[0]))
        return
    committee = with_changes(Model.committee(loaded), changes)
    names = ", ".join(str(one.get("name")) for one in described)
    data = ", ".join(dict.fromkeys(str(one.get("data")) for one in described))
    click.echo(write(committee, to, version, {"name": f"committee of {names}", "data": data, "members": described}))


@overfeat.command()
@click.argument("models", metavar="saved_models/NAME...", type=FOLDER, nargs=-1, required=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8500, show_default=True, help="0 for any free one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
def serve(models: tuple[Path, ...], port: int, host: str) -> None:
    """Serve models over gRPC as TF Serving does, for one machine; in production use TF Serving."""
    load_tensorflow()
    from serving.server import run

    run(models, host, port)


@overfeat.command()
@click.argument("address", metavar="HOST:PORT")
@click.option("--model", required=True, help="The model's name on the server.")
@click.option("--requests", type=click.IntRange(min=1), default=20, show_default=True, help="How many to time.")
@click.option("--json", "json_file", type=FILE, help="Also write the report there.")
def check(address: str, model: str, requests: int, json_file: Path | None) -> None:
    """Check a server: ready, signatures as expected, one request each, p50 and p95."""
    load_tensorflow()
    from serving.check import check as inspect

    report = inspect(address, model, requests=requests)
    click.echo("\n".join(report.lines()))
    write_json(json_file, report.as_dict())
    sys.exit(0 if report.ok else 1)


@overfeat.command()
@click.argument("model")
@click.argument("images", nargs=-1, required=True)
@click.option("--server", metavar="HOST:PORT", help="Ask a server; MODEL is then the model's name there.")
@click.option("--out", type=FOLDER, default=Path("predictions"), show_default=True, help="Where the pictures go.")
@click.option("--json", "json_file", type=FILE, help="Also write the answers there.")
@click.option("--least-score", type=click.FloatRange(0, 1), default=0.3, show_default=True, help="Boxes to draw.")
@click.option(
    "--stages", is_flag=True, help="Also draw what each answer came from, as the paper's Fig. 6; needs a run."
)
@inference_options
def predict(
    model: str,
    images: tuple[str, ...],
    server: str | None,
    out: Path,
    json_file: Path | None,
    least_score: float,
    stages: bool,
    changes: Changes,
) -> None:
    """Find objects in IMAGES (files, folders, globs): pictures with boxes, labels and scores, and JSON."""
    if server is not None and changes:
        raise ValueError("expected no scales, stride, flips or views with --server; the served model has its own")
    if server is not None and stages:
        raise ValueError("expected no --stages with --server, which gives answers alone; use the model's run")
    load_tensorflow()
    from overfeat_tf.cli.predict import find_files, run

    answers = run(model, find_files(images), server, out, least_score, changes, stages)
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
    from overfeat_tf.cli.predict import find_files

    done = run(model, find_files(images), out, layer, stride == "fine", parse_scales(scales))
    rate = done.images / done.seconds
    click.echo(f"{out}: {done.images} images, {done.unreadable} unreadable, {rate:.1f} images/s", err=True)
    click.echo(out)
    sys.exit(1 if done.unreadable else 0)


@overfeat.command()
@click.argument("file", type=FILE)
@click.option("--preset", metavar="fast|accurate", required=True, help="fast for net_weight_0, accurate for _1.")
@click.option("--run", type=FOLDER, required=True, help="The run's folder, a new one.")
@click.option("--labels", type=FILE, help="1000 names in the development kit's ID order, a line each, or its meta.mat.")
def import_weights(file: Path, preset: str, run: Path, labels: Path | None) -> None:
    """Turn a weight FILE of the authors' 2013 release, of your own download, into a run."""
    load_tensorflow()
    from overfeat_tf.release_weights import import_weights as read
    from overfeat_tf.release_weights import released

    read(file, released(preset), run, labels)
    click.echo(f"{run}: imported; serve it after: overfeat export {run} --to saved_models/{preset}", err=True)
    click.echo(run)


@overfeat.command()
@click.argument("source")
@click.option("--split", help="One split; all if left out.")
@click.option("--out", type=FOLDER, help="Draw pictures with boxes there.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many images of a split.")
@click.option("--strict", is_flag=True, help="Exit with status 1 where there are faults.")
@click.option("--json", "json_file", type=FILE, help="Also write counts and findings there.")
def inspect(
    source: str, split: str | None, out: Path | None, limit: int | None, strict: bool, json_file: Path | None
) -> None:
    """Count what is in a data set, draw it, and find what is wrong with it.

    \b
    SOURCE is one of
      digits                            the embedded scenes
      voc:DIR                           Pascal VOC's layout
      coco:IMAGES_DIR:ANNOTATIONS.json  with {split} in both parts, every split there is
      ilsvrc:DIR                        ImageNet's CLS-LOC or DET layout
      folder:DIR                        a folder a class, with train, val and test folders above or without
      tfds:NAME[/CONFIG][:VERSION]      TensorFlow Datasets; ImageNet's with +boxes=DIR after it has boxes

    Faults are images and objects that can't be used, which training reports and skips, an image in two splits, and
    one with two classes. Boxes are taken in the image as displayed, with its EXIF orientation applied.
    """
    load_tensorflow()
    from overfeat_tf.cli.inspect import lines, run

    found = run(source, split, out, limit)
    click.echo("\n".join(lines(found)))
    write_json(json_file, found.as_dict())
    sys.exit(1 if strict and found.faults else 0)


@overfeat.group()
def benchmark() -> None:
    """Measure, as ratios in one run: this machine's noise and speed are in both sides."""


@benchmark.command("scan")
@click.option("--preset", default="accurate", show_default=True, help="The network.")
@click.option("--repetitions", type=click.IntRange(min=1), default=5, show_default=True, help="Of everything, in turn.")
@click.option("--json", "json_file", type=FILE, help="Also write ratios, spread and machine there.")
def benchmark_scan(preset: str, repetitions: int, json_file: Path | None) -> None:
    """Compare the scan with the machine's matrix-product rate, with crops, with its own growth; some ten minutes."""
    load_tensorflow()
    from benchmarks.scan import measure

    report = measure(preset, repetitions)
    click.echo(report.table())
    write_json(json_file, report.as_dict())


@benchmark.command("train")
@click.option("--repetitions", type=click.IntRange(min=1), default=5, show_default=True, help="Of everything, in turn.")
@click.option("--steps", type=click.IntRange(min=1), default=5, show_default=True, help="Of `fast`, on each side.")
@click.option("--json", "json_file", type=FILE, help="Also write ratios, spread and machine there.")
def benchmark_train(repetitions: int, steps: int, json_file: Path | None) -> None:
    """Compare the data with bare decoding, fitting with the bare step, and the step with PyTorch's; ten minutes."""
    load_tensorflow()
    from benchmarks.training import measure

    report = measure(repetitions, steps)
    click.echo(report.table())
    write_json(json_file, report.as_dict())
