"""Memory and time that a model takes to run, by each arithmetic, measured in fresh processes without this project."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tensorflow as tf

from overfeat_tf.compute.choice import worth_measuring
from overfeat_tf.models.model import Model
from overfeat_tf.options import ARITHMETICS
from serving.contract import DEFAULT_KEY
from serving.export.signatures import ServingModule

SIZE = (960, 1280)  # height, width of the image that is sent
# VmHWM is the process's own peak; ru_maxrss begins with that of the process that started it.
_SCRIPT = f"""
import json, sys, time
import tensorflow as tf

def peak():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024

began, before = time.monotonic(), peak()
loaded = tf.saved_model.load(sys.argv[1])
signature = loaded.signatures["serving_default"]
load_seconds, loaded_bytes = time.monotonic() - began, peak()
rows, columns = tf.meshgrid(tf.range({SIZE[0]}), tf.range({SIZE[1]}), indexing="ij")
image = tf.io.encode_jpeg(tf.cast(tf.stack([rows % 256, columns % 256, (rows + columns) % 256], -1), tf.uint8)).numpy()
(name, spec), = signature.structured_input_signature[1].items()
if name == "inputs":
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[image]))
    image = tf.train.Example(features=tf.train.Features(feature={{"image/encoded": feature}})).SerializeToString()
seconds = []
for _ in range(2):
    began = time.monotonic()
    signature(**{{name: tf.constant([image])}})
    seconds.append(time.monotonic() - began)
print(json.dumps(dict(tensorflow_bytes=before, loaded_bytes=loaded_bytes, peak_bytes=peak(),
                      load_seconds=load_seconds, first_seconds=seconds[0], next_seconds=seconds[1])))
"""


@dataclass(frozen=True)
class Footprint:
    """What was measured on the CPU with one request of one image of `SIZE` to the default signature.

    Attributes:
        tensorflow_bytes: Peak memory of a process that has imported TensorFlow.
        loaded_bytes: That of one that has loaded the model too.
        peak_bytes: That of one that has also answered.
        load_seconds: How long the model took to load.
        first_seconds: How long the first request took.
        next_seconds: How long the second one took.
    """

    tensorflow_bytes: int
    loaded_bytes: int
    peak_bytes: int
    load_seconds: float
    first_seconds: float
    next_seconds: float


def measure(folder: Path) -> Footprint | None:
    """Measure a version's folder; None if the system does not report a process's memory (other than Linux).

    Raises:
        RuntimeError: the model does not load or answer in a fresh process; with its last words.
    """
    if not Path("/proc/self/status").is_file():
        return None
    hidden = {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": ""}  # a GPU may be taken
    command = [sys.executable, "-c", _SCRIPT, str(folder.resolve())]
    done = subprocess.run(command, env=os.environ | hidden, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"the exported model does not answer in a fresh process: {last}; not exported")
    return Footprint(**json.loads(done.stdout.splitlines()[-1]))


@dataclass(frozen=True)
class Comparison:
    """What was measured of a model.

    Attributes:
        footprints: What it takes by each arithmetic that differs and may pay on this machine (`compute.choice`).
        errors: The largest difference of the class scores before softmax from the direct ones, over the largest score,
            of each of the others.
    """

    footprints: dict[str, Footprint]
    errors: dict[str, float]


def compare(model: Model, folder: Path) -> Comparison | None:
    """Measure an exported model, and the same by the other arithmetics, each in a fresh process.

    Args:
        model: The model.
        folder: Its SavedModel.

    Returns:
        None if the system does not report a process's memory.

    Raises:
        RuntimeError: it does not load or answer in a fresh process.
    """
    own = model.options.arithmetic
    footprint = measure(folder)
    if footprint is None:
        return None
    found, names = {own: footprint}, worth_measuring(model.networks)
    twins = {name: model if name == own else model.with_options(arithmetic=name) for name in {own, *names}}
    for name, twin in twins.items():
        if name not in found:
            with TemporaryDirectory(prefix="overfeat-arithmetic-") as place:
                servable = ServingModule(twin)
                signatures = {DEFAULT_KEY: servable.signatures_to_save()[DEFAULT_KEY]}
                tf.saved_model.save(servable, place, signatures=signatures)
                found[name] = measure(Path(place)) or footprint
    others = {name: twin for name, twin in twins.items() if name != "direct"}
    errors = _errors(model.with_options(arithmetic="direct"), others) if others else {}
    return Comparison({name: found[name] for name in ARITHMETICS if name in found}, errors)


def _errors(direct: Model, others: dict[str, Model]) -> dict[str, float]:
    height, width = max(direct.options.scale_sizes(direct.network.preset))
    noise = tf.constant(np.random.default_rng(1).integers(0, 256, (1, height, width, 3), np.uint8))
    scores = direct.inference.classify_images(noise)["logits"].numpy()
    apart = {name: scores - other.inference.classify_images(noise)["logits"].numpy() for name, other in others.items()}
    return {name: float(np.abs(each).max() / np.abs(scores).max()) for name, each in apart.items()}
