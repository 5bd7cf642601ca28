"""A recipe of a few steps, and its losses on one device or on several.

As a program, `small_run.py RUN DEVICES [KEY=VALUE ...]` trains all stages on logical CPUs, and with the workers of
TF_CONFIG, and prints the figures as JSON.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import ClassVar
from unittest import mock

import keras
import tensorflow as tf
from small_source import few_digits

from overfeat_tf.network.presets import PRESETS
from overfeat_tf.options import InferenceOptions
from training.fit import train as module
from training.fit.strategy import choose_strategy
from training.recipes import Recipe, Schedule, override
from training.views.augmentation import ViewOptions

EPOCHS = 2
SCHEDULE = Schedule(steps=4, batch=4, learning_rate=0.02, drops=(0.5,), factor=0.1, epochs=EPOCHS)
RECIPE = Recipe(
    name="small",
    data=None,
    preset="tiny",
    classification=SCHEDULE,
    localization=SCHEDULE,
    detection=SCHEDULE,
    side=52,
    fine=True,
    views=ViewOptions(per_image=2),
    inference=InferenceOptions(scales=(1, 2), max_windows=50),
    validation_images=2,
)


class Epochs(keras.callbacks.Callback):
    """Stands where the report stands, and keeps each epoch's figures by stage."""

    seen: ClassVar[dict[str, list[dict]]]

    def __init__(self, report, stage: str, epochs: int):
        super().__init__()
        self._stage = stage

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.seen.setdefault(self._stage, []).append({"epoch": epoch, **(logs or {})})


def step_figures(
    run: Path, settings: list[str] = (), strategy: tf.distribute.Strategy | None = None
) -> dict[str, list[dict[str, float]]]:
    """Train all stages for two epochs of one step each and give the steps' losses and metrics, and the validation's.

    Without dropout, whose draws differ from device to device.
    """

    class Steps(Epochs):
        seen: ClassVar = {}

    schedule = replace(SCHEDULE, steps=EPOCHS)
    recipe = replace(RECIPE, classification=schedule, localization=schedule, detection=schedule)
    calm = {**PRESETS, "tiny": replace(PRESETS["tiny"], dropout=0.0)}
    replaced = mock.patch.multiple(module, EpochLines=Steps)
    with mock.patch.dict(PRESETS, calm), replaced:
        module.train(override(recipe, list(settings)), few_digits(8, 2), run, strategy=strategy)
    return {stage: [{k: float(v) for k, v in each.items()} for each in epochs] for stage, epochs in Steps.seen.items()}


if __name__ == "__main__":
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * int(sys.argv[2]))
    chosen = choose_strategy()
    figures = step_figures(Path(sys.argv[1]), sys.argv[3:], chosen)
    print(json.dumps({"devices": chosen.num_replicas_in_sync, "figures": figures}))
