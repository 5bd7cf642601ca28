"""`overfeat predict --server` against the embedded server: files in, answers in order, a bad file its own row only."""

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_model import png

from overfeat_tf.cli import main
from overfeat_tf.cli.predict.outputs import unique_stems
from overfeat_tf.draw.pictures import draw_boxes
from overfeat_tf.merge.calibration import displayed
from overfeat_tf.models.loading import load
from serving.export.exporter import export
from training import progress


def _predict(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["overfeat", "predict", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0


def test_a_file_that_cannot_be_answered_costs_its_own_row_only(
    server, max_bytes, tmp_path, monkeypatch, capsys, caplog
):
    # The small model fails a whole request for one bad image, as models without a status do.
    images, out = tmp_path / "images", tmp_path / "answers.json"
    images.mkdir()
    for number in range(20):
        (images / f"{number:02}.png").write_bytes(png(number, (4 + number, 6)))
    (images / "05.png").write_bytes(b"no image")
    (images / "09.png").write_bytes(bytes(max_bytes + 1))
    (images / "17.png").write_bytes(b"")
    asked = ["--server", server.address, "--out", tmp_path / "out", "--json", out]
    caplog.set_level(logging.INFO, progress.__name__)
    monkeypatch.setattr(progress, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(progress, "GROWTH", 0.0)
    files = sorted(images.iterdir())
    assert _predict(monkeypatch, "m", *files, *asked) == 1
    rows = json.loads(out.read_text())
    assert [Path(row["file"]).name for row in rows] == [file.name for file in files]
    bad = {Path(row["file"]).stem: row["status"] for row in rows if row["status"]}
    assert bad.keys() == {"05", "09", "17"}
    assert "larger than max" in bad["09"]
    for row in rows:
        number = int(Path(row["file"]).stem)
        if row["status"]:
            assert row["objects"] == [] and "picture" not in row
        else:
            (thing,) = row["objects"]
            assert thing["score"] == pytest.approx(number / 255, abs=1e-6) and Path(row["picture"]).is_file()
    assert "05.png: Unknown image file format" in capsys.readouterr().err
    assert any(line.startswith("20 of 20 images") for line in caplog.messages)


def test_pictures_show_what_reaches_the_display_threshold(model, images, tmp_path, monkeypatch):
    model = replace(model.with_options(scales=(4,)), tasks=("detection",))
    exported = export(model, tmp_path / "pets")
    (tmp_path / "a.png").write_bytes(images[0])
    scores = model.detect(images[:1])["detection_scores"][0]
    scores = scores[scores > 0]
    out, drawn = tmp_path / "answers.json", []
    loaded = load(exported)
    monkeypatch.setattr("overfeat_tf.cli.predict.run.load", lambda *_: loaded)
    monkeypatch.setattr(
        "overfeat_tf.cli.predict.outputs.draw_boxes",
        lambda data, answer, least_score, **options: (
            drawn.append(least_score) or draw_boxes(data, answer, None, least_score, **options)
        ),
    )
    middle = float(np.median(scores))  # so that some are shown and some are not
    every = ("--several-per-object", "--threshold", middle)
    for asked, threshold in [((), 0.42), (("--threshold", middle), middle), (every, middle)]:
        assert (
            _predict(monkeypatch, exported, tmp_path / "a.png", "--out", tmp_path / "out", "--json", out, *asked) == 0
        )
        found = json.loads(out.read_text())[0]["objects"]
        assert [one["score"] for one in found] == pytest.approx(scores.tolist(), rel=1e-4)
        shown = [one["shown"] for one in found]
        if asked == every:
            assert shown == [one["score"] >= threshold for one in found]
        else:
            boxes = np.array([one["box"] for one in found], np.float32)
            assert shown == displayed(boxes, np.array([one["score"] for one in found]), threshold).tolist()
        assert drawn.pop() == threshold
    assert {one["shown"] for one in found} == {True, False}


def test_files_that_vanish_are_rows_too_and_none_is_sent(server, tmp_path, monkeypatch, capsys):
    (tmp_path / "a.png").write_bytes(png())
    files = [tmp_path / "a.png"]
    monkeypatch.setattr("overfeat_tf.cli.predict.inputs.find_files", lambda *_: [*files, tmp_path / "gone.png"])
    out = tmp_path / "answers.json"
    asked = ["--server", server.address, "--out", tmp_path / "out", "--json", out]
    assert _predict(monkeypatch, "m", "x", *asked) == 1
    good, gone = json.loads(out.read_text())
    assert good["objects"] and gone["objects"] == [] and "No such file" in gone["status"]
    files.clear()
    assert _predict(monkeypatch, "m", "x", *asked) == 1
    assert "gone.png: No such file" in capsys.readouterr().err


def test_credentials_are_for_servers(tmp_path, monkeypatch, capsys):
    (tmp_path / "token").write_text("secret")
    assert _predict(monkeypatch, "m", "x.png", "--token-file", tmp_path / "token") == 2
    assert "expected --server with --token-file; got none" in capsys.readouterr().err
    assert _predict(monkeypatch, "m", __file__, "--server", "h.example:1", "--token-file", tmp_path / "token") == 2
    error = capsys.readouterr().err
    assert "expected --ca-cert with a token" in error and "secret" not in error


def test_a_version_is_asked_by_number_or_label(server, tmp_path, monkeypatch, capsys):
    (tmp_path / "a.png").write_bytes(png())
    out = tmp_path / "answers.json"
    asked = ["m", tmp_path / "a.png", "--server", server.address, "--out", tmp_path / "out", "--json", out]
    for chosen, entity in [([], "dog"), (["--version", 1], "cat"), (["--label", "stable"], "cat")]:
        assert _predict(monkeypatch, *asked, *chosen) == 0
        assert json.loads(out.read_text())[0]["objects"][0]["label"] == entity  # each version calls its own
    assert _predict(monkeypatch, *asked, "--version", 1, "--label", "stable") == 2
    assert "expected either --version or --label; got both" in capsys.readouterr().err


def test_pictures_of_a_hundred_thousand_files_of_one_name_are_named_apart():
    files = [Path(f"{number}/same/x.jpg") for number in range(100_000)]
    stems = unique_stems(files)  # a look at all others for each would take minutes
    assert len(set(stems.values())) == len(files) and stems[files[0]] == "same_x"
