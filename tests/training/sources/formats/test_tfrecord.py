"""Files of tf.Examples, of whichever kinds their features are, and label maps."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from exports import encoded, put, records
from findings import found, read, said

from training.sources import open_source
from training.sources.checks import Kind


def write(path: Path, *examples: dict) -> str:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for example in examples:
            features = {key: _feature(values) for key, values in example.items()}
            writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    return f"tfrecord:{path}"


def _feature(values: list) -> tf.train.Feature:
    if isinstance(values[0], bytes):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
    if isinstance(values[0], int):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
    return tf.train.Feature(float_list=tf.train.FloatList(value=values))


def example(**changes: list) -> dict:
    """Make an example of two objects; keys have "__" for "/", after "image"."""
    sides = {"ymin": [0.125, 0.25], "xmin": [0.125, 0.25], "ymax": [0.5, 0.75], "xmax": [0.5, 0.75]}
    plain = {f"object__bbox__{side}": values for side, values in sides.items()}
    plain |= {"encoded": [encoded(1)], "object__class__label": [1, 2], "object__class__text": [b"cat", b"dog"]}
    return {f"image/{key.replace('__', '/')}": value for key, value in {**plain, **changes}.items()}


def test_a_file_that_is_cut_short_gives_what_it_has_and_is_said(tmp_path):
    records(tmp_path / "pets.record", range(6))
    data = (tmp_path / "pets.record").read_bytes()
    put(tmp_path / "pets.record", data[:-100])
    assert found(f"tfrecord:{tmp_path / 'pets.record'}")[Kind.BAD_ANNOTATION] == ["pets.record#5"]
    assert len(read(f"tfrecord:{tmp_path / 'pets.record'}")) == 5
    put(tmp_path / "none.record", b"no records at all, but text that is long enough")
    with pytest.raises(ValueError, match=r"^expected tf.Examples in [^\n]*none.record' is damaged: [^\n]*$"):
        read(f"tfrecord:{tmp_path / 'none.record'}")


def test_features_may_be_of_other_kinds(tmp_path):
    changes = {"object__class__label": [b"1", b"2"], "object__difficult": [b"0", b"1"], "width": [b"64"]}
    spec = write(
        tmp_path / "a.record",
        example(source_id=[12345678901], **changes, height=[48.0]),
        example(filename=[7], object__class__label=[1.0, 2.0], object__class__text=[b"", b""]),
    )
    assert open_source(spec).class_names == ("cat", "dog") and said(spec) == []
    found_records = read(spec)
    assert list(found_records) == ["12345678901", "7"]
    for record in found_records.values():
        assert record.labels.tolist() == [0, 1]
        np.testing.assert_allclose(record.boxes, [[0.125, 0.125, 0.5, 0.5], [0.25, 0.25, 0.75, 0.75]])
    assert found_records["12345678901"].difficult.tolist() == [False, True]


def test_what_can_not_be_used_is_said(tmp_path):
    spec = write(
        tmp_path / "a.record",
        example(source_id=[1], object__bbox__xmin=[b"left", b"0.25"]),
        example(source_id=[2], encoded=[3]),
        example(source_id=[3], object__bbox__ymax=[0.5, 300.0]),
        example(source_id=[4], width=[b"wide"]),
    )
    assert said(spec) == [
        "left out an object of 1: box without numbers: object 1: 'cat' yxyx 6 nan 24 32 in 64x48",
        "skipped 2: missing image: no image/encoded",
        "skipped 3: coordinates beyond 0 to 1: object 2: 'dog' yxyx 0.25 0.25 300 0.75",
    ]


@pytest.mark.parametrize(
    ("items", "names", "words"),
    [
        ("id: 1 name: 'cat'", "id: 2 name: 'dog'", []),
        ("name: '/m/01yrx' id: 1 display_name: 'cat'", "name: '/m/0bt9lr' id: 2 display_name: 'dog'", []),
        ("id: 1 name: 'cat'", "id: 1 name: 'dog'", ["2 items have the id 1", "examples have cat, which it lacks"]),
        ("id: 1 name: 'cat'", "id: 2 name: 'cat'", ["examples have dog, which it lacks", "2 ids in map.pbtxt"]),
    ],
)
def test_a_label_map_is_read_or_contradicts_itself(items, names, words, tmp_path):
    put(tmp_path / "map.pbtxt", f"item {{ {items} }}\nitem {{ {names} }}\n")
    put(tmp_path / "graph.pbtxt", 'node { name: "pixels" op: "Placeholder" }')
    put(tmp_path / "._map.pbtxt", b"\0\5\x16\7\0\2\0\0Mac OS X")
    spec = write(tmp_path / "a.record", example())
    lines = [line for line in said(spec) if "map.pbtxt" in line]
    assert [line.rpartition(": ")[2] for line in lines] == words
    assert words or open_source(spec).class_names == ("cat", "dog")


def test_a_flag_of_minus_1_is_unknown_and_not_set(tmp_path):
    spec = write(tmp_path / "a.record", example(object__group_of=[-1, 1], object__occluded=[b"-1", b"1"]))
    (record,) = read(spec).values()
    assert record.crowd.tolist() == record.occluded.tolist() == [False, True]


def test_examples_of_other_keys_say_what_they_have(tmp_path):
    spec = write(tmp_path / "00-192x192-798.tfrec", {"image": [encoded(1)], "class": [3], "id": [b"a"]})
    with pytest.raises(ValueError, match=r"^expected examples with classes in [^\n]*; the first has class, id, image$"):
        read(spec)


def test_a_split_is_not_taken_from_the_folder_that_all_data_lie_in(tmp_path):
    records(tmp_path / "test" / "pets" / "a.tfrecord", range(3))
    records(tmp_path / "test" / "more" / "valid" / "x" / "a.tfrecord", range(3))
    assert open_source(f"tfrecord:{tmp_path}/test/pets/*.tfrecord").splits == ("train",)
    assert open_source(f"tfrecord:{tmp_path}/test/more/**/*.tfrecord").splits == ("val",)
