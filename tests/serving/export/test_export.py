"""An export answers as the live model: in process, reloaded, served and scored; and nothing else appears."""

import io
import json
import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from exported_model import GOOD, LABELS, assert_equal_answers, bomb, encode
from PIL import Image

import serving.export.exporter as exporting
from overfeat_tf.cli.main import overfeat
from overfeat_tf.models.loading import Exported, load
from overfeat_tf.models.model import Model
from overfeat_tf.network.convnet import build
from overfeat_tf.options import InferenceOptions
from serving.client.client import Client
from serving.embedded.server import Server, start
from serving.export.exporter import export
from serving.version_folders import read_signature_defs


def test_each_image_has_its_own_answer(model: Model, images: list[bytes]):
    together = model.detect(images)
    assert together["num_detections"][:6].min() > 0  # else nothing is compared
    assert [status == b"" for status in together["status"]] == [i < GOOD for i in range(len(images))]
    assert together["image_size"][5].tolist() == [140, 80]  # as displayed
    for row, image in enumerate(images):
        assert_equal_answers(model.detect([image]), {k: v[row : row + 1] for k, v in together.items()})


def test_reloaded_answers_as_live_for_every_signature(model: Model, reloaded: Exported, images: list[bytes]):
    assert reloaded.labels == LABELS
    assert reloaded.display_threshold == model.display_threshold == 0.42
    pixels = np.random.default_rng(0).integers(0, 256, (2, 50, 70, 3), dtype=np.uint8)
    for name in ("detect", "localize"):
        assert_equal_answers(getattr(model, name)(images), getattr(reloaded, name)(images))
        assert_equal_answers(getattr(model, name)(pixels), getattr(reloaded, name)(pixels))
    assert_equal_answers(model.classify(pixels), reloaded.classify(pixels))
    classes = reloaded.classify(images)
    assert_equal_answers(classes, {key: model.classify(images)[key] for key in classes})
    np.testing.assert_allclose(model.extract_features(pixels), reloaded.extract_features(pixels), rtol=1e-4, atol=1e-4)


def test_localization_by_accumulation_at_exact_scales_is_reloaded_as_live(model: Model, images: list[bytes], tmp_path):
    options = {"localize_by": "accumulated", "scale_fit": "exact", "scales": (2,)}
    changed = replace(model.with_options(**options), tasks=("localization",))
    reloaded, live = load(export(changed, tmp_path / "pets")), changed.localize(images[:2])
    assert_equal_answers(live, reloaded.localize(images[:2]))
    assert not np.allclose(live["detection_scores"], model.localize(images[:2])["detection_scores"])


@pytest.fixture(scope="module")
def served(exported: Path) -> Iterator[Server]:
    with start([exported.parent], port=0) as server:
        yield server


