"""Recipes by name, and strict changes to them."""

import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
from small_source import SmallSource
from step_work import step_multiply_adds

from overfeat_tf.models.loading import read_config
from overfeat_tf.models.model import TASKS
from overfeat_tf.network.presets import get_preset
from training.recipes import RECIPES, Recipe, Schedule, get_recipe, override, read_recipe
from training.recipes.settings import describe
from training.sources.record import Record

SCHEDULE = Schedule(steps=600, batch=32, learning_rate=0.05)
RECIPE = Recipe("mine", None, "tiny", SCHEDULE, SCHEDULE, SCHEDULE, side=96)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_goes_by_its_name_and_fits_its_network(name):
    recipe = get_recipe(name)
    assert recipe.name == name
    preset = replace(recipe, weights=None).network
    assert recipe.inference.scale_sizes(preset)
    assert recipe.side >= preset.smallest_input if recipe.fine else recipe.side >= preset.window
    assert json.loads(json.dumps(asdict(recipe)))["preset"] == recipe.preset


def test_the_channels_of_the_heads_are_the_networks_own_unless_set():
    recipe = get_recipe("digits")
    wide = override(recipe, ["classifier_channels=20,30", "regressor_channels=40,50"])
    assert wide.network == replace(recipe.network, full=(20, 30), regressor=(40, 50))
    assert [row.channels for row in wide.network.head("regressor", 4)] == [40, 50, 4]


@pytest.mark.parametrize("name, window", [("fast", 231), ("accurate", 221)])
def test_the_papers_recipe_has_the_papers_numbers(name, window):
    recipe = get_recipe(f"imagenet-{name}")
    preset, schedule = get_preset(recipe.preset), recipe.classification
    assert (preset.window, preset.shorter_side, preset.init_std, preset.dropout) == (window, 256, 0.01, 0.5)
    assert (schedule.momentum, schedule.weight_decay, schedule.decay) == (0.6, 1e-5, "l2")
    assert (schedule.learning_rate, schedule.factor, schedule.drop_epochs) == (5e-2, 0.5, (30, 50, 60, 70, 80))
    assert schedule.batch == 128 and schedule.clip is None
    options = recipe.inference
    assert (options.flips, options.merge_average, options.localize_by) == (True, "plain", "accumulated")
    assert recipe.views.plain and recipe.views.mirror and recipe.views.per_image == 5
    assert round(step_multiply_adds(recipe, "classification", 1000) / 1e12, 2) == {"fast": 1.08, "accurate": 2.06}[name]


@pytest.mark.parametrize("name", [name for name in RECIPES if name.endswith(("-fast", "-accurate"))])
def test_docstrings_tell_the_steps_work_and_the_time_of_all(name):
    classes = {"imagenet": 1000, "voc": 20, "coco": 80}[name.split("-")[0]]
    recipe, said = get_recipe(name), RECIPES[name].__doc__
    work = [step_multiply_adds(recipe, stage, classes) / 1e12 for stage in TASKS]
    assert re.findall(r"(\d\.\d\d) T", said) == [f"{tera:.2f}" for tera in work]
    hours = sum(tera * getattr(recipe, stage).steps for tera, stage in zip(work, TASKS, strict=True)) / 10 / 3600
    assert re.findall(r"(\d+) hours in all at 10 T a second", said) == [f"{hours:.0f}"]


def test_a_run_of_an_earlier_version_is_still_the_same_recipe():
    now = json.loads(json.dumps(asdict(RECIPE)))
    began = json.loads(json.dumps(asdict(RECIPE)))
    del began["context"], began["classification"]["decay"], began["views"]["plain"]
    del began["detection"]["drop_epochs"], began["negatives_per_object"], began["negatives_at_least"]
    del began["inference"]["scale_fit"], began["inference"]["localize_by"]
    assert json.loads(json.dumps(asdict(read_recipe(began)))) == now
    assert read_recipe(now | {"versions": {}}) == RECIPE
    with pytest.raises(ValueError, match=r"^expected a run of this version [^;]*; it has the setting 'views\.new'$"):
        read_recipe(now | {"views": {"new": 1}})


