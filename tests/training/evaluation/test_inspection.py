"""An inspection counts what is there and finds what is wrong, and nothing else."""

import io
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_source import SmallSource, few_digits, picture

from training.evaluation.inspection import EXAMPLES, TINY, inspect, open_faultless
from training.sources import open_source
from training.sources.checks import Kind, ReportFinding
from training.sources.record import Record

DATASETS = Path(__file__).resolve().parents[4] / "shared" / "datasets"


def image(number: int, size=(240, 260), orientation: int | None = None) -> bytes:
    """Encode an image of one colour and (height, width), each number another."""
    stream, block = io.BytesIO(), Image.Exif()
    if orientation is not None:
        block[0x0112] = orientation
    Image.new("RGB", size[::-1], (number, 0, 0)).save(stream, "PNG", exif=block)
    return stream.getvalue()


def always(source: SmallSource) -> Callable[[ReportFinding], SmallSource]:
    return lambda report: source


def record(number: int, labels=(0,), name: str = "", **options) -> Record:
    boxes = [[0, 0, 0.5, 0.25]] * len(labels)
    return Record.of_objects(image(number, **options), name or f"id{number}", boxes, labels)


def kinds(source: SmallSource) -> set[tuple[str, Kind, str]]:
    found = inspect(always(source))
    return {(split, kind, one.name) for (split, kind), ones in found.findings.items() for one in ones}


def test_counts_are_those_of_the_records():
    train = [record(1, (0, 0, 2)), record(2, (), size=(300, 400)), Record.of_class(image(3), "id3", 2)]
    found = inspect(always(SmallSource({"train": train, "val": []}, class_names=("a", "b", "c")))).as_dict()
    assert found["splits"]["train"] == {
        "images": 3,
        "objects": 4,
        "without_objects": 1,
        "without_boxes": 1,
        "image_height": [240, 240, 240, 288, 300],
        "image_width": [260, 260, 260, 372, 400],
        "box_size": pytest.approx([0.354] * 5),
        "box_aspect": pytest.approx([0.5 * 260 / 240] * 5, abs=1e-3),
        "per_class": {"a": 2, "c": 2},
        "shared_with": {},
    }
    assert found["splits"]["val"]["images"] == 0 and found["faults"] == 0


def test_good_data_has_no_findings():
    good = {"train": [record(1), record(2, (1, 0))], "val": [record(3, (0, 1))]}
    assert kinds(SmallSource(good, class_names=("a", "b"))) == set()


def test_whatever_is_wrong_is_found():
    train = [record(1), record(1, name="twin"), record(2), record(3, size=(TINY - 1, 300)), record(4, size=(300, 2001))]
    train += [record(5, orientation=6), record(7, (1,)), record(8, name="both")]
    cut = Record.of_objects(image(9)[:-30], "cut", [], [])
    val = [record(2, name="leak"), record(7, (0, 1), name="other"), record(8, name="both"), cut, record(10, (2,))]
    source = SmallSource({"train": train, "val": val}, class_names=("a", "b", "c"))
    assert kinds(source) == {
        ("train", Kind.DUPLICATE, "twin"),
        ("train", Kind.TINY, "id3"),
        ("train", Kind.HUGE, "id4"),
        ("train", Kind.TURNED, "id5"),
        ("val", Kind.LEAK, "leak"),
        ("val", Kind.TWO_CLASSES, "other"),
        ("val", Kind.UNREADABLE, "cut"),
        ("val", Kind.ONE_SPLIT, "c"),
    }
    found = inspect(always(source))
    assert found.faults == 3 and found.first_fault().startswith("val: kept leak: same image in two splits: ")
    assert found.counts["val"].shared == {"train": 1} and found.counts["val"].images == 4
    (size,) = {
        (h, w)
        for h, w in zip(*np.array([found.counts["train"].heights, found.counts["train"].widths]), strict=True)
        if h == 260
    }
    assert size == (260, 240)  # the turned one, as displayed


def test_all_findings_are_counted_and_the_first_kept():
    few = [Record.of_objects(picture(8, 8 + number), str(number), [], []) for number in range(EXAMPLES + 5)]
    found = inspect(always(SmallSource({"train": few})))
    assert found.totals["train", Kind.TINY] == EXAMPLES + 5
    assert [one.name for one in found.findings["train", Kind.TINY]] == [str(number) for number in range(EXAMPLES)]


def test_each_readable_record_is_seen_with_its_findings():
    seen = []
    source = SmallSource({"train": [record(1), record(1, name="twin"), Record.of_objects(b"none", "cut", [], [])]})
    inspect(always(source), see=lambda split, one, found: seen.append((split, one.image_id, [f.kind for f in found])))
    assert seen == [("train", "id1", []), ("train", "twin", [Kind.DUPLICATE])]


def test_splits_and_limit_bound_the_work():
    source = few_digits(3, 3)
    found = inspect(always(source), ["val"], limit=2)
    assert list(found.counts) == ["val"] and found.counts["val"].images == 2
    # The first image of each split tells nothing of which classes the splits have.
    assert (None, Kind.ONE_SPLIT) not in {(None, kind) for _, kind in inspect(always(source), limit=1).findings}
    with pytest.raises(ValueError, match=r"^expected a split of small, one of train, val; got 'test'$"):
        inspect(always(source), ["test"])


def test_strict_training_is_refused_at_a_fault_and_not_at_a_remark(tmp_path):
    for name, number in (("cat/1.png", 1), ("dog/1.png", 2), ("dog/2.png", 2)):  # a duplicate
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(image(number))
    open_faultless(f"folder:{tmp_path}", None, ("train", "val"))
    (tmp_path / "dog" / "3.png").write_bytes(image(3)[:-30])
    with pytest.raises(
        ValueError, match=r"^expected data without faults; got 1 in folder:.*: skipped dog/3.png: [^\n]*$"
    ):
        open_faultless(f"folder:{tmp_path}", None, ("train", "val"))


@pytest.mark.skipif(not (DATASETS / "bad_input").is_dir(), reason="no bad_input beside the checkout")
def test_real_bad_images_are_found():
    found = inspect(lambda report: open_source(f"folder:{DATASETS / 'bad_input'}", report))
    names = defaultdict(set)
    for (_, kind), ones in found.findings.items():
        names[kind] |= {one.name.partition("/")[0] for one in ones}
    assert names[Kind.UNREADABLE] == {"truncated_jpeg"} and found.faults == 1
    assert names[Kind.DUPLICATE] == {"duplicate_images", "same_image_two_classes"}
    assert names[Kind.TURNED] == {"exif_orientation"} and names[Kind.HUGE] == {"extreme_sizes"}
    assert "extreme_sizes" in names[Kind.TINY]
