"""The record schema, and the stream of it that training reads."""

import re
from dataclasses import dataclass

import numpy as np
import pytest
import tensorflow as tf

from training.sources.record import SCHEMA, Record, as_dataset, check_split

TWO = Record.of_objects(b"two", "2", [[0, 0, 0.5, 0.5], [0.1, 0.2, 0.3, 1]], [3, 0], difficult=[True, False])
NONE = Record.of_objects(b"none", "0", [], [])


@dataclass
class Pair:
    """A source of two records."""

    name: str = "pair"
    class_names: tuple[str, ...] = ("a", "b", "c", "d")
    splits: tuple[str, ...] = ("train", "val")
    boxed: bool = True

    def records(self, split, limit=None):
        yield from (TWO, NONE)


def test_of_objects_fills_in_the_flags():
    assert TWO.difficult.tolist() == [True, False]
    assert TWO.truncated.tolist() == TWO.occluded.tolist() == [False, False]
    assert TWO.boxed.tolist() == [True, True] and Record.of_class(b"", "1", 2).boxed.tolist() == [False]
    assert TWO.boxes.dtype == np.float32 and TWO.labels.dtype == np.int32
    assert NONE.boxes.shape == (0, 4) and NONE.labels.shape == NONE.difficult.shape == (0,)


def test_as_dataset_streams_the_schema():
    data = as_dataset(Pair(), "train")
    assert data.element_spec == SCHEMA
    two, none = data
    for key, spec in SCHEMA.items():
        assert two[key].dtype == none[key].dtype == spec.dtype
    assert two["image_bytes"].numpy() == b"two" and two["image_id"].numpy() == b"2"
    np.testing.assert_array_equal(two["boxes"], TWO.boxes)
    assert two["labels"].numpy().tolist() == [3, 0] and two["difficult"].numpy().tolist() == [True, False]
    assert none["boxes"].shape == (0, 4) and tf.size(none["labels"]) == 0


def test_an_unknown_split_names_those_that_exist():
    message = "expected a split of pair, one of train, val; got 'test'"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_split(Pair(), "test")
    with pytest.raises(ValueError, match=re.escape(message)):
        as_dataset(Pair(), "test")
