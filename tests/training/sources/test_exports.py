"""Every tool's export is read, without being told more than where it is, and without a finding."""

import re

import numpy as np
import pytest
from exports import CLASSES, SIZE, SPLITS, THINGS, WRITERS, coco, encoded, image, put, table

from training.sources import open_source
from training.sources.checks import Finding


@pytest.mark.parametrize("name", WRITERS)
def test_an_export_is_read_in_full(name, tmp_path):
    write, divided = WRITERS[name]
    findings: list[Finding] = []
    source = open_source(write(tmp_path / "pets"), findings.append)
    assert source.class_names == CLASSES and source.boxed
    found = {split: {} for split in source.splits}
    for split in source.splits:
        for record in source.records(split):
            number = int(re.search(r"photo(?:[ _]|%20)(\d+)", record.image_id)[1])
            assert number not in found[split]
            found[split][number] = record
    test = found.pop("test", {})  # of Roboflow's, an image without objects
    assert all(len(record.labels) == 0 for record in test.values())
    if divided:
        assert len(found["train"]) == 10 and len(found["val"]) == 2
    else:
        assert {split: sorted(numbers) for split, numbers in found.items()} == {s: [*n] for s, n in SPLITS.items()}
    for number, record in {**found["train"], **found["val"]}.items():
        left, top, right, bottom, labels = np.transpose(THINGS[number])
        boxes = np.stack([top / SIZE[1], left / SIZE[0], bottom / SIZE[1], right / SIZE[0]], axis=1)
        np.testing.assert_allclose(record.boxes, boxes, atol=1e-5)
        assert record.labels.tolist() == labels.tolist()
    assert [one for one in findings if one.kind.fault] == []


@pytest.mark.parametrize(
    ("kind", "rest"), [("coco", ""), ("coco", "instances_train2017.json"), ("csv", ""), ("csv", "train.csv")]
)
def test_images_are_found_beside_a_folder_of_annotations(kind, rest, tmp_path):
    """All in a folder that is called test, with images of one name in each split."""
    root = tmp_path / "test"
    for split, numbers in SPLITS.items():
        for i in numbers[:3]:
            image(root / f"{split}2017", i, f"photo {i % 3}")
        put(root / "coco" / f"instances_{split}2017.json", coco(numbers[:3], lambda i: f"photo {i % 3}.jpg"))
        table(root / "csv" / f"{split}.csv", numbers[:3], lambda i: f"photo {i % 3}.jpg")
    for folder in [root / kind] if rest else [root, root / kind]:
        source = open_source(f"{kind}:{folder / rest}")
        assert source.splits == ("train",) if rest else ("train", "val")
        for split in source.splits:
            found = list(source.records(split))
            assert sorted(one.image_bytes for one in found) == sorted(encoded(i) for i in SPLITS[split][:3])
