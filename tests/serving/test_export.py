"""The SavedModel: what is in it, and that a process without this project gets the same answers from it."""

import io
import json
import pickle
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework import op_def_registry

import serving.export as exporting
from overfeat_tf.cli.main import overfeat
from overfeat_tf.loading import Exported, load
from overfeat_tf.model import Model
from overfeat_tf.network import build
from overfeat_tf.options import InferenceOptions
from serving.client import Client
from serving.contract import SIGNATURES, differences
from serving.loading import read_signature_defs
from serving.server import start

LABELS = ("cat", "dog", "owl")
# Run where nothing of this project can be imported: both ways in which others load a SavedModel.
STRANGER = """
import pickle, sys
for name in ("overfeat_tf", "training", "serving"):
    sys.modules[name] = None
import tensorflow as tf
folder, requests, out = sys.argv[1:]
images = pickle.load(open(requests, "rb"))
loaded = tf.saved_model.load(folder)
answers = {"v2": {k: v.numpy() for k, v in loaded.signatures["detect"](image_bytes=tf.constant(images)).items()}}
with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
    meta = tf.compat.v1.saved_model.load(session, ["serve"], folder)
    for key in ("serving_default", "detect"):
        signature = meta.signature_def[key]
        names = {k: v.name for k, v in signature.outputs.items()}
        answers[key] = session.run(names, {signature.inputs["image_bytes"].name: images})
with tf.GradientTape() as tape:
    maps = loaded.features(tf.zeros([1, 40, 48, 3]))
    total = tf.reduce_sum(maps**2)
gradients = tape.gradient(total, loaded.trainable_variables)
answers["features"] = (maps.shape.as_list(), len(loaded.variables), sum(g is not None for g in gradients))
pickle.dump(answers, open(out, "wb"))
"""


@pytest.fixture(scope="module")
def model() -> Model:
    """A network of random weights, sharpened so that its windows disagree and some are confident."""
    tf.keras.utils.set_random_seed(7)
    network = build("tiny", len(LABELS), background=True)
    last = network.classifier.get_layer("scores")
    kernel, bias = last.get_weights()
    last.set_weights([kernel * 150, bias])
    options = InferenceOptions(scales=(1, 2, 4), top_k=2, min_score=0.5, max_windows=60, max_detections=20)
    return Model(network, LABELS, options)


