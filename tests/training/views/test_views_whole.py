"""Images at every scale of the scan: a scale a batch, as inference shows it, and a run that is taken up again."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from small_run import RECIPE
from small_source import SmallSource, few_digits, picture

from overfeat_tf.models.loading import load
from overfeat_tf.network.presets import PRESETS
from overfeat_tf.scan.pyramid import draw_scale
from training.fit import train as module
from training.fit.train import train
from training.sources.record import Record
from training.views.augmentation import ViewOptions
from training.views.drawing import Drawing, window_maps
from training.views.pipeline import Bookmarks, training_batches
from training.views.pyramid import square_side
from training.views.targets import IGNORED, Matching

TINY, BATCH = PRESETS["tiny"], 4
SIDES = [square_side(TINY, scale) for scale in TINY.scales]
STILL = ViewOptions(stretch=0.0, zoom=1.0, scale_jitter=1.0, colour=0.0, mirror=False, whole_image=True)


def batches(source, fine=True, views=STILL, scales=TINY.scales, marks=None):
    drawing = Drawing(TINY, scales, Matching(), views, fine=fine)
    return training_batches(source, "train", window_maps(drawing), BATCH, 0, marks)


@pytest.mark.parametrize("fine", [True, False])
def test_each_batch_has_a_scale_of_its_own(fine):
    stream = batches(few_digits(4, 1), fine, scales=TINY.scales[:3])
    for (pixels, targets), side in zip(stream, [*SIDES[:3], *SIDES[:2]], strict=False):
        windows = TINY.window_count(side, fine)
        assert pixels.shape == (BATCH, side, side, 3) and targets["boxes"].shape == (BATCH, windows, windows, 5)
        assert targets["scores"].shape == (BATCH, windows, windows)


def test_a_scale_is_shown_as_the_scan_shows_it_and_windows_beyond_its_canvas_are_ignored():
    data = picture(90, 120, [(30, 50, 60, 90)])
    source = SmallSource({"train": [Record.of_objects(data, "wide", [[1 / 3, 5 / 12, 2 / 3, 3 / 4]], [2])]})
    image, found, wanted = tf.io.decode_image(data), [], []
    for (pixels, targets), scale in zip(batches(source), TINY.scales, strict=False):
        canvas, size = draw_scale(TINY, scale, image)
        height, width = canvas.shape[:2]
        assert max(height, width) <= pixels.shape[1]  # a picture of 4:3 fits
        np.testing.assert_allclose(pixels[0, :height, :width], canvas, atol=0.06)
        rows, columns = (TINY.window_count(side) for side in (height, width))
        labels = targets["scores"][0].numpy()
        assert (labels[rows:] == IGNORED).all() and (labels[:, columns:] == IGNORED).all()
        found.append((labels == 3).any())
        wanted.append(0.42 <= max(size.numpy()) / 3 / TINY.window <= 0.84)  # it is a third of the picture long
    assert found == wanted and 1 < sum(found) < len(found)


class BrokenError(Exception):
    """The run ends here."""


@pytest.mark.long
@pytest.mark.parametrize("stages", [["localization"], ["detection"]])
def test_a_run_on_whole_images_is_taken_up_within_an_epoch(tmp_path, monkeypatch, no_boards, stages):
    schedule = replace(RECIPE.detection, steps=5, epochs=1)
    views = replace(RECIPE.views, whole_image=True)
    recipe = replace(RECIPE, localization=schedule, detection=schedule, views=views, val_split="none")
    source = few_digits(6, 1)
    unbroken = train(recipe, source, tmp_path / "unbroken", stages).model

    class Breaking(module.Checkpoints):
        def on_train_batch_end(self, batch, logs=None):
            super().on_train_batch_end(batch, logs)
            if self._position.step == 3:
                self.save()
                raise BrokenError

    with monkeypatch.context() as patch, pytest.raises(BrokenError):
        patch.setattr(module, "Checkpoints", Breaking)
        train(recipe, source, tmp_path / "broken", stages)
    train(recipe, source, tmp_path / "broken", stages)
    resumed = load(tmp_path / "broken").network
    for part in ("features", "classifier", "regressor"):
        for ours, theirs in zip(
            getattr(resumed, part).get_weights(), getattr(unbroken.network, part).get_weights(), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_stream_depends_on_its_seed_alone_and_goes_on_at_any_step():
    source, two, marks = few_digits(6, 1), TINY.scales[:2], Bookmarks()
    views, once, places = ViewOptions(whole_image=True), [], []
    for batch in batches(source, views=views, scales=two, marks=marks).take(5):
        once.append(batch)
        places.append(marks.at(len(once)))
    again = batches(source, views=views, scales=two, marks=Bookmarks(3, *places[2])).take(2)
    for expected, found in zip(once[3:], again, strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, expected, found)
    assert not np.array_equal(once[0][0], next(iter(batches(source, scales=two)))[0])
