"""The REST port over real HTTP: the answers are gRPC's own, the errors are TF Serving's."""

import base64
import json

import httpx
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from small_model import png
from stock_requests import asking, call, classify_request, metadata_request, predict_request, status_request
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2

from overfeat_tf.images.files import image_example
from serving.embedded.rest import json_messages
from serving.embedded.rest.json_messages import predict_json
from serving.embedded.rest.server import RestServer
from serving.errors import StatusError
from serving.tensors import to_proto, to_tensor

DARK, LIGHT = png(51), png(204, (3, 2))
PREDICT = "/v1/models/m:predict"


@pytest.fixture(scope="module")
def http(server):
    """Serves the small model over HTTP too, and connects."""
    with RestServer(server.handler, port=0) as rest, httpx.Client(base_url=f"http://127.0.0.1:{rest.port}") as client:
        yield client


def b64(data: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(data).decode()}


def plain(response: predict_pb2.PredictResponse) -> dict:
    """Gives gRPC's answer as JSON should have it, texts as text."""
    arrays = {name: to_tensor(proto).numpy() for name, proto in response.outputs.items()}
    return {
        name: np.char.decode(array.astype("S"), "utf-8").tolist() if array.dtype == object else array.tolist()
        for name, array in arrays.items()
    }


def narrow(value):
    """Gives JSON's numbers as float32 has them."""
    return json.loads(json.dumps(value), parse_float=lambda text: float(np.float32(text)))


@pytest.mark.parametrize(
    ("path", "body", "spec"),
    [
        ("m", {"instances": [{"image_bytes": b64(DARK)}, {"image_bytes": b64(LIGHT)}]}, {}),
        ("m", {"instances": [b64(DARK), b64(LIGHT)]}, {}),
        ("m", {"inputs": {"image_bytes": [b64(DARK), b64(LIGHT)]}, "signature_name": "detect"}, {}),
        ("m", {"inputs": [b64(DARK), b64(LIGHT)]}, {}),
        ("m/versions/1", {"inputs": [b64(DARK), b64(LIGHT)]}, {"version": 1}),
        ("m/labels/stable", {"instances": [b64(DARK), b64(LIGHT)]}, {"label": "stable"}),
    ],
)
def test_images_by_rows_and_columns_as_grpc_answers_them(http, channel, path, body, spec):
    answer = http.post(f"/v1/models/{path}:predict", json=body)
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
    request = asking(predict_request(image_bytes=[DARK, LIGHT]), **spec)
    expected = plain(call(channel, "Predict", request))
    if "instances" in body:
        rows = narrow(answer.json()["predictions"])
        assert {name: [row[name] for row in rows] for name in rows[0]} == expected
    else:
        assert narrow(answer.json()["outputs"]) == expected


def test_pixels_and_an_only_output_go_without_names(http, channel):
    pixels = np.random.default_rng(0).integers(0, 255, (2, 3, 4, 3), np.uint8)
    request = {"signature_name": "detect_images", "instances": pixels.tolist()}
    rows = narrow(http.post(PREDICT, json=request).json()["predictions"])
    expected = plain(call(channel, "Predict", predict_request("detect_images", images=pixels)))
    assert [row["detection_scores"] for row in rows] == expected["detection_scores"]
    turns = http.post(PREDICT, json={"signature_name": "spin", "inputs": {"seconds": [0]}}).json()["outputs"]
    assert isinstance(turns, list) and len(turns) == 1


def test_an_empty_batch_is_answered_by_columns(http):
    assert http.post(PREDICT, json={"inputs": {"image_bytes": []}}).json()["outputs"]["detection_scores"] == []


def test_classify_with_and_without_context(http, channel):
    expected = call(channel, "Classify", classify_request(DARK, LIGHT)).result.classifications
    pairs = [[[each.label, each.score] for each in row.classes] for row in expected]
    examples = [{"image/encoded": b64(DARK)}, {"image/encoded": b64(LIGHT), "height": 3, "weights": [0.5, 1.5]}]
    body = {"signature_name": "classify", "examples": examples}
    assert narrow(http.post("/v1/models/m:classify", json=body).json()) == {"results": pairs}
    with_context = {"signature_name": "classify", "context": {"image/encoded": b64(DARK)}, "examples": [{}]}
    assert narrow(http.post("/v1/models/m:classify", json=with_context).json()) == {"results": pairs[:1]}


def test_examples_hold_what_json_says():
    document = {"examples": [{"i": [1, True], "f": [0.5], "s": ["a", b64(b"\xff")], "e": []}]}
    feature = json_messages.examples(document).example_list.examples[0].features.feature
    assert list(feature["i"].int64_list.value) == [1, 1] and list(feature["f"].float_list.value) == [0.5]
    assert list(feature["s"].bytes_list.value) == [b"a", b"\xff"] and "e" in feature