def test_names_of_an_earlier_version_are_read_as_those_of_this_one(tmp_path):
    inference = replace(RECIPE.inference, arithmetic="winograd")
    recipe = replace(RECIPE, box_form="center_size", inference=inference)
    began = json.loads(json.dumps(asdict(recipe)))
    for stage in TASKS:
        began[stage]["rate"] = began[stage].pop("learning_rate")
        began[stage]["backbone_rate"] = began[stage].pop("backbone_multiplier")
    began["views"]["whole"] = began["views"].pop("whole_image")
    began["box_form"], began["inference"]["arithmetic"] = "centre_size", "transformed"
    labels = ["rate", "whole", "transformed", "centre_size"]  # a user's own, which stay
    model = {"labels": labels, "box_form": "centre_size", "options": {"arithmetic": "transformed"}}
    (tmp_path / "config.json").write_text(json.dumps({"model": model, "training": began}))
    config = read_config(tmp_path)
    assert read_recipe(config["training"]) == recipe
    assert config["model"] == {"labels": labels, "box_form": "center_size", "options": {"arithmetic": "winograd"}}


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(ValueError, match=r"^expected a recipe, one of digits.*; got 'digit'; did you mean 'digits'\?$"):
        get_recipe("digit")


@pytest.mark.parametrize(
    "setting, path, value",
    [
        ("seed=7", "seed", 7),
        ("side = 128", "side", 128),
        ("preset=fast", "preset", "fast"),
        ("data=voc:/a=b,c", "data", "voc:/a=b,c"),
        ("data=None", "data", None),
        ("per_class=True", "per_class", True),
        ("box_loss=giou", "box_loss", "giou"),
        ("through_features=true", "through_features", True),
        ("context=true", "context", True),
        ("box_form=center_size", "box_form", "center_size"),
        ("fine=false", "fine", False),
        ("views.mirror=True", "views.mirror", True),
        ("negatives_per_object=5", "negatives_per_object", 5),
        ("inference.scale_fit=exact", "inference.scale_fit", "exact"),
        ("box_weight=2", "box_weight", 2.0),
        ("detection.learning_rate=1e-3", "detection.learning_rate", 1e-3),
        ("detection.steps=2000", "detection.steps", 2000),
        ("detection.drops=0.5,.9", "detection.drops", (0.5, 0.9)),
        ("detection.drops=[0.5]", "detection.drops", (0.5,)),
        ("detection.drop_epochs=1,2.5", "detection.drop_epochs", (1.0, 2.5)),
        ("detection.clip=None", "detection.clip", None),
        ("detection.drops=()", "detection.drops", ()),
        ("matching.sizes=(0.3, 0.9)", "matching.sizes", (0.3, 0.9)),
        ("inference.scales=1,2,4", "inference.scales", (1, 2, 4)),
        ("inference.scales=3", "inference.scales", (3,)),
        ("inference.scales=None", "inference.scales", None),
    ],
)
def test_a_setting_changes_one_value_and_keeps_its_type(setting, path, value):
    changed = override(RECIPE, [setting])
    outer, _, inner = path.partition(".")
    found = getattr(changed, outer)
    if inner:
        assert found == replace(getattr(RECIPE, outer), **{inner: value})
        found = getattr(found, inner)
    assert found == value and type(found) is type(value)
    assert changed == replace(RECIPE, **{outer: getattr(changed, outer)})


def test_settings_add_up_and_the_last_one_wins():
    changed = override(RECIPE, ["detection.steps=10", "detection.batch=2", "seed=1", "seed=2"])
    assert (changed.detection.steps, changed.detection.batch, changed.seed) == (10, 2, 2)
    assert override(RECIPE, []) == RECIPE


