"""The page to try it: its files as they are sent, and a person's ways through it in a headless Chromium."""

import configparser
import re
from pathlib import Path

import httpx
import pytest
import tensorflow as tf
from chromium import BROWSER, Chromium
from small_model import SmallModel, png

import serving.embedded.rest.page
from serving.embedded.access import Access
from serving.embedded.rest.server import RestServer
from serving.embedded.server import start

ROOT = Path(__file__).parents[4]
FILES = {
    path.name: path
    for path in Path(serving.embedded.rest.page.__file__).parent.iterdir()
    if path.suffix in (".html", ".css", ".js")
}
BLANK = png()
# Where the box is in the picture, as shares of it; and how bright the heat map is from left to right.
EDGES = """(() => {
  const [box, all] = ["#frame .box", "#picture"].map((each) => document.querySelector(each).getBoundingClientRect());
  const [x, y] = [(at) => (at - all.left) / all.width, (at) => (at - all.top) / all.height];
  return [y(box.top), x(box.left), y(box.bottom), x(box.right)];
})()"""
BRIGHTNESS = """(() => {
  const canvas = document.querySelector(".card canvas");
  const at = (x) => canvas.getContext("2d").getImageData(x * (canvas.width - 1), canvas.height / 2, 1, 1).data;
  return [0, 0.5, 1].map(at).map(([red, green]) => red + green);
})()"""
in_browser = [pytest.mark.long, pytest.mark.skipif(BROWSER is None, reason="needs Chromium")]


