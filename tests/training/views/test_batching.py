"""The stream of batches can be taken up at any step."""

from itertools import pairwise

import numpy as np
import pytest
import tensorflow as tf
from small_source import SmallSource, few_digits

from overfeat_tf.network.presets import PRESETS
from training.sources.record import Record
from training.views import reading
from training.views.augmentation import ViewOptions
from training.views.drawing import Drawing, object_windows
from training.views.pipeline import Bookmarks, dealt_batches, training_batches
from training.views.reading import Place, RecordStream, mix
from training.views.targets import Matching

BATCH = 4


@pytest.fixture(scope="module")
def digits() -> SmallSource:
    """Seven images, one of them cut short, so that passes and blocks begin at odd places."""
    records = few_digits(7, 1).records_of["train"]
    records[2] = Record.of_objects(records[2].image_bytes[:2000], "cut short", [[0, 0, 1, 1]], [0])
    return SmallSource({"train": records})


def batches(source, marks: Bookmarks, rows: range = range(BATCH), **changes) -> tf.data.Dataset:
    views = ViewOptions(per_image=3, mirror=False, **changes)
    drawing = Drawing(PRESETS["tiny"], PRESETS["tiny"].scales, Matching(), views)
    return training_batches(source, "train", object_windows(drawing), BATCH, 3, marks, rows)


def test_a_stream_goes_on_at_any_step_as_if_it_had_never_ended(digits):
    marks, complete, places = Bookmarks(), [], {}
    for pixels, labels in batches(digits, marks).take(26):
        complete.append((pixels.numpy(), labels.numpy()))
        places[len(complete)] = marks.at(len(complete))
    assert len({pixels.tobytes() for pixels, _ in complete}) == len(complete)
    for step in (3, 19):  # as the first block ends, and within the seventh
        resumed = batches(digits, Bookmarks(step, *places[step]))
        for old, new in zip(complete[step : step + 6], resumed, strict=False):
            np.testing.assert_array_equal(old[0], new[0])
            np.testing.assert_array_equal(old[1], new[1])
    assert places[19][0] == 6 and places[19][1] > (1, 0)  # in a later pass over the records


def test_each_worker_decodes_its_rows_alone_and_has_those_of_one_process(digits, monkeypatch):
    decoded: set[int] = set()  # images, by their rows
    decode = reading.decode_record

    def noted(record: dict) -> dict:
        def note(place: np.ndarray) -> bool:
            decoded.add((7 * place[0] + place[1]) % BATCH)
            return True

        with tf.control_dependencies([tf.numpy_function(note, [record["place"]], tf.bool)]):
            return decode({**record, "place": tf.identity(record["place"])})

    def made(rows: range) -> list:
        marks.append(Bookmarks())
        decoded.clear()
        found = [(x.numpy(), y.numpy()) for x, y in batches(digits, marks[-1], rows, mosaic=0.5).take(12)]
        assert decoded == set(rows)
        return found

    monkeypatch.setattr(reading, "decode_record", noted)
    marks: list[Bookmarks] = []
    rows = range(1, 3)
    whole, own = made(range(BATCH)), made(rows)
    for (pixels, labels), (own_pixels, own_labels) in zip(whole, own, strict=True):
        np.testing.assert_array_equal(own_pixels, pixels[rows])
        np.testing.assert_array_equal(own_labels, labels[rows])
    assert len({mark.at(9) for mark in marks}) == 1


def test_each_pass_has_all_records_in_an_order_of_its_own(monkeypatch):
    monkeypatch.setattr(reading, "MIXED_RECORDS", 4)
    passes = [list(mix(iter(range(20)), (0, number))) for number in range(4)]
    assert all(sorted(items) == list(range(20)) for items in passes)
    assert all(first != second for first, second in pairwise(passes))
    assert passes[2] == list(mix(iter(range(20)), (0, 2)))