def test_settings_that_do_together_come_in_any_order():
    for settings in (
        ["detection.batch=30", "detection.accumulate=5"],
        ["detection.accumulate=5", "detection.batch=30"],
    ):
        assert override(RECIPE, settings).detection.accumulate == 5


def test_steps_that_are_asked_for_do_not_follow_from_passes():
    recipe = get_recipe("finetune")
    assert override(recipe, ["detection.steps=50"]).detection.sized(1000).steps == 50
    assert override(recipe, ["detection.steps=500", "detection.passes=1"]).detection.sized(1600).steps == 200
    assert override(recipe, ["localization.steps=50"]).detection == recipe.detection


@pytest.mark.parametrize(
    "setting, message",
    [
        ("seeds=1", "expected a key of the recipe; got 'seeds'; did you mean 'seed'?"),
        ("detection.step=1", "got 'detection.step'; did you mean 'detection.steps'?"),
        ("detectio.steps=1", "got 'detectio.steps'; did you mean 'detection.steps'?"),
        ("per_image=1", "got 'per_image'; there is views.per_image"),
        ("detection.rate=1", "got 'detection.rate'; there is detection.learning_rate"),
        ("clip=1", "got 'clip'; there is classification.clip, localization.clip, detection.clip"),
        ("zzz=1", "expected a key of the recipe; got 'zzz'; there is name, data, preset, classification.*, "),
        ("seed", "expected key=value; got 'seed'"),
        ("=1", "expected a key of the recipe; got ''; there is name, data, "),
        ("detection=5", "expected a key of the recipe; got 'detection'; there is detection.steps, detection.batch, "),
        ("seed.x=5", "expected a key of the recipe; got 'seed.x'; did you mean 'seed'?"),
        ("seed=1.5", "expected seed to be of type int, like 0; got '1.5'"),
        ("seed=true", "expected seed to be of type int, like 0; got 'true'"),
        ("fine=1", "expected fine to be of type bool, like True; got '1'"),
        ("detection.learning_rate=high", "expected detection.learning_rate to be of type float, like 0.05; got 'high'"),
        ("detection.drops=a,b", "expected detection.drops to be of type tuple[float, ...], like (0.6, 0.85); got"),
        ("matching.sizes=0.5", "expected matching.sizes to be of type tuple[float, float], like (0.42, 0.84); got"),
        (
            "inference.scales=all",
            "expected inference.scales to be of type tuple[int, ...] | None, like None; got 'all'",
        ),
        ("box_form=corners", "expected box_form to be one of edges, center_size; got 'corners'"),
        ("box_loss=l1", "expected box_loss to be one of l2, iou, giou, giou_l1; got 'l1'"),
        ("negatives=worst", "expected negatives to be one of offending, random; got 'worst'"),
        ("negatives_per_object=-1", "expected negatives_per_object to be 0 or more; got -1"),
        ("negatives_at_least=0", "expected negatives_at_least to be 1 or more; got 0"),
        ("inference.max_windows=0", "expected max_windows to be a whole number, at least 1; got 0"),
        (
            "precision=float16",
            "expected precision to be one of float32, mixed_bfloat16, mixed_float16, auto; got 'float16'",
        ),
        ("detection.accumulate=5", "expected accumulate to divide the batch of 32; got 5"),
        ("detection.decay=l1", "expected decay to be one of decoupled, l2; got 'l1'"),
        ("detection.learning_rate=-1", "expected learning_rate to be more than 0; got -1.0"),
        ("detection.momentum=1", "expected momentum to be from 0 to less than 1; got 1.0"),
        ("detection.learning_rate=nan", "expected learning_rate to be more than 0; got nan"),
        ("detection.learning_rate=inf", "expected learning_rate to be more than 0, and finite; got inf"),
        ("detection.weight_decay=inf", "expected weight_decay to be 0 or more, and finite; got inf"),
        ("detection.clip=inf", "expected clip to be None or more than 0, and finite; got inf"),
        ("detection.factor=inf", "expected factor to be more than 0, and finite; got inf"),
        ("detection.drops=0.9,0.5", "expected drops to be rising fractions of the steps, more than 0 and less than 1"),
        ("detection.drops=60,85", "more than 0 and less than 1; got (60.0, 85.0)"),
        ("detection.drops=0,0.5", "more than 0 and less than 1; got (0.0, 0.5)"),
        ("detection.drops=0.5,nan", "more than 0 and less than 1; got (0.5, nan)"),
        (
            "detection.drop_epochs=2,2",
            "expected drop_epochs to be rising, more than 0 and less than 5 epochs; got (2.0, 2.0)",
        ),
        ("detection.drop_epochs=-1,2", "rising, more than 0 and less than 5 epochs; got (-1.0, 2.0)"),
        ("detection.drop_epochs=1,inf", "more than 0 and less than 5 epochs; got (1.0, inf)"),
        ("layer=block4", "expected a backbone with layer=block4; 'tiny' is a preset: leave it out"),
        ("detection.clip=0", "expected clip to be None or more than 0; got 0.0"),
        ("views.per_image=0", "expected views.per_image to be 1 or more; got 0"),
        ("views.stretch=-2", "expected views.stretch to be 0 or more; got -2.0"),
        ("matching.sizes=0.9,0.5", "expected matching.sizes to be two sides, the lesser first; got (0.9, 0.5)"),
        ("ema=1", "expected ema to be None, or between 0 and 1; got 1.0"),
        ("seed=-1", "expected seed to be from 0 to 2**32 - 1; got -1"),
        ("class_weights=1,inf", "to be none, balanced, or numbers above 0 such as 1,1,4; got 1,inf"),
        ("patience=0", "expected patience to be None, or 1 or more; got 0"),
        (
            "class_weights=even",
            "to be none, balanced, or numbers above 0 such as 1,1,4; got even",
        ),
        ("detection.optimizer=adam", "expected optimizer to be one of sgd, adamw; got 'adam'"),
        ("views.rotation=200", "expected views.rotation to be from 0 to 180 degrees; got 200.0"),
        ("validation_images=0", "expected validation_images to be None, or 1 or more; got 0"),
        ("detection.epochs=0", "expected at least one step, one image a batch and one epoch; got 600, 32 and 0"),
    ],
)
def test_a_mistake_is_refused_in_one_line(setting, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        override(RECIPE, [setting])
    assert "\n" not in str(caught.value)


def test_a_schedule_has_something_to_do():
    with pytest.raises(ValueError, match=r"^expected at least one step"):
        Schedule(steps=0, batch=1, learning_rate=0.1)


def test_settings_are_listed_with_their_values_and_meanings():
    described = list(describe(RECIPE))
    assert all(meaning for _, _, meaning in described), [key for key, _, meaning in described if not meaning]
    assert override(RECIPE, [f"{key}={value}" for key, value, _ in described]) == RECIPE
    meanings = {key: meaning for key, _, meaning in described}
    assert meanings["detection.weight_decay"].startswith("How strongly") and meanings["views.rotation"].startswith(
        "Greatest angle"
    )


def test_balanced_classes_weigh_as_much_as_each_other_and_rare_ones_ten_times_at_most():
    objects = [[0], [0, 0, 0], [1], [2] * 60, []]
    records = [Record.of_objects(b"", "", [[0, 0, 1, 1]] * len(labels), labels) for labels in objects]
    source = SmallSource({"train": records}, class_names=("a", "b", "c", "none"))
    sized = replace(RECIPE, class_weights="balanced").sized(source)
    np.testing.assert_allclose(sized.weights_of_classes(), [65 / 3 / 4, 10.0, 65 / 3 / 60, 1.0], rtol=1e-3)
    assert sized.sized(source) == sized
    with pytest.raises(ValueError, match=r"^expected class_weights to have a number for each of 4 classes; got 2$"):
        replace(RECIPE, class_weights="1,2").sized(source)
