"""The verb `benchmark`: one subcommand for each benchmark."""

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import click

from overfeat_tf.cli.options import COUNT, FILE, FOLDER, Number, load_tensorflow, write_json


@click.group()
def benchmark() -> None:
    """Run a benchmark.

    A benchmark reports ratios. It measures both sides of a ratio in one run, so the machine's speed and noise affect
    both.
    """


def reporting(repetitions: int) -> Callable[[Callable], Callable]:
    """Add the options --repetitions and --json to a benchmark; print and write the `Report` that it returns."""

    def decorate(measured: Callable) -> Callable:
        @wraps(measured)
        def verb(*args, json_file: Path | None, **kwargs) -> None:
            # Leave memory of a GPU to the servers and other processes that a benchmark starts.
            os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
            load_tensorflow()
            report = measured(*args, **kwargs)
            click.echo(report.table())
            write_json(json_file, report.as_dict())

        json_option = click.option("--json", "json_file", type=FILE, help="Also write the results to this file.")
        repeat_option = click.option(
            "--repetitions", type=COUNT, default=repetitions, show_default=True, help="Repetitions of all measurements."
        )
        return repeat_option(json_option(verb))

    return decorate


@benchmark.command("scan")
@click.option("--preset", default="accurate", show_default=True, help="The network.")
@reporting(repetitions=5)
def benchmark_scan(preset: str, repetitions: int):
    """Measure the dense scan: rate against a matrix product, time against crops, growth with the area, memory.

    Takes some ten minutes.
    """
    from overfeat_tf.cli.benchmarks.scan import measure

    return measure(preset, repetitions)


@benchmark.command("merge")
@click.option("--preset", default="accurate", show_default=True, help="The network to scan with.")
@click.option(
    "--detector",
    "detectors",
    type=(click.Path(exists=True), str, str),
    multiple=True,
    metavar="RUN SOURCE SPLIT",
    help="Compare with non-maximum suppression on this run and data [train `digits` first].",
)
@click.option("--limit", type=COUNT, default=200, show_default=True, help="Maximum number of images per split.")
@reporting(repetitions=5)
def benchmark_merge(preset: str, repetitions: int, detectors: tuple[tuple[str, str, str], ...], limit: int):
    """Measure merging: time against the scan, growth with the boxes, mAP against non-maximum suppression.

    Takes some ten minutes.
    """
    from overfeat_tf.cli.benchmarks.merging import measure

    return measure(preset, repetitions, detectors, limit)


@benchmark.command("train")
@click.option("--steps", type=COUNT, default=5, show_default=True, help="Training steps of `fast` on each side.")
@reporting(repetitions=5)
def benchmark_train(repetitions: int, steps: int):
    """Measure training: the data pipeline against decoding, `fit` against its step, the step against PyTorch.

    Takes ten minutes.
    """
    from overfeat_tf.cli.benchmarks.training import measure

    return measure(repetitions, steps)


@benchmark.command("workers")
@click.option("--steps", type=COUNT, default=200, show_default=True, help="Batches of 32 that are made.")
@reporting(repetitions=3)
def benchmark_workers(repetitions: int, steps: int):
    """Count the images that each of 1, 2 and 4 training workers decodes, and compare their batches.

    Takes some two minutes.
    """
    from overfeat_tf.cli.benchmarks.training import measure_workers

    return measure_workers(steps, repetitions)


@benchmark.command("detectors")
@click.option("--backbone", required=True, metavar="NAME", help="The backbone of both detectors, as for `train`.")
@click.option("--data", required=True, multiple=True, metavar="SOURCE", help="A set to compare on; may be repeated.")
@click.option(
    "--minutes",
    type=Number(min=0, min_open=True),
    help="Minutes of processor time (wall-clock with a GPU) for each training [those of the recipe].",
)
@reporting(repetitions=1)
def benchmark_detectors(backbone: str, data: tuple[str, ...], minutes: float | None, repetitions: int):
    """Compare the recipe `finetune` with KerasHub's RetinaNet: same backbone, data and training time.

    Each repetition trains both with another seed. Takes some three times the minutes for each set.
    """
    from overfeat_tf.cli.benchmarks.detectors import measure

    return measure(backbone, data, minutes, repetitions)


