"""The verbs `train`, `settings` and `inspect`: what happens before and while a model is fitted."""

import shlex
import sys
from dataclasses import replace
from inspect import cleandoc
from pathlib import Path
from typing import Any

import click

from overfeat_tf.cli.options import COUNT, FILE, FOLDER, SOURCE_HELP, load_tensorflow, split_names, write_json

SET_HELP = "Change this setting of the recipe"
RECIPE_LIST = """
    \b
    Recipes (`overfeat settings RECIPE` lists what --set can change):
      finetune                         photographs with boxes, on a pretrained backbone
      finetune-classify                photographs with classes alone, on a pretrained backbone
      voc                              a few hundred photographs with boxes, from random weights
      tinyimagenet                     pictures of 64 x 64 pixels with one object each
      digits, digits-quick             scikit-learn's digits, scattered over photographs
      imagenet-fast, imagenet-accurate the paper's own training
      voc-fast, voc-accurate           the paper's networks on Pascal VOC, --from a run of ImageNet
      coco-fast, coco-accurate         the same on COCO
"""


@click.command(epilog=RECIPE_LIST)
@click.argument("recipe", required=False)
@click.option("--data", metavar="SOURCE", help=f"{SOURCE_HELP} [the recipe's own].")
@click.option("--run", type=FOLDER, help="The run's folder [runs/RECIPE]. A run that is there resumes.")
@click.option("--backbone", metavar="NAME", help="A model of keras.applications, keras_hub:PRESET, or a .keras file.")
@click.option("--layer", metavar="NAME", help="The layer, or a stride, at which the backbone ends [stride 16].")
@click.option("--stage", metavar="NAMES", help="Stages out of classification,localization,detection [the recipe's].")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help=f"{SET_HELP}, e.g. detection.steps=99.")
@click.option("--from", "start", type=FOLDER, help="Start a new run from the weights of this run, where they fit.")
@click.option(
    "--more-steps", type=COUNT, metavar="N", help="Train the last stage of a finished run for N more steps; with --run."
)
@click.option("--profile", is_flag=True, help="Trace a few steps of each stage for TensorBoard's profiler.")
@click.option("--strict", is_flag=True, help="Check all of the data first, and stop if any of it can't be used.")
@click.option("--data-service", metavar="HOST:PORT", help="Let this tf.data service decode and augment the images.")
def train(
    recipe: str | None,
    data: str | None,
    run: Path | None,
    backbone: str | None,
    layer: str | None,
    stage: str | None,
    settings: tuple[str, ...],
    start: Path | None,
    more_steps: int | None,
    profile: bool,
    strict: bool,
    data_service: str | None,
) -> None:
    """Train a RECIPE, or resume a run.

    The same command again, or `overfeat train --run DIRECTORY` alone, resumes an interrupted run.
    """
    load_tensorflow()
    from overfeat_tf.models.loading import read_config
    from training.fit.strategy import barrier, choose_strategy, is_chief
    from training.fit.train import train as fit
    from training.recipes import get_recipe, override
    from training.run.resume import add_steps, check_openable, resumed

    strategy = None
    if recipe is None or more_steps is not None:
        new = {"--data": data, "--backbone": backbone, "--layer": layer, "--from": start, "--set": settings or None}
        if more_steps is not None and (run is None or recipe is not None):
            got = "no --run" if run is None else f"'{recipe}' too"
            raise ValueError(f"expected --more-steps with --run DIR alone, since the run has its recipe; got {got}")
        if run is None:
            raise ValueError("expected a RECIPE (`overfeat train --help` lists them), or --run DIR alone to resume")
        if given := [name for name, value in new.items() if value is not None]:
            raise ValueError(f"expected --run without {given[0]}, since the run has its own; or a RECIPE for a new run")
        if more_steps is not None:
            check_openable(resumed(run)[1], run)
            strategy = choose_strategy()
            if is_chief(strategy):
                add_steps(run, more_steps)
            barrier(strategy)
        chosen, spec, stages = resumed(run)
    else:
        named = [f"{key}={value}" for key, value in (("preset", backbone), ("layer", layer)) if value is not None]
        chosen = override(get_recipe(recipe), [*named, *settings])
        stages = chosen.stages
        if data is None and chosen.data is None:
            raise ValueError(f"expected --data SOURCE: the recipe '{recipe}' has no data of its own")
        run, spec = run or Path("runs") / recipe, data or str(chosen.data)
    options: dict[str, Any] = {"start": start, "profile": profile, "strict": strict, "data_service": data_service}
    model, _ = fit(chosen, spec, run, split_names(stage, stages), strategy, **options)
    last = model.tasks[-1]
    validated = (read_config(run).get("kept") or {}).get(last, {}).get("best")
    held_out = chosen.val_split if validated else chosen.train_split
    quoted, spec = shlex.quote(str(run)), shlex.quote(spec)
    half = max(1, getattr(resumed(run)[0], last).steps // 2)
    commands = {
        f"overfeat evaluate {quoted} --data {spec} --split {held_out} --protocol {last}": "score it",
        f"overfeat predict {quoted} IMAGE... --out pictures": "see what it finds",
        f"overfeat export {quoted} --to {shlex.quote(f'saved_models/{run.name}')}": "make a SavedModel for a server",
        f"overfeat train --run {quoted} --more-steps {half}": "train longer",
        f"tensorboard --logdir {shlex.quote(str(run / 'logs'))}": "curves and pictures",
    }
    width = max(map(len, commands))
    click.echo(f"{run}: trained; {run / 'results.csv'} has its figures. What to do next:", err=True)
    click.echo("\n".join(f"  {command:{width}}  # {what}" for command, what in commands.items()), err=True)


@click.command()
@click.argument("recipe")
@click.option("--set", "changes", metavar="KEY=VALUE", multiple=True, help=f"{SET_HELP} before it is listed.")
def settings(recipe: str, changes: tuple[str, ...]) -> None:
    """List the keys, values and meanings of a recipe's settings.

    These are what `train RECIPE --set KEY=VALUE` can change. `overfeat train --help` lists the recipes.
    """
    load_tensorflow()
    from training.recipes import get_recipe, override
    from training.recipes.settings import describe

    described = list(describe(override(get_recipe(recipe), list(changes))))
    width = max(len(f"{key}={value}") for key, value, _ in described if len(f"{key}={value}") < 50)
    for key, value, meaning in described:
        click.echo(f"{f'{key}={value}':{width}}  {meaning}")


class InspectCommand(click.Command):
    """Lists the kinds of sources in its help, from the table that opens them."""

    def format_help_text(self, context, formatter):
        """Write the help, with a line for each form of a SOURCE in place of FORMS."""
        from training.sources import SOURCES

        forms = [f"{form:32}  {what}" for kind in SOURCES.values() for form, what in kind.forms.items()]
        self.help = cleandoc(self.help or "").replace("FORMS", "\n  ".join(forms))
        super().format_help_text(context, formatter)


@click.command(cls=InspectCommand)
@click.argument("source")
@click.option("--split", help="The split [all].")
@click.option("--out", type=FOLDER, help="Draw pictures with boxes into this folder.")
@click.option("--limit", type=COUNT, help="Maximum number of images per split.")
@click.option(
    "--recipe", default="finetune", show_default=True, help="Report how many objects the scales of this recipe cover."
)
@click.option("--views", is_flag=True, help="Also draw what the recipe shows in training, as OUT/views.png.")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help=f"{SET_HELP}, e.g. views.mosaic=1.")
@click.option("--strict", is_flag=True, help="Exit with status 1 if there are faults.")
@click.option("--json", "json_file", type=FILE, help="Also write the counts and findings to this file.")
def inspect(
    source: str,
    split: str | None,
    out: Path | None,
    limit: int | None,
    recipe: str,
    views: bool,
    settings: tuple[str, ...],
    strict: bool,
    json_file: Path | None,
) -> None:
    """Count and draw what a data set has, and find its faults.

    \b
    SOURCE is one of
      FORMS

    If a data set has a single list of images, 10 to 20 % of them become the split val.

    Faults are images and objects that can't be used, images in two splits, and images with two classes. Training
    reports and skips what it can't use. Boxes refer to the image as displayed, with its EXIF orientation applied.
    """
    if views and out is None:
        raise ValueError("expected --out DIR with --views, for the picture; got none")
    load_tensorflow()
    from overfeat_tf.cli.inspect import draw_views, lines, run
    from training.recipes import get_recipe, override

    # A description of the network is enough here: no weights need be there, or be downloaded.
    changed = replace(override(get_recipe(recipe), list(settings)), weights=None)
    found = run(source, split, out, limit, changed)
    click.echo("\n".join(lines(found)))
    if views and out is not None:
        click.echo(f"{draw_views(source, split, out, changed)}: what training sees of some images", err=True)
    write_json(json_file, found.as_dict())
    sys.exit(1 if strict and found.faults else 0)
