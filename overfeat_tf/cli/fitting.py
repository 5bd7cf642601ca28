"""The verbs before a run is scored: look at its data, fit it."""

import sys
from pathlib import Path

import click

from overfeat_tf.cli.options import FILE, FOLDER, split_names, write_json
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
@click.argument("source")
@click.option("--split", help="One split; all if left out.")
@click.option("--out", type=FOLDER, help="Draw pictures with boxes there.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many images of a split.")
@click.option("--recipe", default="voc", show_default=True, help="Say which objects this recipe's scales cover.")
@click.option("--strict", is_flag=True, help="Exit with status 1 where there are faults.")
@click.option("--json", "json_file", type=FILE, help="Also write counts and findings there.")
def inspect(
    source: str,
    split: str | None,
    out: Path | None,
    limit: int | None,
    recipe: str,
    strict: bool,
    json_file: Path | None,
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

    found = run(source, split, out, limit, recipe)
    click.echo("\n".join(lines(found)))
    write_json(json_file, found.as_dict())
    sys.exit(1 if strict and found.faults else 0)
