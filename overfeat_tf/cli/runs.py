"""The verbs `train`, `settings`, `inspect`, `evaluate` and `calibrate`."""

import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from inspect import cleandoc
from pathlib import Path
from typing import Any

import click

from overfeat_tf.cli.options import (
    COUNT,
    FILE,
    FOLDER,
    SOURCE_HELP,
    Changes,
    Connection,
    connection_options,
    inference_options,
    last_option,
    load_tensorflow,
    option_name,
    require_run,
    require_server,
    server_option,
    split_names,
    with_changes,
    write_json,
)

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
    from training.run.resume import add_steps, resumed

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


@click.command()
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option("--data", metavar="SOURCE", required=True, help=f"{SOURCE_HELP}.")
@server_option
@click.option("--split", default="val", show_default=True, help="The split to score on.")
@click.option(
    "--protocol",
    metavar="NAMES",
    help="Protocols out of classification,localization,detection [the last that MODEL was trained for]. A run that "
    "localizes can also detect. Or the rows of the paper's tables: table2, fig9, or one row such as table2:ten-views.",
)
@click.option("--limit", type=COUNT, help="Maximum number of images.")
@inference_options
@last_option
@connection_options
@click.option("--json", "json_file", type=FILE, help="Also write the figures to this file.")
@click.option("--out", type=FOLDER, help="Also write a report into this folder: tables, plots, the worst mistakes.")
def evaluate(
    models: tuple[str, ...],
    data: str,
    server: str | None,
    split: str,
    protocol: str | None,
    limit: int | None,
    last: bool,
    json_file: Path | None,
    out: Path | None,
    changes: Changes,
    connection: Connection,
) -> None:
    """Score a model by the usual metrics.

    MODEL is a run or a SavedModel. Several runs form a committee (Table 2).
    """
    require_server(server, connection, last)
    load_tensorflow()
    from overfeat_tf.models.loading import find_model
    from serving.client.client import Client
    from training.evaluation.evaluate import PROTOCOLS, require_fit
    from training.evaluation.ladders import TABLES, row_of, row_options, table_of
    from training.sources import open_source
    from training.sources.splits import settle

    table = table_of(protocol)
    if table and (fixed := changes.keys() & row_options(table)):
        raise ValueError(
            f"expected {table} without {', '.join(map(option_name, sorted(fixed)))}: its rows set these options"
        )
    source = settle(open_source(data), find_model(models[0]))
    with ExitStack() as stack:
        if server is None:
            model = with_changes(_load(models, last), changes, Path(models[0]) if len(models) == 1 else None)
        else:
            if len(models) > 1:
                names = ", ".join(models)
                raise ValueError(f"expected one MODEL with --server, a committee's exported name; got {names}")
            model = with_changes(stack.enter_context(Client(server, models[0], **connection)), changes)
            _require_class_count(model, source.class_names)
        protocols = split_names(protocol, tuple(name for name in PROTOCOLS if name in model.tasks)[-1:])
        labels = model.labels or source.class_names
        require_fit(labels, model.answered_tasks, source, (TABLES[table],) if table else protocols)
        row = row_of(require_run(model), str(protocol)) if table else None
        described = _facts(model.with_options(**row.changes) if row else model, models, server)
        figures = _measure(model, source, split, protocols, limit, out, described)
    write_json(json_file, figures)


def _load(models: Sequence[str], last: bool):
    """Load a model, or several runs as a committee; their last weights, or the best.

    Raises:
        ValueError: there is no model, or the members are not runs or do not match.
    """
    from overfeat_tf.models.loading import load
    from overfeat_tf.models.model import Model

    if len(models) == 1:
        return load(models[0], last)
    members = []
    for name in models:
        member = load(name, last)
        if not isinstance(member, Model):
            raise ValueError(f"expected runs as a committee's members; '{name}' is a SavedModel: name its run")
        members.append(member)
    return Model.committee(members)


def _require_class_count(client, class_names: Sequence[str]) -> None:
    """Raise ValueError if a served model's signatures say that it has another number of classes than the data."""
    signatures = client.metadata()
    if "classify_images" in signatures:
        sides = signatures["classify_images"].outputs["probs"].tensor_shape.dim
        if sides and sides[-1].size not in (-1, len(class_names)):
            expected = f"expected a model of the data's {len(class_names)} classes"
            raise ValueError(f"{expected}; the server's model has {sides[-1].size}")


