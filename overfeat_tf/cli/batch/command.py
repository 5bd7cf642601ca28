"""The verb `batch`: prediction over any number of images on Apache Beam."""

import logging
from importlib.util import find_spec

import click

from overfeat_tf.arguments import suggest
from overfeat_tf.cli.options import COUNT, load_tensorflow, task_option


@click.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@click.argument("model")
@click.argument("input_glob")
@click.option("--output", metavar="DIRECTORY", required=True, help="Folder for the Parquet files, on any file system.")
@task_option
@click.option("--processes", type=COUNT, default=1, show_default=True, help="Processes, on this machine only.")
@click.option("--threads", type=COUNT, help="Threads of each process [the cores divided among the processes].")
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
    """Predict any number of images on Apache Beam.

    Writes Parquet files with the columns image, status, boxes, scores and classes.

    MODEL is a run or a SavedModel. Export a run first: `export` chooses the arithmetic that is fastest on this machine,
    and `batch` does not. INPUT_GLOB is a folder, a quoted glob such as 'gs://bucket/photos/**.jpg', or a text file
    (.txt) of paths, one per line, on any file system that Beam reads.

    Each image has a row. The row of an image that cannot be read says why in its status, and the command still exits
    with 0. The files appear once all are complete, and then the file _SUCCESS. An interrupted command starts from the
    beginning when it is run again. Options of the runner, such as --region or --flink_master, come last.
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
    click.echo(f"{output}: {result}", err=True)
    click.echo(output)
