"""The ladder: valid variants, tables, pictures, and a run that resumes."""

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from overfeat_tf.cli.benchmarks.ladder import measure as benchmark
from overfeat_tf.cli.benchmarks.ladder.choices import LADDERS, Choice, Ladder, Variant
from overfeat_tf.cli.benchmarks.ladder.measure import ROW, draw
from overfeat_tf.network.presets import PRESETS
from overfeat_tf.options import InferenceOptions
from training.evaluation.evaluate import PROTOCOLS
from training.recipes import get_recipe, override
from training.sources.record import Record

CHOICES = [(ladder, choice) for ladder in LADDERS.values() for choice in ladder.choices]
SOURCE = SimpleNamespace(name="two", class_names=("a", "b"), splits=("train", "val"))
SHORT = ("classification.steps=3", "localization.steps=2", "detection.steps=7", "validation_images=2")


@pytest.mark.parametrize(("ladder", "choice"), CHOICES)
def test_every_variant_is_valid_and_differs_from_the_others(ladder: Ladder, choice: Choice):
    assert choice.protocol in PROTOCOLS and choice.protocol in ladder.stages
    configs = []
    for variant in choice.variants:
        recipe = override(get_recipe(ladder.recipe), [*ladder.pinned, *ladder.settings, *variant.settings])
        options: InferenceOptions = replace(recipe.inference, **variant.changes)
        if recipe.preset in PRESETS:  # of a backbone the scales follow from the data
            options.scale_sizes(PRESETS[recipe.preset])
        configs.append((recipe, options, variant.suppress, variant.committee, variant.fixed_box))
    assert all(configs.count(each) == 1 for each in configs)


def test_tables_have_means_spreads_and_differences_within_a_seed():
    found = {
        "Stride": {
            "fine": {"map50": [0.5, 0.7, 0.6]},
            "coarse": {"map50": [0.4, 0.5, 0.6]},
            "together": {"map50": [0.8]},
        }
    }
    assert benchmark.as_markdown({"found": found}).splitlines() == [
        "**Stride**",
        "",
        "| variant | map50 | difference |",
        "| --- | --- | --- |",
        "| fine | 0.600 (0.500 to 0.700) |  |",
        "| coarse | 0.500 (0.400 to 0.600) | -0.100 (-0.200 to +0.000) |",
        "| together | 0.800 | +0.200 (+0.100 to +0.300) |",
    ]


def test_the_picture_has_a_row_per_variant(tmp_path):
    two = {"map50": [0.5, 0.7], "map": [0.3, 0.4]}
    heights = []
    for variants in (2, 12):
        found = {
            "Stride": {f"variant {number}": two for number in range(variants)},
            "Together": {"a": two, "b": {"map50": [1.0], "map": [1.0]}},
        }
        draw({"ladder": "digits", "seeds": [0, 1], "found": found}, tmp_path / "ladder.png")
        with Image.open(tmp_path / "ladder.png") as picture:
            heights.append(picture.height)
    assert heights[1] - heights[0] == pytest.approx(10 * ROW * 110, abs=2)


