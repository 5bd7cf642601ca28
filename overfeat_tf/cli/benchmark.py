"""The verb `benchmark`: each of the measurements."""

from pathlib import Path

import click

from overfeat_tf.cli.options import FILE, FOLDER, load_tensorflow, write_json


@click.group()
def benchmark() -> None:
    """Measure, as ratios in one run: this machine's noise and speed are in both sides."""


@benchmark.command("scan")
@click.option("--preset", default="accurate", show_default=True, help="The network.")
@click.option("--repetitions", type=click.IntRange(min=1), default=5, show_default=True, help="Of everything, in turn.")
@click.option("--json", "json_file", type=FILE, help="Also write ratios, spread and machine there.")
def benchmark_scan(preset: str, repetitions: int, json_file: Path | None) -> None:
    """Compare the scan with the machine's matrix-product rate, with crops, with its own growth; some ten minutes."""
    load_tensorflow()
    from overfeat_tf.cli.benchmarks.scan import measure

    report = measure(preset, repetitions)
    click.echo(report.table())
    write_json(json_file, report.as_dict())


@benchmark.command("merge")
@click.option("--preset", default="accurate", show_default=True, help="The network that is scanned.")
@click.option("--repetitions", type=click.IntRange(min=1), default=5, show_default=True, help="Of everything, in turn.")
@click.option(
    "--detector",
    "detectors",
    type=(click.Path(exists=True), str, str),
    multiple=True,
    metavar="RUN SOURCE SPLIT",
    help="Compare with non-maximum suppression on these; by default `digits` is trained first.",
)
@click.option("--limit", type=click.IntRange(min=1), default=200, show_default=True, help="Images of each split.")
@click.option("--json", "json_file", type=FILE, help="Also write ratios, spread and machine there.")
def benchmark_merge(
    preset: str, repetitions: int, detectors: tuple[tuple[str, str, str], ...], limit: int, json_file: Path | None
) -> None:
    """Compare merging with the scan's time, with its own growth, and with non-maximum suppression; some ten minutes."""
    load_tensorflow()
    from overfeat_tf.cli.benchmarks.merging import measure

    report = measure(preset, repetitions, detectors, limit)
    click.echo(report.table())
    write_json(json_file, report.as_dict())


@benchmark.command("train")
@click.option("--repetitions", type=click.IntRange(min=1), default=5, show_default=True, help="Of everything, in turn.")
@click.option("--steps", type=click.IntRange(min=1), default=5, show_default=True, help="Of `fast`, on each side.")
@click.option("--json", "json_file", type=FILE, help="Also write ratios, spread and machine there.")
def benchmark_train(repetitions: int, steps: int, json_file: Path | None) -> None:
    """Compare the data with bare decoding, fitting with the bare step, and the step with PyTorch's; ten minutes."""
    load_tensorflow()
    from overfeat_tf.cli.benchmarks.training import measure

    report = measure(repetitions, steps)
    click.echo(report.table())
    write_json(json_file, report.as_dict())


@benchmark.command("ladder")
@click.argument("name")
@click.option("--data", metavar="SOURCE", help="What to train and score on; the recipe's own if left out.")
@click.option("--out", type=FOLDER, help="Runs, results, a picture; taken up if there [runs/ladder/NAME].")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Trainings of everything.")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Change the recipe, as for `train`.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many images.")
@click.option("--json", "json_file", type=FILE, help="Also write all figures there.")
def benchmark_ladder(
    name: str,
    data: str | None,
    out: Path | None,
    seeds: int,
    settings: tuple[str, ...],
    limit: int | None,
    json_file: Path | None,
) -> None:
    """Set each of the paper's choices beside its alternatives: NAME is digits, voc or tinyimagenet; hours."""
    load_tensorflow()
    from overfeat_tf.cli.benchmarks.ladder.measure import as_markdown, measure
    from overfeat_tf.cli.benchmarks.ladder.plot import draw

    folder = out or Path("runs") / "ladder" / name
    results = measure(name, data, folder, range(seeds), settings, limit)
    click.echo(as_markdown(results))
    draw(results, folder / "ladder.png")
    write_json(json_file, results)


@benchmark.command("serve")
@click.option("--preset", "presets", multiple=True, default=("tiny", "fast"), show_default=True, help="Exported.")
@click.option("--model", type=FOLDER, help="Measure saved_models/NAME instead of presets.")
@click.option("--seconds", type=click.FloatRange(min=1), default=60, show_default=True, help="Of load on the server.")
@click.option("--clients", type=click.IntRange(min=1), default=32, show_default=True, help="At the same time.")
@click.option("--repetitions", type=click.IntRange(min=1), default=3, show_default=True, help="Of one client.")
@click.option("--hostile", type=click.IntRange(min=1), default=10_000, show_default=True, help="Requests.")
@click.option("--json", "json_file", type=FILE, help="Also write ratios, spread and machine there.")
def benchmark_serve(
    presets: tuple[str, ...],
    model: Path | None,
    seconds: float,
    clients: int,
    repetitions: int,
    hostile: int,
    json_file: Path | None,
) -> None:
    """Compare a server with the call in process, and batches with none; change and attack it; some twenty minutes.

    The first preset, or the model, is put under load, given versions and attacked. Of presets that were not chosen
    a server is started once, for the times of loading and warming up.
    """
    load_tensorflow()
    from overfeat_tf.cli.benchmarks.serving.measure import measure

    report = measure(presets, model, seconds, clients, repetitions, hostile)
    click.echo(report.table())
    write_json(json_file, report.as_dict())