@pytest.mark.parametrize("version", [None, 1])
def test_status_and_metadata_as_grpc_answers_them(http, channel, version):
    path = "/v1/models/m" if version is None else f"/v1/models/m/versions/{version}"
    options = {"preserving_proto_field_name": True, "always_print_fields_with_no_presence": True}
    status = call(channel, "GetModelStatus", status_request(version=version))
    assert http.get(path).json() == json_format.MessageToDict(status, **options)
    request = metadata_request("signature_def")
    metadata = call(channel, "GetModelMetadata", request if version is None else asking(request, version=version))
    signatures = get_model_metadata_pb2.SignatureDefMap()
    metadata.metadata["signature_def"].Unpack(signatures)
    answer = http.get(path + "/metadata").json()
    assert answer["model_spec"] == json_format.MessageToDict(metadata.model_spec, **options)
    assert answer["metadata"]["signature_def"] == json_format.MessageToDict(signatures, **options)
    assert http.get("/v1/models/m/labels/canary/metadata").json()["model_spec"]["version"] == "2"


@pytest.mark.parametrize(
    ("path", "body", "code", "words"),
    [
        ("nobody:predict", {"instances": [1]}, 404, "Servable not found for request: Latest(nobody)"),
        ("m/versions/9:predict", {"instances": [1]}, 404, "Specific(m, 9)"),
        ("m/labels/nope:predict", {"instances": [1]}, 400, "Unrecognized servable version label: nope"),
        ("m/versions/99999999999999999999:predict", {}, 400, "Failed to convert version"),
        ("m:predict", {"instances": [1], "signature_name": "nope"}, 400, 'signature key "nope" not found'),
        ("m:predict", {"instances": [1], "signature_name": 3}, 400, "'signature_name' key must be a string"),
        ("m:predict", {}, 400, "Missing 'inputs' or 'instances' key"),
        ("m:predict", {"instances": [1], "inputs": [1]}, 400, "expecting only one of"),
        ("m:predict", {"instances": []}, 400, "No values in 'instances' array"),
        ("m:predict", {"instances": 1}, 400, "'instances' to be a list"),
        ("m:predict", {"instances": [{"x": "a"}]}, 400, "must be equal to: image_bytes"),
        ("m:predict", {"instances": [{"image_bytes": "a"}, "b"]}, 400, "objects or values, but got both"),
        ("m:predict", {"inputs": {"x": ["a"]}}, 400, "Missing named input: image_bytes"),
        ("m:predict", {"inputs": [1.5]}, 400, "JSON Value: 1.5 Type: Number is not of expected type: string"),
        ("m:predict", {"inputs": [{"b64": "%%%"}]}, 400, 'Unable to base64 decode "%%%"'),
        ("m:predict", {"inputs": [{"b64": 1}]}, 400, "not formatted correctly for base64 data"),
        ("m:predict", {"inputs": ["\ud800"]}, 400, "expected valid UTF-8 text in the request"),
        ("m:predict", {"inputs": [["a"], "b"]}, 400, "beside lists"),
        ("m:predict", {"inputs": [["a"], ["a", "b"]]}, 400, "lists of sizes [1, 2]"),
        ("m:predict", {"inputs": "a"}, 400, "to have shape [?] but [] is provided"),
        ("m:predict", {"inputs": [b64(b"no image")]}, 400, ""),
        (
            "m:predict",
            {"signature_name": "detect_images", "inputs": [[[[1, 2, 256]]]]},
            400,
            "out of the range of uint8",
        ),
        ("m:predict", {"signature_name": "detect_images", "inputs": [[[[1, 2, 0.5]]]]}, 400, "expected type: uint8"),
        ("m:predict", {"signature_name": "spin", "inputs": [True]}, 400, "Type: Bool is not of expected type: float"),
        ("m:predict", {"signature_name": "spin", "inputs": [1e39]}, 400, "to float without loss of precision"),
        ("m:predict", {"signature_name": "spin", "inputs": [10**400]}, 400, "out of the range of float"),
        ("m:classify", {"examples": [{}]}, 400, "Expected one or two output Tensors, found 7"),
        ("m:classify", {"signature_name": "classify"}, 400, "key 'examples' is expected"),
        ("m:classify", {"signature_name": "classify", "examples": []}, 400, "empty array"),
        ("m:classify", {"signature_name": "classify", "examples": [{"x": {}}]}, 400, "unexpected JSON type: Object"),
        ("m:classify", {"signature_name": "classify", "examples": [{"x": [1, "a"]}]}, 400, "expecting one type"),
        ("m:classify", {"signature_name": "classify", "examples": [{"x": 2**63}]}, 400, "does not fit int64"),
        ("m:regress", {"signature_name": "classify", "examples": [{}]}, 400, "Expected one output Tensor."),
        ("m:regress", {"signature_name": "spin", "examples": [{}]}, 400, "No regression inputs found in SignatureDef"),
        ("m:predict", b"{", 400, "JSON Parse error"),
        ("m:predict", b"", 400, "JSON Parse error"),
        ("m:predict", b'{"inputs": "\xff"}', 400, "JSON Parse error"),
        ("m:predict", b"[1]", 400, "is not an object"),
        ("m:predict", b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "nested too deeply"),
        ("m:predict", b'{"inputs":' + b"[" * 300 + b'"a"' + b"]" * 300 + b"}", 400, "tensor parsing error"),
        ("m:predict", b'{"inputs":[' + b"1" * 5000 + b"]}", 400, "JSON Parse error"),
        ("m:guess", {}, 400, "Malformed request: POST /v1/models/m:guess"),
    ],
)
def test_what_is_wrong_is_one_line_of_json(http, path, body, code, words):
    content = body if isinstance(body, bytes) else json.dumps(body)
    answer = http.post(f"/v1/models/{path}", content=content)
    assert answer.status_code == code and answer.json().keys() == {"error"}
    assert words in answer.json()["error"] and "\n" not in answer.json()["error"]


