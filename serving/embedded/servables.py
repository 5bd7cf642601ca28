"""What is loaded, in which state, and how a request's ModelSpec finds it."""

import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import grpc
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import get_model_status_pb2, model_pb2

from serving.contract import DEFAULT_KEY
from serving.refusal import Refusal, invalid

Labels = Mapping[str, Mapping[str, int]]
State = get_model_status_pb2.ModelVersionStatus


@dataclass(frozen=True, eq=False)  # two are alike only if they are one: what holds a model is looked up by it
class Servable:
    """Holds one loaded version of a model: what TF Serving calls a servable.

    Attributes:
        name: the model's name, by which requests ask for it.
        version: its number.
        signature_defs: the signatures as the SavedModel describes them, under their keys.
        signatures: the functions that run them: keyword tensors in, a dict of tensors out.
        display_threshold: the score from which a detection is worth showing, where the model's folder tells it.
    """

    name: str
    version: int
    signature_defs: Mapping[str, meta_graph_pb2.SignatureDef]
    signatures: Mapping[str, Callable[..., Mapping[str, tf.Tensor]]]
    display_threshold: float | None = None

    def model_spec(self, signature_name: str | None = None) -> model_pb2.ModelSpec:
        """Makes the ModelSpec of an answer: who answered, and with which signature."""
        spec = model_pb2.ModelSpec(name=self.name, signature_name=signature_name)
        spec.version.value = self.version
        return spec

    def signature_def(self, key: str) -> meta_graph_pb2.SignatureDef | None:
        """Finds the signature that a request means, an empty key being the default; None if it cannot be called."""
        key = key or DEFAULT_KEY
        return self.signature_defs[key] if key in self.signatures and key in self.signature_defs else None