@pytest.fixture(scope="module")
def exported(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exporting.export(model, tmp_path_factory.mktemp("models") / "pets", training={"name": "none"})


def encode(pixels: np.ndarray, kind: str = "PNG", mode: str | None = None, **options) -> bytes:
    out = io.BytesIO()
    picture = Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(out, kind, **options)
    return out.getvalue()


def bomb() -> bytes:
    """A PNG whose header claims 60000 x 60000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    body = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    data = b"IDAT" + zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + body + struct.pack(">I", 1000) + data + struct.pack(">I", zlib.crc32(data))


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    """Mixed sizes, modes and formats, good ones and bad ones."""
    draw = np.random.default_rng(3)

    def noise(height: int, width: int) -> np.ndarray:
        coarse = draw.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        return np.kron(coarse, np.ones((8, 8, 1), np.uint8))[:height, :width]

    turned = Image.Exif()
    turned[0x0112] = 6
    good = [
        encode(noise(90, 130)),
        encode(noise(200, 75), "JPEG", quality=90),
        encode(noise(64, 64), mode="L"),
        encode(noise(120, 100), mode="RGBA"),
        encode(noise(70, 90)[..., 0].astype(np.uint16) * 257),
        encode(noise(80, 140), "JPEG", exif=turned),
        encode(noise(1, 1)),
        encode(noise(8, 400)),
    ]
    return [*good, b"", b"no image at all", good[1][: len(good[1]) // 2], good[0][:60], bomb()]


GOOD = 8  # the first so many of `images` can be read


def assert_equal_answers(left: dict, right: dict) -> None:
    assert left.keys() == right.keys()
    for key, value in left.items():
        if value.dtype.kind == "f":
            np.testing.assert_allclose(value, right[key], rtol=1e-4, atol=1e-5, err_msg=key)
        else:
            np.testing.assert_array_equal(value, right[key], err_msg=key)


def test_each_image_has_its_own_answer(model: Model, images: list[bytes]):
    together = model.detect(images)
    assert together["num_detections"][:6].min() > 0  # else nothing is compared
    assert [status == b"" for status in together["status"]] == [i < GOOD for i in range(len(images))]
    assert together["image_size"][5].tolist() == [140, 80]  # as displayed
    for row, image in enumerate(images):
        assert_equal_answers(model.detect([image]), {k: v[row : row + 1] for k, v in together.items()})


def test_a_stranger_gets_the_same_answers(model: Model, exported: Path, images: list[bytes], tmp_path: Path):
    (tmp_path / "requests").write_bytes(pickle.dumps(images))
    files = [str(exported), str(tmp_path / "requests"), str(tmp_path / "answers")]
    subprocess.run([sys.executable, "-c", STRANGER, *files], check=True, capture_output=True, cwd=tmp_path)
    answers = pickle.loads((tmp_path / "answers").read_bytes())
    live = model.detect(images)
    for loader in ("v2", "serving_default", "detect"):
        assert_equal_answers(live, answers[loader])
    shape, variables, learning = answers["features"]
    assert shape == [1, *model.network.features.compute_output_shape((1, 40, 48, 3))[1:]]
    assert (variables, learning) == (22, 8)  # of ten layers' weights and two dropouts' seeds, the four of the features


def test_reloaded_answers_as_live_for_every_signature(model: Model, exported: Path, images: list[bytes]):
    reloaded = load(exported.parent)
    assert isinstance(reloaded, Exported) and reloaded.labels == LABELS
    pixels = np.random.default_rng(0).integers(0, 256, (2, 50, 70, 3), dtype=np.uint8)
    for name in ("detect", "localize"):
        assert_equal_answers(getattr(model, name)(images), getattr(reloaded, name)(images))
        assert_equal_answers(getattr(model, name)(pixels), getattr(reloaded, name)(pixels))
    assert_equal_answers(model.classify(pixels), reloaded.classify(pixels))
    classes = reloaded.classify(images)
    assert_equal_answers(classes, {key: model.classify(images)[key] for key in classes})
    np.testing.assert_allclose(model.extract_features(pixels), reloaded.extract_features(pixels), rtol=1e-4, atol=1e-4)


def test_served_answers_as_live(model: Model, exported: Path, images: list[bytes]):
    with start([exported.parent], port=0) as server, Client(server.address, "pets") as client:
        assert_equal_answers(model.detect(images), client.detect(images))
        assert_equal_answers(model.localize(images), client.localize(images))
        named = client.classify(images[:2])
    expected = model.classify(images[:2])
    assert [[label for label, _ in row] for row in named] == [[c.decode() for c in row] for row in expected["classes"]]


def test_run_export_and_server_score_the_same(model: Model, exported: Path, images: list[bytes], tmp_path: Path):
    run, data = tmp_path / "run", tmp_path / "data"
    model.save_weights(run / "weights")
    (run / "config.json").write_text(json.dumps({"model": model.config()}))
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (data / part).mkdir(parents=True)
    (data / "classes.txt").write_text("\n".join(LABELS))
    (data / "ImageSets" / "Main" / "val.txt").write_text("0\n1\n")
    for number in range(2):
        (data / "JPEGImages" / f"{number}.jpg").write_bytes(images[number])
        width, height = Image.open(io.BytesIO(images[number])).size
        box = f"<xmin>1</xmin><ymin>1</ymin><xmax>{width}</xmax><ymax>{height // 2}</ymax>"
        thing = f"<object><name>{LABELS[number]}</name><bndbox>{box}</bndbox></object>"
        size = f"<size><width>{width}</width><height>{height}</height></size>"
        (data / "Annotations" / f"{number}.xml").write_text(f"<annotation>{size}{thing}</annotation>")

    def scored(asked: str, *options: str) -> dict:
        out = tmp_path / "figures.json"
        arguments = ["evaluate", asked, "--data", f"voc:{data}", "--json", str(out), *options]
        overfeat(arguments, standalone_mode=False)
        return json.loads(out.read_text())

    protocols = ("--protocol", "classification,localization,detection")
    with start([exported.parent], port=0) as server:
        served = scored("pets", "--server", server.address, *protocols)
    assert served == pytest.approx(scored(str(run), *protocols), abs=1e-6, nan_ok=True)
    assert served == pytest.approx(scored(str(exported.parent), *protocols), abs=1e-6, nan_ok=True)
    assert served["images"] == 2 and len(served) > 10


def test_a_bomb_costs_no_memory(exported: Path):
    model = load(exported)
    model.detect([encode(np.zeros((40, 40, 3), np.uint8))])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = model.detect([bomb()] * 4)
    assert all(b"60000" in status for status in answer["status"])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # kB; one would need 10 GB


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_keep_the_contract(exported: Path, name: str):
    assert differences(SIGNATURES[name], read_signature_defs(exported)[name]) == []


@pytest.mark.parametrize("name", [name for name in SIGNATURES if name != "classify"])
def test_an_empty_batch_is_answered(exported: Path, name: str):
    spec = SIGNATURES[name].input
    shape = [0, *([] if spec.dtype == tf.string else [40, 50, 3])]
    answer = tf.saved_model.load(str(exported)).signatures[name](**{spec.name: tf.zeros(shape, spec.dtype)})
    assert all(value.shape[0] == 0 for value in answer.values())


def test_stock_operations_only(exported: Path):
    saved = saved_model_pb2.SavedModel.FromString((exported / "saved_model.pb").read_bytes())
    (graph,) = (meta.graph_def for meta in saved.meta_graphs)
    functions = {function.signature.name for function in graph.library.function}
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    used = {node.op for node in nodes} - functions
    assert len(used) > 50
    assert not {op for op in used if op_def_registry.get(op) is None}
    assert not {op for op in used if "PyFunc" in op or op.startswith("Xla")}
    assert not [f for f in graph.library.function if f.attr["_XlaMustCompile"].b]
    assert str(Path.cwd()).encode() not in (exported / "saved_model.pb").read_bytes()


def test_a_version_has_all_its_files(exported: Path):
    files = {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()}
    assert {
        "saved_model.pb",
        "config.json",
        "MODEL_CARD.md",
        "batching_params.pbtxt",
        "assets/labels.txt",
        "assets.extra/tf_serving_warmup_requests",
    } <= files
    assert (exported / "assets" / "labels.txt").read_text().split() == list(LABELS)
    assert json.loads((exported / "config.json").read_text())["model"]["labels"] == list(LABELS)
    assert [path.name for path in exported.parent.iterdir()] == ["1"]  # nothing left over


def test_nothing_appears_unless_it_answers_as_the_live_model(model: Model, tmp_path: Path, monkeypatch):
    def refuse(*_):
        raise RuntimeError("differs")

    monkeypatch.setattr(exporting, "verify", refuse)
    with pytest.raises(RuntimeError, match="differs"):
        exporting.export(model, tmp_path / "pets")
    assert not [path for path in (tmp_path / "pets").iterdir() if path.name.isdigit()]


def test_verification_notices_other_weights(exported: Path, model: Model):
    other = Model(build("tiny", len(LABELS), background=True), LABELS, model.options)
    with pytest.raises(RuntimeError, match="differs from the live one"):
        exporting.verify(other, exported)


def test_a_taken_version_is_refused(model: Model, exported: Path):
    with pytest.raises(ValueError, match="expected a new version"):
        exporting.export(model, exported.parent, 1)


def test_only_what_was_trained_is_exported(model: Model, tmp_path: Path):
    part = Model(build("tiny", 2), ("a", "b"), model.options, tasks=("classification",))
    folder = exporting.export(part, tmp_path / "part")
    keys = {key for key in read_signature_defs(folder) if not key.startswith("__")}
    assert keys == {"classify", "classify_images", "extract_features", "serving_default"}
    with pytest.raises(ValueError, match="overfeat train"):
        exporting.export(Model(part.network, ("a", "b"), tasks=()), tmp_path / "none")


def test_a_model_that_was_never_asked_for_boxes_is_exported_with_its_regressor(tmp_path):
    model = Model(build("tiny", 2, background=True), ("a", "b"), InferenceOptions(scales=(1,)), ("detection",))
    assert "regressor" not in model.network.parts
    loaded = tf.saved_model.load(str(exporting.export(model, tmp_path / "m")))
    weights = sum(part.count_params() for part in model.network.parts.values())
    assert "regressor" in model.network.parts
    assert sum(int(tf.size(variable)) for variable in loaded.trainable_variables) == weights
