"""The verb `batch`: prediction over any number of images on Apache Beam."""

import logging
import sys
from importlib.util import find_spec

import click

from overfeat_tf.cli.options import load_tensorflow
from overfeat_tf.suggestion import suggest


@click.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@click.argument("model")
@click.argument("input_glob")
@click.option("--output", metavar="DIR", required=True, help="Folder for the Parquet files, on any file system.")
@click.option("--task", metavar="NAME", help="classification, localization or detection [the model's last].")
@click.option(
    "--processes", type=click.IntRange(min=1), default=1, show_default=True, help="Processes, on this machine only."
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads of each process [this machine's cores divided].")
@click.option("--runner", metavar="NAME", help="DataflowRunner, FlinkRunner, SparkRunner ... [this machine].")
@click.pass_context
def batch(
    context: click.Context,
    model: str,
    input_glob: str,
    output: str,
    task: str | None,
    processes: int,
    threads: int | None,
    runner: str | None,
) -> None:
    """Run MODEL over all images of INPUT_GLOB, and write Parquet files: image, status, boxes, scores, classes.

    MODEL is a run or a SavedModel. INPUT_GLOB is a folder, a quoted glob such as 'gs://bucket/photos/**.jpg', or a text
    file (.txt) of paths, a line each, on any file system that Beam reads. Each image has a row; one that cannot be read
    has its status there. The files appear once all are complete, and _SUCCESS after them; the same command again
    starts anew if it was interrupted. Options of the runner, such as --region or --flink_master, come last.
    """
    if find_spec("apache_beam") is None:
        raise ImportError(
            "expected Apache Beam for `overfeat batch`, which needs an environment of its own: "
            "python -m venv .venv-beam, and there: pip install '.[beam]'"
        )
    if wrong := next((given for given in (model, input_glob) if given.startswith("-")), None):
        hint = suggest(wrong, [parameter.opts[0] for parameter in context.command.params])
        raise ValueError(f"expected MODEL and INPUT_GLOB before a runner's options; got '{wrong}'{hint}")
    load_tensorflow(start=False)  # so that its threads can still be set
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    from overfeat_tf.cli.batch.pipeline import run

    result = run(model, input_glob, output, task, processes, threads, runner, context.args)
    rate = result.images / result.seconds
    click.echo(f"{output}: {result.images} images, {result.unreadable} unreadable, {rate:.1f} images/s", err=True)
    click.echo(output)
    sys.exit(0)  # an image that cannot be read is a row; a scheduler would start a job with another status again
