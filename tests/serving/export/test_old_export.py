"""An export written before the modules moved into rooms: it loads and answers as it did then.

`old_export/few/1` is what the code of that time exported of `tests/overfeat_tf/models/old_run`, without its warm-up
requests; `answers.npz` has images and what that code answered to them.
"""

import io
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image
from stock_requests import call, predict_request

import overfeat_tf as of
from overfeat_tf.images.files import image_example
from serving.embedded.server import start
from serving.tensors import to_tensor

FOLDER = Path(__file__).with_name("old_export")


@pytest.fixture(scope="module")
def stored() -> dict[str, np.ndarray]:
    return dict(np.load(FOLDER / "answers.npz"))


@pytest.fixture(scope="module")
def images(stored) -> list[bytes]:
    return [stored[f"image{number}"].tobytes() for number in range(3)]


def assert_stored(answer: dict[str, np.ndarray], stored: dict[str, np.ndarray], call: str) -> None:
    expected = {name.removeprefix(f"{call}/"): value for name, value in stored.items() if name.startswith(f"{call}/")}
    assert answer.keys() == expected.keys()
    for name, value in expected.items():
        if value.dtype.kind == "S":
            np.testing.assert_array_equal(answer[name].astype("S"), value, err_msg=name)
        else:
            assert answer[name].dtype == value.dtype
            np.testing.assert_allclose(answer[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_it_loads_and_answers_as_then(stored, images):
    model = of.load(FOLDER / "few")
    assert model.tasks == ("classification", "detection") and model.labels == ("ant", "bee")
    assert stored["detect/num_detections"].any()
    assert_stored(model.detect(images), stored, "detect")
    assert_stored(model.classify(images), stored, "classify")
    pixels = np.asarray(Image.open(io.BytesIO(images[0])))
    np.testing.assert_allclose(model.extract_features([pixels])[0], stored["features"], rtol=1e-4, atol=1e-5)


def test_it_is_served_and_answers_as_then(stored, images):
    requests = {
        "detect": predict_request("detect", "few", image_bytes=images),
        "classify": predict_request(
            "classify", "few", inputs=[image_example(image).SerializeToString() for image in images]
        ),
    }
    with start([FOLDER / "few"], port=0) as server, grpc.insecure_channel(server.address) as channel:
        for name, request in requests.items():
            outputs = call(channel, "Predict", request, timeout=120).outputs
            assert_stored({key: to_tensor(proto).numpy() for key, proto in outputs.items()}, stored, name)