def test_served_answers_as_live(model: Model, served: Server, images: list[bytes]):
    with Client(served.address, "pets") as client:
        assert_equal_answers(model.detect(images), client.detect(images))
        assert served.handler.models.served("pets")[1].display_threshold == 0.42
        assert_equal_answers(model.localize(images), client.localize(images))
        assert client.tasks == model.tasks
        named, pixels = client.classify_rpc(images[:2]), np.zeros((2, 70, 90, 3), np.uint8)
        expected, served = model.classify(images[:2]), client.classify(images[:2])
        assert_equal_answers({key: expected[key] for key in served}, served)
        assert_equal_answers(model.classify(pixels), client.classify(pixels))
        for ours, theirs in zip(model.extract_features(pixels), client.extract_features(pixels), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
        with pytest.raises(ValueError, match="expected the default layer"):
            client.extract_features(pixels, layer="scores")
    assert [[label for label, _ in row] for row in named] == [[c.decode() for c in row] for row in expected["classes"]]


def test_run_export_and_server_score_the_same(
    model: Model, exported: Path, served: Server, images: list[bytes], tmp_path: Path
):
    run, data = tmp_path / "run", tmp_path / "data"
    model.save_weights(run / "weights")
    (run / "config.json").write_text(json.dumps({"model": model.config()}))
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (data / part).mkdir(parents=True)
    (data / "classes.txt").write_text("\n".join(LABELS))
    (data / "ImageSets" / "Main" / "val.txt").write_text("0\n1\n")
    found = model.detect(images[:2])
    for number in range(2):
        (data / "JPEGImages" / f"{number}.jpg").write_bytes(images[number])
        width, height = Image.open(io.BytesIO(images[number])).size
        # The first thing that the model finds there is the truth: figures of 0 would be equal whatever was scored.
        top, left, bottom, right = found["detection_boxes"][number, 0] * [height, width, height, width]
        box = f"<xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
        name = LABELS[int(found["detection_classes"][number, 0]) - 1]
        thing = f"<object><name>{name}</name><bndbox>{box}</bndbox></object>"
        size = f"<size><width>{width}</width><height>{height}</height></size>"
        (data / "Annotations" / f"{number}.xml").write_text(f"<annotation>{size}{thing}</annotation>")

    def scored(asked: str, *options: str) -> dict:
        out = tmp_path / "figures.json"
        arguments = ["evaluate", asked, "--data", f"voc:{data}", "--json", str(out), *options]
        overfeat(arguments, standalone_mode=False)
        return json.loads(out.read_text())

    protocols = ("--protocol", "classification,detection")
    remote = scored("pets", "--server", served.address, *protocols)
    # A server does not tell its display threshold, so the figures at the threshold are left out.
    for here in (scored(str(run), *protocols), scored(str(exported.parent), *protocols)):
        displayed = {name for name in here if "display" in name or name.startswith("duplicates")}
        assert displayed == here.keys() - remote.keys() and displayed
        assert remote == pytest.approx({name: here[name] for name in remote}, abs=1e-6, nan_ok=True)
    assert remote["images"] == 2 and len(remote) > 10 and remote["map50"] > 0


def test_a_bomb_costs_no_memory(reloaded: Exported):
    reloaded.detect([encode(np.zeros((40, 40, 3), np.uint8))])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = reloaded.detect([bomb()] * 4)
    assert all(b"60000" in status for status in answer["status"])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # kB; one would need 10 GB


def test_nothing_appears_unless_it_answers_as_the_live_model(model: Model, tmp_path: Path, monkeypatch):
    def refuse(*_):
        raise RuntimeError("differs")

    monkeypatch.setattr(exporting, "verify", refuse)
    with pytest.raises(RuntimeError, match="differs"):
        exporting.export(model, tmp_path / "pets")
    assert not [path for path in (tmp_path / "pets").iterdir() if path.name.isdigit()]


# A classifier, which exports soonest; says when it begins.
EXPORTER = """
import sys
from pathlib import Path
from overfeat_tf.models.model import Model
from overfeat_tf.network.convnet import build
from serving.export.exporter import export

model = Model(build("tiny", 2), ("a", "b"), tasks=("classification",))
print("begins", flush=True)
export(model, Path(sys.argv[1]))
print("done", flush=True)
"""


@pytest.mark.long
def test_an_export_killed_at_any_moment_leaves_no_part_of_a_version(tmp_path: Path):
    base = tmp_path / "m"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-c", EXPORTER, str(base)]
    killed = 0
    for seconds in (0.2, 1.5, 3.0, 4.5, 6.0, 9.0, None):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout.readline() == "begins\n"
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                killed += 1
        for path in base.iterdir():
            if not path.name.startswith("."):
                loaded = load(path)
                assert loaded.classify(np.zeros((1, 40, 40, 3), np.uint8))["probs"].shape == (1, 2)
                assert (path / "MODEL_CARD.md").is_file()
    assert killed >= 3
    assert all(path.name.isdecimal() for path in base.iterdir())  # the last one cleared away what the killed had left


def test_verification_notices_other_weights(exported: Path, model: Model):
    other = Model(build("tiny", len(LABELS), background=True), LABELS, model.options)
    with pytest.raises(RuntimeError, match="differs from the live one"):
        exporting.verify(other, exported)


def test_verification_reads_all_signatures_and_runs_one(exported: Path, model: Model, monkeypatch):
    ran = []

    class Recorded(exporting.Exported):
        def _run(self, signature, **inputs):
            ran.append(signature)
            return super()._run(signature, **inputs)

    monkeypatch.setattr(exporting, "Exported", Recorded)
    exporting.verify(model, exported)
    assert ran == ["detect"]  # a scan takes a large network some seconds
    contract = {**exporting.SIGNATURES, "localize": exporting.SIGNATURES["classify"]}
    monkeypatch.setattr(exporting, "SIGNATURES", contract)
    with pytest.raises(RuntimeError, match=r"the exported model's localize: input inputs is missing; .*; not exported"):
        exporting.verify(model, exported)
    monkeypatch.setattr(exporting, "read_signature_defs", lambda folder: {})
    with pytest.raises(RuntimeError, match="expected the exported model to have the signature classify: not exported"):
        exporting.verify(model, exported)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("voc:/home/me/cats", "voc:cats"),
        ("voc:~/secret/cats/, folder:../secret/dogs", "voc:cats, folder:dogs"),
        ("ilsvrc:secret/cats", "ilsvrc:cats"),
        ("coco:/a/secret/images:../secret/a.json", "coco:images:a.json"),
        ("tfds:imagenet2012+boxes=/home/me/boxes", "tfds:imagenet2012+boxes=boxes"),
        ("tfds:imagenet2012:5.1.0+boxes=../secret/boxes", "tfds:imagenet2012:5.1.0+boxes=boxes"),
        ("digits, tfds:voc/2007:4.0.0", "digits, tfds:voc/2007:4.0.0"),
        ("tfds:/home/me/sets", "tfds:sets"),
    ],
)
def test_an_export_does_not_say_where_the_data_lay(data, told):
    assert exporting._without_paths({"members": [{"data": data}]}) == {"members": [{"data": told}]}


