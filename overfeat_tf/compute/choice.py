"""The arithmetic that is fastest on this processor, of those whose answers are near enough to float32's.

Whether a processor multiplies bfloat16 faster than float32 is measured on a small product, and where it does, on the
network itself: one view of a middle scale, by both. Winograd's gain is the cost model's (`execution`), since it
depends on how many windows all scales have together. Networks of little work stay as they are: measuring would take
longer than it saves. What training computes in is chosen likewise, by gradients of a few windows.
"""

import json
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from overfeat_tf import boxes as box_ops
from overfeat_tf.compute.dense import find_windows, head_maps, run_heads
from overfeat_tf.compute.execution import execution_of, tiles_gain
from overfeat_tf.compute.precision import MIXED, in_precision
from overfeat_tf.network.convnet import DenseHead, Network
from overfeat_tf.options import ARITHMETICS

MIN_SPEEDUP = 1.15  # of bfloat16 over the next best, below which float32 is worth more
MIN_MULTIPLY_ADDS = 4e9  # multiply-adds of a scan: `tiny` has 2.6 G, `small` 6 G
MAX_SCORE_ERROR = 0.01  # that a softmax score may differ by, where the window leaves two classes even
MAX_BOX_ERROR = 1.0  # that the edges of 99 boxes in 100 may, in the window
REPETITIONS, MOST_REPETITIONS, LEAST_SECONDS = 3, 20, 1.0  # of what is timed
TRAINED_WINDOWS = 8  # whose gradients are timed


class Choice(NamedTuple):
    """What was chosen, and why; no reason where the scan is too small for a choice to matter.

    Attributes:
        arithmetic: Of `options.ARITHMETICS`; for training, "float32" or "mixed_bfloat16".
        reason: What the choice rests on.
    """

    arithmetic: str
    reason: str


def choose_precision(network: Network) -> Choice:
    """Choose what a network trains fastest in on this machine: "float32" or "mixed_bfloat16", and why."""
    product = bfloat16_gain()
    if product < MIN_SPEEDUP:
        return Choice("float32", f"bfloat16 multiplies {product:.1f} times as fast as float32 on this machine")
    side = network.preset.window
    # Features and classifier: a network that only classifies has no regressor, and must not get one.
    view = keras.Input((side, side, 3))
    head = DenseHead.of(network.classifier, network.preset, fine=False)
    dense = keras.Model(view, head(network.head_maps(view)))
    pixels = tf.random.stateless_uniform([TRAINED_WINDOWS, side, side, 3], [1, 1], 0.0, 255.0)

    def gradients(policy: str) -> tf.Tensor:
        with in_precision(network, policy, [head]), tf.GradientTape() as tape:
            loss = tf.reduce_mean(dense(pixels, training=False))  # so that no statistics move
        return tf.add_n([tf.reduce_sum(gradient) for gradient in tape.gradient(loss, dense.trainable_variables)])

    def on_each_device(policy: str) -> tuple[tf.Tensor, ...]:  # of mirrored variables there are gradients only there
        strategy = tf.distribute.get_strategy()
        return strategy.experimental_local_results(strategy.run(gradients, [policy]))

    traced = [tf.function(partial(on_each_device, name), autograph=False) for name in ("float32", MIXED)]
    exact, reduced = fastest(traced)
    chosen = MIXED if exact > MIN_SPEEDUP * reduced else "float32"
    return Choice(chosen, f"a step in bfloat16 is {exact / reduced:.1f} times as fast as in float32 on this machine")


class Trial(NamedTuple):
    """How bfloat16 compares with float32 on a view: speed-up, and differences in softmax scores and box edges (pixels).

    Of scores it is the most that the view's differences in log-odds can make, d / 4 where two classes are even. The
    scores themselves would not tell: a trained network's are near 0 or 1 in a picture of no object.
    """

    gain: float
    scores: float
    pixels: float


def choose_for_run(networks: Sequence[Network], run: Path) -> Choice:
    """Choose the arithmetic of a run, as `choose_arithmetic` does, or take what was chosen before.

    `arithmetic.json` in the run keeps the choice, so that the run answers alike each time. It is made anew for another
    processor, another TensorFlow or other weights, and each time where the run cannot be written to.
    """
    files = [each for each in (run / "weights").rglob("*") if each.is_file()]
    made_for = {
        "processor": processor(),
        "gpus": len(tf.config.list_physical_devices("GPU")),
        "tensorflow": tf.__version__,
        "weights": max((each.stat().st_mtime_ns for each in files), default=0),
    }
    record = run / "arithmetic.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(record.read_text())
        if kept["made_for"] == made_for and kept["arithmetic"] in ARITHMETICS:
            return Choice(kept["arithmetic"], kept["reason"])
    choice = choose_arithmetic(networks)
    if choice.reason:
        with suppress(OSError):
            record.write_text(json.dumps({**choice._asdict(), "made_for": made_for}, indent=2) + "\n")
    return choice


