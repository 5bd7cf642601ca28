"""Whatever an annotation says, a record has boxes that can be used, and the rest is reported."""

import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from training.sources.checks import AnnotatedObject, Finding, Kind, make_record


def encoded(size=(40, 20), orientation: int | None = None) -> bytes:
    block = Image.Exif()
    if orientation is not None:
        block[0x0112] = orientation
    stream = io.BytesIO()
    Image.new("RGB", size).save(stream, "JPEG", exif=block)
    return stream.getvalue()


IMAGE = encoded()
anything = st.one_of(st.floats(-100, 100), st.floats(allow_nan=True), st.integers(-3, 45).map(float))


@settings(deadline=None)  # the first image takes seconds
@given(st.lists(st.tuples(st.sampled_from(["cat", "yeti"]), st.tuples(anything, anything, anything, anything))))
def test_every_object_is_a_good_box_or_a_finding(objects):
    found: list[Finding] = []
    objects = [AnnotatedObject(label, corners) for label, corners in objects]
    record = make_record(IMAGE, "a", objects, {"cat": 0}, found.append)
    assert record is not None and len(record.labels) == len(record.boxes)
    left_out = [finding for finding in found if finding.kind.action == "left out"]
    assert len(record.labels) + len(left_out) == len(objects)
    assert np.isfinite(record.boxes).all() and record.boxes.min(initial=0) >= 0 and record.boxes.max(initial=1) <= 1
    assert (record.boxes[:, :2] < record.boxes[:, 2:]).all()  # in the record's own precision


@pytest.mark.parametrize(
    ("corners", "kind"),
    [
        ((-1, 0, 20, 41), None),  # a pixel over: rounding
        ((-1.5, 0, 20, 40), Kind.BEYOND),
        ((0, 0, 20, 42), Kind.BEYOND),
        ((21, 0, 25, 9), Kind.OUTSIDE),
        ((5, 5, 5, 9), Kind.NO_AREA),
        ((5, 5, math.inf, 9), Kind.NO_NUMBERS),
    ],
)
def test_boxes_are_told_apart(corners, kind):
    found: list[Finding] = []
    record = make_record(IMAGE, "a", [AnnotatedObject("cat", corners)], {"cat": 0}, found.append)
    assert [finding.kind for finding in found] == ([kind] if kind else [])
    assert record is not None and len(record.labels) == (kind in (None, Kind.BEYOND))


def test_where_no_box_is_left_the_class_of_the_whole_image_is():
    objects = [AnnotatedObject("cat", (5, 5, 5, 9))]
    record = make_record(IMAGE, "a", objects, {"cat": 0, "dog": 1}, lambda finding: None, image_class="dog")
    assert record is not None and record.labels.tolist() == [1]
    assert record.boxed.tolist() == [False] and record.boxes.tolist() == [[0, 0, 1, 1]]
    boxed = make_record(
        IMAGE, "a", [AnnotatedObject("cat", (1, 1, 5, 9))], {"cat": 0, "dog": 1}, print, image_class="dog"
    )
    assert boxed is not None and boxed.labels.tolist() == [0] and boxed.boxed.tolist() == [True]
