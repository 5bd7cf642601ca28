"""Which objects a pyramid covers, and the pyramid that is chosen for them, against loops over objects and scales."""

import numpy as np
import pytest
import tensorflow as tf
from small_run import RECIPE
from small_source import SmallSource, picture

from overfeat_tf.models.loading import read_config
from overfeat_tf.network.presets import PRESETS
from overfeat_tf.scan.pyramid import fit_scale
from training.fit import train as module
from training.fit.train import train
from training.recipes import override
from training.sources.record import Record
from training.views.coverage import (
    MAX_SCALE_FACTOR,
    MIN_SCALES,
    Objects,
    choose_scales,
    measure_coverage,
    parse_scales,
    read_objects,
)
from training.views.targets import Matching

SMALL, MATCHING = PRESETS["small"], Matching()


def objects(*shares, image=(300, 400)) -> Objects:
    """Squares whose side is so many shares of the image's longer side, or less where the image is not so high."""
    sides = np.minimum(np.outer(shares, np.full(2, max(image))) / image, 1)
    return Objects(np.tile(np.array(image, np.float32), (len(shares), 1)), sides.astype(np.float32))


def longest(one: Objects, number: int, scale) -> float:
    size, _ = fit_scale(SMALL, scale, tf.constant(one.images[number]))
    return float((size.numpy() * one.sides[number]).max()) / SMALL.window


def test_coverage_is_the_count_of_objects_that_some_scale_shows_at_a_size_to_be_found():
    some = objects(0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 0.95, 1.0)
    found = measure_coverage(some, SMALL, SMALL.scales, MATCHING)
    sizes = [[longest(some, number, scale) for scale in SMALL.scales] for number in range(8)]
    least, most = MATCHING.sizes
    assert found.objects == 8
    assert found.found == np.mean([any(least <= size <= most for size in each) for each in sizes])
    assert found.too_small == np.mean([all(size < least for size in each) for each in sizes]) > 0
    assert found.too_large == np.mean([all(size > most for size in each) for each in sizes]) > 0
    assert found.smallest == pytest.approx(0.02, abs=0.01) and found.largest == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    "low, high, image", [(0.8, 1.0, (300, 400)), (0.1, 0.9, (400, 300)), (0.3, 0.5, (500, 500)), (0.5, 1.0, (200, 800))]
)
def test_chosen_scales_cover_the_objects_twice_a_step_apart_and_none_at_the_ends_is_spare(low, high, image):
    some = objects(*np.random.default_rng(0).uniform(low, high, 300), image=image)
    scales = choose_scales(some, SMALL, MATCHING)

    def share(scales) -> float:
        return measure_coverage(some, SMALL, scales, MATCHING).found

    def enough(scales) -> bool:
        return share(scales) >= 0.98 and min(share(scales[1:]), share(scales[:-1])) >= 0.95

    assert enough(scales)
    sides = [height for height, width in scales if height == width]
    assert len(sides) == len(scales)
    np.testing.assert_allclose(np.array(sides[1:]) / sides[:-1], 1.4, rtol=0.02)
    assert len(scales) >= 3
    assert len(scales) == 3 or not (enough(scales[1:]) or enough(scales[:-1]))


def test_objects_too_small_for_any_affordable_scale_get_the_scales_that_cover_most():
    some = objects(*np.full(50, 0.004), *np.full(50, 0.2))
    found = measure_coverage(some, SMALL, choose_scales(some, SMALL, MATCHING), MATCHING)
    assert found.found == 0.5 and found.too_small == 0.5
    assert choose_scales(some, SMALL, MATCHING) == choose_scales(objects(*np.full(50, 0.2)), SMALL, MATCHING)
    none = choose_scales(objects(*np.full(50, 0.004)), SMALL, MATCHING)  # none is found, the largest scale is nearest
    assert none[-1][0] > 0.9 * MAX_SCALE_FACTOR * max(height for height, _ in SMALL.scales) and len(none) == MIN_SCALES
    assert choose_scales(objects(), SMALL, MATCHING) == SMALL.scales
    with pytest.raises(ValueError, match=r"^expected matching\.sizes in window sides .*; got \(30, 90\)$"):
        choose_scales(objects(0.5), SMALL, Matching(sizes=(30, 90)))
    assert np.isnan(measure_coverage(objects(), SMALL, SMALL.scales, MATCHING).found)


def test_many_objects_of_a_twentieth_of_the_picture_are_covered_and_what_that_costs_is_said():
    some = objects(*np.random.default_rng(0).uniform(0.06, 0.3, 300))
    found = measure_coverage(some, SMALL, choose_scales(some, SMALL, MATCHING), MATCHING)
    assert found.found >= 0.98
    area = sum(height * width for height, width in found.scales)
    assert found.cost == pytest.approx(area / sum(height * width for height, width in SMALL.scales))
    assert found.cost > 2
    assert f"takes {found.cost:.1f} times the arithmetic" in "".join(found.cost_remark())
    common = objects(*np.random.default_rng(0).uniform(0.5, 1.0, 300))
    assert "arithmetic" not in "\n".join(
        measure_coverage(common, SMALL, choose_scales(common, SMALL, MATCHING), MATCHING).lines()
    )


