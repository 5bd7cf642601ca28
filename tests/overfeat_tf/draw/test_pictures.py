"""Boxes on pictures: labels that hide nothing, and sizes that can be looked at."""

import numpy as np
import pytest

from overfeat_tf.draw.pictures import draw_boxes

GREY = 128


def grid(number: int, side: float) -> np.ndarray:
    """Boxes of `side`, normalised, in rows and columns of that number."""
    firsts = (np.arange(number) + 0.5) / number - side / 2
    top, left = (each.ravel() for each in np.meshgrid(firsts, firsts, indexing="ij"))
    return np.stack([top, left, top + side, left + side], axis=1).astype(np.float32)


def answer_of(boxes: np.ndarray) -> dict:
    return {
        "num_detections": len(boxes),
        "detection_boxes": boxes,
        "detection_scores": np.linspace(0.99, 0.5, len(boxes)),
        "detection_classes": np.ones(len(boxes)),
        "detection_class_entities": [b"nucleus"] * len(boxes),
    }


@pytest.mark.parametrize(("number", "side"), [(2, 0.3), (4, 0.12), (7, 0.07), (12, 0.05)])
def test_no_label_hides_another_box(number, side):
    boxes = grid(number, side)
    picture = np.asarray(draw_boxes(np.full((192, 192, 3), GREY, np.uint8), answer_of(boxes), enlarge=True))
    size = len(picture)
    for ymin, xmin, ymax, xmax in np.round(boxes * size).astype(int):
        inside = picture[ymin + 5 : ymax - 5, xmin + 5 : xmax - 5]
        assert (inside == GREY).all(-1).mean() > 0.65
    coloured = (np.ptp(picture.astype(int), axis=-1) > 100).sum()  # the frames and the labels
    assert coloured > len(boxes) * 4 * side * size


def test_small_objects_enlarge_a_picture_where_asked():
    image, boxes = np.full((192, 256, 3), GREY, np.uint8), grid(7, 0.07)
    assert draw_boxes(image, enlarge=True).size == (256, 192)
    assert draw_boxes(image, answer_of(grid(2, 0.4)), enlarge=True).size == (256, 192)
    assert draw_boxes(image, answer_of(boxes), enlarge=True).size == (914, 686)
    assert draw_boxes(image, answer_of(boxes)).size == (256, 192)
    assert max(draw_boxes(image, answer_of(grid(7, 0.01)), enlarge=True).size) == 1200
