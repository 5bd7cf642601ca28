"""A worker of a run of all stages: `worker_run.py RUN`, with TF_CONFIG. It prints a line at each step."""

import sys
from dataclasses import replace
from pathlib import Path

import keras
import killed_run
from small_source import few_digits

from overfeat_tf.models.model import TASKS
from training.fit.strategy import choose_strategy
from training.fit.train import train
from training.run import checkpoints

STEPS = 40  # more than ten processes take before they are killed
SCHEDULE = replace(killed_run.SCHEDULE, steps=STEPS)
RECIPE = replace(killed_run.RECIPE, **dict.fromkeys(TASKS, SCHEDULE))

if __name__ == "__main__":
    checkpoints.LEAST_SECONDS, checkpoints.SHARE = 0.0, 1e9
    said = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: print("step", flush=True))
    chosen = choose_strategy()  # before anything else
    train(RECIPE, few_digits(9, 2), Path(sys.argv[1]), strategy=chosen, callbacks=[said])
