"""What is in an export, and what programs that know nothing of this project do with it."""

import json
import os
import subprocess
import sys
import tempfile
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from exported_model import LABELS, METRICS, TRAINING, ask, assert_equal_answers
from PIL import Image
from tensorflow_serving.apis import prediction_log_pb2

from overfeat_tf.models.loading import Exported
from overfeat_tf.models.model import Model
from serving.contract import DEFAULT_KEY, SIGNATURES, differences
from serving.export.card import model_card, read_metrics, run_figures, run_weights
from serving.export.footprint import measure
from serving.export.signatures import is_weight
from serving.version_folders import WARMUP_FILE, read_signature_defs

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "finetune_features.py"
# Runs a script where nothing of this project can be imported.
ALONE = """
import runpy, sys
sys.modules.update(dict.fromkeys(("overfeat_tf", "training", "serving")))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def _alone(*arguments: str | Path, cwd: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": "", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def stranger(exported: Path, images: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What a process without this project made of the export."""
    (found,) = ask(tmp_path_factory.mktemp("stranger"), images, exported)
    return found


@pytest.fixture(scope="module")
def loaded(exported: Path):
    return tf.saved_model.load(str(exported))


def test_a_stranger_gets_the_same_answers(model: Model, stranger: dict, images: list[bytes]):
    assert stranger["ours"] == []
    live = model.detect(images)
    assert_equal_answers(live, stranger["session"]["serving_default"])
    answers = stranger["callables"]
    assert_equal_answers(live, answers["detect"])
    assert_equal_answers(model.localize(images), answers["localize"])
    pixels = tf.io.decode_png(images[0])[None].numpy()
    assert_equal_answers(model.classify(pixels), answers["classify_images"])
    features = answers["extract_features"]["features"]
    np.testing.assert_allclose(features, model.extract_features(pixels), rtol=1e-4, atol=1e-4)


def test_an_export_predicts_as_its_run(model: Model, reloaded: Exported, images: list[bytes], capsys):
    assert repr(reloaded) == "<Exported: 3 classes (cat, dog, owl); classification, localization, detection>"
    reloaded.summary()
    exported_summary = capsys.readouterr().out
    model.summary()
    assert capsys.readouterr().out == exported_summary and "worth showing from 0.42" in exported_summary
    pixels = tf.io.decode_png(images[0]).numpy()
    for task in model.tasks:
        many = reloaded.predict([*images, pixels], task=task)
        for found, expected in zip(many, model.predict([*images, pixels], task=task), strict=True):
            assert (found.names, found.status, found.size) == (expected.names, expected.status, expected.size)
            np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-3)
        assert any(found.status for found in many) and many[-1].names == many[0].names


def test_a_stranger_has_the_variables(model: Model, stranger: dict):
    found = stranger["gradients"]
    assert found["shape"] == [1, *model.network.features.compute_output_shape((1, 40, 48, 3))[1:]]
    # Of ten layers' kernels and biases and two dropouts' seeds, four layers are the features'.
    assert (found["variables"], found["trainable"], found["learning"]) == (22, 20, 8)
    assert found["features"] == (8, 8)


def test_stock_operations_only(stranger: dict):
    found = stranger["operations"]
    assert len(found["used"]) > 50
    assert found["unknown"] == set() and found["compiled"] == [] and found["traces"] == []
    assert not {name for name in found["used"] if "PyFunc" in name or name.startswith("Xla")}


def test_nothing_tells_where_it_was_exported(exported: Path):
    here = {str(ROOT), str(Path.cwd()), str(Path.home()), sys.prefix, tempfile.gettempdir(), str(exported.parent)}
    words = [place.encode() for place in here if len(place) > 3] + [
        b"/home/",
        b"site-packages",
        b"dist-packages",
        b".py:",
    ]
    for file in exported.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            least = 5 if file.name.startswith("variables.data") else 0  # of so many numbers some may read ".py:"
            assert not [word for word in words if len(word) >= least and word in data], file
    assert not (exported / "debug").exists()


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_keep_the_contract(exported: Path, name: str):
    assert differences(SIGNATURES[name], read_signature_defs(exported)[name]) == []


@pytest.mark.parametrize("name", SIGNATURES)
def test_an_empty_batch_is_answered(loaded, name: str):
    spec = SIGNATURES[name].input
    shape = [0, *([] if spec.dtype == tf.string else [40, 50, 3])]
    answer = loaded.signatures[name](**{spec.name: tf.zeros(shape, spec.dtype)})
    assert all(value.shape[0] == 0 for value in answer.values())


