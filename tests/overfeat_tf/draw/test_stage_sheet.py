"""Stages: what is shown of an answer's making is what made it, and the sheet is a picture to look at."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from command_line import run
from small_network import LABELS, OPTIONS, encode, picture

from overfeat_tf import boxes as box_ops
from overfeat_tf.cli.predict.outputs import stages_stem, unique_stems
from overfeat_tf.draw.stages import StagedModel, at_coarse_stride, draw_stages, heat_map, most_important
from overfeat_tf.merge.accumulation import merge
from overfeat_tf.models.model import Model
from overfeat_tf.scan.dense_scan import scan

IMAGE = picture(90, 120)


@pytest.fixture(scope="module")
def model(network):
    return Model(network, LABELS, OPTIONS)


def with_tasks(model, *tasks, **options):
    return replace(model, tasks=tasks, options=replace(OPTIONS, **options))


@pytest.fixture(scope="module")
def detected(model):
    return StagedModel(model)(encode(IMAGE))


@pytest.mark.parametrize(
    ("task", "call"), [("detection", "detect"), ("localization", "localize"), ("classification", "classify")]
)
def test_the_staged_answer_is_the_answer(model, task, call):
    staged = StagedModel(with_tasks(model, task))
    answer, stages = staged(encode(IMAGE))
    plain = getattr(model, call)([encode(IMAGE)])
    assert staged.task == task and (stages.candidates is None) == (task == "classification")
    assert answer.keys() == plain.keys()
    for key, values in plain.items():
        if values.dtype == object:
            assert np.array_equal(answer[key], values[0])
        else:
            np.testing.assert_allclose(answer[key], values[0], atol=1e-5)


def test_the_candidates_merged_are_the_detections(detected):
    answer, stages = detected
    sides = np.array([90, 120, 90, 120], np.float32)
    boxes, scores, classes, views = stages.candidates
    merged = merge(box_ops.clip(boxes) * sides, scores, classes, OPTIONS.merge_threshold)
    count = int(answer["num_detections"])
    assert 1 < count < len(scores) and set(views) == {0, 1, 2}
    found = merged.scores.numpy()[:count]
    np.testing.assert_allclose(answer["detection_scores"][:count], found / (1 + found), rtol=1e-5)
    np.testing.assert_allclose(answer["detection_boxes"][:count], merged.boxes[:count] / sides, atol=1e-5)


def test_each_candidate_is_a_window_of_its_view(detected):
    _, stages = detected
    for box, view in zip(stages.candidates.boxes, stages.candidates.views, strict=True):
        assert (stages.scans[view].boxes.reshape(-1, 4) == box).all(axis=-1).any()


@pytest.mark.parametrize("flips", [False, True])
def test_raw_scores_are_those_of_a_coarse_scan(model, flips):
    options = replace(OPTIONS, flips=flips)
    fine, coarse = (scan(model.network, tf.constant(IMAGE), replace(options, fine=fine)) for fine in (True, False))
    for left, right in zip(fine, coarse, strict=True):
        for values, expected in zip(at_coarse_stride(left, model.network.preset.last_pool), right, strict=True):
            np.testing.assert_allclose(values, expected, atol=1e-4)


def test_windows_cover_the_image_from_its_first_pixel_at_the_stride(model):
    preset = model.network.preset
    (plain, mirrored) = scan(model.network, tf.constant(IMAGE), replace(OPTIONS, scales=(3,), flips=True))
    windows = plain.windows.numpy()
    size = preset.window / windows[0, 0, 2:]
    np.testing.assert_allclose(windows[0, 0, :2], 0)
    np.testing.assert_allclose((windows[1, 1] - windows[0, 0])[:2] * size, preset.stride(), rtol=1e-5)
    np.testing.assert_allclose(mirrored.windows, box_ops.flip(plain.windows), atol=1e-6)


def test_heat_maps_are_the_scans_scores_left_to_right(model):
    for one in StagedModel(with_tasks(model, "detection", scales=(1,), flips=True))(encode(IMAGE))[1].scans:
        best, scores = heat_map(one, (3, 1), background=True)
        softmax = tf.nn.softmax(one.logits).numpy()[..., [3, 1]]
        ordered = softmax if one.windows[0, 0, 1] < one.windows[0, -1, 1] else softmax[:, ::-1]
        np.testing.assert_allclose(scores, ordered.max(axis=-1), rtol=1e-5)
        assert (best == np.where(ordered[..., 0] >= ordered[..., 1], 3, 1)).all()


@pytest.mark.parametrize(
    ("tasks", "options"),
    [
        pytest.param(("detection",), {}, marks=pytest.mark.long),
        (("detection",), {"scales": (3,), "min_score": 1.0}),  # nothing found
        (("localization",), {"scales": (1, 2), "flips": True, "fine": False}),
        pytest.param(("classification",), {}, marks=pytest.mark.long),
        (("classification",), {"scales": (2,)}),
    ],
)
def test_the_sheet_is_a_picture_of_sane_size(model, tasks, options):
    chosen = with_tasks(model, *tasks, **options)
    strange = replace(chosen, labels=("$x_{", "a name longer than any label's room", "狗"))
    _, stages = StagedModel(strange)(encode(IMAGE))
    sheet = draw_stages(encode(IMAGE), stages, strange, 0.3)
    assert 500 < sheet.width < 3000 and 200 < sheet.height < 3000
    assert len(np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)) > 50


def test_the_classes_shown_are_the_merged_ones_or_else_the_most_voted(detected):
    _, stages = detected
    assert most_important(stages, True) == tuple(dict.fromkeys(stages.merged.classes.tolist()))
    nothing = stages.merged._replace(classes=np.zeros([0], np.int32))
    assert sorted(most_important(stages._replace(merged=nothing), True)) == [1, 2, 3]


def test_only_a_run_with_dense_views_has_stages(model):
    with pytest.raises(ValueError, match=r"expected a run .* SavedModel"):
        StagedModel(object())
    with pytest.raises(ValueError, match=r"expected dense views .* 'ten'"):
        StagedModel(model.with_options(views="ten"))
    with pytest.raises(ValueError, match="expected one network"):
        StagedModel(replace(model, others=(model.network,)))


def test_the_verb_writes_a_sheet_beside_each_picture(model, tmp_path, monkeypatch, capsys):
    folder, out, answers = tmp_path / "run", tmp_path / "out", tmp_path / "answers.json"
    model.save_weights(folder / "weights")
    (folder / "config.json").write_text(json.dumps({"model": model.config()}))
    images = tmp_path / "images"
    images.mkdir()
    (images / "good.png").write_bytes(encode(IMAGE))
    (images / "bad.png").write_bytes(b"no image")
    assert run(monkeypatch, "predict", folder, images, "--stages", "--out", out, "--json", answers) == 1
    assert sorted(path.name for path in out.iterdir()) == ["good.png", "good.stages.png"]
    bad, good = json.loads(answers.read_text())
    assert good["stages"] == str(out / "good.stages.png") and good["objects"] and "stages" not in bad
    assert "bad.png: expected JPEG" in capsys.readouterr().err
    assert run(monkeypatch, "predict", "name", images, "--stages", "--server", "127.0.0.1:1", "--out", out) == 2
    assert "expected no --stages with --server" in capsys.readouterr().err


def test_no_sheet_is_written_over_a_picture():
    stems = unique_stems([Path("a.jpg"), Path("a.stages.jpg")]).values()
    assert len({*stems, *map(stages_stem, stems)}) == 4
