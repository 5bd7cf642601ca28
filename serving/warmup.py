"""Warm-up requests for TF Serving: a record for each signature, replayed before a version takes requests."""

from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from serving.client import image_example
from serving.contract import SIGNATURES

SIDE = 256  # pixels: tracing is by rank, so any size warms up for all
FILE = Path("assets.extra") / "tf_serving_warmup_requests"


def write_warmup(folder: Path, model: str, signatures: list[str]) -> None:
    """Write a Predict record for each signature of the contract among `signatures` into a version's folder."""
    (folder / FILE).parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    encoded = tf.io.encode_jpeg(pixels).numpy()
    with tf.io.TFRecordWriter(str(folder / FILE)) as writer:
        for name in signatures:
            spec = SIGNATURES[name].input
            value = {
                "image_bytes": [encoded],
                "inputs": [image_example(encoded).SerializeToString()],
                "images": pixels[None],
            }
            request = predict_pb2.PredictRequest()
            request.model_spec.name, request.model_spec.signature_name = model, name
            request.inputs[spec.name].CopyFrom(tf.make_tensor_proto(value[spec.name], spec.dtype))
            log = prediction_log_pb2.PredictLog(request=request)
            writer.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())
