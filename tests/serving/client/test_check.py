"""The check of a running server: what is in order passes, and each kind of fault is listed."""

import contextlib
import json
from collections.abc import Callable, Iterator

import tensorflow as tf
from small_model import png
from tensorflow.core.protobuf import meta_graph_pb2

from serving.client.check import CheckReport, check
from serving.embedded.servables import Models, Servable
from serving.embedded.server import Server


@contextlib.contextmanager
def _served(
    servable: Servable,
    key: str,
    definition: meta_graph_pb2.SignatureDef | None = None,
    function: Callable | None = None,
) -> Iterator[str]:
    """Serves one signature of a model, its definition or its function exchanged; gives the address."""
    definitions = {key: definition or servable.signature_defs[key]}
    changed = Servable("m", 1, definitions, {key: function or servable.signatures[key]})
    with Server(Models([changed]), port=0) as server:
        yield server.address


def _changed(servable: Servable, change: Callable[[meta_graph_pb2.SignatureDef], object]):
    definition = meta_graph_pb2.SignatureDef()
    definition.CopyFrom(servable.signature_defs["detect"])
    change(definition)
    return definition


def _failures(address: str, **options) -> list[str]:
    return check(address, "m", requests=2, **options).failures


def test_a_server_in_order_passes_and_is_timed(server):
    # The contract's `spin` is nobody's business: signatures of a model's own are listed, not judged.
    report = check(server.address, "m", requests=5)
    assert report.failures == []
    assert report.ok
    assert report.versions == {2: "AVAILABLE", 1: "AVAILABLE"}
    assert report.signatures == ["classify", "classify_twin", "detect", "detect_images", "serving_default", "spin"]
    assert (report.timed, report.requests) == ("detect", 5)
    assert 0 < report.p50_ms <= report.p95_ms


def test_the_report_is_lines_and_json(server):
    report = CheckReport("h:1", "m", {2: "AVAILABLE"}, ["detect"], ["detect: wrong"], "detect", 20, 1.25, 3.0)
    assert report.lines() == [
        "m at h:1",
        "  versions    2 AVAILABLE",
        "  signatures  detect",
        "  detect  p50 1.2 ms, p95 3.0 ms (20 requests of one image)",
        "  FAILED  detect: wrong",
        "  1 failed",
    ]
    read = json.loads(json.dumps(report.as_dict()))
    assert (read["ok"], read["versions"], read["p95_ms"]) == (False, {"2": "AVAILABLE"}, 3.0)


def test_no_server_and_no_model_are_failures(server):
    (nobody,) = _failures("127.0.0.1:1", ready_seconds=0.5)
    assert "m is not ready after 0.5 s" in nobody
    (unknown,) = check(server.address, "x", ready_seconds=0.5).failures
    assert "Could not find any versions of model x" in unknown


def test_a_definition_that_leaves_the_contract_is_listed(servable):
    def spoil(definition):
        definition.inputs["image_bytes"].dtype = tf.uint8.as_datatype_enum
        definition.outputs["detection_boxes"].tensor_shape.dim[2].size = 5
        definition.outputs["scores"].CopyFrom(definition.outputs.pop("detection_scores"))

    with _served(servable, "detect", definition=_changed(servable, spoil)) as address:
        failures = _failures(address)
    assert [failure.split(";")[0] for failure in failures] == [
        "detect: input image_bytes is uint8, expected string",
        "detect: output detection_scores is missing",
        "detect: output scores is not in the contract",
        "detect: output detection_boxes has shape [?,1,5], expected [?,?,4]",
    ]


def test_a_fixed_batch_is_listed(servable):
    def fix(definition):
        definition.inputs["image_bytes"].tensor_shape.dim[0].size = 1

    with _served(servable, "detect", definition=_changed(servable, fix)) as address:
        assert _failures(address) == ["detect: input image_bytes has its batch fixed at 1, expected any batch size"]


def test_answers_that_leave_the_contract_are_listed(servable):
    def answer(image_bytes):
        outputs = dict(servable.signatures["detect"](image_bytes=image_bytes))
        return outputs | {
            "detection_scores": tf.cast(outputs["detection_scores"], tf.float64),
            "num_detections": tf.ones([2]),
            "status": tf.constant(["too dark"]),
        }

    with _served(servable, "detect", function=answer) as address:
        assert _failures(address) == [
            "detect: the answer's detection_scores is float64, expected float32",
            "detect: the answer's num_detections has shape (2,) for one image, expected (None,)",
            "detect: the image was not read: too dark",
        ]


def test_an_image_that_the_server_refuses_is_listed(server):
    failures = _failures(server.address, image_bytes=b"nope")
    assert {failure.split(":")[0] for failure in failures} == {"detect", "detect_images", "serving_default"}


def test_the_default_signature_is_timed_where_there_is_no_detect(servable):
    with _served(servable, "serving_default") as address:
        report = check(address, "m", image_bytes=png(), requests=2)
    assert report.timed == "serving_default"
    assert report.failures == [
        "expected at least one signature of detect, detect_images, localize, localize_images, classify, "
        "classify_images, extract_features; got serving_default"
    ]
