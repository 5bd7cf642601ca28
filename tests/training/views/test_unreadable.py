"""A training image that can't be read is reported, teaches nothing, and stops nothing."""

from dataclasses import replace

import numpy as np
import pytest
from small_source import SmallSource, few_digits

from overfeat_tf.network.presets import get_preset
from training.fit.losses import ClassLoss
from training.views.augmentation import ViewOptions
from training.views.drawing import Drawing, object_windows, window_maps
from training.views.pipeline import training_batches
from training.views.targets import IGNORED, Matching

TINY = get_preset("tiny")


def damaged_among_others() -> SmallSource:
    records = few_digits(3, 1).records_of["train"]
    records[1] = replace(records[1], image_bytes=records[1].image_bytes[:2000], image_id="cut short")
    return SmallSource({"train": records})


@pytest.mark.parametrize("shown", [object_windows, window_maps])
def test_an_unreadable_image_is_reported_once_and_its_row_teaches_nothing(caplog, shown):
    drawing = Drawing(TINY, TINY.scales, Matching(), ViewOptions(per_image=2, mirror=False), 96)
    batches = training_batches(damaged_among_others(), "train", shown(drawing), 3, seed=0)
    for pixels, targets in batches.take(4).as_numpy_iterator():  # two passes, two views of each
        labels = targets["boxes"][..., 4] if isinstance(targets, dict) else targets
        learnt = [bool((row >= 0).any()) for row in labels.reshape(3, -1)]
        (row,) = np.flatnonzero(np.logical_not(learnt))
        assert pixels[row].std() < 60 and (labels[row] == IGNORED).all()
    (line,) = caplog.messages
    assert line.startswith("skipped cut short: unreadable image: damaged or truncated")


def test_a_row_that_teaches_nothing_has_no_loss():
    logits = np.random.default_rng(0).normal(size=(3, 5)).astype("float32")
    loss = ClassLoss((2.0, 1.0, 1.0, 1.0, 1.0), reduction=None)
    found, expected = (loss(np.array(labels), logits).numpy() for labels in ([0, IGNORED, 3], [0, 1, 3]))
    np.testing.assert_allclose(found, expected * [1, 0, 1])