@benchmark.command("gpu")
@reporting(repetitions=5)
def benchmark_gpu(repetitions: int):
    """Check training, scanning, export and serving on a GPU, against the GPU's own product in TF32 and bfloat16.

    Takes less than eight minutes. Without a GPU a reduced form runs on the CPU.
    """
    from overfeat_tf.cli.benchmarks.gpu import measure

    return measure(repetitions)


@benchmark.command("ladder")
@click.argument("name")
@click.option("--data", metavar="SOURCE", help="The data [the recipe's own].")
@click.option("--backbone", metavar="NAME", help="What `finetune` starts from, as for `train` [the recipe's own].")
@click.option("--out", type=FOLDER, help="Folder for runs and results; resumes if it exists [runs/ladder/NAME].")
@click.option("--seeds", type=COUNT, default=3, show_default=True, help="Trainings of each variant.")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Change the recipe, as for `train`.")
@click.option("--limit", type=COUNT, help="Maximum number of images to score.")
@click.option("--json", "json_file", type=FILE, help="Also write the results to this file.")
def benchmark_ladder(
    name: str,
    data: str | None,
    backbone: str | None,
    out: Path | None,
    seeds: int,
    settings: tuple[str, ...],
    limit: int | None,
    json_file: Path | None,
) -> None:
    """Compare each of the paper's choices with its alternatives. Takes hours.

    NAME is the recipe that they are choices of: digits, voc, tinyimagenet or finetune.
    """
    load_tensorflow()
    from overfeat_tf.cli.benchmarks.ladder.measure import as_markdown, draw, measure

    folder = out or Path("runs") / "ladder" / name
    results = measure(name, data, folder, range(seeds), settings, limit, backbone)
    click.echo(as_markdown(results))
    draw(results, folder / "ladder.png")
    write_json(json_file, results)


@benchmark.command("serve")
@click.option("--preset", "presets", multiple=True, default=("tiny", "fast"), show_default=True, help="A preset.")
@click.option("--model", type=FOLDER, help="Measure saved_models/NAME instead of presets.")
@click.option("--seconds", type=Number(min=1), default=60, show_default=True, help="Seconds of load.")
@click.option("--clients", type=COUNT, default=32, show_default=True, help="Concurrent clients under load.")
@click.option("--hostile", type=COUNT, default=10_000, show_default=True, help="Number of hostile requests.")
@reporting(repetitions=3)
def benchmark_serve(
    presets: tuple[str, ...], model: Path | None, seconds: float, clients: int, repetitions: int, hostile: int
):
    """Measure a server: latency against calls in process, batches, version switches, hostile requests.

    The first preset, or the model, is also put under load, updated and attacked. For all presets that are not chosen a
    server is started once, to time loading and warm-up. Takes some twenty minutes.
    """
    from overfeat_tf.cli.benchmarks.serving.measure import measure

    return measure(presets, model, seconds, clients, repetitions, hostile)


@benchmark.command("batch")
@click.option("--preset", default="tiny", show_default=True, help="The network that both programs run.")
@click.option("--network", "networks", multiple=True, help="A preset or backbone whose CPU time per image is measured.")
@click.option("--few", type=COUNT, default=40, show_default=True, help="Images of the shorter runs.")
@click.option("--many", type=COUNT, default=240, show_default=True, help="Images of the longer runs.")
@reporting(repetitions=3)
def benchmark_batch(preset: str, networks: tuple[str, ...], few: int, many: int, repetitions: int):
    """Measure `overfeat batch`: images per CPU second against `predict`, two processes against one.

    Takes some ten minutes; needs the extra `beam`, and scikit-learn.
    """
    from overfeat_tf.cli.benchmarks.batch import measure

    return measure(preset, networks, few, many, repetitions)
