"""Figures for a version's card: those of an evaluation, or in their place what a run wrote while it was trained."""

import json
from pathlib import Path

import tensorflow as tf

from overfeat_tf.models.model import TASKS

OWN = " val_"  # is in the names of a run's own figures, and in no evaluation's
_EPOCH = "epoch_"  # how Keras's TensorBoard callback begins the names of an epoch's figures


def read_metrics(file: Path) -> dict:
    """Read what `overfeat evaluate --json` wrote.

    Raises:
        ValueError: it holds something else.
    """
    try:
        figures = json.loads(file.read_text())
    except OSError as error:
        raise ValueError(f"expected figures in '{file}'; it cannot be read: {error.strerror}") from None
    except ValueError:
        figures = None
    if not isinstance(figures, dict) or not any(isinstance(value, int | float) for value in figures.values()):
        raise ValueError(
            f"expected figures by name in '{file}', as `overfeat evaluate --json` writes; got other things"
        )
    return figures


def run_figures(run: Path) -> dict[str, float]:
    """Read a run's last validation figures of each stage from its logs, as `STAGE val_NAME`; none where there are none.

    They are of a few images of the validation split, and say less than an evaluation does.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    figures = {}
    for stage in TASKS:
        folder = run / "logs" / stage / "validation"
        if not folder.is_dir():
            continue
        events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
        for tag in events.Tags()["tensors"]:
            if tag.startswith(_EPOCH):
                value = tf.make_ndarray(events.Tensors(tag)[-1].tensor_proto)
                figures[f"{stage}{OWN}{tag.removeprefix(_EPOCH)}"] = float(value)
    return figures
