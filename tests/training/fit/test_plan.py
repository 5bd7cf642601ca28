"""What a training says before it begins, and the time that its bars show."""

import logging
from dataclasses import replace

import tensorflow as tf
from small_run import RECIPE, SCHEDULE
from small_source import few_digits

from overfeat_tf.network.convnet import build
from training.fit.callbacks import StageBar
from training.fit.plan import Plan, duration, make_plan, report_data, scored_images

PLAN = Plan({"classification": 3, "detection": 20}, {"classification": 1.0, "detection": 3.0})


def test_the_time_left_is_that_of_all_stages_at_the_rate_of_this_one():
    assert PLAN.seconds_left("classification", 2, 2.0) == 2 * 2.0 + 20 * 3.0 * 2.0
    assert PLAN.seconds_left("detection", 4, 5.0) == 20.0
    assert Plan(PLAN.steps, {}).seconds_left("classification", 2, 2.0) == 2 * 2.0 + 20 * 2.0
    assert (duration(59.7), duration(3725), duration(8)) == ("1:00 min", "1 h 02 min", "0:08 min")


def test_the_plan_names_stages_steps_and_times():
    assert list(PLAN.lines(RECIPE)) == [
        "plan: classification, 3 of 4 steps of 4 views, 2 epochs, about 0:03 min",
        "plan: detection, 20 steps of 4 views, 2 epochs, about 1:00 min",
        "plan: about 1:03 min in all",
    ]


def test_times_are_measured_on_the_network_without_making_or_moving_a_weight():
    network = build("tiny", 3)
    before, parts = [w.numpy().sum() for w in network.features.weights], set(network.parts)
    plan = make_plan(network, RECIPE, {"classification": 4, "localization": 2}, measure=True)
    assert plan.seconds["classification"] > 0 and plan.seconds["localization"] > 0
    assert [w.numpy().sum() for w in network.features.weights] == before and set(network.parts) == parts
    assert make_plan(network, RECIPE, {"classification": 4}, measure=False).seconds == {}


def test_the_data_the_device_and_what_is_not_validated_on_are_said(caplog):
    caplog.set_level(logging.INFO)
    report_data(few_digits(3, 4), RECIPE, {"localization": 4, "detection": 2}, tf.distribute.get_strategy())
    said = caplog.messages
    assert said[0].startswith("data: train of small: 3 images, ") and said[-1].startswith("device: ")
    (partly,) = (line for line in said if "not all" in line)
    assert "after each epoch detection is scored on 2 of these images, not all: --set validation_images" in partly


def test_as_many_images_are_validated_on_as_are_scanned_in_the_time_of_an_epochs_steps():
    free = replace(RECIPE, validation_images=None, detection=replace(SCHEDULE, steps=40, epochs=2, batch=4), side=50)
    shown = 20 * 4 * 50 * 50 * 3.6  # pixels forward and backward, as if all were forward
    assert scored_images("detection", free, [(100, 100), (100, 140)]) == round(shown / 24000) == 30
    assert scored_images("detection", free, [(1000, 1000)]) == 20
    assert scored_images("detection", free, [(10, 10)]) == 200
    frozen = replace(free, detection=replace(free.detection, backbone_multiplier=0.0))
    assert scored_images("detection", frozen, [(90, 90)]) == round(20 * 4 * 50 * 50 * 1.6 / 8100)
    assert scored_images("detection", RECIPE, [(1000, 1000)]) == RECIPE.validation_images == 2


def test_a_bar_names_its_stage_and_epoch_and_the_time_that_is_left(capsys):
    bar = StageBar(PLAN, "classification", 0, 3, 2)
    bar.set_params({"steps": 3})
    bar.on_epoch_begin(1)
    for step in range(3):
        bar.on_train_batch_end(step, {"loss": 0.25})
    assert "classification 2/2, validating |" in capsys.readouterr().err.split("\r")[-1]
    bar.on_epoch_end(1)
    bar.close()
    last = capsys.readouterr().err.split("\r")[-1]
    assert "classification 2/2 |" in last and "3/3" in last
    assert "loss 0.25, " in last and "min left in all" in last


def test_a_bar_goes_on_where_a_stage_is_resumed(capsys):
    StageBar(PLAN, "detection", 23, 24, 2).close()
    assert "23/24" in capsys.readouterr().err