@pytest.mark.parametrize(("error", "colour"), [(0.023, "tab:blue"), (0.01, "tab:green"), (0.06, "tab:red")])
def test_a_committee_is_compared_with_each_member(error, colour, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    members, committee = ({"top1_error": values, "top5_error": values} for values in ([0.017, 0.052, 0.034], [error]))
    found = {"Committee": {"one network": members, "committee": committee}}
    draw({"ladder": "digits", "seeds": [0, 1, 2], "found": found}, tmp_path / "ladder.png")
    line = next(line for line in drawn[0].axes[0].lines if line.get_ydata()[0] == 2 and len(line.get_xdata()) == 2)
    assert line.get_color() == colour
    assert sorted(line.get_xdata()) == pytest.approx([error - 0.052, error - 0.017])


def test_the_ticks_of_the_picture_keep_apart(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    two = {"map50": [0.5, 0.7], "map": [0.3, 0.4]}
    longest = max((choice.name for _, choice in CHOICES), key=len)
    draw({"ladder": "digits", "seeds": [0, 1], "found": {longest: {"a": two, "b": two}}}, tmp_path / "ladder.png")
    drawn[0].canvas.draw()
    for axes in drawn[0].axes:
        boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
        assert all(one.x1 + one.width / 2 < other.x0 for one, other in pairwise(boxes))


def test_a_folder_has_its_settings_before_a_run_is_trained(tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        benchmark.measure("digits", None, tmp_path, [0])
    with pytest.raises(ValueError, match=r"^expected the settings that .* began with"):
        benchmark.measure("digits", None, tmp_path, [0], ["negatives=random"])


def test_results_on_one_backbone_are_not_taken_for_those_of_another(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "open_source", lambda _: SOURCE)
    monkeypatch.setitem(LADDERS, "finetune", replace(LADDERS["finetune"], choices=()))
    assert benchmark.measure("finetune", "two", tmp_path, [0], backbone="mine/small.keras")["backbone"] == "small"
    benchmark.measure("finetune", "two", tmp_path, [0], backbone="small.keras")
    with pytest.raises(ValueError, match=r"^expected the backbone that .* began with"):
        benchmark.measure("finetune", "two", tmp_path, [0])


def test_with_one_class_there_is_no_choice_of_classifiers(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "open_source", lambda _: SimpleNamespace(**vars(SOURCE) | {"class_names": ("a",)}))
    monkeypatch.setattr(benchmark, "_score", lambda ladder, choice, *_: {figure: [0.5] for figure in ("map50", "map")})
    found = benchmark.measure("voc", "one", tmp_path, [0])["found"]
    assert {*found} == {choice.name for choice in LADDERS["voc"].choices} - {"Committee (Table 2)"}


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"^expected a ladder, one of digits, .*; got 'nope'$"):
        benchmark.measure("nope", None, tmp_path, [0])
    with pytest.raises(ValueError, match=r"^expected --data SOURCE: "):
        benchmark.measure("voc", None, tmp_path, [0])
    with pytest.raises(ValueError, match=r"^expected a split of digits, one of .*; got 'vale'; did you mean 'val'"):
        benchmark.measure("digits", None, tmp_path, [0], ["val_split=vale"])
    with pytest.raises(ValueError, match=r"^expected --backbone with the ladder 'finetune'; got 'digits'$"):
        benchmark.measure("digits", None, tmp_path, [0], backbone="ResNet50V2")


def test_a_fixed_box_stands_in_for_the_regressors():
    records = [Record.of_objects(b"", "", [[0.2, 0.2, 0.8, 0.8]], [1])]
    source = SimpleNamespace(
        name="one", class_names=("a", "b"), boxed=True, splits=("train", "val"), records=lambda *_: iter(records)
    )
    guess = {"num_detections": 1, "detection_classes": [2.0], "detection_boxes": [[0, 0, 0.1, 0.1]], "status": b""}
    answer = {key: np.array([value]) for key, value in guess.items()}
    model = SimpleNamespace(localize=lambda images: answer, concurrency=1)
    for fixed, error in ((False, 1.0), (True, 0.0)):
        images = benchmark.EvaluationSet(source, "val", None)
        found = benchmark._figures(model, "localization", Variant("", fixed_box=fixed), images)
        assert found["localization1_error"] == found["localization5_error"] == error


@pytest.mark.long
def test_a_ladder_is_measured_and_resumed(tmp_path, monkeypatch):
    stride = Choice("Stride", "detection", (Variant("fine"), Variant("coarse", changes={"fine": False})))
    more = (
        stride,
        Choice("Combining", "detection", (Variant("merging"), Variant("suppression", suppress=0.5))),
        Choice("Negatives", "detection", (Variant("offending"), Variant("random", ("negatives=random",)))),
        Choice("Together", "classification", (Variant("alone"), Variant("committee", committee=True))),
    )
    ladder = replace(LADDERS["digits"], settings=SHORT, choices=more)
    monkeypatch.setitem(LADDERS, "digits", replace(ladder, choices=(stride,)))
    begun = benchmark.measure("digits", None, tmp_path, [0, 1], limit=4)
    monkeypatch.setitem(LADDERS, "digits", ladder)
    monkeypatch.setattr(benchmark, "describe_machine", lambda: pytest.fail("started again"))
    found = benchmark.measure("digits", None, tmp_path, [0, 1], limit=4)["found"]
    assert found["Stride"] == begun["found"]["Stride"]
    assert [len(found["Together"][variant]["top1_error"]) for variant in ("alone", "committee")] == [2, 1]
    assert {run.name for run in tmp_path.glob("*-[01]")} == {
        f"{name}-{seed}" for name in ("base", "classification", "negatives-random") for seed in (0, 1)
    }
    with pytest.raises(ValueError, match=r"^expected the limit that .* began with"):
        benchmark.measure("digits", None, tmp_path, [0, 1], limit=5)
