"""`overfeat benchmark gpu`: train, scan, export and serve on a GPU, against the GPU's own matrix product.

TensorFlow's float32 products are TF32 on GPUs that have it. Where there is no GPU, a small network goes the same way
on the CPU, so that the check itself is known to run.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tensorflow as tf

from overfeat_tf.cli.benchmarks.inputs import rescaled_preset
from overfeat_tf.cli.benchmarks.machine import MatrixProduct, describe_machine, time_call
from overfeat_tf.cli.benchmarks.report import Report
from overfeat_tf.cli.benchmarks.scan import scan_work_of_image
from overfeat_tf.cli.serving import ServerProcess
from overfeat_tf.models.loading import load
from overfeat_tf.models.model import Model
from overfeat_tf.network.convnet import build
from overfeat_tf.network.presets import Preset
from serving.client.client import Client
from serving.export.exporter import export
from training.fit.stages import classification_model
from training.recipes import get_recipe

SECONDS = 480  # that all of it may take
AT_ONCE = 8  # images of a batch that go through the network together
CLASSES = 1000
# The name of a type in the report, the inference arithmetic and the training precision that compute in it.
TYPES = (("tf32", "direct", "float32"), ("bfloat16", "bfloat16", "mixed_bfloat16"))


log = logging.getLogger(__name__)


def measure(repetitions: int) -> Report:
    """Measure `accurate` on a GPU, `tiny` on a CPU."""
    started = time.perf_counter()
    on_gpu = bool(tf.config.list_physical_devices("GPU"))
    name, batch, steps, side = ("accurate", 128, 20, 8192) if on_gpu else ("tiny", 16, 2, 1024)
    if not on_gpu:
        log.warning("no GPU: a reduced form runs on the CPU, with `%s`; its figures say nothing of a GPU", name)
    report = Report("gpu", describe_machine())
    preset = rescaled_preset(name)
    limits = {kind: MatrixProduct(dtype, side) for kind, dtype in (("tf32", "float32"), ("bfloat16", "bfloat16"))}
    report.add("bfloat16_over_tf32", _ratios(limits, repetitions), f"products of {side} x {side}: the rates' ratio")
    for kind, ratios in _training(preset, batch, steps, limits, repetitions).items():
        what = f"classification of `{name}`, batch {batch}: multiply-adds a second of a step over a product's, {kind}"
        report.add(f"train_of_product_{kind}", ratios, what)
    with TemporaryDirectory(prefix="overfeat-benchmark-") as folder:
        _inference(report, preset, Path(folder), limits, repetitions)
    report.add("seconds", [time.perf_counter() - started], "all of this check", ("<=", SECONDS))
    return report


def _ratios(limits: dict[str, MatrixProduct], repetitions: int) -> list[float]:
    return [limits["bfloat16"].rate() / limits["tf32"].rate() for _ in range(repetitions)]


def _training(
    preset: Preset, batch: int, steps: int, limits: dict[str, MatrixProduct], repetitions: int
) -> dict[str, list[float]]:
    """Time steps on a batch in memory; a step takes three times the multiply-adds of a forward pass."""
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (batch, preset.window, preset.window, 3), np.uint8)
    data = tf.constant(pixels), tf.constant(draw.integers(0, CLASSES, batch, np.int32))
    heads = sum(layer.multiply_adds for layer in preset.head("classifier", CLASSES))
    work = 3 * batch * steps * (preset.backbone.multiply_adds(preset.window, preset.window) + heads)
    found = {}
    for kind, _, precision in TYPES:
        recipe = replace(get_recipe("imagenet-fast"), precision=precision)
        fitted = classification_model(build(preset, CLASSES), recipe)
        fitted.train_on_batch(*data)
        call = _repeated(fitted, data, steps)
        found[kind] = [work / time_call(call) / limits[kind].rate() for _ in range(repetitions)]
        log.info("training in %s: %s of the product's rate", precision, found[kind])
    return found


def _repeated(fitted, data: tuple[tf.Tensor, tf.Tensor], steps: int) -> Callable[[], object]:
    return lambda: [fitted.train_on_batch(*data) for _ in range(steps)]


def _inference(
    report: Report, preset: Preset, folder: Path, limits: dict[str, MatrixProduct], repetitions: int
) -> None:
    """Scan a batch by each type, together and one after the other; export, and serve over gRPC."""
    labels = tuple(str(number) for number in range(CLASSES))
    model = Model(build(preset, CLASSES), labels, tasks=("classification",)).with_options(flips=True)
    height, width = preset.scales[-1]
    images = np.random.default_rng(0).integers(0, 256, (AT_ONCE, height, width, 3), np.uint8)
    work = 2 * AT_ONCE * scan_work_of_image(preset, height, width)[0]
    scans = f"{len(preset.scales)} scales with flips, {AT_ONCE} images of {height}x{width}"
    for kind, arithmetic, _ in TYPES:
        alone = model.with_options(arithmetic=arithmetic)
        together = alone.with_options(images_at_once=AT_ONCE)
        answers = [each.classify(images)["probs"] for each in (alone, together)]
        report.add(
            f"together_difference_{kind}", [float(np.abs(answers[0] - answers[1]).max())], "scores, together and alone"
        )
        pairs = [[time_call(partial(m.classify, images)) for m in (alone, together)] for _ in range(repetitions)]
        rates = [limits[kind].rate() for _ in range(repetitions)]
        ratios = [work / least / rate for (_, least), rate in zip(pairs, rates, strict=True)]
        report.add(f"scan_of_product_{kind}", ratios, f"{scans} together: multiply-adds a second over a product's")
        report.add(f"together_over_alone_{kind}", [one / other for one, other in pairs], "the rates' ratio")
    began = time.perf_counter()
    version = export(together, folder / preset.name)
    report.add("export_seconds", [time.perf_counter() - began], "bfloat16, verified")
    loaded = load(version)
    loaded.classify(images)
    exported = [time_call(lambda: loaded.classify(images)) for _ in range(repetitions)]
    rates = [limits["bfloat16"].rate() for _ in range(repetitions)]
    ratios = [work / seconds / rate for seconds, rate in zip(exported, rates, strict=True)]
    report.add("exported_of_product_bfloat16", ratios, "the same by the SavedModel")
    with ServerProcess(version.parent) as server, Client(server.address, preset.name) as client:
        client.classify(images)
        pairs = [[time_call(partial(m.classify, images)) for m in (loaded, client)] for _ in range(repetitions)]
    report.add("served_of_called", [one / other for one, other in pairs], "the rate by gRPC over that of a call")
