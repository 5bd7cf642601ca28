"""ImageNet's folders, written here by hand as the archives have them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from overfeat_tf.models.release_weights import read_labels
from training.evaluation.evaluate import require_fit
from training.sources import open_source
from training.sources.checks import Kind
from training.sources.formats.ilsvrc import read_classes

FISH, DOG, BIRD, MACHINE = "n01440764", "n02085620", "n02012849", "n03126707"


class Tree:
    """A layout under construction; `task` is CLS-LOC or DET."""

    def __init__(self, root: Path, task: str):
        self.root, self.task = root, task
        (root / "Data" / task).mkdir(parents=True)

    def image(self, name: str, size=(50, 40)) -> None:
        path = self.root / "Data" / self.task / f"{name}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(path)

    def xml(self, name: str, *objects: tuple, size=(50, 40)) -> None:
        path = self.root / "Annotations" / self.task / f"{name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(
            f"<object><name>{label}</name><bndbox><xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax>"
            f"<ymax>{ymax}</ymax></bndbox></object>"
            for label, (ymin, xmin, ymax, xmax) in objects
        )
        size_text = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
        path.write_text(f"<annotation>{size_text}{text}</annotation>")

    def list(self, name: str, *lines: str) -> None:
        path = self.root / "ImageSets" / self.task / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")

    def open(self, report=None):
        return open_source(f"ilsvrc:{self.root}", report)


def records(source, split="train") -> dict:
    return {record.image_id: record for record in source.records(split)}


@pytest.fixture
def clsloc(tmp_path) -> Tree:
    """Two training images with boxes of three, and two of validation."""
    tree = Tree(tmp_path / "ILSVRC", "CLS-LOC")
    for number, wnid in enumerate((FISH, FISH, DOG)):
        tree.image(f"train/{wnid}/{wnid}_{number}")
        if number:
            tree.xml(f"train/{wnid}/{wnid}_{number}", (wnid, (0, 0, 20, 25)))
    for number, wnid in ((1, DOG), (2, FISH)):
        tree.image(f"val/ILSVRC2012_val_{number:08d}")
        tree.xml(f"val/ILSVRC2012_val_{number:08d}", (wnid, (8, 5, 40, 45)), (wnid, (0, 0, 4, 5)))
    (tree.root / "Data" / "CLS-LOC" / "test").mkdir()
    return tree


def check_clsloc(tree: Tree) -> None:
    source = tree.open()
    assert source.boxed and {"train", "val"} <= set(source.splits) and "test" not in source.splits
    train, val = records(source), records(source, "val")
    assert {name: record.labels.tolist() for name, record in train.items()} == {
        f"{FISH}/{FISH}_0": [0],
        f"{FISH}/{FISH}_1": [0],
        f"{DOG}/{DOG}_2": [1],
    }
    assert {name[-1]: record.boxed.tolist() for name, record in train.items()} == {
        "0": [False],
        "1": [True],
        "2": [True],
    }
    np.testing.assert_allclose(train[f"{DOG}/{DOG}_2"].boxes, [[0, 0, 0.5, 0.5]])  # pixels from 0
    assert val["ILSVRC2012_val_00000001"].labels.tolist() == [1, 1]
    np.testing.assert_allclose(val["ILSVRC2012_val_00000002"].boxes, [[0.2, 0.1, 1, 0.9], [0, 0, 0.1, 0.1]], rtol=1e-6)


def test_clsloc_is_read_without_lists(clsloc):
    assert clsloc.open().splits == ("train", "val") and clsloc.open().class_names == (FISH, DOG)
    check_clsloc(clsloc)


def test_clsloc_is_read_by_its_lists(clsloc):
    clsloc.list("train_cls", f"{FISH}/{FISH}_0 1", f"{FISH}/{FISH}_1 2", f"{DOG}/{DOG}_2 3")
    clsloc.list("train_loc", f"{FISH}/{FISH}_1 1", f"{DOG}/{DOG}_2 2")
    clsloc.list("val", "ILSVRC2012_val_00000001 1", "ILSVRC2012_val_00000002 2")
    clsloc.list("test", "ILSVRC2012_test_00000001 1")
    clsloc.image(f"train/{DOG}/{DOG}_9")  # not listed
    check_clsloc(clsloc)
    assert clsloc.open().splits == ("train", "train_loc", "val")
    assert set(records(clsloc.open(), "train_loc")) == {f"{FISH}/{FISH}_1", f"{DOG}/{DOG}_2"}


@pytest.mark.parametrize("place", ["LOC_synset_mapping.txt", "../LOC_synset_mapping.txt"])
def test_kaggles_class_list_names_the_classes(clsloc, place):
    (clsloc.root / place).write_text(f"{FISH} tench, Tinca tinca\n{DOG} Chihuahua\n")
    assert clsloc.open().class_names == ("tench", "Chihuahua")
    check_clsloc(clsloc)


def test_the_devkits_class_list_gives_the_order(clsloc):
    (clsloc.root / "devkit" / "data").mkdir(parents=True)
    (clsloc.root / "devkit" / "data" / "map_clsloc.txt").write_text(f"{DOG} 1 Mexican_dog\n{FISH} 2 tench\n")
    source = clsloc.open()
    assert source.class_names == ("Mexican dog", "tench")
    assert records(source)[f"{FISH}/{FISH}_0"].labels.tolist() == [1]


def test_names_that_two_classes_share_are_told_apart(tmp_path):
    file = tmp_path / "LOC_synset_mapping.txt"
    file.write_text(f"{BIRD} crane\n{MACHINE} crane\n{DOG} Chihuahua\n")
    assert list(read_classes(file).values()) == [f"crane ({BIRD})", f"crane ({MACHINE})", "Chihuahua"]
    file.write_text("crane\n")
    with pytest.raises(ValueError, match=r"^expected a WordNet id and words in line 1 of '.*'; got 'crane'$"):
        read_classes(file)


def test_kaggles_folder_above_and_the_tasks_own_folder_open_too(clsloc):
    ids = set(records(clsloc.open()))
    for spec in (clsloc.root.parent, clsloc.root / "Data" / "CLS-LOC"):
        assert set(records(open_source(f"ilsvrc:{spec}"))) == ids
    (clsloc.root / "Data" / "DET").mkdir()
    with pytest.raises(
        ValueError, match=r"^expected one of CLS-LOC and DET; .* say 'ilsvrc:.*CLS-LOC' or '[^\n]*DET'$"
    ):
        clsloc.open()
    assert set(records(open_source(f"ilsvrc:{clsloc.root / 'Data' / 'CLS-LOC'}"))) == ids


def test_what_is_wrong_is_reported_and_skipped(clsloc):
    clsloc.list("train_cls", f"{FISH}/{FISH}_0", f"{FISH}/gone", f"{DOG}/{DOG}_3")
    clsloc.image(f"train/{DOG}/{DOG}_3")
    clsloc.xml(f"train/{DOG}/{DOG}_3", (DOG, (9, 9, 9, 30)))  # without area: the class is known all the same
    clsloc.list("val", "ILSVRC2012_val_00000001", "ILSVRC2012_val_00000003")
    clsloc.image("val/ILSVRC2012_val_00000003")
    findings = []
    source = clsloc.open(findings.append)
    assert set(records(source)) == {f"{FISH}/{FISH}_0", f"{DOG}/{DOG}_3"}
    assert records(source)[f"{DOG}/{DOG}_3"].boxed.tolist() == [False]
    assert set(records(source, "val")) == {"ILSVRC2012_val_00000001"}
    assert {(finding.kind, finding.name) for finding in findings} == {
        (Kind.MISSING_IMAGE, f"{FISH}/gone"),
        (Kind.NO_AREA, f"{DOG}/{DOG}_3"),
        (Kind.MISSING_ANNOTATION, "ILSVRC2012_val_00000003"),
    }


def test_suffixes_are_compared_without_case_and_other_files_reported(clsloc):
    folder = clsloc.root / "Data" / "CLS-LOC" / "train" / FISH
    for number, suffix in enumerate((".JPG", ".Png")):
        (folder / f"{FISH}_{number}.JPEG").rename(folder / f"{FISH}_{number}{suffix}")
    (folder / "other.psd").touch()
    findings = []
    assert set(records(clsloc.open(findings.append))) == {f"{FISH}/{FISH}_0", f"{FISH}/{FISH}_1", f"{DOG}/{DOG}_2"}
    assert [(finding.kind, finding.name) for finding in findings] == [(Kind.NOT_TAKEN, f"{FISH}/other.psd")]


def test_training_images_without_annotations_are_a_set_of_classes(tmp_path):
    tree = Tree(tmp_path, "CLS-LOC")
    tree.image(f"train/{DOG}/{DOG}_1")
    tree.image("val/ILSVRC2012_val_00000001")
    assert not tree.open().boxed and tree.open().splits == ("train",)


def test_det_is_read_with_its_own_classes(tmp_path):
    tree = Tree(tmp_path, "DET")
    name = f"ILSVRC2013_train/{FISH}/{FISH}_7"
    tree.image(f"train/{name}")
    tree.xml(f"train/{name}", (DOG, (0, 0, 40, 50)), (FISH, (10, 10, 20, 20)))
    tree.image("val/ILSVRC2012_val_1")
    tree.xml("val/ILSVRC2012_val_1")  # nothing of the 200 classes
    tree.list("train", f"{name} 1")
    tree.list("train_1", f"{name} 1")  # the list of a class
    tree.list("val", "ILSVRC2012_val_1 1")
    assert tree.open().class_names == (FISH, DOG)
    (tmp_path / "map_det.txt").write_text(f"{DOG} 1 dog\n{FISH} 2 fish\n")
    source = tree.open()
    assert source.class_names == ("dog", "fish") and source.splits == ("train", "val")
    (record,) = records(source).values()
    assert record.labels.tolist() == [0, 1]
    (empty,) = records(source, "val").values()
    assert len(empty.labels) == 0  # an image of background, unlike CLS-LOC's


def test_another_folder_is_one_line(tmp_path):
    with pytest.raises(
        ValueError, match=r"^expected an ImageNet folder; '.*' has no Data/CLS-LOC and no Data/DET[^\n]*$"
    ):
        open_source(f"ilsvrc:{tmp_path}")


def test_the_names_of_the_kit_name_the_release_as_the_data(clsloc, tmp_path):
    # As the kit has it: by ILSVRC2012_ID, from kit fox, and two cranes.
    known = {
        1: ("n02119789", "kit_fox"),
        2: (DOG, "Chihuahua"),
        3: (BIRD, "crane"),
        4: (MACHINE, "crane"),
        5: (FISH, "tench"),
    }
    lines = [
        " ".join((known.get(n, (f"n{n:08d}",))[0], str(n), known.get(n, ("", f"thing_{n}"))[1])) for n in range(1, 1001)
    ]
    (clsloc.root / "devkit" / "data").mkdir(parents=True)
    (clsloc.root / "devkit" / "data" / "map_clsloc.txt").write_text("\n".join(lines) + "\n")
    source = clsloc.open()
    (tmp_path / "labels.txt").write_text("\n".join(source.class_names) + "\n")
    labels = read_labels(tmp_path / "labels.txt")
    assert labels[:4] == ("kit fox", "Chihuahua", f"crane ({BIRD})", f"crane ({MACHINE})")
    require_fit(labels, ("classification",), source, ("classification",))
