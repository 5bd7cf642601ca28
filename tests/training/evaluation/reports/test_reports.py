"""What reports show: confusions, curves and mistakes of answers whose faults are known."""

import io

import numpy as np
import pytest
from answers import answer
from PIL import Image

from training.evaluation.reports.curves import RECALLS, best_precision, draw_detection_figures, draw_scales
from training.evaluation.reports.mistakes import (
    KEPT,
    NOTHING,
    ClassConfusion,
    DetectionConfusion,
    FalsePositives,
    Misses,
    WrongClasses,
    WrongPlaces,
)
from training.evaluation.reports.report import Report, figure_tables
from training.sources.record import Record
from training.tasks import TRAINED_TASKS

NAMES = ("ant", "bee", "cat")
HERE, THERE, ELSEWHERE = [0.1, 0.1, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9], [0.0, 0.6, 0.2, 0.8]


def png(side: int = 40) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((side, side + 20, 3), 90, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def record(boxes, labels, name="", **flags) -> Record:
    return Record.of_objects(png(), name, boxes, labels, **flags)


def test_detections_are_matched_by_place_their_own_class_first():
    confusion = DetectionConfusion(NAMES)
    truth = record([HERE, HERE, THERE, ELSEWHERE], [0, 1, 2, 0], difficult=[False, False, False, True])
    # A bee is there twice, in the same place as an ant: each takes its own. The cat is taken for an ant. What is found
    # on a difficult object, or scores too little, does not count.
    found = answer(
        [HERE, HERE, THERE, ELSEWHERE, [0.6, 0, 0.9, 0.3], THERE], [1, 0, 0, 2, 1, 2], [0.9, 0.8, 0.7, 0.6, 0.5, 0.1]
    )
    confusion.process(truth, found)
    assert confusion.counts == {(1, 1): 1, (0, 0): 1, (2, 0): 1, (NOTHING, 1): 1}
    confusion.process(record([HERE], [2]), answer([], [], []))
    assert confusion.counts[2, NOTHING] == 1
    crowd = record([THERE], [0], difficult=[True], crowd=[True])
    confusion.process(crowd, answer([[0.5, 0.5, 0.6, 0.6], [0.8, 0.8, 0.9, 0.9]], [0, 0], [0.9, 0.8]))
    assert sum(confusion.counts.values()) == 5  # what lies in a crowd is no false detection


def test_classes_are_counted_by_the_best_guess():
    confusion = ClassConfusion(NAMES)
    confusion.process(record([HERE, THERE], [0, 2]), answer([HERE, HERE], [2, 1], [0.9, 0.1]))
    confusion.process(record([HERE, THERE], [0, 2]), answer([HERE], [1], [0.9]))
    confusion.process(record([HERE], [1]), answer([], [], []))
    confusion.process(record([], []), answer([HERE], [1], [0.9]))
    assert confusion.counts == {(2, 2): 1, (0, 1): 1, (1, NOTHING): 1}


@pytest.mark.parametrize(
    "kind, truth, found, caption",
    [
        (WrongClasses, [0], ([HERE], [1], [0.7]), "taken for bee: 0.70\nis ant"),
        (WrongClasses, [1], ([HERE], [1], [0.7]), None),
        (WrongClasses, [0], ([], [], []), None),  # an image that can't be answered is none to look at
        (WrongPlaces, [0], ([HERE], [1], [0.7]), "wrong class\nis ant"),
        (WrongPlaces, [0], ([THERE], [0], [0.7]), "box off: IoU 0.00\nis ant"),
        (WrongPlaces, [0], ([HERE], [0], [0.7]), None),
        (FalsePositives, [0], ([HERE, HERE], [0, 0], [0.9, 0.7]), "found twice\nant: 0.70"),
        (FalsePositives, [0], ([HERE], [1], [0.7]), "wrong class\nbee: 0.70"),
        (FalsePositives, [0], ([[0.1, 0.1, 0.4, 0.2]], [0], [0.7]), "box off: IoU 0.33\nant: 0.70"),
        (FalsePositives, [0], ([THERE], [0], [0.7]), "nothing there\nant: 0.70"),
        (FalsePositives, [0], ([HERE], [0], [0.7]), None),
        (Misses, [0], ([THERE], [0], [0.7]), "ant\n9.0% of the image"),
        (Misses, [0], ([HERE], [0], [0.7]), None),
    ],
)
def test_a_mistake_is_named(kind, truth, found, caption):
    mistake = kind(NAMES).find(record([HERE], truth), answer(*found))
    assert (mistake.caption if mistake else None) == caption


def test_only_the_worst_are_kept_worst_first_and_unreadable_ones_not_at_all(tmp_path):
    sheet, scores = WrongClasses(NAMES), np.random.default_rng(0).permutation(100) / 100
    for number, score in enumerate(scores):
        sheet.process(record([HERE], [0], str(number)), answer([HERE], [1], [score]))
    sheet.process(record([HERE], [0], "bad"), answer([HERE], [1], [1.0], status=b"cut short"))
    kept = sorted(sheet._heap, reverse=True)
    assert [float(scores[int(one.record.image_id)]) for *_, one in kept] == sorted(scores)[: -KEPT - 1 : -1]
    (exhibit,) = sheet.draw(tmp_path)
    assert exhibit.text == "Images with such a mistake: 100; the worst 12 are shown."


def test_a_curve_is_the_best_precision_at_each_recall_or_beyond():
    levels = best_precision(np.array([1, 0.5, 2 / 3]), np.array([0.4, 0.4, 0.8]))
    assert [levels[at] for at in (0, 40, 41, 80, 81, 100)] == pytest.approx([1, 1, 2 / 3, 2 / 3, 0, 0])
    assert not best_precision(np.zeros(0), np.zeros(0)).any() and len(RECALLS) == 101


@pytest.mark.parametrize("classes", [1, 300])
def test_a_report_has_a_page_and_every_picture(classes, tmp_path):
    names = tuple(f"a ${number} of rather long a name" for number in range(classes))
    report = Report(tmp_path / "report", {name: task.observers for name, task in TRAINED_TASKS.items()}, names, 0.4)
    metrics = [make(names, 0.4) for make in TRAINED_TASKS["detection"].metrics]
    rng = np.random.default_rng(1)
    for number in range(40):
        label = number % classes
        wrong, score = (label + int(rng.integers(0, 2))) % classes, float(rng.random())
        truth = record([HERE, THERE], [label, label], str(number))
        found = answer([HERE if number % 2 else THERE, ELSEWHERE], [wrong, label], [score, score / 2])
        for metric in metrics:
            metric.process(truth, found)
        for callbacks in report.callbacks.values():
            for callback in callbacks:
                callback(truth, found)
    figures = {name: value for metric in metrics for name, value in metric.evaluate()}
    more = draw_detection_figures(figures, tmp_path / "report")
    pictures = report.write({"options": {"scales": (1, 2)}, "model": "caf\udce9"}, "the table", more)
    page = (tmp_path / "report" / "report.md").read_text()
    assert "- options: scales=1 2" in page and "- model: caf\\udce9" in page and "the table" in page
    assert "| 0.93 to 1.00 |" in page and "score at least 0.4" in page
    expected = {"confusion", "precision_recall", "by_score", "by_size", "reliability", "false_positives", "misses"}
    assert {f"detection_{name}.png" for name in expected} <= set(pictures)
    assert ("classification_mistakes.png" in pictures) == (classes > 1)  # of one class none is another
    for picture in pictures:
        assert f"({picture})" in page
        with Image.open(tmp_path / "report" / picture) as image:
            assert min(image.size) > 200 and np.asarray(image.convert("L")).std() > 5


def test_figures_stand_in_tables_of_their_own():
    figures = {"map": 0.5, "objects": 3, "ap50/a/b": 0.25, "map/share/above_2_3": float("nan"), "objects/area/small": 2}
    tables = figure_tables(figures | {"reliability/00/count": 7}).split("\n\n")
    assert [table.split("|")[1].strip() for table in tables] == ["figure", "objects by", "class"]
    assert "| map     | 0.5000 |" in tables[0] and "7" not in "".join(tables)
    assert "| area/small       |       2 |   - |" in tables[1] and "| share/above_2_3  |       - |   - |" in tables[1]
    assert "| a/b   | 0.2500 |" in tables[2]


def test_errors_are_drawn_against_scales(tmp_path):
    crop = {"row": "centre crop, SCR", "scales": 0, "localization1_error": 0.4}
    rows = [crop, *({"row": f"{n} scales, SCR", "scales": n, "localization1_error": 0.3 / n} for n in (1, 2, 4))]
    (exhibit,) = draw_scales(rows, "fig9", tmp_path)
    with Image.open(tmp_path / exhibit.picture) as image:
        assert min(image.size) > 300
