"""Manages versions: finds new ones, loads and switches to them, reports broken ones, unloads old ones."""

import gc
import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import grpc
import tensorflow as tf
from tensorflow_serving.apis import model_management_pb2, prediction_log_pb2

from serving.embedded import inference
from serving.embedded.config import ServedModel, from_config, from_file
from serving.embedded.servables import Models, Servable, State
from serving.errors import StatusError, to_status_error
from serving.version_folders import (
    WARMUP_FILE,
    LoadError,
    find_versions,
    fingerprint,
    read_display_threshold,
    read_signature_defs,
)

DEFAULT_POLL_SECONDS = 1.0  # TF Serving's
_MAX_WARMUP_RECORDS = 1000

_log = logging.getLogger(__name__)


class VersionManager:
    """Keeps `models` as the configuration and the disk say, polling both until closed.

    A new version is loaded and warmed up beside the old one, which is unloaded only when the new one is served. A
    version that cannot be loaded is not tried again until its directory changes; meanwhile the next older one that can
    be served is served. A label names its version as soon as that is served.
    """

    def __init__(
        self,
        models: Models,
        max_bytes: int,
        poll_seconds: float = DEFAULT_POLL_SECONDS,
        config: Path | None = None,
        warm: bool = True,
    ):
        """Poll every `poll_seconds`, once started.

        `config` is a models.config that replaces the configuration whenever it is saved; one tensor of a warm-up
        request may occupy `max_bytes`; without `warm` no warm-up requests are replayed.
        """
        self._models = models
        self._max_bytes = max_bytes
        self._poll_seconds = poll_seconds
        self._config = config
        self._warm = warm
        self._config_seen = fingerprint(config) if config else ()
        self._wanted: dict[str, ServedModel] = {}
        self._paths: dict[tuple[str, int], Path] = {}  # of the served versions
        self._broken: dict[Path, tuple[tuple, LoadError]] = {}  # fingerprints and errors of what could not be loaded
        self._seen: dict[Path, tuple] = {}  # fingerprints of new versions and of the config at the last poll
        self._changing = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._poll_until_closed, name="versions", daemon=True)

    def start(self, wanted: Sequence[ServedModel], wait: bool = False) -> None:
        """Load models, one after the other, and start polling.

        With `wait`, load models that have no version yet when they get one; wait only until one model has.

        Raises:
            FileNotFoundError: a model has no version.
            LoadError: none of its versions can be served.
        """
        self._wanted = {model.name: model for model in wanted}
        for model in self._find_models(wanted, wait):
            error = self._update(model, settled=True)
            if error is not None and not self._models.served(model.name):
                raise error
        self._models.starting = False
        self._thread.start()

    def reload(self, request: model_management_pb2.ReloadConfigRequest) -> None:
        """Replace the whole configuration and unload what it does not list.

        A model whose path has no version keeps what is loaded of it, as with TF Serving. A label that is in use can
        only move to a version that is loaded already.

        Raises:
            StatusError: the configuration is malformed or labels a missing version, or the models of the start are
                still being loaded, and nothing changes; or a new model or version could not be loaded.
        """
        if self._models.starting:
            raise StatusError(grpc.StatusCode.UNAVAILABLE, "the server is still loading its models; try again later")
        if failed := self._replace(from_config(request.config)):
            message = f"{len(failed)} servable(s) did not become available: {{{'; '.join(map(str, failed))}}}"
            raise StatusError(grpc.StatusCode.UNKNOWN, message)

    def poll(self) -> None:
        """Look at the configuration file and the disk once, and load and unload accordingly."""
        self._poll_config()
        with self._changing:
            for model in self._wanted.values():
                self._update(model)
        if self._models.unloading:
            gc.collect()  # loaded models refer to themselves

    def close(self, seconds: float = 2.0) -> None:
        """Stop polling; wait at most `seconds` for a version that is being loaded."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(seconds)

    def _poll_config(self) -> None:
        # Once it has been the same at two polls: not half written.
        if self._config is None or not self._is_settled(self._config):
            return
        if self._seen[self._config] in (self._config_seen, ()):  # known, or deleted
            return
        self._config_seen = self._seen[self._config]
        try:
            failed = self._replace(from_file(self._config))
            _log.info("%s: configuration loaded", self._config)
            for error in failed:  # also those of earlier loads
                _log.error("%s: %s", self._config, error)
        except (ValueError, OSError, StatusError) as error:
            why = " ".join((error.message if isinstance(error, StatusError) else str(error)).split())
            _log.error("%s: configuration refused, nothing changed: %s", self._config, why)

    def _replace(self, models: Sequence[ServedModel]) -> list[Exception]:
        """Replace the whole configuration; return the errors of what could not be loaded. Raises as `reload` does."""
        wanted = {model.name: model for model in models}
        with self._changing:
            for model in wanted.values():
                self._require_labels(model)
                if not self._models.served(model.name):
                    try:
                        require_versions(model)
                    except FileNotFoundError as missing:
                        raise StatusError(grpc.StatusCode.NOT_FOUND, f"{model.name}: {missing}") from None
            for name in self._wanted.keys() - wanted.keys():
                self._withdraw(name, set(self._models.served(name)))
                self._models.set_labels(name, {})
            self._wanted = wanted
            errors = []
            for model in wanted.values():
                error = self._update(model, settled=True)
                if isinstance(error, LoadError) or (error is not None and not self._models.served(model.name)):
                    errors.append(error)
        return errors

    def _require_labels(self, model: ServedModel) -> None:
        """Raise StatusError if a label names a version that the configuration does not serve, by TF Serving's rule."""
        served, used = self._models.served(model.name).keys(), self._models.labels(model.name)
        try:
            listed = model.wanted(find_versions(model.base))
        except OSError:
            listed = set(served)  # what is loaded stays
        for label, version in model.labels.items():
            if version not in (listed & served if label in used else listed):
                message = f"Request to assign label to version {version} of model {model.name}, which is not currently "
                raise StatusError(grpc.StatusCode.FAILED_PRECONDITION, message + "available for inference")

    def _poll_until_closed(self) -> None:
        while not self._closed.wait(self._poll_seconds):
            try:
                self.poll()
            except Exception:
                _log.exception("polling for versions failed")

    def _find_models(self, wanted: Sequence[ServedModel], wait: bool) -> list[ServedModel]:
        """Return the models that have versions to serve, which is checked before the first load, which takes long.

        With `wait`, wait until there is one; without, raise FileNotFoundError if a model has none.
        """
        missing: set[str] = set()
        while True:
            present = []
            for model in wanted:
                try:
                    numbers = require_versions(model)
                except FileNotFoundError as error:
                    if not wait:
                        raise
                    if model.name not in missing:
                        _log.warning("waiting for %s: %s", model.name, error)
                    missing.add(model.name)
                else:
                    present.append(model)
                    for number in numbers:
                        self._models.set_state(model.name, number, State.START)
            if present or not wanted or self._closed.wait(self._poll_seconds):
                return present

    def _update(self, model: ServedModel, settled: bool = False) -> Exception | None:
        """Load and unload versions of one model as the disk says; return the first error.

        Directories that are new or have changed since the last poll are loaded only if `settled`.
        """
        try:
            found = find_versions(model.base)
        except OSError as missing:
            if settled:
                _log.warning("%s: nothing loaded or unloaded: %s", model.name, missing)
            self._models.set_labels(model.name, model.labels)
            return missing
        first: LoadError | None = None
        while fresh := [n for n in model.wanted(found) if self._paths.get((model.name, n)) != found[n]]:
            number = max(fresh)
            path = found[number]
            known = self._broken.get(path)
            if known is not None and known[0] == fingerprint(path):
                error: LoadError | None = known[1]
            elif settled or self._is_settled(path):
                error = self._load(model.name, number, path)
            else:
                del found[number]
                continue
            if error is not None:
                del found[number]
                first = first or error
        self._models.set_labels(model.name, model.labels)  # before a version that had one of them is unloaded
        if settled:
            for label in model.labels.keys() - self._models.labels(model.name).keys():
                _log.warning("%s: label %s names version %d, not served", model.name, label, model.labels[label])
        wanted, served = model.wanted(found), set(self._models.served(model.name))
        if wanted & served:  # never unload the last one
            self._withdraw(model.name, served - wanted)
        return first

    def _load(self, name: str, number: int, path: Path) -> LoadError | None:
        replaced = number in self._models.served(name)
        before = fingerprint(path)
        try:
            if not replaced:
                self._models.set_state(name, number, State.LOADING)
            self._models.publish(load_version(name, number, path, self._max_bytes, self._warm))
        except LoadError as error:
            why = " ".join(str(error).split())
            failed = LoadError(why)  # without the traceback, which would keep what was loaded
            self._broken[path] = before, failed
            if not replaced:
                self._models.set_state(name, number, State.END, why)
            _log.error("%s version %d failed to load and is not served: %s", name, number, why)
            return failed
        finally:
            self._seen.pop(path, None)
        self._broken.pop(path, None)
        self._paths[name, number] = path
        return None

    def _withdraw(self, name: str, numbers: set[int]) -> None:
        for number in numbers:
            self._paths.pop((name, number), None)
            self._models.withdraw(name, number)
            _log.info("%s version %d: unloaded", name, number)

    def _is_settled(self, path: Path) -> bool:
        before, self._seen[path] = self._seen.get(path), fingerprint(path)
        return before == self._seen[path]


def require_versions(model: ServedModel) -> set[int]:
    """Return the versions of a model to serve; raise FileNotFoundError if there is none on disk."""
    found = find_versions(model.base)
    if wanted := model.wanted(found):
        return wanted
    raise FileNotFoundError(f"expected other versions of {model.name}: {model.base} has {sorted(found)}")


def load_version(name: str, version: int, path: Path, max_bytes: int, warm: bool = True) -> Servable:
    """Load a version directory and, if `warm`, replay its warm-up requests, with tensors of at most `max_bytes`.

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
    count = warm_up(servable, path / WARMUP_FILE, max_bytes) if warm else 0
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
    try:
        for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
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
            inference.classify(servable, log.classify_log.request, max_bytes)
        case "multi_inference_log":
            inference.multi_inference(servable, log.multi_inference_log.request, max_bytes)
        case kind:
            raise ValueError(f"expected a Predict, Classify or MultiInference request, got {kind or 'an empty record'}")
