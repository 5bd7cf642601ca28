"""How much one request may ask for, whatever protocol brought it."""

from typing import Any

from tensorflow_serving.apis import input_pb2, predict_pb2

from serving.refusal import invalid

# Rows cost a scan each, while a row of a message may take as little as a byte: hours of work in a few of them.
DEFAULT_MAX_ROWS = 1024


def require_rows(request: Any, most: int) -> None:
    """Refuses a Predict, Classify or MultiInference request of more images or examples than `most`.

    Raises:
        Refusal: INVALID_ARGUMENT.
    """
    for what, rows in _rows(request):
        if rows > most:
            raise invalid(f"expected at most {most} rows in one request, got {rows} {what}: send more requests")


def _rows(request: Any) -> list[tuple[str, int]]:
    if isinstance(request, predict_pb2.PredictRequest):
        shapes = [(f"of {alias}", proto.tensor_shape.dim) for alias, proto in request.inputs.items()]
        return [(what, dims[0].size) for what, dims in shapes if dims]
    return [("examples", _examples(request.input))]


def _examples(given: input_pb2.Input) -> int:
    lists = (given.example_list_with_context, given.example_list)
    return max(len(each.examples) for each in lists)
