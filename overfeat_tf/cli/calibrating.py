"""The verb that fits what a finished run's scores mean."""

from pathlib import Path

import click

from overfeat_tf.cli.options import FOLDER, Changes, inference_options, with_changes
from overfeat_tf.cli.quiet import load_tensorflow


@click.command()
@click.argument("run", type=FOLDER)
@click.option("--data", metavar="SOURCE", required=True, help="As for `inspect`.")
@click.option("--split", default="val", show_default=True, help="One that RUN was not fitted on.")
@click.option("--limit", type=click.IntRange(min=1), help="So many images at most [200].")
@inference_options
def calibrate(run: Path, data: str, split: str, limit: int | None, changes: Changes) -> None:
    """Fit the scores of RUN, a finished detector, so that of boxes that score 0.7 seven in ten are right.

    Training does so by itself at its end. Do it again for runs of earlier versions, and for other --scales, --stride,
    --flips or --views than the run's own, whose evidence adds up to other sums: give them here and then to `evaluate`,
    `predict` and `export`.
    """
    load_tensorflow()
    from overfeat_tf.models.loading import load_run, read_config
    from training import run_folder
    from training.calibrate import IMAGES
    from training.calibrate import calibrate as fit
    from training.evaluate import require_fit
    from training.sources import open_source

    model, source = with_changes(load_run(run), {**changes, "scores": "accumulated"}), open_source(data)
    require_fit(model.labels, model.tasks, source, ("detection",))
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