def choose_arithmetic(networks: Sequence[Network]) -> Choice:
    """Choose the arithmetic of a model, a committee's members together."""
    winograd = suits_this_machine() == "winograd"
    expected = min(tiles_gain(network) for network in networks) if winograd else 1.0
    plain = "winograd" if expected > 1 else "direct"
    expected_gain = f", {expected:.1f} times as fast as direct by the cost model" if expected > 1 else ""
    if min(scan_work(network) for network in networks) < MIN_MULTIPLY_ADDS:
        return Choice(plain, "")
    product = bfloat16_gain()
    if product < MIN_SPEEDUP:
        return Choice(plain, f"bfloat16 multiplies {product:.1f} times as fast as float32 here{expected_gain}")
    trials = [try_bfloat16(network) for network in networks]
    gain, (scores, pixels) = min(t.gain for t in trials), np.max([t[1:] for t in trials], axis=0)
    found = f"bfloat16 runs {gain:.1f} times as fast as float32 here, scores within {scores:.3f}, boxes {pixels:.1f} px"
    if scores > MAX_SCORE_ERROR or pixels > MAX_BOX_ERROR:
        return Choice(plain, f"{found}; allowed are {MAX_SCORE_ERROR:g} and {MAX_BOX_ERROR:g}{expected_gain}")
    return Choice("bfloat16" if gain > MIN_SPEEDUP * expected else plain, f"{found}; {plain}{expected_gain}")


def worth_measuring(networks: Sequence[Network]) -> tuple[str, ...]:
    """List the arithmetics that differ, and that may pay on this machine; direct is always one of them."""
    tiled = any(execution_of(network, "winograd").sides for network in networks)
    large = max(scan_work(network) for network in networks) >= MIN_MULTIPLY_ADDS
    reduced = large and bfloat16_gain() >= MIN_SPEEDUP
    return ("direct", *["winograd"] * tiled, *["bfloat16"] * reduced)


def suits_this_machine() -> str:
    """Return the float32 arithmetic that suits this machine: Winograd's on an x86 CPU alone, direct elsewhere."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return "winograd" if x86 and not tf.config.list_physical_devices("GPU") else "direct"


def images_at_once() -> int:
    """Return how many images to run together on this machine: one on a CPU; with a GPU a guess, not yet measured."""
    return 8 if tf.config.list_physical_devices("GPU") else 1


def processor() -> str:
    """Name the processor of this machine."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@cache
def bfloat16_gain() -> float:
    """Measure how many times as fast a product of bfloat16 is as one of float32 on this machine."""
    shapes = tf.random.stateless_normal([512, 2048], [1, 2]), tf.random.stateless_normal([2048, 1024], [1, 3])
    calls = []
    for dtype in (tf.float32, tf.bfloat16):
        product = tf.function(lambda one, other: tf.reduce_max(tf.matmul(one, other)), autograph=False)
        calls.append(partial(product, *(tf.cast(each, dtype) for each in shapes)))
    exact, reduced = fastest(calls)
    return exact / reduced


def fastest(calls: Sequence[Callable[[], tf.Tensor]]) -> list[float]:
    """Time calls in turn, so that a machine's noise is in all of them; return the least seconds of each.

    Short calls, which other programs disturb most, are repeated for `LEAST_SECONDS`, at most `MOST_REPETITIONS` times.
    """

    def seconds(call: Callable[[], tf.Tensor]) -> float:
        started = time.perf_counter()
        tf.nest.map_structure(lambda value: value.numpy(), call())
        return time.perf_counter() - started

    for call in calls:
        seconds(call)  # traces
    times: list[list[float]] = []
    while len(times) < REPETITIONS or (len(times) < MOST_REPETITIONS and np.sum(times) < LEAST_SECONDS):
        times.append([seconds(call) for call in calls])
    return np.min(times, axis=0).tolist()


def scan_work(network: Network) -> float:
    """Count the multiply-adds of a preset's own scales, without flips."""
    preset = network.preset
    heads = sum(layer.multiply_adds for layer in preset.head("classifier", network.num_classes, network.context))
    windows = sum(preset.window_count(height) * preset.window_count(width) for height, width in preset.scales)
    return sum(preset.backbone.multiply_adds(*scale) for scale in preset.scales) + windows * heads


def try_bfloat16(network: Network) -> Trial:
    """Run a view of a middle scale, of as much detail as photographs, by float32 and by bfloat16."""
    height, width = network.preset.scales[len(network.preset.scales) // 2]
    sides = (4, 16, 64, 256)
    layers = [tf.random.stateless_uniform([1, side, side, 3], [side, 1], 0.0, 255.0 / len(sides)) for side in sides]
    pixels = tf.add_n([tf.image.resize(each, [height, width], "bicubic") for each in layers])
    heads = [part for part in network.parts.values() if part is not network.features]

    def run(arithmetic: str) -> list[tf.Tensor]:
        windows = find_windows(network.preset, head_maps(network, [pixels], arithmetic))
        return run_heads(heads, windows, execution=execution_of(network, arithmetic))

    calls = [tf.function(partial(run, name), autograph=False) for name in ("direct", "bfloat16")]
    exact, reduced = fastest(calls)
    (scores, *boxes), (near_scores, *near_boxes) = (call() for call in calls)
    two = tf.math.top_k(scores, min(2, scores.shape[-1])).indices
    likeliest = [tf.gather(each, two, batch_dims=1) for each in (scores, near_scores)]
    odds, near_odds = (each[:, 0] - each[:, -1] for each in likeliest)
    apart = float(tf.reduce_max(tf.abs(odds - near_odds))) / 4
    moved = 0.0
    for one, other in zip(boxes, near_boxes, strict=True):
        edges = [box_ops.decode(tf.reshape(each, [-1, 4]), network.box_form).numpy() for each in (one, other)]
        moved = float(np.quantile(np.abs(edges[0] - edges[1]), 0.99)) * network.preset.window
    return Trial(exact / reduced, apart, moved)
