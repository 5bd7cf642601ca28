"""What is loaded, in which state, and how a request's ModelSpec finds it."""

import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import grpc
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import get_model_status_pb2, model_pb2

from serving.contract import DEFAULT_KEY, contract_key
from serving.errors import StatusError, invalid

State = get_model_status_pb2.ModelVersionStatus
Tensors = Mapping[str, tf.Tensor]

# Rows of a request that run at a time; between them the server looks whether anybody still waits. The images of a
# request are scanned one after the other in any case, and a call takes less than a millisecond beside tens for a scan.
ROWS_PER_RUN = 4


@dataclass(frozen=True, eq=False)  # compared by identity
class Servable:
    """One loaded version of a model.

    Attributes:
        name: the model's name, by which requests ask for it.
        version: its number.
        signature_defs: the signatures as the SavedModel describes them, by key.
        signatures: the functions that run them: keyword tensors in, a dict of tensors out.
        display_threshold: the score from which a detection is worth showing, if the export's config.json has it.
    """

    name: str
    version: int
    signature_defs: Mapping[str, meta_graph_pb2.SignatureDef]
    signatures: Mapping[str, Callable[..., Tensors]]
    display_threshold: float | None = None

    def model_spec(self, signature_name: str | None = None) -> model_pb2.ModelSpec:
        spec = model_pb2.ModelSpec(name=self.name, signature_name=signature_name)
        spec.version.value = self.version
        return spec

    def signature_def(self, key: str) -> meta_graph_pb2.SignatureDef | None:
        """Find the signature of a request, an empty key meaning the default; None if it cannot be called."""
        key = key or DEFAULT_KEY
        return self.signature_defs[key] if key in self.signatures and key in self.signature_defs else None

    def run(self, key: str, inputs: Tensors, check: Callable[[], None] | None = None) -> Tensors:
        """Run a signature, the contract's signatures a few rows at a time.

        The contract says that an image's answer does not depend on its batch, so the parts together are the answer of
        the whole. Nothing is known of other signatures: they run whole.

        `check` is called before each part; it raises to stop the request.
        """
        check = check or (lambda: None)
        check()
        function = self.signatures[key]
        sizes = [int(tensor.shape[0]) if tensor.shape.rank else 0 for tensor in inputs.values()]
        rows = sizes[0] if len(sizes) == 1 else 0  # a signature of the contract has one input
        if rows <= ROWS_PER_RUN or contract_key(self.signature_defs[key]) is None:
            return function(**inputs)
        parts = []
        for start in range(0, rows, ROWS_PER_RUN):
            check()
            parts.append(function(**{name: each[start : start + ROWS_PER_RUN] for name, each in inputs.items()}))
        joined = {}
        for name in parts[0]:
            shapes = [tuple(part[name].shape) for part in parts]
            if () in shapes or sum(shape[0] for shape in shapes) != rows or len({shape[1:] for shape in shapes}) > 1:
                return function(**inputs)  # another program's model, which only looks like one of the contract
            joined[name] = tf.concat([part[name] for part in parts], 0)
        return joined