def test_values_are_counted_before_they_are_made():
    body = b'{"inputs":[' + b"[]," * 50 + b"[]]}"
    assert json_messages.parse(body, max_values=104)["inputs"] == [[]] * 51
    with pytest.raises(StatusError, match="JSON of 104 values; expected at most 103: send images encoded"):
        json_messages.parse(body, max_values=103)


def test_paths_that_are_none(http):
    assert http.get("/v1/models").status_code == 400
    assert http.get("/v1/models/nobody").json() == {"error": "Could not find any versions of model nobody"}
    for answer in (http.get("/"), http.put(PREDICT), http.get("/monitoring")):
        assert answer.status_code in (404, 405) and "error" in answer.json()


def test_base64_with_line_breaks_or_without_padding(http):
    wrapped = base64.encodebytes(DARK).decode()
    answers = [http.post(PREDICT, json={"inputs": [{"b64": t}]}).json() for t in (wrapped, wrapped.rstrip("=\n"))]
    assert answers[0] == answers[1] and answers[0]["outputs"]["status"] == [""]


def test_strings_named_bytes_are_base64_and_others_text():
    response = predict_pb2.PredictResponse()
    for name in ("crop_bytes", "label"):
        response.outputs[name].CopyFrom(to_proto(tf.constant([b"\xff\xfe", "ä".encode()])))
    rows = json.loads(predict_json(response, by_row=True))["predictions"]
    assert rows == [
        {"crop_bytes": b64(b"\xff\xfe"), "label": "\ufffd\ufffd"},
        {"crop_bytes": b64("ä".encode()), "label": "ä"},
    ]
    response.outputs["label"].CopyFrom(to_proto(tf.constant("one")))
    with pytest.raises(StatusError, match="label has no shape"):
        predict_json(response, by_row=True)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(b64(DARK)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["image_bytes", "b64", "x"]), inner),
    max_leaves=8,
)
KEYS = st.sampled_from(["instances", "inputs", "examples", "context", "signature_name"])


@settings(max_examples=40, deadline=None)
@given(document=st.dictionaries(KEYS, JSON, max_size=3), method=st.sampled_from(["predict", "classify", "regress"]))
def test_no_json_is_a_fault_of_the_servers(http, document, method):
    answer = http.post(f"/v1/models/m:{method}", content=json.dumps(document, ensure_ascii=True))
    assert answer.status_code in (200, 400, 501), answer.text


def test_a_tensor_equals_its_numbers_to_the_last_bit():
    values = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32) * np.float32(1e-30)
    response = predict_pb2.PredictResponse()
    response.outputs["y"].CopyFrom(to_proto(tf.constant(values)))
    back = json.loads(predict_json(response, by_row=False))["outputs"]
    assert np.array_equal(np.float32(back), values)
    spec = meta_graph_pb2.TensorInfo(dtype=tf.float32.as_datatype_enum)
    tensors, by_row = json_messages.tensors({"instances": back}, {"y": spec})
    assert by_row and np.array_equal(to_tensor(tensors["y"]).numpy(), values)
    assert image_example(DARK).features.feature["image/encoded"].bytes_list.value == [DARK]


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("names", [["boxes"], ["boxes", "texts", "scores"]])
def test_a_large_answer_is_written_in_parts(monkeypatch, by_row, names):
    arrays = {
        "boxes": np.arange(2 * 9 * 5 * 4, dtype=np.float32).reshape(2, 9, 5, 4),
        "texts": np.array([[b"a\xc3\xa9"] * 30, [b"b"] * 30], object),
        "scores": np.zeros([2, 0], np.float32),
    }
    response, sizes = predict_pb2.PredictResponse(), []
    for name in names:
        response.outputs[name].CopyFrom(to_proto(tf.constant(arrays[name])))
    whole = predict_json(response, by_row)
    convert = json_messages._plain
    monkeypatch.setattr(json_messages, "_PART_VALUES", 16)
    monkeypatch.setattr(
        json_messages, "_plain", lambda name, values: (sizes.append(values.size), convert(name, values))[1]
    )
    assert predict_json(response, by_row) == whole
    assert max(sizes) <= 16 and len(sizes) > 20  # no other thread runs while one is converted
    expected = {name: arrays[name].tolist() for name in names}
    if "texts" in names:
        expected["texts"] = [["aé"] * 30, ["b"] * 30]
    columns = json.loads(whole)["predictions" if by_row else "outputs"]
    if len(names) == 1:
        assert columns == expected["boxes"]
    else:
        assert columns == ([{n: expected[n][i] for n in names} for i in range(2)] if by_row else expected)
