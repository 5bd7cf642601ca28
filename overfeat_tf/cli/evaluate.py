"""The verbs `evaluate` and `calibrate`: a trained model on a split with labels."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
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