def test_records_begin_at_a_place_without_what_is_before(digits):
    complete = [record["place"].numpy().tolist() for record in RecordStream(digits, "train", 0).dataset().take(9)]
    assert complete == [[0, 0], [0, 1], [0, 2], [0, 3], [0, 4], [0, 5], [0, 6], [1, 0], [1, 1]]
    for start, record in ((5, Place(0, 5)), (7, Place(1, 0))):
        ids = [
            [r["image_id"].numpy() for r in data.take(3)]
            for data in (
                RecordStream(digits, "train", 0).dataset().skip(start),
                RecordStream(digits, "train", 0, record).dataset(),
            )
        ]
        assert ids[0] == ids[1]


def test_bookmarks_give_the_last_block_that_was_drawn():
    marks = Bookmarks(9, 1, Place(0, 4), batches=5)
    marks.note(2, Place(0, 9))
    marks.note(3, Place(1, 2))
    assert marks.at(9) == (1, (0, 4))
    assert marks.at(10) == (2, (0, 9))
    assert marks.at(39) == (3, (1, 2))


def test_an_image_comes_back_after_so_many_batches(digits):
    def dealt(marks: Bookmarks) -> tf.data.Dataset:
        read = RecordStream(digits, "train", 0, marks.place).dataset()
        drawn = read.map(lambda record: tuple((record["place"], [i]) for i in range(3)))
        return dealt_batches(drawn, 2, marks, apart=3)

    complete = list(dealt(Bookmarks()).take(12).as_numpy_iterator())
    for number, (places, views) in enumerate(complete):
        block, within = divmod(number, 9)
        first = 6 * block + 2 * (within % 3)  # of images that come in passes of seven
        assert places.tolist() == [[*divmod(n, 7)] for n in (first, first + 1)]
        assert views.ravel().tolist() == [within // 3] * 2
    resumed = next(iter(dealt(Bookmarks(11, 1, Place(0, 6), batches=9))))
    np.testing.assert_array_equal(resumed[0], complete[11][0])
    with pytest.raises(ValueError, match=r"^expected to go on in blocks of 9 batches; got a place in blocks of 3, "):
        dealt(Bookmarks(11, 3, Place(0, 6), batches=3))


def test_the_views_of_an_image_are_in_as_many_batches(digits):
    def example(place, labels):
        return tuple((tf.concat([place, [i]], 0), tf.zeros([i + 1])) for i in range(3))

    drawn = RecordStream(digits, "train", 0).dataset().map(lambda record: example(record["place"], record["labels"]))
    dealt = [[part.numpy() for part in batch] for batch in dealt_batches(drawn, BATCH).take(6)]
    for number, (views, sized) in enumerate(dealt):
        assert views[:, 2].tolist() == [number % 3] * BATCH and sized.shape == (BATCH, number % 3 + 1)
        assert (views[:, :2] == dealt[number // 3 * 3][0][:, :2]).all()
    assert not {tuple(view) for view in dealt[0][0]} & {tuple(view) for view in dealt[3][0]}


@pytest.mark.parametrize("partners", [0, 2])
def test_records_reach_tensorflow_as_they_are_read(partners):
    """However many objects they have, and whatever their bytes: those of an image may end with zeros."""
    rng, records = np.random.default_rng(0), []
    for number in range(7):
        boxes, labels = rng.uniform(size=(number % 4, 4)), rng.integers(0, 10, number % 4)
        records.append(Record.of_objects(bytes(number), f"ä{number}", boxes, labels, crowd=labels > 4))
    stream = RecordStream(SmallSource({"train": records}), "train", 0, partners=partners)
    for read, given in zip(stream, stream.dataset().take(3 * reading.PACKED_RECORDS + 1), strict=False):
        assert read.keys() == given.keys() and read.get("partners", {}).keys() == given.get("partners", {}).keys()
        pairs = [(value, given[key]) for key, value in read.items() if key != "partners"]
        pairs += [(value, given["partners"][key]) for key, value in read.get("partners", {}).items()]
        for wanted, got in pairs:
            wanted = wanted.encode() if isinstance(wanted, str) else wanted
            np.testing.assert_array_equal(got.numpy(), np.array(wanted, object) if isinstance(wanted, list) else wanted)