class Models:
    """Finds servables by ModelSpec: the newest version, a version by number, or one by label; and knows their states.

    What is served may change at any time, in one step each: a request has either the old version or the new one, and
    keeps it until it is answered.
    """

    def __init__(self, servables: Iterable[Servable] = (), labels: Labels | None = None):
        """Takes every loaded servable and, for each model, its labels.

        Raises:
            ValueError: a label names a version that is not loaded.
        """
        self._lock = threading.RLock()
        self._served: dict[str, dict[int, Servable]] = {}
        self._states: dict[str, dict[int, tuple[int, str]]] = {}
        self._labels: dict[str, dict[str, int]] = {}
        for servable in servables:
            self.publish(servable)
        for name, versions in (labels or {}).items():
            self.label(name, versions)

    @property
    def names(self) -> frozenset[str]:
        """Gives the names of the models that are served."""
        return frozenset(self._served)

    @property
    def loaded(self) -> list[tuple[str, int]]:
        """Lists the name and number of every version that is served."""
        with self._lock:
            return sorted((name, version) for name, versions in self._served.items() for version in versions)

    def display_thresholds(self) -> dict[str, dict[str, float]]:
        """Gives the display thresholds of the versions that tell one, by name and number."""
        with self._lock:
            every = [servable for versions in self._served.values() for servable in versions.values()]
        found: dict[str, dict[str, float]] = {}
        for each in every:
            if each.display_threshold is not None:
                found.setdefault(each.name, {})[str(each.version)] = each.display_threshold
        return found

    @property
    def unloading(self) -> bool:
        """Tells whether a version that is not served any more is still held."""
        with self._lock:
            return any(state == State.UNLOADING for each in self._states.values() for state, _ in each.values())

    def __str__(self) -> str:
        """Says what is loaded: `digits version 1, voc versions 3 and 4`."""
        versions: dict[str, list[str]] = {}
        for name, version in self.loaded:
            versions.setdefault(name, []).append(str(version))
        return ", ".join(
            f"{name} version{'s' if len(numbers) > 1 else ''} {' and '.join(numbers)}"
            for name, numbers in versions.items()
        )

    def find(self, request) -> Servable:
        """Finds the servable that a request's `model_spec` asks for.

        Raises:
            Refusal: NOT_FOUND where there is none, INVALID_ARGUMENT where the request does not say.
        """
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        spec = request.model_spec
        if not spec.name:
            raise invalid("ModelSpec has no name specified.")
        with self._lock:
            versions = self._served.get(spec.name, {})
            wanted: int | None = None
            if spec.HasField("version_label"):
                wanted = self._labels.get(spec.name, {}).get(spec.version_label)
                if wanted is None:
                    raise invalid(f"Unrecognized servable version label: {spec.version_label}")
            elif spec.HasField("version"):
                wanted = spec.version.value
            else:
                wanted = max(versions, default=None)
            if wanted is None or wanted not in versions:
                asked = f"Latest({spec.name})" if wanted is None else f"Specific({spec.name}, {wanted})"
                raise Refusal(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {asked}")
            return versions[wanted]

    def served(self, name: str) -> dict[int, Servable]:
        """Gives the versions of a model that are served, by number."""
        with self._lock:
            return dict(self._served.get(name, {}))

    def states(self, spec: model_pb2.ModelSpec) -> list[get_model_status_pb2.ModelVersionStatus]:
        """Lists what a status request asks about: all versions, newest first, or the one it names; labels are ignored.

        Raises:
            Refusal: NOT_FOUND where there is none.
        """
        with self._lock:
            states = dict(self._states.get(spec.name, {}))
        if not states:
            raise Refusal(grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {spec.name}")
        if spec.HasField("version"):
            if spec.version.value not in states:
                message = f"Could not find version {spec.version.value} of model {spec.name}"
                raise Refusal(grpc.StatusCode.NOT_FOUND, message)
            states = {spec.version.value: states[spec.version.value]}
        found = []
        for version in sorted(states, reverse=True):
            state, error = states[version]
            status = State(version=version, state=state)  # type: ignore[arg-type] # an enum's values are ints
            status.status.SetInParent()  # present even if empty, as TF Serving sends it: OK, no message
            if error:
                status.status.error_code = grpc.StatusCode.UNKNOWN.value[0]
                status.status.error_message = error
            found.append(status)
        return found

    def mark(self, name: str, version: int, state: int, error: str = "") -> None:
        """Notes the state of a version that is not served: on its way in, or out, or broken, and then why."""
        with self._lock:
            self._states.setdefault(name, {})[version] = (state, error)

    def publish(self, servable: Servable) -> None:
        """Serves a version from now on, instead of one of its number if there is one."""
        with self._lock:
            # Other dicts rather than changed ones: whoever goes through the old ones goes on undisturbed.
            versions = {**self._served.get(servable.name, {}), servable.version: servable}
            self._served = {**self._served, servable.name: versions}
            self.mark(servable.name, servable.version, State.AVAILABLE)

    def withdraw(self, name: str, version: int) -> None:
        """Stops serving a version; its state says when the last request has let go of it."""
        with self._lock:
            versions = dict(self._served[name])
            servable = versions.pop(version)
            others = {other: each for other, each in self._served.items() if other != name}
            self._served = {**others, name: versions} if versions else others
            self.mark(name, version, State.UNLOADING)
        weakref.finalize(servable, self._gone, name, version).atexit = False

    def label(self, name: str, labels: Mapping[str, int]) -> None:
        """Replaces the labels of a model.

        Raises:
            ValueError: a label names a version that is not served.
        """
        with self._lock:
            for label, version in labels.items():
                if version not in self._served.get(name, {}):
                    raise ValueError(f"label {label} names version {version} of {name}, which is not loaded")
            self._labels[name] = dict(labels)

    def _gone(self, name: str, version: int) -> None:
        with self._lock:
            if self._states[name][version][0] == State.UNLOADING:  # else it has come again in the meantime
                self.mark(name, version, State.END)
