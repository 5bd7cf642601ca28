"""The verbs around a run: look at its data, fit it, score it."""

import sys
from contextlib import ExitStack
from pathlib import Path

import click

from overfeat_tf.cli.options import (
    FILE,
    FOLDER,
    Changes,
    inference_options,
    require_run,
    split_names,
    with_changes,
    write_json,
)
from overfeat_tf.cli.quiet import load_tensorflow


@click.command()
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
    from training.strategy import choose_strategy
    from training.train import TASKS
    from training.train import train as fit

    chosen = override(get_recipe(recipe), list(settings))
    if data is None and chosen.data is None:
        raise ValueError(f"expected --data SOURCE: the recipe '{recipe}' has no data of its own")
    folder, spec = run or Path("runs") / recipe, data or str(chosen.data)
    strategy = choose_strategy()
    if strict:
        require_faultless(spec, (chosen.train_split, chosen.val_split))
    fit(chosen, open_source(spec), folder, split_names(stage, TASKS), strategy, start, profile)
    click.echo(f"{folder}: trained; look at it with: tensorboard --logdir {folder / 'logs'}", err=True)


@click.command()
@click.argument("model")
@click.option("--data", metavar="SOURCE", required=True, help="As for `inspect`.")
@click.option("--server", metavar="HOST:PORT", help="Ask a server over gRPC; MODEL is the model's name there.")
@click.option("--split", default="val", show_default=True)
@click.option(
    "--protocol",
    metavar="NAMES",
    help="Of classification,localization,detection; the model's last task. Or table2 or fig9: a run by each row of it.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many images.")
@inference_options
@click.option("--json", "json_file", type=FILE, help="Also write the figures there.")
def evaluate(
    model: str,
    data: str,
    server: str | None,
    split: str,
    protocol: str | None,
    limit: int | None,
    json_file: Path | None,
    changes: Changes,
) -> None:
    """Score MODEL, a run or a SavedModel directory, by the field's metrics."""
    load_tensorflow()
    from overfeat_tf.loading import load
    from training.evaluate import PROTOCOLS, require_fit, served_tasks
    from training.evaluate import evaluate as score
    from training.ladders import TABLES, as_markdown, climb
    from training.sources import open_source

    source = open_source(data)
    with ExitStack() as stack:
        if server is None:
            answering = with_changes(load(model), changes)
            labels, tasks = answering.labels, answering.tasks
        else:
            from serving.client import Client

            answering = with_changes(stack.enter_context(Client(server, model)), changes)
            labels, tasks = source.class_names, served_tasks(answering.metadata())
        if protocol in TABLES:
            require_fit(labels, tasks, source, (TABLES[protocol],))
            rows = list(climb(require_run(answering), source, split, protocol, limit))
            click.echo(as_markdown(protocol, rows))
            write_json(json_file, {protocol: rows})
            return
        protocols = split_names(protocol, tuple(name for name in PROTOCOLS if name in tasks)[-1:])
        require_fit(labels, tasks, source, protocols)
        figures = score(answering, source, split, protocols, limit)
    for name, value in figures.items():
        click.echo(f"{name:24} {value:.4f}" if isinstance(value, float) else f"{name:24} {value}")
    write_json(json_file, figures)


@click.command()
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
