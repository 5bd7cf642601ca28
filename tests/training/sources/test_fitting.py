"""Every source trains, and a run from it that is broken off ends as an unbroken one does."""

import gc
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from overfeat_tf.models.loading import load
from overfeat_tf.options import InferenceOptions
from training.fit import train as module
from training.fit.train import train
from training.recipes import Recipe, Schedule
from training.sources import open_source
from training.views.augmentation import ViewOptions

SIZE = (80, 60)  # width and height
COLOURS = ("red", "lime", "blue")
SCHEDULE = Schedule(steps=4, batch=4, learning_rate=0.02, epochs=2)
RECIPE = Recipe(
    name="source",
    data=None,
    preset="tiny",
    classification=SCHEDULE,
    localization=SCHEDULE,
    detection=SCHEDULE,
    side=52,
    views=ViewOptions(per_image=2),
    inference=InferenceOptions(scales=(1,)),
    val_split="none",
)


class Drawn(NamedTuple):
    """A rectangle in its class's colour on a gray image, encoded; the box is (xmin, ymin, xmax, ymax) in pixels."""

    encoded: bytes
    label: int
    box: tuple[int, int, int, int]

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.encoded)

    def xml(self, name: str, first: int = 0) -> str:
        corners = zip(("xmin", "ymin", "xmax", "ymax"), self.box, strict=True)
        inside = "".join(f"<{key}>{value + first * (key[1:] == 'min')}</{key}>" for key, value in corners)
        size = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height></size>"
        return f"<annotation>{size}<object><name>{name}</name><bndbox>{inside}</bndbox></object></annotation>"


def drawn() -> list[Drawn]:
    found = []
    for number in range(6):
        image, box = Image.new("RGB", SIZE, "gray"), (5 * number, 4 * number, 30 + 8 * number, 30 + 6 * number)
        image.paste(COLOURS[number % 3], box)
        stream = io.BytesIO()
        image.save(stream, "JPEG")
        found.append(Drawn(stream.getvalue(), number % 3, box))
    return found


def voc(root: Path, mocked) -> str:
    (root / "Annotations").mkdir()
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for number, each in enumerate(drawn()):
        each.write(root / "JPEGImages" / f"{number}.jpg")
        (root / "Annotations" / f"{number}.xml").write_text(each.xml(COLOURS[each.label], 1))
    (root / "ImageSets" / "Main" / "train.txt").write_text("0\n1\n2\n3\n4\n5\n")
    return f"voc:{root}"


def coco(root: Path, mocked) -> str:
    things, images = [], []
    for number, each in enumerate(drawn()):
        each.write(root / "images" / f"{number}.jpg")
        images.append({"id": number, "file_name": f"{number}.jpg", "width": SIZE[0], "height": SIZE[1]})
        left, top, right, bottom = each.box
        things.append({"image_id": number, "category_id": each.label, "bbox": [left, top, right - left, bottom - top]})
    categories = [{"id": number, "name": name} for number, name in enumerate(COLOURS)]
    (root / "x.json").write_text(json.dumps({"images": images, "annotations": things, "categories": categories}))
    return f"coco:{root / 'images'}:{root / 'x.json'}"


def ilsvrc(root: Path, mocked) -> str:
    for number, each in enumerate(drawn()):
        wnid = f"n0000000{each.label}"
        each.write(root / "Data" / "CLS-LOC" / "train" / wnid / f"{wnid}_{number}.JPEG")
        path = root / "Annotations" / "CLS-LOC" / "train" / wnid / f"{wnid}_{number}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(each.xml(wnid))
    return f"ilsvrc:{root}"


def folder(root: Path, mocked) -> str:
    for number, each in enumerate(drawn()):
        each.write(root / COLOURS[each.label] / f"{number}.jpg")
    return f"folder:{root}"


def tfds(root: Path, mocked) -> str:
    examples = []
    for number, each in enumerate(drawn()):
        left, top, right, bottom = each.box
        box = np.float32([[top / SIZE[1], left / SIZE[0], bottom / SIZE[1], right / SIZE[0]]])
        flags = {"pose": np.int64([0]), "is_truncated": np.array([False]), "is_difficult": np.array([False])}
        objects = {"label": np.int64([each.label]), "bbox": box, **flags}
        examples.append({"image": each.encoded, "image/filename": f"{number}.jpg".encode(), "objects": objects})
    mocked("voc/2007", examples)
    return "tfds:voc/2007"


def imagenet(root: Path, mocked) -> str:
    wnids, examples = ("n01440764", "n01443537", "n01484850"), []
    (root / "boxes").mkdir()
    for number, each in enumerate(drawn()):
        wnid = wnids[each.label]
        (root / "boxes" / f"{wnid}_{number}.xml").write_text(each.xml(wnid))
        name = f"{wnid}_{number}.JPEG".encode()
        examples.append({"image": each.encoded, "label": np.int64(each.label), "file_name": name})
    mocked("imagenet2012", examples)
    return f"tfds:imagenet2012+boxes={root / 'boxes'}"


def digits(root: Path, mocked) -> str:
    return "digits"


# Digits change their class in a mirror; where there are no boxes, the paper's plain crops do.
VIEWS = {digits: ViewOptions(per_image=2, mirror=False), folder: ViewOptions(per_image=2, plain=True)}


@pytest.mark.parametrize(
    "write",
    # Three runs each: one source by its own is enough for every change.
    [voc, *(pytest.param(each, marks=pytest.mark.long) for each in (coco, ilsvrc, folder, tfds, imagenet, digits))],
)
def test_a_run_that_is_broken_off_ends_as_an_unbroken_one(write, tmp_path, mocked, monkeypatch, no_boards):
    (tmp_path / "data").mkdir()
    source = open_source(write(tmp_path / "data", mocked))
    recipe = replace(RECIPE, views=VIEWS.get(write, RECIPE.views))
    stage = "localization" if source.boxed else "classification"

    def fit(name: str):
        return train(recipe, source, tmp_path / name, [stage]).model

    unbroken = fit("unbroken")

    class Ending(module.Checkpoints):
        def on_train_batch_end(self, batch, logs=None):
            super().on_train_batch_end(batch, logs)
            if self._position.step == 3:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "Checkpoints", Ending)
        fit("broken")
    gc.collect()  # else the broken run's iterator reads on, beside the next in one mocked file system
    fit("broken")
    part = "regressor" if stage == "localization" else "classifier"
    ours, theirs = (getattr(model.network, part).get_weights() for model in (load(tmp_path / "broken"), unbroken))
    for found, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
