"""Warm-up requests for TF Serving, replayed before a version takes requests, and the batch sizes that they are for."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from serving.contract import DEFAULT_KEY, SIGNATURES, image_example
from serving.version_folders import WARMUP_FILE

SIDE = 256  # pixels: tracing is by rank, so any size warms up for all
# Every size up to the largest: TF Serving pads to the next allowed one by repeating images, each a scan for nothing.
ALLOWED_BATCH_SIZES = tuple(range(1, 9))

BATCHING = f"""\
# tensorflow_model_server --enable_batching --batching_parameters_file=...: images of one request are run one after
# the other, so a batch gains nothing on CPU beyond fewer calls; keep it small so that answers come soon.
max_batch_size {{ value: {ALLOWED_BATCH_SIZES[-1]} }}
batch_timeout_micros {{ value: 2000 }}
max_enqueued_batches {{ value: 64 }}
num_batch_threads {{ value: 2 }}
{"".join(f"allowed_batch_sizes: {size}{chr(10)}" for size in ALLOWED_BATCH_SIZES)}"""


def write_warmup(folder: Path, model: str, signatures: Iterable[str], default: str) -> None:
    """Write Predict records into a version's folder: for each signature and allowed batch size one.

    The first record of a signature holds an image; those of larger batches hold rows that need no scan. The first
    request optimizes the signature's graph, which is the same for every size: measured, the first batch of eight after
    one image takes as long as the second.

    Args:
        folder: The version's folder.
        model: The served model's name.
        signatures: Of the contract.
        default: The one that requests without a name mean; it has a graph of its own.
    """
    (folder / WARMUP_FILE).parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(folder / WARMUP_FILE)) as writer:
        for key, name in [*((name, name) for name in signatures), (DEFAULT_KEY, default)]:
            for batch in _batches(name):
                request = predict_pb2.PredictRequest()
                request.model_spec.name, request.model_spec.signature_name = model, key
                request.inputs[SIGNATURES[name].input.name].CopyFrom(batch)
                log = prediction_log_pb2.PredictLog(request=request)
                writer.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())


def _batches(name: str) -> Iterator[tensor_pb2.TensorProto]:
    """Yield a signature's input for each allowed batch size."""
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    encoded = tf.io.encode_jpeg(pixels).numpy()
    for size in ALLOWED_BATCH_SIZES:
        images = [encoded] if size == 1 else [b""] * size
        value = {
            "image_bytes": images,
            "inputs": [image_example(image).SerializeToString() for image in images],
            "images": pixels[None] if size == 1 else np.zeros((size, 0, 0, 3), np.uint8),
        }
        spec = SIGNATURES[name].input
        yield tf.make_tensor_proto(value[spec.name], spec.dtype)