def test_a_taken_version_is_refused(model: Model, exported: Path):
    with pytest.raises(ValueError, match="expected a new version"):
        exporting.export(model, exported.parent, 1)


def test_only_what_was_trained_is_exported_and_each_step_said(model: Model, tmp_path: Path, caplog):
    caplog.set_level(logging.INFO)
    part = Model(build("tiny", 2), ("a", "b"), model.options, tasks=("classification",))
    split = {"source": "folder:/home/me/pets", "seed": 0, "val": ["a/1.jpg"]}
    folder = exporting.export(part, tmp_path / "part", split=split)
    assert json.loads((folder / "split.json").read_text()) == {**split, "source": "folder:pets"}
    assert "- Validation: 1 images held out as 'val', by seed 0; `split.json`" in (folder / "MODEL_CARD.md").read_text()
    steps = ("saving", "writing warm-up requests", "comparing what was saved with the model")
    assert [line for line in caplog.messages if "part: " in line] == [f"{tmp_path / 'part'}: {step}" for step in steps]
    keys = {key for key in read_signature_defs(folder) if not key.startswith("__")}
    assert keys == {"classify", "classify_images", "extract_features", "serving_default"}
    with pytest.raises(ValueError, match="overfeat train"):
        exporting.export(Model(part.network, ("a", "b"), tasks=()), tmp_path / "none")


def test_a_model_that_was_never_asked_for_boxes_is_exported_with_its_regressor(tmp_path, monkeypatch):
    model = Model(build("tiny", 2, background=True), ("a", "b"), InferenceOptions(scales=(1,)), ("detection",))
    assert "regressor" not in model.network.parts
    (tmp_path / "m").mkdir()
    monkeypatch.chdir(tmp_path / "m")
    folder = exporting.export(model, Path())  # the folder that it is called in
    assert (folder / "MODEL_CARD.md").read_text().startswith("# m, version 1\n")
    loaded = tf.saved_model.load(str(folder))
    weights = sum(part.count_params() for part in model.network.parts.values())
    assert "regressor" in model.network.parts
    assert sum(int(tf.size(variable)) for variable in loaded.trainable_variables) == weights