def test_its_files_come_from_the_same_origin_and_ask_no_other(server):
    with RestServer(server.handler, port=0, page=True) as rest, httpx.Client(base_url=rest.url) as client:
        index = client.get("/")
        assert index.headers["content-type"] == "text/html; charset=utf-8"
        policy = dict(part.split(" ", 1) for part in index.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'" and policy["frame-ancestors"] == "'none'"
        assert {policy[key] for key in ("script-src", "style-src", "connect-src")} == {"'self'"}
        wanted = re.findall(r'(?:src|href)="(/[^"]+)"', index.text) + re.findall(r'from "(/[^"]+)"', _read("page.js"))
        assert sorted(wanted) == ["/draw.js", "/page.css", "/page.js"]
        for path in wanted:
            answer = client.get(path)
            assert answer.text == _read(path[1:]) and answer.headers["x-content-type-options"] == "nosniff"
        assert client.get("/page/models").json() == {"models": ["m"], "thresholds": {}}
    assert not [name for name in FILES if re.search(r"https?://|//[a-z]", _read(name).replace("// ", ""))]


def test_every_file_of_it_is_packaged():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    packaged = setup["options.package_data"]["serving.embedded.rest.page"].split()
    assert {f"*{path.suffix}" for path in FILES.values()} == set(packaged) and len(FILES) == 4


class Whole(SmallModel):
    """Has all that the page can show: a box in the middle, two classes, features that are strongest at the left."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
    def look(self, image_bytes):
        sizes = tf.map_fn(
            lambda data: tf.shape(tf.io.decode_image(data, expand_animations=False))[:2],
            tf.where(self._broken(image_bytes), BLANK, image_bytes),
            fn_output_signature=tf.TensorSpec([2], tf.int32),
        )
        many = tf.shape(image_bytes)[0]
        boxes = [[[0.25, 0.25, 0.75, 0.75], [0.0, 0.5, 1.0, 1.0]]]
        return {
            "detection_boxes": tf.tile(tf.constant(boxes), [many, 1, 1]),
            "detection_scores": tf.tile(tf.constant([[0.9, 0.2]]), [many, 1]),
            "detection_classes": tf.tile(tf.constant([[1.0, 2.0]]), [many, 1]),
            "num_detections": tf.where(self._broken(image_bytes), 0.0, 2.0),
            "detection_class_entities": tf.tile(tf.constant([["cat", "dog"]]), [many, 1]),
            "image_size": sizes,
            "status": tf.where(self._broken(image_bytes), "not an image: 4 bytes", ""),
        }

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, "images")])
    def extract_features(self, images):
        rising = tf.reshape(tf.constant([9.0, 4.0, 0.0]), [1, 1, 3, 1])
        return {"features": tf.tile(rising, [tf.shape(images)[0], 2, 1, 5])}

    def _broken(self, image_bytes):
        return tf.strings.length(image_bytes) < 10


@pytest.fixture(scope="module")
def rest(tmp_path_factory):
    """Serves the whole model, and one that only classifies, with the page."""
    base = tmp_path_factory.mktemp("whole")
    model = Whole(1)
    classify = {"serving_default": model.classify, "classify": model.classify}
    everything = {**classify, "detect": model.look, "localize": model.look, "extract_features": model.extract_features}
    tf.saved_model.save(model, str(base / "whole" / "7"), everything)
    tf.saved_model.save(model, str(base / "classifier" / "1"), classify)
    (base / "photo.png").write_bytes(png(90, (40, 60)))
    (base / "broken.png").write_bytes(b"oops")
    with (
        start([base / "whole", base / "classifier"], port=0) as server,
        RestServer(server.handler, port=0, page=True) as rest,
    ):
        yield server, rest, base


@pytest.fixture(scope="module")
def page(rest, tmp_path_factory):
    """Opens the page, with the model that has everything chosen."""
    with Chromium(tmp_path_factory.mktemp("profile")) as page:
        page.open(rest[1].url)
        page.until("!document.getElementById('model').disabled")
        page.value("document.getElementById('model').value = 'whole'")
        yield page
        assert page.complaints == []


def _read(name: str) -> str:
    return FILES[name].read_text()


def _texts(page: Chromium, selector: str) -> list[str]:
    return page.value(f"[...document.querySelectorAll('{selector}')].map((each) => each.innerText.trim())")


def _answered(page: Chromium) -> None:
    page.until("!document.body.hasAttribute('aria-busy') && document.getElementById('facts').innerText")


class TestInBrowser:
    """Goes through the page as a person does."""

    pytestmark = in_browser

    @pytest.mark.parametrize("way", ["drop", "choose"])
    def test_an_image_in_and_boxes_labels_scores_and_stages_out(self, page, rest, way):
        page.value("document.getElementById('facts').textContent = ''")
        give = {"drop": lambda file: page.drop("#drop", file), "choose": lambda file: page.choose("#file", file)}[way]
        give(rest[2] / "photo.png")
        _answered(page)
        assert _texts(page, "#list li") == ["cat\n0.90"] and _texts(page, "#found") == ["1 object of 2"]
        (facts,) = _texts(page, "#facts")
        assert re.search(r"photo.png .* 60 . 40 pixels .* whole version 7, detect .* \d+ ms", facts)
        assert page.value(EDGES) == pytest.approx([0.25, 0.25, 0.75, 0.75], abs=0.01)
        assert _texts(page, ".card h3") == ["1 Features", "2 Classes", "3 Localization", "4 Detection"]
        assert len(_texts(page, ".card:nth-child(3) .box")) == len(_texts(page, ".card:nth-child(4) .box")) + 1 == 2
        assert _texts(page, ".card:nth-child(2) li span") == ["long", "short"]
        left, middle, right = page.value(BRIGHTNESS)
        assert left > middle > right

    def test_the_threshold_shows_and_hides(self, page, rest):
        for least, found in (("0.1", ["cat\n0.90", "dog\n0.20"]), ("0.95", []), ("0.3", ["cat\n0.90"])):
            page.value(
                f"{{const least = document.getElementById('least'); least.value = {least};"
                "least.dispatchEvent(new Event('input'))}"
            )
            assert _texts(page, "#list li") == found and len(_texts(page, "#frame .box")) == len(found)

    def test_another_model_shows_what_it_has(self, page, rest):
        for model, cards in (("classifier", ["1 Classes"]), ("whole", ["1 Features"])):
            page.value(
                f"{{const model = document.getElementById('model'); model.value = '{model}';"
                "model.dispatchEvent(new Event('change'))}"
            )
            _answered(page)
            assert _texts(page, ".card h3")[:1] == cards

    def test_an_unreadable_image_says_why(self, page, rest):
        page.choose("#file", rest[2] / "broken.png")
        page.until("!document.getElementById('error').hidden")
        assert _texts(page, "#error") == ["The server cannot read this image: not an image: 4 bytes"]
        assert _texts(page, "#found") == ["Not read"] and _texts(page, "#frame .box") == []

    def test_it_fits_a_phone(self, page, rest):
        page.choose("#file", rest[2] / "photo.png")
        page.until("document.getElementById('error').hidden && document.querySelectorAll('.card canvas').length")
        page.resize(360, 740)
        assert page.value("document.documentElement.scrollWidth") <= 360

    def test_a_token_is_asked_for(self, rest, tmp_path):
        guarded = RestServer(rest[0].handler, port=0, page=True, access=Access(token="0123456789abcdef"))
        with guarded, Chromium(tmp_path) as page:
            page.open(guarded.url)
            page.until("!document.getElementById('access').hidden && !document.getElementById('error').hidden")
            assert "401: expected the server's token" in _texts(page, "#error")[0]
            page.value("document.getElementById('token').value = '0123456789abcdef'")
            page.value("document.querySelector('#access button').click()")
            page.until("!document.getElementById('model').disabled && document.getElementById('access').hidden")
            assert _texts(page, "#model option") == ["classifier", "whole"]
