"""A model that was trained, scored by our metrics and by other implementations on the same answers."""

from dataclasses import replace

import numpy as np
import pytest
from independent import by_pycocotools, by_the_kit, overlap
from small_run import RECIPE
from small_source import coloured_rectangles

from training.evaluation.evaluate import evaluate
from training.fit.train import train

pytestmark = pytest.mark.long
STAGES = {"classification": 100, "detection": 200}  # and their steps


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A run of a few steps on few pictures, what it answers, and its figures."""
    source = coloured_rectangles()
    few = {name: replace(getattr(RECIPE, name), steps=steps, epochs=1) for name, steps in STAGES.items()}
    recipe = replace(RECIPE, **few, val_split="none")
    model = train(recipe, source, tmp_path_factory.mktemp("runs") / "scored", list(STAGES)).model
    model = model.with_options(
        scales=(1, 2, 3), min_score=0.02, max_windows=80
    )  # so little training gives faint scores
    pairs: dict[str, list] = {"detection": [], "localization": []}
    callbacks = {name: [lambda *pair, name=name: pairs[name].append(pair)] for name in pairs}
    protocols = ("classification", "localization", "detection")
    return source, pairs, evaluate(model, source, "train", protocols, quiet=True, callbacks=callbacks)


def test_map_is_pycocotools_and_voc_the_kits_own(scored, tmp_path):
    source, pairs, figures = scored
    found = pairs["detection"]
    assert sum(int(answer["num_detections"]) for _, answer in found) > 3
    assert 0 < figures["map50"] < 1
    stats = by_pycocotools(found, source.class_names, tmp_path)
    assert [figures["map"], figures["map50"], figures["map75"]] == pytest.approx(stats[:3].tolist(), abs=1e-9)
    kit = np.array([by_the_kit(found, label, "voc") for label in range(3)])
    own = [figures[f"voc_ap/{name}"] for name in source.class_names]
    np.testing.assert_allclose(own, kit[:, 1], atol=1e-9)
    np.testing.assert_allclose([figures["voc07_map"], figures["voc_map"]], np.nanmean(kit, axis=0), atol=1e-9)
    det = [by_the_kit(found, label, "ilsvrc")[1] for label in range(3)]
    assert figures["ilsvrc_map"] == pytest.approx(np.nanmean(det), abs=1e-9)


def test_errors_are_those_of_a_naive_count(scored):
    _, pairs, figures = scored
    with_objects = [pair for pair in pairs["localization"] if len(pair[0].labels)]
    for guesses in (1, 5):
        missed = misplaced = 0
        for truth, answer in with_objects:
            ranks = range(min(guesses, int(answer["num_detections"])))
            named = [int(answer["detection_classes"][i]) - 1 for i in ranks]
            missed += not set(named) & set(truth.labels.tolist())
            misplaced += not any(
                truth.labels[j] == named[i] and overlap(answer["detection_boxes"][i], truth.boxes[j]) >= 0.5
                for i in ranks
                for j in range(len(truth.labels))
            )
        assert figures[f"top{guesses}_error"] == pytest.approx(missed / len(with_objects))
        assert figures[f"localization{guesses}_error"] == pytest.approx(misplaced / len(with_objects))
    assert figures["top5_error"] < 1
