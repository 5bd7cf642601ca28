"""The digit scenes: reproducible, apart from split to split, and boxed where the ink is."""

import io

import numpy as np
import pytest
from PIL import Image

from training.sources.formats import digits
from training.sources.formats.digits import CELLS, INK, LUMA, MOST_DIGITS, SIDES, SIZES, SPLITS, DigitScenes, cell_edges

SOFT_EDGE = 1.06  # bicubic ink reaches a little beyond the digit's own pixels


def drawn(seed: int, split: str, index: int):
    """Draw a scene afresh, past the cache."""
    return digits._scene.__wrapped__(seed, split, index)


def pixels(record) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(record.image_bytes)))


def in_pixels(record) -> np.ndarray:
    height, width = pixels(record).shape[:2]
    return record.boxes * np.array([height, width, height, width])


@pytest.fixture(scope="module")
def some() -> list:
    """The first scenes of every split."""
    return [record for split in SPLITS for record in DigitScenes().records(split, 60)]


@pytest.fixture
def bundled(monkeypatch):
    """Replaces what scikit-learn bundles; with a seed of one's own, since scenes are cached."""

    def replace(**parts):
        images, targets, photographs = digits._bundled()
        new = {"images": images, "targets": targets, "photographs": photographs, **parts}
        monkeypatch.setattr(digits, "_bundled", lambda: tuple(new.values()))

    return replace


def test_a_scene_depends_on_seed_split_and_index_alone():
    scenes = [(0, "train", 3), (0, "train", 4), (0, "val", 3), (0, "test", 3), (1, "train", 3)]
    first = [drawn(*scene) for scene in scenes]
    again = [drawn(*scene) for scene in reversed(scenes)][::-1]
    for a, b in zip(first, again, strict=True):
        assert a.image_bytes == b.image_bytes and a.image_id == b.image_id
        np.testing.assert_array_equal(a.boxes, b.boxes)
        np.testing.assert_array_equal(a.labels, b.labels)
    assert len({record.image_bytes for record in first}) == len(scenes)


def test_records_are_the_scenes_in_order_and_end_at_the_limit_or_the_split():
    source = DigitScenes()
    ids = [record.image_id for record in source.records("val")]
    assert ids == [f"digits-val-{index:05d}" for index in range(SPLITS["val"][0])]
    assert [record.image_id for record in source.records("val", 2)] == ids[:2]
    assert list(source.records("val", 0)) == []


def test_the_splits_share_neither_digits_nor_cells_of_the_photographs():
    taken = sorted(last for _, indices, _ in SPLITS.values() for last in indices)
    assert taken == list(range(10))
    cells = [cell for _, _, cells in SPLITS.values() for cell in cells]
    covered = np.zeros(digits._bundled()[2][0].shape[:2], int)
    for cell in cells:
        top, left, bottom, right = cell_edges(cell, covered.shape)
        covered[top:bottom, left:right] += 1
    assert len(cells) == CELLS[0] * CELLS[1] and (covered == 1).all()


@pytest.mark.parametrize("split", SPLITS)
def test_a_scene_is_drawn_from_its_splits_own_digits_and_pixels(bundled, split):
    images, _, photographs = digits._bundled()
    _, last_digits, cells = SPLITS[split]
    foreign = np.full(photographs[0].shape, 255, np.uint8)
    for cell in cells:
        top, left, bottom, right = cell_edges(cell, foreign.shape[:2])
        foreign[top:bottom, left:right] = 0
    bundled(targets=np.arange(len(images)), photographs=[foreign, foreign])
    labels = [label for index in range(40) for label in drawn(991, split, index).labels]
    assert {label % 10 for label in labels} == set(last_digits)
    rng = np.random.default_rng(0)
    assert max(digits._background(rng, split).max() for _ in range(40)) == 0


def test_scenes_vary_as_promised(some):
    shapes = np.array([pixels(record).shape[:2] for record in some])
    assert shapes.min() >= SIDES[0] and shapes.max() <= SIDES[1]
    assert len(np.unique(shapes, axis=0)) > len(some) // 2
    counts = {len(record.labels) for record in some}
    assert counts == set(range(MOST_DIGITS + 1))  # scenes without a digit among them
    assert {label for record in some for label in record.labels} == set(range(10))


def test_digits_have_the_promised_sizes_and_lie_inside(some):
    sides = np.concatenate([box[:, 2:] - box[:, :2] for box in map(in_pixels, some)])
    longer = sides.max(axis=1)
    assert longer.min() > SIZES[0] - 1 and longer.max() < SIZES[1] * SOFT_EDGE + 1
    assert np.percentile(longer, 10) < 30 and np.percentile(longer, 90) > 80  # small and large alike
    boxes = np.concatenate([record.boxes for record in some])
    assert boxes.min() >= 0 and boxes.max() <= 1


def test_boxes_are_tight_around_the_ink(bundled):
    bundled(photographs=[np.zeros((427, 640, 3), np.uint8)] * 2)
    alone = [r for r in (drawn(992, "train", index) for index in range(80)) if len(r.labels) == 1]
    assert len(alone) > 5
    for record in alone:
        luma = pixels(record) @ LUMA
        ink = luma > INK * luma.max()
        rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
        tight = [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]
        np.testing.assert_allclose(in_pixels(record)[0], tight, atol=2)  # JPEG smears the edge


def test_digits_do_not_cover_one_another(some):
    for boxes in map(in_pixels, some):
        for number, a in enumerate(boxes):
            for b in boxes[:number]:
                assert (np.minimum(a[2:], b[2:]) <= np.maximum(a[:2], b[:2]) + 1e-3).any()