def test_a_program_for_the_object_detection_api_runs_unchanged(loaded, images: list[bytes]):
    """As its tutorial for TensorFlow 2 has it, then as `visualize_boxes_and_labels_on_image_array`, step by step."""
    image = tf.io.decode_png(images[0]).numpy()
    detect_fn = loaded
    input_tensor = tf.convert_to_tensor(image)
    input_tensor = input_tensor[tf.newaxis, ...]
    answer = detect_fn(input_tensor)
    count = int(answer.pop("num_detections")[0])  # the tutorial's own int() of one element is not numpy's any more
    answer = {key: value[0, :count].numpy() for key, value in answer.items()}
    answer["num_detections"] = count
    answer["detection_classes"] = answer["detection_classes"].astype(np.int64)
    category_index = {number: {"id": number, "name": name} for number, name in enumerate(LABELS, start=1)}
    outputs = loaded.signatures["detect_images"](images=input_tensor)
    assert 0 < count <= outputs["detection_scores"].shape[1]
    height, width = image.shape[:2]
    drawn = []
    for i in range(min(200, answer["detection_boxes"].shape[0])):
        if answer["detection_scores"][i] > 0.05:  # its min_score_thresh; this model has learnt nothing
            ymin, xmin, ymax, xmax = tuple(answer["detection_boxes"][i].tolist())
            left, right, top, bottom = xmin * width, xmax * width, ymin * height, ymax * height
            assert 0 <= left < right <= width and 0 <= top < bottom <= height
            drawn.append(category_index[answer["detection_classes"][i]]["name"])
    entities = outputs["detection_class_entities"].numpy()[0]
    assert drawn and drawn == [name.decode() for name in entities[: len(drawn)]]
    assert list(answer["detection_scores"]) == sorted(answer["detection_scores"], reverse=True)
    assert not outputs["detection_scores"].numpy()[0, count:].any()  # for clients that go by the score alone


def test_a_version_has_all_its_files(exported: Path):
    files = {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()}
    assert {"saved_model.pb", "config.json", "MODEL_CARD.md", "batching_params.pbtxt", str(WARMUP_FILE)} <= files
    assert (exported / "assets" / "labels.txt").read_text().split() == list(LABELS)
    config = json.loads((exported / "config.json").read_text())
    assert config["model"]["labels"] == list(LABELS) and config["metrics"] == METRICS
    assert config["training"] == TRAINING | {"data": "voc:my cats, coco:images:a.json"}  # not where they lay
    assert config["exported"]["tensorflow"] == tf.__version__
    assert abs(datetime.fromisoformat(config["exported"]["date"]) - datetime.now()) < timedelta(days=3)
    assert [path.name for path in exported.parent.iterdir()] == ["1"]  # nothing left over


def test_every_signature_is_warmed_up_by_one_record(exported: Path):
    seen = []
    for record in tf.data.TFRecordDataset(str(exported / WARMUP_FILE)).as_numpy_iterator():
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        ((name, value),) = request.inputs.items()
        key = request.model_spec.signature_name
        assert request.model_spec.name == "pets"
        assert name == SIGNATURES["detect" if key == DEFAULT_KEY else key].input.name
        seen.append((key, value.tensor_shape.dim[0].size))
    assert sorted(seen) == sorted((key, 1) for key in (*SIGNATURES, DEFAULT_KEY))


def test_the_card_says_what_it_is_how_good_and_what_it_takes(exported: Path, model: Model):
    card = (exported / "MODEL_CARD.md").read_text()
    parameters = sum(part.count_params() for part in model.network.parts.values())
    for words in (
        "# pets, version 1",
        "cat, dog, owl",
        "Data: voc:my cats",
        "recipe `none`",
        f"by TensorFlow {tf.__version__}",
        "| map50 | 0.2500 |",
        "Display threshold: 0.420, the score of the best F1",
        "60 validation images\n  and 700 boxes",
        f"{parameters:,}",
    ):
        assert words in card
    assert "up to about 303 MB more for\n  each megapixel" in card  # 24 channels of four bytes, thrice, and the pixels
    assert "Memory: not measured" in card and "50 megapixels" in card


def test_figures_for_the_card_are_what_evaluate_writes(tmp_path: Path):
    (tmp_path / "figures.json").write_text(json.dumps(METRICS))
    assert read_metrics(tmp_path / "figures.json") == METRICS
    for text in ("{}", "[1]", "{"):
        (tmp_path / "figures.json").write_text(text)
        with pytest.raises(ValueError, match="as `overfeat evaluate --json` writes"):
            read_metrics(tmp_path / "figures.json")


