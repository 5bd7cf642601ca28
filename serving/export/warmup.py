"""Warm-up requests, which servers replay before a version takes requests, and the parameters of batching."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from overfeat_tf.images.files import image_example
from serving.contract import DEFAULT_KEY, SIGNATURES
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


def inputs_of(encoded: Sequence[bytes], pixels: np.ndarray) -> dict:
    """Return the batch that a signature takes, by its input's name, of encoded images or pixels uint8 [B, H, W, 3]."""
    examples = [image_example(image).SerializeToString() for image in encoded]
    return {"image_bytes": encoded, "inputs": examples, "images": pixels}


def write_warmup(folder: Path, model: str, signatures: Iterable[str], default: str) -> None:
    """Write a Predict record of one image for each signature into a version's folder.

    The first request optimizes the signature's graph, which is the same for every batch size: measured, the first batch
    of eight after one image takes as long as the second. So more records would only hold up a switch of versions.

    Args:
        folder: The version's folder.
        model: The served model's name.
        signatures: Of the contract.
        default: The one that requests without a name mean; it has a graph of its own.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    batches = inputs_of([tf.io.encode_jpeg(pixels).numpy()], pixels[None])
    (folder / WARMUP_FILE).parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(folder / WARMUP_FILE)) as writer:
        for key, name in [*((name, name) for name in signatures), (DEFAULT_KEY, default)]:
            request = predict_pb2.PredictRequest(model_spec={"name": model, "signature_name": key})
            spec = SIGNATURES[name].input
            request.inputs[spec.name].CopyFrom(tf.make_tensor_proto(batches[spec.name], spec.dtype))
            log = prediction_log_pb2.PredictLog(request=request)
            writer.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())
