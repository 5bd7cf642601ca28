"""The life of versions: new ones are found, loaded and switched to, broken ones reported, old ones let go."""

import gc
import logging
import threading
from collections.abc import Sequence, Set
from pathlib import Path

import grpc
from tensorflow_serving.apis import model_management_pb2

from serving.embedded.configuration import ConfigFile, ServedModel, from_config, from_file
from serving.embedded.loading import LoadError, find_versions, fingerprint, load_version
from serving.embedded.servables import Models, State
from serving.refusal import Refusal

DEFAULT_POLL_SECONDS = 1.0  # TF Serving's

_log = logging.getLogger(__name__)


class Keeper:
    """Keeps `models` as the configuration and the disk have it: looks again and again until closed.

    A new version is loaded and warmed beside the old one, which is let go only when the new one is served. A version
    that cannot be loaded is reported, once, and left alone until its directory changes; the next older one that can
    be served is served instead.
    """

    def __init__(
        self,
        models: Models,
        max_bytes: int,
        poll_seconds: float = DEFAULT_POLL_SECONDS,
        config: Path | None = None,
    ):
        """Takes whose versions to keep, and how.

        Args:
            models: what is served.
            max_bytes: the most that one tensor of a warm-up request may occupy.
            poll_seconds: the time between two looks at the disk.
            config: a models.config that replaces the configuration whenever it is saved.
        """
        self._models = models
        self._max_bytes = max_bytes
        self._poll_seconds = poll_seconds
        self._config = ConfigFile(config) if config else None
        self._wanted: dict[str, ServedModel] = {}
        self._paths: dict[tuple[str, int], Path] = {}  # where the served versions come from
        self._broken: dict[Path, tuple] = {}  # their fingerprints when they could not be loaded
        self._seen: dict[Path, tuple] = {}  # those of new versions, at the last look
        self._changing = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="versions", daemon=True)

    def start(self, wanted: Sequence[ServedModel], wait: bool = False) -> None:
        """Loads what is wanted, one model after the other, and watches from then on.

        Args:
            wanted: the models.
            wait: whether to look again until there is a version of each model, as TF Serving does.

        Raises:
            FileNotFoundError: a model has no version.
            LoadError: none of its versions can be served.
            ValueError: a label names a version that is not served.
        """
        self._wanted = {model.name: model for model in wanted}
        # Every path is looked at before the first is loaded: loading takes long, a mistyped path shows at once.
        for model in wanted:
            self._require_versions(model, wait)
        for model in wanted:
            error = self._look(model, settled=True)
            if error is not None and not self._models.served(model.name):
                raise error
            self._models.label(model.name, model.labels)
        self._thread.start()

    def reload(self, request: model_management_pb2.ReloadConfigRequest) -> None:
        """Replaces the whole configuration; what is not in the new one is let go.

        A model whose path has no version keeps what is loaded of it, as with TF Serving.

        Raises:
            Refusal: the configuration is none, or gives a label to a version that is not there, and nothing changes;
                or a model or version that is new could not be loaded.
        """
        failed = self._replace(from_config(request.config))
        if failed:
            count, why = len(failed), "; ".join(map(str, failed))
            raise Refusal(grpc.StatusCode.UNKNOWN, f"{count} servable(s) did not become available: {{{why}}}")

    def look(self) -> None:
        """Looks at the disk once and does what has to be done; the watch does it by itself."""
        self._reread()
        with self._changing:
            for model in self._wanted.values():
                self._look(model)
        if self._models.unloading:  # Python frees what refers to itself only when it looks for it
            gc.collect()

    def close(self, seconds: float = 2.0) -> None:
        """Ends the watch; a version that is being loaded is waited for so long at most."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(seconds)

    def _reread(self) -> None:
        if self._config is None or not self._config.was_saved():
            return
        try:
            self._replace(from_file(self._config.path))
            _log.info("%s: taken", self._config.path)
        except (ValueError, OSError, Refusal) as error:
            why = " ".join((error.message if isinstance(error, Refusal) else str(error)).split())
            _log.error("%s is not taken, and what is served stays: %s", self._config.path, why)

    def _replace(self, models: Sequence[ServedModel]) -> list[LoadError]:
        """Replaces the whole configuration; gives what could not be loaded.

        Raises:
            Refusal: see reload.
        """
        wanted = {model.name: model for model in models}
        with self._changing:
            for model in wanted.values():
                _require_labels(model, self._models.served(model.name).keys() | _on_disk(model))
            for name in self._wanted.keys() - wanted.keys():
                self._withdraw(name, set(self._models.served(name)))
            self._wanted = wanted
            errors = [error for model in wanted.values() if (error := self._look(model, settled=True))]
            for model in wanted.values():
                _require_labels(model, self._models.served(model.name).keys())
                self._models.label(model.name, model.labels)
        return [error for error in errors if isinstance(error, LoadError)]

    def _watch(self) -> None:
        while not self._closed.wait(self._poll_seconds):
            try:
                self.look()
            except Exception:
                _log.exception("looking for versions failed")

    def _require_versions(self, model: ServedModel, wait: bool) -> None:
        told = False
        while True:
            try:
                found = find_versions(model.base)
                if model.wanted(found):
                    return
                raise FileNotFoundError(f"expected other versions of {model.name}: {model.base} has {sorted(found)}")
            except FileNotFoundError as error:
                if not wait:
                    raise
                if not told:
                    _log.warning("waiting for %s: %s", model.name, error)
                told = True
            if self._closed.wait(self._poll_seconds):
                return

    def _look(self, model: ServedModel, settled: bool = False) -> Exception | None:
        """Brings one model up to what is on the disk; gives the first error of those that were met.

        Args:
            model: whose versions.
            settled: whether to take a directory as complete even if it was not there, or was another, a look ago.
        """
        try:
            found = find_versions(model.base)
        except OSError as error:
            if settled:
                _log.warning("%s keeps what is loaded: %s", model.name, error)
            return error
        first: LoadError | None = None
        found = {number: path for number, path in found.items() if not self._is_broken(path)}
        while True:
            wanted = model.wanted(found)
            fresh = [number for number in wanted if self._paths.get((model.name, number)) != found[number]]
            if not fresh:
                break
            ready = [number for number in fresh if settled or self._is_settled(found[number])]
            for number in set(fresh) - set(ready):
                del found[number]
            for number in set(ready) - self._models.served(model.name).keys():
                self._models.mark(model.name, number, State.START)
            if ready and (broken := self._load(model.name, max(ready), found[max(ready)])):
                first = first or broken
                del found[max(ready)]
        served = set(self._models.served(model.name))
        if wanted & served:  # never the last one: there is nothing instead of it
            self._withdraw(model.name, served - wanted)
        return first

    def _load(self, name: str, number: int, path: Path) -> LoadError | None:
        replaced = number in self._models.served(name)
        before = fingerprint(path)
        try:
            if not replaced:
                self._models.mark(name, number, State.LOADING)
            self._models.publish(load_version(name, number, path, self._max_bytes))
        except LoadError as error:
            self._broken[path] = before
            why = " ".join(str(error).split())
            if not replaced:
                self._models.mark(name, number, State.END, why)
            _log.error("%s version %d is broken and left out: %s", name, number, why)
            return error
        finally:
            self._seen.pop(path, None)
        self._broken.pop(path, None)
        self._paths[name, number] = path
        return None

    def _withdraw(self, name: str, numbers: set[int]) -> None:
        for number in numbers:
            self._paths.pop((name, number), None)
            self._models.withdraw(name, number)
            _log.info("%s version %d: let go", name, number)

    def _is_broken(self, path: Path) -> bool:
        return path in self._broken and self._broken[path] == fingerprint(path)

    def _is_settled(self, path: Path) -> bool:
        before, self._seen[path] = self._seen.get(path), fingerprint(path)
        return before == self._seen[path]


def _on_disk(model: ServedModel) -> set[int]:
    try:
        return model.wanted(find_versions(model.base))
    except OSError:
        return set()


def _require_labels(model: ServedModel, available: Set[int]) -> None:
    for version in model.labels.values():
        if version not in available:
            message = (
                f"Request to assign label to version {version} of model {model.name}, which is not currently "
                "available for inference"
            )
            raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, message)