def test_a_run_has_figures_of_its_own(tmp_path: Path):
    assert run_figures(tmp_path) == {}
    table = ["stage,step,loss,val_top1,val_map", "classification,4,1,0.9,", "detection,4,1,,0.5", "detection,8,1,,0.25"]
    (tmp_path / "results.csv").write_text("\n".join(table))
    best, last = {"step": 4, "epoch": 1, "value": 0.5}, {"step": 8, "epoch": 2, "value": 0.25}
    kept = {"step": 8, "ema": 0.99, "metric": "val_map", "best": best, "last": last}
    config = {"model": {}, "kept": {"classification": {"step": 4, "ema": None}, "detection": kept}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert run_figures(tmp_path) == {"classification val_top1": 0.9, "detection val_map": 0.5}
    assert run_figures(tmp_path, last=True) == {"classification val_top1": 0.9, "detection val_map": 0.25}
    one, other, averaged = "val_map 0.5 in epoch 1", "val_map 0.25 in epoch 2", "moving averages with decay 0.99"
    assert run_weights(config) == f"the best of detection, {one} (the last: {other}); {averaged}"
    assert run_weights(config, last=True) == f"the last of detection, {other} (the best: {one}); {averaged}"
    assert run_weights({"model": {}}) is None


def test_the_card_says_of_a_runs_own_figures_that_they_are_of_a_few_images(exported: Path, model: Model):
    def card(metrics: dict) -> str:
        made = {"date": "2026-01-01", "tensorflow": "2.21.0"}
        return model_card(model, "pets", 1, exported, {"validation_images": 40}, made, metrics)

    own = card({"detection val_map50": 0.5})
    assert "| detection val_map50 | 0.5000 |" in own and "overfeat export --metrics" in own
    assert "its validation split while it was trained, 40 images at most" in own
    assert "slice" not in card(METRICS)


@pytest.mark.long
def test_what_it_takes_is_measured_in_a_fresh_process(exported: Path, tmp_path: Path):
    found = measure(exported)
    assert 100e6 < found.tensorflow_bytes < found.loaded_bytes < found.peak_bytes < 4e9
    assert 0 < found.next_seconds < found.first_seconds and found.load_seconds > 0
    (tmp_path / "saved_model.pb").write_bytes(b"no model")
    with pytest.raises(RuntimeError, match=r"does not answer in a fresh process: .+; not exported"):
        measure(tmp_path)


def test_the_features_are_fine_tuned_in_another_keras_model(exported: Path, tmp_path: Path):
    draw = np.random.default_rng(0)
    for name in ("across", "down"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(8):
            stripes = np.tile(((np.arange(40) + draw.integers(8)) // 4 % 2 * 160).astype(np.uint8)[:, None], (1, 40))
            noisy = (stripes if name == "across" else stripes.T)[..., None] + draw.integers(0, 60, (40, 40, 3))
            Image.fromarray(noisy.astype(np.uint8)).save(tmp_path / "images" / name / f"{number}.png")
    asked = ("--out", tmp_path / "tuned", "--side", 40, "--epochs", 5)
    said = _alone("-c", ALONE, EXAMPLE, exported, tmp_path / "images", *asked, cwd=tmp_path)
    accuracies = [float(line.rpartition(" ")[2]) for line in said.splitlines() if "accuracy" in line]
    assert len(accuracies) == 2 and accuracies[1] >= accuracies[0] and accuracies[1] > 0.6
    before = tf.saved_model.load(str(exported)).features.trainable_variables
    tuned = tf.saved_model.load(str(tmp_path / "tuned"))
    assert tuned.serve(tf.zeros([3, 40, 40, 3])).shape == (3, 2)
    changed = [not np.allclose(old, new, atol=1e-6) for old, new in zip(before, tuned.variables, strict=False)]
    assert sum(changed) >= len(before) - 1  # a bias may have nothing to learn


def test_weights_are_told_from_statistics_counters_and_seeds():
    layers = [tf.keras.layers.Normalization(), tf.keras.layers.Conv2D(2, 1), tf.keras.layers.BatchNormalization()]
    network = tf.keras.Sequential([tf.keras.Input([4, 4, 3]), *layers, tf.keras.layers.Dropout(0.5)])
    network.trainable = False  # a stage that is not being fitted has weights too
    fitted = [variable.name for variable in network.variables if is_weight(variable)]
    assert fitted == ["kernel", "bias", "gamma", "beta"] and len(network.variables) > len(fitted)
