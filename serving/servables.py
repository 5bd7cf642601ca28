"""What is loaded, and how a request's ModelSpec finds it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import grpc
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import model_pb2

from serving.contract import DEFAULT_KEY
from serving.refusal import Refusal, invalid

Labels = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Servable:
    """Holds one loaded version of a model: what TF Serving calls a servable.

    Attributes:
        name: the model's name, by which requests ask for it.
        version: its number.
        signature_defs: the signatures as the SavedModel describes them, under their keys.
        signatures: the functions that run them: keyword tensors in, a dict of tensors out.
    """

    name: str
    version: int
    signature_defs: Mapping[str, meta_graph_pb2.SignatureDef]
    signatures: Mapping[str, Callable[..., Mapping[str, tf.Tensor]]]

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
    """Finds servables by ModelSpec: the newest version, a version by number, or one by label."""

    def __init__(self, servables: Iterable[Servable], labels: Labels | None = None):
        """Takes every loaded servable and, for each model, its labels.

        Raises:
            ValueError: a label names a version that is not loaded.
        """
        self._versions: dict[str, dict[int, Servable]] = {}
        for servable in servables:
            self._versions.setdefault(servable.name, {})[servable.version] = servable
        self._labels = labels or {}
        for name, versions in self._labels.items():
            for label, version in versions.items():
                if version not in self._versions.get(name, {}):
                    raise ValueError(f"label {label} names version {version} of {name}, which is not loaded")

    @property
    def names(self) -> frozenset[str]:
        """Gives the names of the models that are served."""
        return frozenset(self._versions)

    def __str__(self) -> str:
        """Says what is loaded: `digits version 1, voc versions 3 and 4`."""
        return ", ".join(
            f"{name} version{'s' if len(versions) > 1 else ''} {' and '.join(map(str, sorted(versions)))}"
            for name, versions in sorted(self._versions.items())
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
        versions = self._versions.get(spec.name, {})
        wanted: int | None = None
        if spec.HasField("version_label"):
            wanted = self._labels.get(spec.name, {}).get(spec.version_label)
            if wanted is None:
                raise invalid(f"Unrecognized servable version label: {spec.version_label}")
        elif spec.HasField("version"):
            wanted = spec.version.value
        else:
            wanted = max(versions, default=None)
        if wanted not in versions:
            asked = f"Specific({spec.name}, {wanted})" if spec.HasField("version") else f"Latest({spec.name})"
            raise Refusal(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {asked}")
        return versions[wanted]

    def versions(self, spec: model_pb2.ModelSpec) -> list[Servable]:
        """Lists what a status request asks about: all versions, newest first, or the one it names; labels are ignored.

        Raises:
            Refusal: NOT_FOUND where there is none.
        """
        versions = self._versions.get(spec.name, {})
        if spec.HasField("version"):
            if spec.version.value not in versions:
                message = f"Could not find version {spec.version.value} of model {spec.name}"
                raise Refusal(grpc.StatusCode.NOT_FOUND, message)
            return [versions[spec.version.value]]
        if not versions:
            raise Refusal(grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {spec.name}")
        return [versions[number] for number in sorted(versions, reverse=True)]
