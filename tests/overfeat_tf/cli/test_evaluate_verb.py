"""`overfeat evaluate`: committees, rows of tables, options, reports, and mistakes of the user's in one line."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from command_line import run
from PIL import Image
from small_classifiers import LABELS

import overfeat_tf as of
from serving.embedded.server import start

IMAGES = 6


@pytest.fixture(scope="module")
def detector(tmp_path_factory) -> Path:
    """A run whose random network finds something everywhere."""
    tf.keras.utils.set_random_seed(3)
    network = of.build("tiny", 3, background=True)
    last = network.classifier.get_layer("scores")
    last.kernel.assign(last.kernel * 150)
    folder = tmp_path_factory.mktemp("detector")
    model = of.Model(network, LABELS, of.InferenceOptions(scales=(2,), min_score=0.01, max_windows=30))
    model.save(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Noise in Pascal VOC's layout: no eel in `val`, which has boxes; nothing in `empty`."""
    folder = tmp_path_factory.mktemp("data")
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    (folder / "classes.txt").write_text("\n".join(LABELS))
    (folder / "ImageSets/Main/val.txt").write_text("\n".join(map(str, range(IMAGES))))
    (folder / "ImageSets/Main/empty.txt").write_text("")
    for number in range(IMAGES):
        noise = np.random.default_rng(number).integers(0, 256, (9, 11, 3), np.uint8)
        Image.fromarray(np.kron(noise, np.ones((8, 8, 1), np.uint8))).save(folder / f"JPEGImages/{number}.png")
        box = "<xmin>9</xmin><ymin>9</ymin><xmax>60</xmax><ymax>60</ymax>"
        thing = f"<object><name>{LABELS[number % 2]}</name><bndbox>{box}</bndbox></object>"
        size = "<size><width>88</width><height>72</height></size>"
        image = f"<filename>{number}.png</filename>"
        (folder / f"Annotations/{number}.xml").write_text(f"<annotation>{image}{size}{thing}</annotation>")
    return folder


@pytest.fixture(scope="module")
def unboxed(tmp_path_factory) -> Path:
    """A folder a class."""
    folder = tmp_path_factory.mktemp("unboxed")
    for label in LABELS:
        (folder / "val" / label).mkdir(parents=True)
        Image.new("RGB", (60, 50)).save(folder / "val" / label / "0.png")
    return folder


def scored(monkeypatch, tmp_path, *arguments) -> dict:
    """Evaluate; give the figures of the JSON file, which has to be JSON as programs read it."""
    out = tmp_path / "figures.json"
    assert run(monkeypatch, "evaluate", *arguments, "--json", out) == 0

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(out.read_text(), parse_constant=refuse)


def naive_errors(probabilities: np.ndarray) -> dict:
    """Count top-1 and top-5 errors; image i shows class i % 2."""
    right = [[int(label) for label in np.argsort(-row)].index(i % 2) for i, row in enumerate(probabilities)]
    return {"top1_error": np.mean(np.array(right) > 0), "top5_error": 0.0, "images": IMAGES}


def images(data: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(data / f"JPEGImages/{number}.png")) for number in range(IMAGES)]


@pytest.mark.long
def test_several_runs_their_savedmodel_and_its_server_score_the_same(classifiers, data, tmp_path, monkeypatch, capsys):
    committee = of.Model.committee([of.load(folder) for folder in classifiers])
    wanted = naive_errors(np.concatenate([committee.classify([image])["probs"] for image in images(data)]))
    source = ("--data", f"voc:{data}")
    assert scored(monkeypatch, tmp_path, *classifiers, *source) == pytest.approx(wanted)
    saved = tmp_path / "both"
    assert run(monkeypatch, "export", *classifiers, "--to", saved) == 0
    assert scored(monkeypatch, tmp_path, saved, *source) == pytest.approx(wanted)
    assert run(monkeypatch, "evaluate", saved, classifiers[0], *source) == 2
    assert "expected runs as a committee's members" in capsys.readouterr().err
    assert run(monkeypatch, "evaluate", saved, *source, "--protocol", "table2:ten-views") == 2
    assert "a SavedModel keeps those of its export" in capsys.readouterr().err
    with start([saved], port=0) as server:
        asked = ("both", "--server", server.address)
        assert scored(monkeypatch, tmp_path, *asked, *source) == pytest.approx(wanted)
        assert run(monkeypatch, "evaluate", *asked, *source, "--protocol", "table2") == 2
        assert "expected a run for inference options" in capsys.readouterr().err
        assert run(monkeypatch, "evaluate", *asked, "--data", "digits") == 2
        assert "expected a model of the data's 10 classes; the server's model has 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("chosen", "options"),
    [
        (["--scales", "2,3", "--stride", "coarse", "--flips"], {"scales": (2, 3), "fine": False, "flips": True}),
        (["--protocol", "table2:ten-views"], {"views": "ten"}),
    ],
)
def test_options_and_rows_of_table_2_are_what_they_say(chosen, options, classifiers, data, tmp_path, monkeypatch):
    model = of.load(classifiers[0]).with_options(**options)
    wanted = naive_errors(np.concatenate([model.classify([image])["probs"] for image in images(data)]))
    chosen = chosen if "--protocol" in chosen else [*chosen, "--protocol", "classification"]
    found = scored(monkeypatch, tmp_path, classifiers[0], "--data", f"voc:{data}", *chosen)
    (row,) = found.get("table2", [found])
    assert {name: row[name] for name in wanted} == pytest.approx(wanted)
    assert row.get("paper", "35.60").endswith("14.71") or "row" not in row


