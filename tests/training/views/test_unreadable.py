"""A training image that can't be read is reported and left out, and stops nothing."""

import itertools

import tensorflow as tf

from overfeat_tf.network.presets import get_preset
from training.sources.digits import DigitScenes
from training.sources.record import SCHEMA
from training.views.augmentation import ViewOptions
from training.views.drawing import Drawing, object_windows
from training.views.pipeline import record_batches
from training.views.targets import Matching


def test_unreadable_images_are_reported_and_left_out(caplog):
    records = [record for record in DigitScenes().records("val", 20) if len(record.labels)][:3]
    rows = [{key: getattr(record, key) for key in SCHEMA} for record in records]
    rows[1] |= {"image_bytes": rows[1]["image_bytes"][:2000], "image_id": "cut short"}
    data = tf.data.Dataset.from_generator(lambda: itertools.chain(rows, rows), output_signature=SCHEMA)
    views = ViewOptions(per_image=2, mirror=False)
    tiny = get_preset("tiny")
    shown = object_windows(Drawing(tiny, tiny.scales, Matching(), views))
    batches = record_batches(data, shown, 1, seed=0)
    assert len(list(batches)) == 2 * 2 * 2  # of the two that can be read, twice
    (line,) = caplog.messages  # in two passes
    assert line.startswith("skipped cut short: unreadable image: damaged or truncated")