def test_scales_are_read_from_text():
    assert parse_scales("229x325,117") == ((117, 117), (229, 325))
    for text in ("", "big", "0", "100x", "1x2x3"):
        with pytest.raises(ValueError, match="expected scales to be auto, preset, or sizes"):
            parse_scales(text)
    with pytest.raises(ValueError, match=r"expected inference\.scales only with scales=preset"):
        override(RECIPE, ["scales=auto"])


@pytest.mark.parametrize(
    "side, advice",
    [
        (0.02, "scales=100,200x300,280x420 covers more, for 2.7 times the arithmetic; or tile the images"),
        (1.0, "scales=71,100,200x300 covers more, for 1.1 times the arithmetic"),
    ],
)
def test_too_few_covered_objects_are_warned_of_with_the_scales_that_would_cover_more(side, advice):
    objects = Objects(np.full((1, 2), 100.0, np.float32), np.full((1, 2), side, np.float32))
    preset, matching = PRESETS["tiny"], Matching(sizes=(0.42, 0.84))
    found = measure_coverage(objects, preset, ((100, 100), (200, 300)), matching)
    assert [*found.warning("auto")] == [f"fewer than 95% of the objects are covered: --set {advice}"]
    enough = measure_coverage(objects, preset, ((round(0.6 * preset.window / side),) * 2,), matching)
    assert enough.found == 1 and not [*enough.warning("auto")]


def test_a_run_keeps_the_scales_that_were_chosen_from_its_boxes_and_says_what_they_cover(tmp_path, monkeypatch, caplog):
    boxes = [[0.0, 0.0, 1.0, 1.0]] * 3 + [[0.1, 0.1, 0.9, 0.9]] * 3
    records = [Record.of_objects(picture(60, 60, [(5, 5, 50, 50)]), f"{n}", [box], [0]) for n, box in enumerate(boxes)]
    crowd = Record.of_objects(picture(60, 60), "crowd", [[0.0, 0.0, 0.1, 0.1]], [0], crowd=[True])
    source = SmallSource({"train": [*records, crowd]})
    assert len(read_objects(source, "train").sides) == 6
    monkeypatch.setattr(module, "_fit", lambda *_: ({}, {}))
    caplog.set_level("INFO")
    recipe = override(RECIPE, ["inference.scales=None", "scales=auto"])
    model = train(recipe, source, tmp_path / "auto", ["localization"]).model
    chosen = choose_scales(read_objects(source, "train"), PRESETS["tiny"], recipe.matching)
    assert model.network.preset.scales == chosen != PRESETS["tiny"].scales
    assert read_config(tmp_path / "auto")["model"]["preset"]["scales"] == [list(scale) for scale in chosen]
    assert any("100.0% of 6 objects" in line for line in caplog.messages) and "fewer than" not in caplog.text
    assert train(recipe, source, tmp_path / "auto", ["localization"]).model.network.preset.scales == chosen  # resumed
    train(override(RECIPE, ["inference.scales=None", "scales=276"]), source, tmp_path / "given", ["localization"])
    assert "fewer than 95% of the objects are covered: --set scales=auto" in caplog.text


def test_what_a_pyramid_for_small_objects_costs_is_said_as_the_run_begins(tmp_path, monkeypatch, caplog):
    records = [
        Record.of_objects(picture(300, 300), f"{n}", [[0.1, 0.1, 0.1 + side, 0.1 + side]], [0])
        for n, side in enumerate((0.03, 0.04, 0.06, 0.1))
    ]
    monkeypatch.setattr(module, "_fit", lambda *_: ({}, {}))
    caplog.set_level("INFO")
    recipe = override(RECIPE, ["inference.scales=None", "scales=auto"])
    model = train(recipe, SmallSource({"train": records}), tmp_path / "run", ["localization"]).model
    areas = [sum(h * w for h, w in preset.scales) for preset in (model.network.preset, PRESETS["tiny"])]
    assert areas[0] > 2 * areas[1]
    assert f"takes {areas[0] / areas[1]:.1f} times the arithmetic of the network's own" in caplog.text


def test_one_class_needs_no_classification_stage_before_detection(tmp_path, monkeypatch):
    boxes = [[0.1, 0.1, 0.9, 0.9]]
    source = SmallSource({"train": [Record.of_objects(picture(60, 60), "a", boxes, [0])]}, class_names=("raccoon",))
    fitted, scored = [], []

    def noted(stage, *arguments):
        fitted.append(stage)
        scored.append({*arguments[-2].scored})
        return {}, {}

    monkeypatch.setattr(module, "_fit", noted)
    assert train(RECIPE, source, tmp_path / "all").model.tasks == ("classification", "localization", "detection")
    assert fitted == ["localization", "detection"]
    assert scored[0] == {"detection"}  # before it, all windows vote for the only class
    train(RECIPE, source, tmp_path / "alone", ["classification"])
    assert fitted[2:] == ["classification"]
