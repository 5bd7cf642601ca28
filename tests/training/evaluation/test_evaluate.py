"""Scoring from end to end with a model that knows the answers."""

import time

import numpy as np
import pytest
from small_source import SmallSource

from overfeat_tf.models.predictor import Predictor
from training.evaluation.evaluate import BATCH, PROTOCOLS, evaluate, require_fit
from training.sources.record import Record

NAMES = ("a", "b", "c")


def box(number: int) -> np.ndarray:
    return np.array([0.1, 0.1, 0.4, 0.5], np.float32) + 0.02 * (number % 10)


def scene(number: int, count: int = 1) -> Record:
    boxes = [box(number + i) for i in range(count)]
    return Record.of_objects(str(number).encode(), str(number), boxes, [(number + i) % 3 for i in range(count)])


def small(count: int = 2 * BATCH + 3) -> SmallSource:
    return SmallSource({"val": [scene(number, number % 3) for number in range(count)]}, NAMES)


class Echo(Predictor):
    """Answers with the truth, but can't read some images; knows no classes but by their boxes."""

    labels, tasks = NAMES, ("localization", "detection")

    def __init__(self, source: SmallSource, unreadable: tuple[str, ...] = ()):
        self._known = {r.image_bytes: r for records in source.records_of.values() for r in records}
        self._unreadable = unreadable
        self.calls: list[tuple[str, int]] = []

    def _run(self, signature: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        self.calls.append((signature, len(inputs["image_bytes"])))
        rows = [self._row(self._known[image]) for image in inputs["image_bytes"]]
        return {key: np.array([row[key] for row in rows], dtype) for key, dtype in TYPES.items()}

    def _row(self, record: Record) -> dict:
        lost = record.image_id in self._unreadable
        count = 0 if lost else len(record.labels)
        boxes, scores, classes = np.zeros((4, 4)), np.zeros(4), np.zeros(4)
        boxes[:count], scores[:count], classes[:count] = record.boxes[:count], 0.9, record.labels[:count] + 1
        return {
            "image_size": (0, 0) if lost else (100, 200),
            "num_detections": count,
            "detection_boxes": boxes,
            "detection_scores": scores,
            "detection_classes": classes,
            "status": b"cut short" if lost else b"",
        }


TYPES = {
    "image_size": np.int32,
    "num_detections": np.float32,
    "detection_boxes": np.float32,
    "detection_scores": np.float32,
    "detection_classes": np.float32,
    "status": object,
}


def test_the_truth_scores_one_in_batches_that_cover_the_split():
    source = small()
    model = Echo(source)
    figures = evaluate(model, source, "val", ("classification", "localization", "detection"), quiet=True)
    assert figures["images"] == 2 * BATCH + 3 and "unreadable" not in figures
    assert figures["map"] == figures["map50"] == figures["ap50/b"] == 1
    assert figures["top1_error"] == figures["localization5_error"] == 0
    assert model.calls == [(call, size) for size in (BATCH, BATCH, 3) for call in ("detect", "localize")]


def test_a_model_that_names_its_classes_otherwise_is_refused():
    class Other(Echo):
        def _run(self, signature, **inputs):
            answers = super()._run(signature, **inputs)
            names = np.array([b"", b"a", b"c", b"b"], object)
            return {**answers, "detection_class_entities": names[answers["detection_classes"].astype(int)]}

    source = small()
    with pytest.raises(
        ValueError, match=r"^expected the classes of small \(b is number 2\); the model's number 2 is 'c'$"
    ):
        evaluate(Other(source), source, "val", quiet=True)


def test_progress_counts_the_images_that_are_scored(monkeypatch):
    counted = []

    def count(items, *_):
        for item in items:
            counted.append(item)
            yield item

    class Last(Echo):
        def _run(self, signature, **inputs):
            if len(inputs["image_bytes"]) < BATCH:
                raise RuntimeError("the last batch")
            return super()._run(signature, **inputs)

    source = small()
    monkeypatch.setattr("training.evaluation.evaluate.progress", count)
    with pytest.raises(RuntimeError):
        evaluate(Last(source), source, "val")
    assert len(counted) == 2 * BATCH


DETECTION = {"map", "map50", "map75", "voc07_map", "voc_map", "ilsvrc_map"}
DETECTION |= {f"{prefix}/{name}" for prefix in ("ap50", "voc_ap") for name in "abc"}
GROUPS = {"area/small", "area/medium", "area/large"}
GROUPS |= {f"share/{name}" for name in ("below_1_8", "1_8_to_1_3", "1_3_to_2_3", "above_2_3")}
GROUPS |= {f"aspect/{name}" for name in ("below_1.5", "1.5_to_3", "above_3")}
DETECTION |= {"objects", "recall", "calibration_error"}
DETECTION |= {f"{figure}/{name}" for figure in ("map", "map50", "objects", "recall") for name in GROUPS}
DETECTION |= {f"reliability/{bin:02}/{kind}" for bin in range(15) for kind in ("count", "score", "right")}
DISPLAYED = {"display_threshold", "displayed_per_image", "precision_displayed", "recall_displayed", "f1_displayed"}
DISPLAYED |= {"duplicates", "duplicates_per_image", *(f"recall_displayed/{name}" for name in GROUPS)}


@pytest.mark.parametrize(
    "protocols, call, names",
    [
        (("detection",), "detect", DETECTION),
        (("localization",), "localize", {"localization1_error", "localization5_error"}),
        (("classification",), "localize", {"top1_error", "top5_error"}),
    ],
)
def test_a_protocol_asks_and_gives_its_own(protocols, call, names):
    source = small()
    model = Echo(source)
    assert set(evaluate(model, source, "val", protocols, quiet=True)) == names | {"images"}
    assert {name for name, _ in model.calls} == {call}


def test_a_display_threshold_adds_the_figures_of_what_is_shown():
    source = SmallSource({"val": [scene(number) for number in range(5)]}, NAMES)
    names = evaluate(Echo(source), source, "val", quiet=True, display_threshold=0.5)
    assert set(names) == DETECTION | DISPLAYED | {"images"}
    hidden = evaluate(Echo(source), source, "val", quiet=True, display_threshold=0.95)
    assert [names["recall_displayed"], hidden["recall_displayed"], hidden["recall"]] == [1, 0, 1]


def test_an_unreadable_image_is_counted_once_and_its_objects_are_missed():
    source = small(8)
    model = Echo(source, unreadable=("1", "3"))  # one object each of 0 + 1 + 2 + 0 + 1 + 2 + 0 + 1; 3 has none
    figures = evaluate(model, source, "val", ("localization", "detection"), quiet=True)
    assert figures["unreadable"] == 2 and figures["images"] == 8
    assert figures["localization1_error"] == pytest.approx(1 / 5)
    assert 0.5 < figures["map50"] < 1
    # Of the object that was missed the size is not known: it is in no group.
    assert figures["objects"] == 7 and figures["recall"] == pytest.approx(6 / 7)
    assert figures["objects/share/1_3_to_2_3"] == 6 and figures["map50/share/1_3_to_2_3"] == pytest.approx(1)


def test_a_callback_gets_each_record_with_its_own_detections_up_to_the_limit():
    source, pairs = small(), []
    callbacks = {"detection": [lambda *pair: pairs.append(pair)]}
    figures = evaluate(Echo(source), source, "val", ("detection", "localization"), 5, quiet=True, callbacks=callbacks)
    assert figures["images"] == 5
    assert [record.image_id for record, _ in pairs] == ["0", "1", "2", "3", "4"]
    for record, answer in pairs:
        np.testing.assert_array_equal(answer["detection_boxes"][: len(record.boxes)], record.boxes)


class Named(Predictor):
    """Tells classes by name alone, as a served classifier does; can't read some images."""

    labels, tasks = (), ("classification",)

    def __init__(self, rows: dict[bytes, tuple[bytes, ...]]):
        self._rows = rows

    def _run(self, signature: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        assert signature == "classify"
        rows = [self._rows[image] for image in inputs["inputs"]]
        return {"classes": np.array(rows, object), "scores": np.tile([0.75, 0.25], (len(rows), 1))}


def test_a_model_that_tells_names_alone_is_scored_by_them():
    source = SmallSource({"val": [Record.of_class(str(n).encode(), str(n), n) for n in range(3)]}, NAMES)
    rows = {b"0": (b"a", b"c"), b"1": (b"c", b"b"), b"2": (b"", b"")}
    figures = evaluate(Named(rows), source, "val", ("classification",), quiet=True)
    assert figures == pytest.approx({"top1_error": 2 / 3, "top5_error": 1 / 3, "images": 3, "unreadable": 1})
    with pytest.raises(ValueError, match=r"^expected the data's classes; the model on the server knows 'owl'$"):
        evaluate(Named({**rows, b"1": (b"owl", b"b")}), source, "val", ("classification",), quiet=True)
    twice = SmallSource(source.records_of, ("a", "a", "b"))
    with pytest.raises(ValueError, match=r"^expected classes of different names, by which a server tells them"):
        evaluate(Named(rows), twice, "val", ("classification",), quiet=True)


@pytest.mark.parametrize(
    "split, protocols, limit, message",
    [
        (
            "val",
            ("detect",),
            None,
            r"expected protocols of classification, localization, detection; got 'detect'; did you mean 'detection'\?",
        ),
        ("test", ("detection",), None, "expected a split of small, one of val; got 'test'"),
        ("val", ("detection",), 0, "expected images in split 'val' of small; there are none"),
        ("val", ("detection",), 1, "expected objects to score against; the 1 images have none"),
        ("val", ("localization",), 1, "expected images with boxes to score against; there are none"),
    ],
)
def test_what_cannot_be_scored_is_one_line(split, protocols, limit, message):
    source = small()
    with pytest.raises(ValueError, match=f"^{message}$"):
        evaluate(Echo(source), source, split, protocols, limit, quiet=True)


def test_a_model_has_to_fit_the_source_and_the_protocol():
    source = small()
    require_fit(NAMES, ("localization", "detection"), source, ("detection",))
    with pytest.raises(ValueError, match=r"; number 2 is 'c' in the model, 'b' in the data$"):
        require_fit(("a", "c", "b"), ("detection",), source, ("detection",))
    for labels in (("a", "b"), (*NAMES, "d")):
        with pytest.raises(ValueError, match=rf"^expected the model's {len(labels)} classes .* small has 3 \(a, b, c"):
            require_fit(labels, ("detection",), source, ("detection",))
    with pytest.raises(ValueError, match=r"^expected a model trained for detection; this one was for localization$"):
        require_fit(NAMES, ("localization",), source, ("localization", "detection"))
    with pytest.raises(ValueError, match=r"this one was for nothing$"):
        require_fit(NAMES, (), source, ("classification",))


@pytest.mark.parametrize("protocol", ["detection", "localization"])
@pytest.mark.parametrize("boxed", [False, True])  # as the source as a whole says
def test_a_set_of_classes_is_scored_by_classification_alone(protocol, boxed):
    source = SmallSource({"val": [Record.of_class(b"0", "0", 1)]}, class_names=("a", "b", "c"), boxed=boxed)
    model = Echo(source)
    assert evaluate(model, source, "val", ("classification",), quiet=True)["top1_error"] == 0
    with pytest.raises(ValueError, match=r"^expected (boxes|objects|images with boxes) [^\n]*$"):
        evaluate(model, source, "val", (protocol,), quiet=True)


def test_a_class_without_a_box_counts_for_classification_alone():
    known = SmallSource({"val": [scene(1), scene(2)]}, NAMES)
    bare = Record.of_objects(b"2", "2", [[0, 0, 1, 1]], [0], boxed=[False])
    source, seen = SmallSource({"val": [scene(1), bare]}, NAMES), []
    callbacks = {name: [lambda record, _, name=name: seen.append((name, record.image_id))] for name in PROTOCOLS}
    figures = evaluate(Echo(known), source, "val", PROTOCOLS, quiet=True, callbacks=callbacks)
    assert figures["images"] == 2 and figures["objects"] == figures["reliability/13/count"] == 1
    assert [figures[name] for name in ("map", "voc_map", "ilsvrc_map", "reliability/13/right")] == pytest.approx(
        [1] * 4
    )
    assert figures["top1_error"] == 0.5 and figures["localization1_error"] == 0
    assert sorted(seen) == [("classification", "1"), ("classification", "2"), ("detection", "1"), ("localization", "1")]


def test_answers_of_concurrent_calls_come_in_order():
    source, seen, running = small(9 * BATCH), [], []

    class Served(Echo):
        concurrency = 3

        def _run(self, signature: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
            running.append(1)
            time.sleep(0.02 if len(self.calls) % 2 else 0.05)
            running.append(-1)
            return super()._run(signature, **inputs)

    figures = evaluate(
        Served(source), source, "val", quiet=True, callbacks={"detection": [lambda r, _: seen.append(r)]}
    )
    assert figures["map"] == 1.0 and figures["images"] == 9 * BATCH
    assert [record.image_id for record in seen] == [str(number) for number in range(9 * BATCH)]
    assert max(np.cumsum(running)) == 3