def _facts(model, models: Sequence[str], server: str | None) -> dict[str, Any]:
    """Describe the model, in JSON's types."""
    if server is not None:
        return {"model": ", ".join(models), "server": server}
    config = model.config()
    kept = ("num_classes", "tasks", "per_class", "box_form", "context", "options")
    networks = [config, *config.get("others", ())]
    presets = ", ".join(dict.fromkeys(network["preset"]["name"] for network in networks))
    return {
        "model": ", ".join(models),
        "network": presets,
        "members": len(networks),
        **{key: config[key] for key in kept if key in config},
    }


def _measure(model, source, split: str, protocols: Sequence[str], limit: int | None, out: Path | None, described: dict):
    """Score by protocols or by the rows of a table, print the figures and write a report if there is a folder.

    Returns:
        The figures. For a table, its rows under its name.
    """
    from training.evaluation.evaluate import evaluate as score
    from training.evaluation.ladders import TABLES, as_markdown, score_rows, table_of
    from training.evaluation.reports.curves import draw_detection_figures, draw_scales
    from training.evaluation.reports.report import Report, figure_tables
    from training.tasks import TRAINED_TASKS

    table = table_of(protocols[0]) if protocols else None
    # Curves and pictures need a single row; for a table only the errors are drawn.
    watched = protocols if not table else [TABLES[table]] if ":" in protocols[0] else []
    threshold = model.display_threshold
    kinds = {name: TRAINED_TASKS[name].observers for name in watched}
    report = Report(out, kinds, source.class_names, threshold) if out is not None else None
    callbacks = report.callbacks if report else None
    began = time.monotonic()
    figures: dict[str, Any]
    if table:
        rows = list(score_rows(require_run(model), source, split, protocols[0], limit, callbacks))
        figures, text, images = {table: rows}, as_markdown(table, rows), rows[-1]["images"]
    else:
        figures = score(model, source, split, protocols, limit, callbacks=callbacks, display_threshold=threshold)
        text, images = figure_tables(figures), figures["images"]
    seconds = round(time.monotonic() - began, 1)
    click.echo(text)
    if report is not None and out is not None:
        data = {"source": source.name, "classes": len(source.class_names), "split": split, "limit": limit}
        facts = {**described, "data": data, "protocol": ",".join(protocols), "images": images, "seconds": seconds}
        if table:
            more = draw_scales(rows, table, out) if len(rows) > 1 else ()
        else:
            more = draw_detection_figures(figures, out)
        pictures = report.write(facts, text, more)
        write_json(out / "report.json", {**facts, "figures": figures, "pictures": pictures})
        click.echo(f"{out / 'report.md'}: tables, curves and pictures of mistakes", err=True)
    return figures


@click.command()
@click.argument("run", type=FOLDER)
@click.option("--data", metavar="SOURCE", required=True, help=f"{SOURCE_HELP}.")
@click.option("--split", default="val", show_default=True, help="A split that RUN was not trained on.")
@click.option("--limit", type=COUNT, help="Maximum number of images [200].")
@inference_options
def calibrate(run: Path, data: str, split: str, limit: int | None, changes: Changes) -> None:
    """Calibrate the scores of a trained detector.

    Scores then are probabilities: about 70 % of the boxes that score 0.7 are right. Training does this at its end. Do
    it again for runs of earlier versions, and before you use other --scales, --stride, --flips or --views than the
    run's own, because these change the accumulated scores. Give the same options to `evaluate`, `predict` and `export`
    afterwards.
    """
    load_tensorflow()
    from overfeat_tf.models.loading import load_run, read_config
    from overfeat_tf.models.tasks import DETECTION
    from training.evaluation.calibration import IMAGES
    from training.evaluation.calibration import calibrate as fit
    from training.evaluation.evaluate import require_fit
    from training.run import folder as run_folder
    from training.sources import open_source
    from training.sources.splits import settle

    model = with_changes(load_run(run), {**changes, "scores": "accumulated"}, run)
    source = settle(open_source(data), run)
    require_fit(model.labels, model.tasks, source, (DETECTION.name,))
    with run_folder.held(run):
        calibration = fit(model, source, split, limit or IMAGES)
        if calibration is None:
            raise ValueError(f"expected objects with boxes, and detections, in split '{split}' of {source.name}")
        config = read_config(run)
        config["model"]["calibration"] = calibration.config()
        run_folder.write_config(run, config)
    click.echo(
        f"{run}: calibrated on {calibration.images} images, {calibration.detections} boxes; "
        f"display threshold {calibration.threshold:.3f}"
    )