def test_options_of_merging_reach_the_model_that_is_scored(detector, data, tmp_path, monkeypatch):
    options = ["--min-score", 0.2, "--max-windows", 12, "--merge-threshold", 0.1, "--max-detections", 3, "--top-k", 1]
    chosen = {"min_score": 0.2, "max_windows": 12, "merge_threshold": 0.1, "max_detections": 3, "top_k": 1}
    arguments = [detector, "--data", f"voc:{data}", "--protocol", "detection", "--out", tmp_path, *options]
    figures = scored(monkeypatch, tmp_path, *arguments, "--arithmetic", "direct")
    report = json.loads((tmp_path / "report.json").read_text())
    assert {name: report["options"][name] for name in chosen} == chosen
    from training.evaluation.evaluate import evaluate
    from training.sources import open_source

    wanted = evaluate(of.load(detector).with_options(**chosen), open_source(f"voc:{data}"), "val", quiet=True)
    assert figures["map"] == pytest.approx(wanted["map"], nan_ok=True)


def test_a_report_has_figures_tables_and_pictures(detector, data, tmp_path, monkeypatch, capsys):
    out = tmp_path / "report"
    arguments = [detector, "--data", f"voc:{data}", "--protocol", "classification,detection", "--out", out]
    figures = scored(monkeypatch, tmp_path, *arguments)
    assert figures["ap50/eel"] is None and 0 <= figures["ap50/cat"] <= 1
    printed = capsys.readouterr().out
    assert "| eel   |      - |      - |" in printed and "| images " in printed
    report = json.loads((out / "report.json").read_text())
    assert report["figures"] == figures and report["images"] == IMAGES and report["seconds"] > 0
    assert report["options"]["scales"] == [2] and report["network"] == "tiny" and report["data"]["split"] == "val"
    # 51 x 51 of 72 x 88 pixels: of the last group but one.
    assert figures["objects"] == figures["objects/share/1_3_to_2_3"] == IMAGES and "| share/above_2_3" in printed
    pictures = ("confusion", "precision_recall", "by_score", "by_size", "reliability")
    assert {f"detection_{name}.png" for name in pictures} <= set(report["pictures"])
    assert (
        all((out / name).is_file() for name in report["pictures"])
        and printed.strip() in (out / "report.md").read_text()
    )


def test_a_report_of_one_row_has_its_options_and_pictures_and_of_all_rows_their_errors(
    classifiers, data, tmp_path, monkeypatch
):
    arguments = [classifiers[0], "--data", f"voc:{data}", "--limit", 2, "--out", tmp_path]
    scored(monkeypatch, tmp_path, *arguments, "--protocol", "table2:centre-crop")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["options"]["views"] == "centre" and "classification_confusion.png" in report["pictures"]
    assert "views=centre" in (tmp_path / "report.md").read_text()
    assert of.load(classifiers[0]).options.views == "dense"
    scored(monkeypatch, tmp_path, *arguments, "--protocol", "table2")
    assert json.loads((tmp_path / "report.json").read_text())["pictures"] == ["table2.png"]


@pytest.mark.parametrize(
    ("models", "arguments", "message"),
    [
        ("detector", ["--data", "digits"], "expected the model's 3 classes (cat, dog, eel...); digits has 10"),
        ("detector", ["--data", "voc:{data}", "--split", "empty"], "there are none"),
        ("detector", ["--data", "voc:{data}", "--split", "test"], "expected a split of"),
        ("detector", ["--data", "folder:{unboxed}"], "expected boxes to score detection by"),
        ("classifiers", ["--data", "voc:{data}", "--protocol", "fig9"], "expected a model trained for localization"),
        ("classifiers", ["--data", "voc:{data}", "--protocol", "table2:9-views"], "ten-views, 1-scale-coarse-stride"),
        ("classifiers", ["--data", "voc:{data}", "--protocol", "table2", "--flips"], "table2 without --flips"),
        (
            "detector",
            ["--data", "voc:{data}", "--protocol", "fig9", "--localize-by", "vote", "--scale-fit", "aspect"],
            "expected fig9 without --localize-by, --scale-fit: its rows set these options",
        ),
        ("detector", ["--data", "voc:{data}", "--protocol", "detect"], "did you mean 'detection'?"),
        ("detector", ["--data", "voc:{data}", "--protocol", ","], "localization, detection; got ''"),
        ("classifiers", ["--data", "voc:{data}", "--server", "localhost:1"], "expected one MODEL with --server"),
    ],
)
def test_mistakes_are_one_line(models, arguments, message, request, data, unboxed, monkeypatch, capsys):
    classifiers, detector = (request.getfixturevalue(name) for name in ("classifiers", "detector"))
    named = {"classifiers": classifiers, "detector": [detector]}[models]
    filled = [argument.format(data=data, unboxed=unboxed) for argument in arguments]
    assert run(monkeypatch, "evaluate", *named, *filled) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("overfeat: ")]
    assert len(lines) == 1 and message in lines[0]
