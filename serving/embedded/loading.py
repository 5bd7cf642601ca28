"""Loads version directories, `BASE/VERSION/`, and replays their warm-up requests."""

import logging
import time
from pathlib import Path

import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from serving.embedded import inference
from serving.embedded.servables import Servable
from serving.errors import to_status_error
from serving.version_folders import WARMUP_FILE, LoadError, read_display_threshold, read_signature_defs

_MAX_WARMUP_RECORDS = 1000
_LINE_SECONDS = 10.0  # between the log lines of a long warm-up

_log = logging.getLogger(__name__)


def load_version(name: str, version: int, path: Path, max_bytes: int) -> Servable:
    """Load a version directory and replay its warm-up requests, with tensors of at most `max_bytes`.

    Raises:
        LoadError: it is not a SavedModel that can be served, or a warm-up request fails.
    """
    start = time.perf_counter()
    _log.info("loading %s version %d", name, version)
    signature_defs = read_signature_defs(path)
    try:
        loaded = tf.saved_model.load(str(path))
    except Exception as error:
        raise LoadError(f"{path} cannot be loaded: {to_status_error(error).message}; export it again") from error
    servable = Servable(name, version, signature_defs, dict(loaded.signatures), read_display_threshold(path))
    loaded_at = time.perf_counter()
    count = warm_up(servable, path / WARMUP_FILE, max_bytes)
    times = f"loaded in {loaded_at - start:.1f} s, warmed up in {time.perf_counter() - loaded_at:.1f} s"
    _log.info("%s version %d: %s (%d requests)", name, version, times, count)
    return servable


def warm_up(servable: Servable, file: Path, max_bytes: int) -> int:
    """Replay a version's warm-up requests, if it has any, on this servable; return how many.

    Raises:
        LoadError: the file cannot be read, or one of its requests fails.
    """
    if not file.is_file():
        return 0
    count = 0
    start = logged = time.monotonic()
    try:
        for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
            now = time.monotonic()
            if now - logged >= _LINE_SECONDS:
                logged = now
                version = servable.name, servable.version
                _log.info("%s version %d: warming up, %d requests in %.0f s", *version, count, now - start)
            count += 1
            if count > _MAX_WARMUP_RECORDS:
                raise ValueError(f"expected at most {_MAX_WARMUP_RECORDS} records")
            _replay(servable, prediction_log_pb2.PredictionLog.FromString(record), max_bytes)
    except Exception as error:
        message = to_status_error(error).message
        raise LoadError(f"{file} failed at record {count}: {message}; export the model again") from error
    return count


def _replay(servable: Servable, log: prediction_log_pb2.PredictionLog, max_bytes: int) -> None:
    match log.WhichOneof("log_type"):
        case "predict_log":
            inference.predict(servable, log.predict_log.request, max_bytes)
        case "classify_log":
            inference.classify(servable, log.classify_log.request)
        case "multi_inference_log":
            inference.multi_inference(servable, log.multi_inference_log.request)
        case kind:
            raise ValueError(f"expected a Predict, Classify or MultiInference request, got {kind or 'an empty record'}")
