"""`overfeat benchmark gpu`: train, scan, export and serve on a GPU, against the GPU's own matrix product.

TensorFlow's float32 products are TF32 on GPUs that have it. Where there is no GPU, a small network goes the same way
on the CPU, so that the check itself is known to run.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tensorflow as tf

from overfeat_tf.cli.benchmarks.harness import MatrixProduct, Report, time_in_turn
from overfeat_tf.cli.benchmarks.inputs import CLASSES, noise_batch, noise_images, random_classifier, rescaled_preset
from overfeat_tf.cli.benchmarks.scan import scan_work_of_image
from overfeat_tf.cli.benchmarks.training import train_steps
from overfeat_tf.cli.serving import ServerProcess
from overfeat_tf.models.loading import load
from overfeat_tf.network.convnet import build
from overfeat_tf.network.presets import Preset
from serving.client.client import Client
from serving.export.exporter import export
from training.fit.stages import classification_model
from training.recipes import get_recipe

SECONDS = 480  # that all of it may take
AT_ONCE = 8  # images of a batch that go through the network together
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
    report = Report("gpu")
    limits = {kind: MatrixProduct(dtype, side) for kind, dtype in (("tf32", "float32"), ("bfloat16", "bfloat16"))}
    ratios = [limits["bfloat16"].rate() / limits["tf32"].rate() for _ in range(repetitions)]
    report.add("bfloat16_over_tf32", ratios, f"products of {side} x {side}: the rates' ratio")
    for kind, ratios in _training(rescaled_preset(name), batch, steps, limits, repetitions):
        what = f"classification of `{name}`, batch {batch}: multiply-adds a second of a step over a product's, {kind}"
        report.add(f"train_of_product_{kind}", ratios, what)
    with TemporaryDirectory(prefix="overfeat-benchmark-") as folder:
        _inference(report, name, Path(folder), limits, repetitions)
    report.add("seconds", [time.perf_counter() - started], "all of this check", ("<=", SECONDS))
    return report


def _training(
    preset: Preset, batch: int, steps: int, limits: dict[str, MatrixProduct], repetitions: int
) -> Iterator[tuple[str, list[float]]]:
    """Time steps on a batch in memory; a step takes three times the multiply-adds of a forward pass."""
    data = noise_batch(preset, batch, CLASSES)
    heads = sum(layer.multiply_adds for layer in preset.head("classifier", CLASSES))
    work = 3 * batch * steps * (preset.backbone.multiply_adds(preset.window, preset.window) + heads)
    for kind, _, precision in TYPES:
        recipe = replace(get_recipe("imagenet-fast"), precision=precision)
        fitted = classification_model(build(preset, CLASSES), recipe)
        fitted.train_on_batch(*data)
        call = partial(train_steps, fitted, data, steps)
        ratios = [limits[kind].compare(work, call)[0] for _ in range(repetitions)]
        log.info("training in %s: %s of the product's rate", precision, ratios)
        yield kind, ratios


def _inference(report: Report, name: str, folder: Path, limits: dict[str, MatrixProduct], repetitions: int) -> None:
    """Scan a batch by each type, together and one after the other; export, and serve over gRPC."""
    model = random_classifier(name).with_options(flips=True)
    preset = model.network.preset
    height, width = preset.scales[-1]
    images = noise_images(AT_ONCE, height, width)
    work = 2 * AT_ONCE * scan_work_of_image(preset, height, width)[0]
    scans = f"{len(preset.scales)} scales with flips, {AT_ONCE} images of {height}x{width}"
    for kind, arithmetic, _ in TYPES:
        alone = model.with_options(arithmetic=arithmetic)
        together = alone.with_options(images_at_once=AT_ONCE)
        difference = float(np.abs(alone.classify(images)["probs"] - together.classify(images)["probs"]).max())
        report.add(f"together_difference_{kind}", [difference], "scores, together and alone")
        pairs = list(time_in_turn([partial(each.classify, images) for each in (alone, together)], repetitions))
        ratios = [work / least / limits[kind].rate() for _, least in pairs]
        report.add(f"scan_of_product_{kind}", ratios, f"{scans} together: multiply-adds a second over a product's")
        report.add(f"together_over_alone_{kind}", [one / other for one, other in pairs], "the rates' ratio")
    began = time.perf_counter()
    version = export(together, folder / name)
    report.add("export_seconds", [time.perf_counter() - began], "bfloat16, verified")
    loaded = load(version)
    with ServerProcess(version.parent) as server, Client(server.address, name) as client:
        calls = [partial(each.classify, images) for each in (loaded, client)]
        pairs = list(time_in_turn(calls, repetitions))
    ratios = [limits["bfloat16"].compare(work, calls[0])[0] for _ in range(repetitions)]
    report.add("exported_of_product_bfloat16", ratios, "the same by the SavedModel")
    report.add("served_of_called", [one / other for one, other in pairs], "the rate by gRPC over that of a call")
