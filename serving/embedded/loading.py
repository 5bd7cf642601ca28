"""Loads TF Serving's model directories, `BASE/VERSION/`: finds the versions, loads them and warms them up."""

import json
import logging
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from serving.embedded import answers
from serving.embedded.servables import Servable
from serving.refusal import refusal_of

# The places and names are TF Serving's.
GRAPH_FILE = "saved_model.pb"
WARMUP_FILE = Path("assets.extra") / "tf_serving_warmup_requests"
CONFIG_FILE = "config.json"  # our exports have it; other models do not
_MAX_WARMUP_RECORDS = 1000
_SERVE_TAG = "serve"
_LINE_SECONDS = 10.0  # between the lines of a long warm-up

_log = logging.getLogger(__name__)


class LoadError(Exception):
    """Says in one line why a version cannot be served."""


def find_versions(base: Path) -> dict[int, Path]:
    """Finds the version directories of a model, by number; other names are passed over, as TF Serving does.

    Raises:
        FileNotFoundError: there is none.
    """
    children = sorted(base.iterdir()) if base.is_dir() else []
    versions = {int(path.name): path for path in children if _is_number(path.name) and path.is_dir()}
    if versions:
        return versions
    if not base.is_dir():
        got = "there is no such directory; check the path"
    elif (base / GRAPH_FILE).is_file():
        got = f"it is a SavedModel itself; give its parent, {base.parent}"
    else:
        names = ", ".join(path.name for path in children[:5]) or "nothing"
        got = f"it holds {names}; export a model there first"
    raise FileNotFoundError(f"expected version directories ({base}/1/{GRAPH_FILE}): {got}")


def fingerprint(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Tells a directory's content by the names, times and sizes of its files: another one, another content."""
    found = []
    for file in sorted(path.rglob("*")):
        try:
            stat = file.stat()
        except OSError:  # gone between the list and the look
            continue
        found.append((str(file), stat.st_mtime_ns, stat.st_size))
    return tuple(found)


def load_version(name: str, version: int, path: Path, max_bytes: int) -> Servable:
    """Loads one version directory and replays its warm-up requests.

    Raises:
        LoadError: it is not a SavedModel that can be served, or a warm-up request fails.
    """
    begun = time.perf_counter()
    _log.info("loading %s version %d", name, version)
    signature_defs = read_signature_defs(path)
    try:
        loaded = tf.saved_model.load(str(path))
    except Exception as error:
        raise LoadError(f"{path} cannot be loaded: {refusal_of(error).message}; export it again") from error
    servable = Servable(name, version, signature_defs, dict(loaded.signatures), read_display_threshold(path))
    loaded_at = time.perf_counter()
    count = warm_up(servable, path / WARMUP_FILE, max_bytes)
    warm_at = time.perf_counter()
    times = f"loaded in {loaded_at - begun:.1f} s, warmed up in {warm_at - loaded_at:.1f} s"
    _log.info("%s version %d: %s (%d requests)", name, version, times, count)
    return servable


def read_signature_defs(path: Path) -> dict[str, meta_graph_pb2.SignatureDef]:
    """Reads a SavedModel's signatures, as its file describes them, without loading it.

    Raises:
        LoadError: there is no such file, or it is not a SavedModel for serving.
    """
    file = path / GRAPH_FILE
    try:
        saved_model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    except OSError as error:
        raise LoadError(f"expected {file}, got: {error.strerror}; export the model again or remove {path}") from error
    except Exception as error:  # protobuf's DecodeError, whose home differs between its implementations
        raise LoadError(f"{file} is not a SavedModel: {error}; export the model again or remove {path}") from error
    for graph in saved_model.meta_graphs:
        if _SERVE_TAG in graph.meta_info_def.tags:
            return dict(graph.signature_def)
    raise LoadError(f"{file} has no graph with the tag {_SERVE_TAG!r}; export it with tf.saved_model.save")


def read_display_threshold(path: Path) -> float | None:
    """Reads the display threshold that an export's config.json tells; None where it tells none."""
    try:
        threshold = float(json.loads((path / CONFIG_FILE).read_text())["display_threshold"])
    except (OSError, ValueError, TypeError, KeyError):  # another program's model
        return None
    return threshold if 0.0 <= threshold <= 1.0 else None


def warm_up(servable: Servable, file: Path, max_bytes: int) -> int:
    """Replays the requests that lie beside a model, so that no client waits for the first; returns how many.

    A model without the file is not warmed up. Whatever name and version the requests give, this servable answers.

    Raises:
        LoadError: the file cannot be read, or one of its requests fails.
    """
    if not file.is_file():
        return 0
    count = 0
    try:
        for record in _telling(tf.data.TFRecordDataset(str(file)).as_numpy_iterator(), servable):
            count += 1
            if count > _MAX_WARMUP_RECORDS:
                raise ValueError(f"expected at most {_MAX_WARMUP_RECORDS} records")
            _replay(servable, prediction_log_pb2.PredictionLog.FromString(record), max_bytes)
    except Exception as error:
        message = refusal_of(error).message
        raise LoadError(f"{file} failed at record {count}: {message}; export the model again") from error
    return count


def _telling(records: Iterable[bytes], servable: Servable) -> Iterator[bytes]:
    """Passes warm-up records on, and says now and then how many have been replayed."""
    begun = said = time.monotonic()
    for count, record in enumerate(records):
        now = time.monotonic()
        if now - said >= _LINE_SECONDS:
            said = now
            where = servable.name, servable.version
            _log.info("%s version %d: warming up, %d requests in %.0f s", *where, count, now - begun)
        yield record


def _replay(servable: Servable, log: prediction_log_pb2.PredictionLog, max_bytes: int) -> None:
    match log.WhichOneof("log_type"):
        case "predict_log":
            answers.predict(servable, log.predict_log.request, max_bytes)
        case "classify_log":
            answers.classify(servable, log.classify_log.request)
        case "multi_inference_log":
            answers.multi_inference(servable, log.multi_inference_log.request)
        case kind:
            raise ValueError(f"expected a Predict, Classify or MultiInference request, got {kind or 'an empty record'}")


def _is_number(name: str) -> bool:
    # str.isdecimal alone takes other scripts' digits too.
    return name.isascii() and name.isdecimal()
