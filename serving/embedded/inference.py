"""What a loaded model answers to a request: TF Serving's checks, in TF Serving's order."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import classification_pb2, get_model_metadata_pb2, inference_pb2, input_pb2, predict_pb2

from serving.contract import DEFAULT_KEY
from serving.embedded.servables import Models, Servable
from serving.errors import StatusError, invalid
from serving.tensors import decode_input, dtype_name, shape_text, to_proto

# The methods that a MultiInference task may name.
CLASSIFY_METHOD, REGRESS_METHOD = "tensorflow/serving/classify", "tensorflow/serving/regress"
_METADATA_FIELD = "signature_def"

# Raises StatusError once nobody waits for the answer.
Check = Callable[[], None]


def predict(
    servable: Servable, request: predict_pb2.PredictRequest, max_bytes: int, check: Check | None = None
) -> predict_pb2.PredictResponse:
    """Run a signature on the tensors of a request, each of at most `max_bytes` in memory.

    Raises:
        StatusError: the request does not fit the signature, or `check` raised it.
        tf.errors.OpError: the graph rejected the tensors.
    """
    key = request.model_spec.signature_name or DEFAULT_KEY
    signature = servable.signature_defs.get(key)
    if signature is not None:
        _require_inputs(signature, request)
    if signature is None or key not in servable.signatures:
        raise StatusError(grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{key}" not found.')
    wanted = _wanted_outputs(signature, request)
    tensors = {
        alias: decode_input(alias, index, request.inputs[alias], signature.inputs[alias], max_bytes)
        for index, alias in enumerate(sorted(signature.inputs))
    }
    outputs = servable.run(key, tensors, check)
    response = predict_pb2.PredictResponse(model_spec=servable.model_spec(key))
    for alias in wanted:
        response.outputs[alias].CopyFrom(to_proto(outputs[alias]))
    return response


def classify(
    servable: Servable, request: classification_pb2.ClassificationRequest, max_bytes: int, check: Check | None = None
) -> classification_pb2.ClassificationResponse:
    """Classify tf.Examples with a signature `inputs` -> `classes`, `scores`; one result per example, in order.

    The examples, each with the context that they share, are of at most `max_bytes` in memory.

    Raises:
        StatusError: the signature is not a classifier, there is no example, or `check` raised it.
        tf.errors.OpError: the graph rejected the examples.
    """
    key = request.model_spec.signature_name or DEFAULT_KEY
    signature = servable.signature_def(key)
    if signature is None:
        raise invalid(f"No signature was found with the name: {key}")
    _require_classifier(signature)
    result = _classify(servable, key, _serialized_examples(request.input, max_bytes), check)
    return classification_pb2.ClassificationResponse(model_spec=servable.model_spec(key), result=result)


def multi_inference(
    servable: Servable, request: inference_pb2.MultiInferenceRequest, max_bytes: int, check: Check | None = None
) -> inference_pb2.MultiInferenceResponse:
    """Run several classification tasks on the same examples; one result per task. Raises as `classify` does."""
    keys: list[str] = []
    feeds: set[str] = set()
    for task in request.tasks:
        key = task.model_spec.signature_name or DEFAULT_KEY
        if not task.model_spec.name:
            raise invalid("Found ModelSpec with an empty model name.")
        if task.model_spec.name != servable.name:
            raise invalid("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
        if key in keys:
            raise invalid(f"Duplicate evaluation of signature: {key}")
        signature = servable.signature_def(key)
        if signature is None:
            raise invalid(f"Requested signature not found in model graph: {key}")
        if task.method_name == CLASSIFY_METHOD:
            _require_classifier(signature)
        elif task.method_name == REGRESS_METHOD:
            refuse_regression(servable, key)
        else:
            message = f"Unsupported signature method_name: {task.method_name}"
            raise StatusError(grpc.StatusCode.UNIMPLEMENTED, message)
        keys.append(key)
        feeds.add(signature.inputs["inputs"].name)
    if len(feeds) > 1:
        raise invalid("Input tensor must be the same for all Signatures.")
    examples = _serialized_examples(request.input, max_bytes)
    response = inference_pb2.MultiInferenceResponse()
    for key in keys:
        result = _classify(servable, key, examples, check)
        response.results.add(model_spec=servable.model_spec(key), classification_result=result)
    return response


def refuse_regression(servable: Servable, key: str) -> NoReturn:
    """Raise StatusError: the contract has no regression, so a signature that could be one is not implemented."""
    signature = servable.signature_def(key)
    if signature is None:
        raise invalid(f"No signature was found with the name: {key or DEFAULT_KEY}")
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(signature.outputs) != 1:
        raise invalid("Expected one output Tensor.")
    for kind in ("inputs", "outputs"):  # TensorFlow's names, by which a regression is told
        if kind not in getattr(signature, kind):
            found = _set(getattr(signature, kind))
            raise invalid(f"No regression {kind} found in SignatureDef: its {kind} are {found}")
    raise StatusError(grpc.StatusCode.UNIMPLEMENTED, "This server answers no regressions; call Predict instead.")


def metadata(
    models: Models, request: get_model_metadata_pb2.GetModelMetadataRequest
) -> get_model_metadata_pb2.GetModelMetadataResponse:
    """Return all signatures of a model as its SavedModel describes them; StatusError if more than those is asked."""
    if not request.metadata_field:
        raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
    for field in request.metadata_field:
        if field != _METADATA_FIELD:
            raise invalid(f"Metadata field {field} is not supported")
    servable = models.find(request)
    response = get_model_metadata_pb2.GetModelMetadataResponse(model_spec=servable.model_spec())
    signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=dict(servable.signature_defs))
    response.metadata[_METADATA_FIELD].Pack(signatures)
    return response


def require_rows(request: Any, max_rows: int) -> None:
    """Raise StatusError INVALID_ARGUMENT if a request that runs a model has more than `max_rows` rows or examples."""
    if isinstance(request, predict_pb2.PredictRequest):
        shapes = [(f"of {alias}", proto.tensor_shape.dim) for alias, proto in request.inputs.items()]
        sizes = [(what, dims[0].size) for what, dims in shapes if dims]
    else:
        lists = (request.input.example_list_with_context, request.input.example_list)
        sizes = [("examples", max(len(each.examples) for each in lists))]
    for what, rows in sizes:
        if rows > max_rows:
            raise invalid(f"expected at most {max_rows} rows in one request, got {rows} {what}: send more requests")


def _require_inputs(signature: meta_graph_pb2.SignatureDef, request: predict_pb2.PredictRequest) -> None:
    expected, sent = set(signature.inputs), set(request.inputs)
    if len(sent) != len(expected):
        sizes = f"{len(sent)}!={len(expected)} len({_set(sent)}) != len({_set(expected)})"
        extra = f"Sent extra: {_set(sent - expected)}. Missing but required: {_set(expected - sent)}."
        raise invalid(f"input size does not match signature: {sizes}. {extra}")
    for alias in sorted(expected - sent):
        what = f"Signature input alias: {alias}(feed name: {signature.inputs[alias].name}) not found in request"
        raise invalid(f"{what} and no default value provided. Inputs sent: {_set(sent)}.")


def _wanted_outputs(signature: meta_graph_pb2.SignatureDef, request: predict_pb2.PredictRequest) -> list[str]:
    wanted: list[str] = []
    for alias in request.output_filter:
        if alias not in signature.outputs:
            expected = f"Outputs expected to be in the set {_set(signature.outputs)}."
            raise invalid(f"output tensor alias not found in signature: {alias} {expected}")
        if alias in wanted:
            raise invalid(f"duplicate output tensor alias: {alias}")
        wanted.append(alias)
    return wanted or sorted(signature.outputs)


def _require_classifier(signature: meta_graph_pb2.SignatureDef) -> None:
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(signature.outputs) not in (1, 2):
        raise invalid(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    if "inputs" not in signature.inputs:
        raise invalid(f"No classification inputs found in SignatureDef: its input is {_set(signature.inputs)}")
    if signature.inputs["inputs"].dtype != types_pb2.DT_STRING:
        raise invalid(f"Expects arg[0] to be {dtype_name(signature.inputs['inputs'].dtype)} but string is provided")
    if not {"classes", "scores"} & set(signature.outputs):
        message = 'Expected classification signature outputs to contain at least one of "classes" or "scores".'
        raise invalid(f"{message} Outputs were: {_set(signature.outputs)}")


def _serialized_examples(examples: input_pb2.Input, max_bytes: int) -> list[bytes]:
    with_context = examples.HasField("example_list_with_context")
    rows = examples.example_list_with_context.examples if with_context else examples.example_list.examples
    # Concatenated messages are merged messages: the context's features, if there are any, join each example's.
    context = examples.example_list_with_context.context.SerializeToString()
    if (size := len(context) * len(rows) + examples.ByteSize()) > max_bytes:
        raise invalid(f"expected examples of at most {max_bytes} bytes, each with the context; got {size}")
    serialized = [context + row.SerializeToString() for row in rows]
    if not serialized:
        raise invalid("Input is empty.")
    return serialized


def _classify(
    servable: Servable, key: str, examples: list[bytes], check: Check | None
) -> classification_pb2.ClassificationResult:
    outputs = servable.run(key, {"inputs": tf.constant(examples, tf.string)}, check)
    labels = _matrix(outputs, "classes", tf.string, len(examples))
    scores = _matrix(outputs, "scores", tf.float32, len(examples))
    shapes = [matrix.shape for matrix in (labels, scores) if matrix is not None]
    if len(set(shapes)) != 1:
        raise invalid(f"Expected classes and scores of one shape. Got: {shapes[0]} and {shapes[1]}")
    rows, columns = shapes[0]
    result = classification_pb2.ClassificationResult()
    for row in range(rows):
        classes = result.classifications.add().classes
        for column in range(columns):
            label = "" if labels is None else labels[row, column].decode("utf-8", "replace")
            classes.add(label=label, score=0.0 if scores is None else scores[row, column])
    return result


def _matrix(outputs: Mapping[str, tf.Tensor], alias: str, dtype: tf.DType, examples: int) -> np.ndarray | None:
    """Read a classifier's output [batch, classes]; None if the signature has no such output."""
    if alias not in outputs:
        return None
    tensor = outputs[alias]
    if tensor.shape.rank != 2:
        shape = shape_text(tensor.shape.as_proto())
        raise invalid(f"Expected Tensor shape: [batch_size num_classes] but got {shape}")
    if tensor.dtype != dtype:
        raise invalid(f"Expected {alias} Tensor of {dtype.name}. Got: {tensor.dtype.name}")
    if tensor.shape[0] != examples:
        raise invalid(f"Expected {alias} output batch size of {examples}. Got: {tensor.shape[0]}")
    return tensor.numpy()


def _set(names: Iterable[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"
