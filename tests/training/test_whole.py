"""Whole images at several scales: boxes where the pixels are, a scale a batch, and a run that is taken up again."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from small_run import RECIPE
from small_source import SmallSource, coloured_rectangles, few_digits, hue, picture

from overfeat_tf import geometry
from overfeat_tf.boxes import from_window
from overfeat_tf.loading import load
from overfeat_tf.presets import PRESETS
from training import pipeline, whole
from training import train as module
from training.pipeline import ViewOptions
from training.sources.record import Record
from training.targets import BACKGROUND, IGNORED, Matching, window_origins
from training.train import train

TINY, VIEWS, BATCH = PRESETS["tiny"], ViewOptions(colour=0.0, stretch=0.2), 4
SIDES = [36, 52, 68, 100, 140, 196, 276]


def batches(source, fine=True, seed=0):
    data = pipeline.records(source, "train", seed)
    return whole.whole_batches(data, TINY, Matching(), VIEWS, BATCH, fine, seed)


@pytest.mark.parametrize("fine", [True, False])
def test_each_batch_has_a_scale_of_its_own(fine):
    for (pixels, targets), side in zip(batches(few_digits(4, 1), fine), [*SIDES, *SIDES[:2]], strict=False):
        windows = geometry.window_count(TINY, side, fine)
        assert pixels.shape == (BATCH, side, side, 3) and targets["boxes"].shape == (BATCH, windows, windows, 5)
        assert targets["scores"].shape == (BATCH, windows, windows)


def test_boxes_and_classes_are_where_the_pixels_are():
    named, mirrored = set(), set()
    for number, (pixels, targets) in enumerate(batches(coloured_rectangles()).take(3 * len(SIDES))):
        side = SIDES[number % len(SIDES)]
        origins = window_origins(TINY, side, True)
        placed = from_window(targets["boxes"][..., :4], origins, float(TINY.window)).numpy()
        for view, scores, taught, boxes in zip(
            pixels.numpy(), targets["scores"].numpy(), targets["boxes"][..., 4].numpy(), placed, strict=True
        ):
            light = (view.max(axis=-1) > 120) & (view.min(axis=-1) < 60)
            for i, j in np.argwhere(taught):
                rows, columns = np.flatnonzero(light.any(axis=1)), np.flatnonzero(light.any(axis=0))
                seen = [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]
                np.testing.assert_allclose(boxes[i, j], seen, atol=1.01)
                assert taught[i, j] == 1 + hue(view[light][None])
                assert scores[i, j] in (IGNORED, BACKGROUND, taught[i, j])
                mirrored.add((taught[i, j], boxes[i, j, 1] > (view != TINY.mean).any(axis=(0, 2)).sum() * 0.4))
            named |= {(side, label) for label in scores[scores > BACKGROUND]}
    assert len(mirrored) > 3 and len({side for side, _ in named}) >= 3  # at the scales where it fills half a window


def test_an_image_fills_its_view_to_the_scale_below_at_least_and_no_window_beyond_it_counts():
    source = SmallSource({"train": [Record.of_objects(picture(90, 120, [(0, 0, 90, 120)]), "wide", [], [])]})
    for (pixels, targets), side, below in zip(batches(source), SIDES, [TINY.window, *SIDES], strict=False):
        for view, scores in zip(pixels.numpy(), targets["scores"].numpy(), strict=True):
            height, width = (int((view[line] > 200).all(axis=-1).sum()) for line in (np.s_[:, 0], np.s_[0, :]))
            assert below - 1 <= max(height / 0.75, width) * 1.1 and width <= side
            origins = np.arange(scores.shape[0]) * TINY.fine_stride
            inside = [origins + TINY.window < max(extent, TINY.window) + 2 for extent in (height, width)]
            assert ((scores == BACKGROUND) <= np.logical_and.outer(*inside)).all() and scores[0, 0] == BACKGROUND


class BrokenError(Exception):
    """The run ends here."""


def test_a_run_on_whole_images_is_taken_up_within_an_epoch(tmp_path, monkeypatch):
    schedule = replace(RECIPE.detection, steps=5, epochs=1)
    recipe = replace(RECIPE, detection=schedule, views=replace(RECIPE.views, whole=True), val_split="none")
    source = few_digits(6, 1)
    unbroken = train(recipe, source, tmp_path / "unbroken", ["detection"])

    class Breaking(module.Checkpoints):
        def on_train_batch_end(self, batch, logs=None):
            super().on_train_batch_end(batch, logs)
            if self._position.step == 3:
                self.save()
                raise BrokenError

    with monkeypatch.context() as patch, pytest.raises(BrokenError):
        patch.setattr(module, "Checkpoints", Breaking)
        train(recipe, source, tmp_path / "broken", ["detection"])
    train(recipe, source, tmp_path / "broken", ["detection"])
    resumed = load(tmp_path / "broken").network
    for part in ("features", "classifier", "regressor"):
        for ours, theirs in zip(
            getattr(resumed, part).get_weights(), getattr(unbroken.network, part).get_weights(), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_stream_depends_on_its_seed_alone():
    source = few_digits(4, 1)
    (first, *_), (again, *_) = (list(batches(source, seed=5).take(2)) for _ in range(2))
    tf.nest.map_structure(np.testing.assert_array_equal, first, again)