class Models:
    """Finds servables by ModelSpec (the newest version, a number, or a label) and knows the states of versions.

    What is served may change at any time, in one step: a request keeps the servable that it found.
    """

    def __init__(self, servables: Iterable[Servable] = ()):
        self._lock = threading.RLock()
        self._served: dict[str, dict[int, Servable]] = {}
        self._states: dict[str, dict[int, tuple[int, str]]] = {}
        self._labels: dict[str, dict[str, int]] = {}
        self.starting = False  # until the models of the start are loaded, requests for them get UNAVAILABLE
        for servable in servables:
            self.publish(servable)

    @property
    def names(self) -> frozenset[str]:
        with self._lock:
            return frozenset(self._served)

    @property
    def known(self) -> list[str]:
        """List the names of all models of which a version has a state."""
        with self._lock:
            return sorted(self._states)

    @property
    def loaded(self) -> list[tuple[str, int]]:
        """List the name and number of every served version."""
        with self._lock:
            return sorted((name, version) for name, versions in self._served.items() for version in versions)

    @property
    def unloading(self) -> bool:
        """Return whether a version that is no longer served is still in use."""
        with self._lock:
            return any(state == State.UNLOADING for each in self._states.values() for state, _ in each.values())

    def __str__(self) -> str:
        """Say what is loaded: `digits version 1, voc version 3, voc version 4`."""
        return ", ".join(f"{name} version {version}" for name, version in self.loaded)

    def find(self, request) -> Servable:
        """Find the servable that a request's `model_spec` asks for.

        Raises:
            StatusError: NOT_FOUND if there is none, INVALID_ARGUMENT if the request names none, UNAVAILABLE, which
                clients retry, while the server starts.
        """
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        spec = request.model_spec
        if not spec.name:
            raise invalid("ModelSpec has no name specified.")
        label = spec.version_label if spec.HasField("version_label") else None
        with self._lock:
            versions = self._served.get(spec.name, {})
            if label is not None:
                wanted = self._labels.get(spec.name, {}).get(label)
            else:
                wanted = spec.version.value if spec.HasField("version") else max(versions, default=None)
            if wanted in versions:
                return versions[wanted]
            if self.starting and spec.name in self._states:
                raise StatusError(grpc.StatusCode.UNAVAILABLE, f"{spec.name} is loading; try again later")
        if wanted is None and label is not None:
            raise invalid(f"Unrecognized servable version label: {label}")
        asked = f"Latest({spec.name})" if wanted is None else f"Specific({spec.name}, {wanted})"
        raise StatusError(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {asked}")

    def served(self, name: str) -> dict[int, Servable]:
        """Return the served versions of a model, by number."""
        with self._lock:
            return dict(self._served.get(name, {}))

    def states(self, spec: model_pb2.ModelSpec) -> list[get_model_status_pb2.ModelVersionStatus]:
        """List the states of all versions, newest first, or of the version in `spec`; labels are ignored.

        Raises:
            StatusError: NOT_FOUND if there is none.
        """
        with self._lock:
            states = dict(self._states.get(spec.name, {}))
        asked = [spec.version.value] if spec.HasField("version") else sorted(states, reverse=True)
        if not states or asked[0] not in states:
            what = f"version {asked[0]}" if states else "any versions"
            raise StatusError(grpc.StatusCode.NOT_FOUND, f"Could not find {what} of model {spec.name}")
        found = []
        for version in asked:
            state, error = states[version]
            status = State(version=version, state=state)  # type: ignore[arg-type] # an enum's values are ints
            status.status.SetInParent()  # present even if empty, as TF Serving sends it: OK, no message
            if error:
                status.status.error_code = grpc.StatusCode.UNKNOWN.value[0]
                status.status.error_message = error
            found.append(status)
        return found

    def set_state(self, name: str, version: int, state: int, error: str = "") -> None:
        """Set the state of a version, and the reason if it could not be loaded."""
        with self._lock:
            self._states.setdefault(name, {})[version] = (state, error)

    def publish(self, servable: Servable) -> None:
        """Serve a version from now on, replacing one of the same number."""
        with self._lock:
            self._served.setdefault(servable.name, {})[servable.version] = servable
            self.set_state(servable.name, servable.version, State.AVAILABLE)

    def withdraw(self, name: str, version: int) -> None:
        """Stop serving a version; its state becomes END when the last request has finished with it."""
        with self._lock:
            servable = self._served[name].pop(version)
            if not self._served[name]:
                del self._served[name]
            self.set_state(name, version, State.UNLOADING)
        weakref.finalize(servable, self._freed, name, version).atexit = False

    def labels(self, name: str) -> dict[str, int]:
        """Return the version numbers of a model by label."""
        with self._lock:
            return dict(self._labels.get(name, {}))

    def set_labels(self, name: str, labels: Mapping[str, int]) -> None:
        """Replace the labels of a model; one of a version that has not been served yet is left out."""
        with self._lock:
            served, used = self._served.get(name, {}), self._labels.get(name, {})
            self._labels[name] = {
                label: version for label, version in labels.items() if version in served or used.get(label) == version
            }

    def _freed(self, name: str, version: int) -> None:
        with self._lock:
            if self._states[name][version][0] == State.UNLOADING:  # not if it has been loaded again
                self.set_state(name, version, State.END)
