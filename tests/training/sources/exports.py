"""One small set, written the way each tool writes it: every function returns its SOURCE."""

import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

CLASSES = ("cat", "dog")
SIZE = (64, 48)  # width and height
# Pixels left, top, right, bottom, and the class; of image i.
THINGS = [[(8 + i, 6, 40 + i, 30, i % 2)] + [(2, 20, 22, 46, 1)] * (i % 3 == 0) for i in range(12)]
SPLITS = {"train": range(0, 9), "val": range(9, 12)}

WRITERS: dict[str, tuple[Callable[[Path], str], bool]] = {}  # by tool: writes a set; whether it has splits


def tool(divided: bool):
    """Register a writer; `divided` where its set has one list, of which a part is held out."""

    def register(write: Callable[[Path], str]) -> Callable[[Path], str]:
        WRITERS[write.__name__] = (write, divided)
        return write

    return register


def encoded(i: int) -> bytes:
    """Encode image i, of noise."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(i).integers(0, 256, (*SIZE[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def image(folder: Path, i: int, name: str = "") -> None:
    put(folder / f"{name or f'photo {i}'}.jpg", encoded(i))


def both() -> Iterator[tuple[str, int]]:
    yield from ((split, i) for split, numbers in SPLITS.items() for i in numbers)


# --- YOLO ------------------------------------------------------------------------------------------------------------


def yolo_lines(i: int, outline: bool = False) -> str:
    lines = []
    for left, top, right, bottom, label in THINGS[i]:
        x, y, w, h = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
        numbers = [left, top, right, top, (left + right) / 2, bottom] if outline else [x, y, w, h]
        lines.append(f"{label} " + " ".join(f"{n / SIZE[k % 2]:.6f}" for k, n in enumerate(numbers)))
    return "\n".join(lines) + "\n"


@tool(divided=False)
def ultralytics(root: Path) -> str:
    for split, i in both():
        image(root / "images" / split, i)
        put(root / "labels" / split / f"photo {i}.txt", yolo_lines(i))
    names = "".join(f"  {number}: {name}\n" for number, name in enumerate(CLASSES))
    head = f"path: {root} # dataset root dir\ntrain: images/train\nval: images/val\ntest: # test images (optional)\n"
    text = f"{head}\nnames:\n{names}"
    return f"yolo:{put(root / 'data.yaml', text)}"


@tool(divided=False)
def ultralytics_lists_of_outlines(root: Path) -> str:
    for split, i in both():
        image(root / "images", i)
        put(root / "labels" / f"photo {i}.txt", yolo_lines(i, outline=True))
        with (root / f"{split}.txt").open("a") as lines:
            lines.write(f"./images/photo {i}.jpg\n")
    text = "path: ../datasets/pets\ntrain: [train.txt]\nval: val.txt\nnames: [cat, dog]\n"
    return f"yolo:{put(root / 'pets.yaml', text)}"


@tool(divided=False)
def roboflow_yolo(root: Path) -> str:
    folders = {"train": "train", "val": "valid"}
    for split, i in both():
        name = f"photo_{i}_jpg.rf.{i:032x}"
        image(root / folders[split] / "images", i, name)
        put(root / folders[split] / "labels" / f"{name}.txt", yolo_lines(i))
    head = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
    text = f"{head}\nnc: 2\nnames: ['cat', 'dog']\n\nroboflow:\n  version: 1\n"
    put(root / "test" / "images" / "photo_99_jpg.rf.1.jpg", encoded(99))
    put(root / "test" / "labels" / "photo_99_jpg.rf.1.txt", "")
    put(root / "README.roboflow.txt", "pets")
    return f"yolo:{put(root / 'data.yaml', text).parent}"


@tool(divided=True)
def cvat_ultralytics(root: Path) -> str:
    for i in range(12):
        image(root / "images" / "train", i)
        put(root / "labels" / "train" / f"photo {i}.txt", yolo_lines(i))
    put(root / "train.txt", "".join(f"data/images/train/photo {i}.jpg\n" for i in range(12)))
    text = "path: .\ntrain: train.txt\nnames:\n  0: cat\n  1: dog\n"
    return f"yolo:{put(root / 'data.yaml', text)}"


@tool(divided=True)
def cvat_darknet(root: Path) -> str:
    for i in range(12):
        image(root / "obj_train_data", i)
        put(root / "obj_train_data" / f"photo {i}.txt", yolo_lines(i))
    put(root / "train.txt", "".join(f"data/obj_train_data/photo {i}.jpg\n" for i in range(12)))
    put(root / "obj.names", "cat\ndog\n")
    text = "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n"
    return f"yolo:{put(root / 'obj.data', text)}"


# --- COCO ------------------------------------------------------------------------------------------------------------


def coco(numbers, name: Callable[[int], str], first: int = 1, root: str = "", **entry) -> str:
    """Write COCO's JSON; with `root` as Roboflow does, below a category without objects."""
    images = [{"id": i, "file_name": name(i), "width": SIZE[0], "height": SIZE[1]} for i in numbers]
    boxes = [
        {"image_id": i, "category_id": label + first, "bbox": [left, top, right - left, bottom - top], "iscrowd": 0}
        for i in numbers
        for left, top, right, bottom, label in THINGS[i]
    ]
    categories = [{"id": label + first, "name": text, "supercategory": root} for label, text in enumerate(CLASSES)]
    categories = [{"id": 0, "name": root, "supercategory": "none"}] * bool(root) + categories
    annotations = [{"id": number, "area": 1, "segmentation": [], **box, **entry} for number, box in enumerate(boxes)]
    return json.dumps({"info": {}, "categories": categories, "images": images, "annotations": annotations})


@tool(divided=False)
def roboflow_coco(root: Path) -> str:
    folders = {"train": "train", "val": "valid"}
    for split, i in both():
        image(root / folders[split], i, f"photo_{i}_jpg.rf.{i:032x}")
    for split, numbers in SPLITS.items():
        text = coco(numbers, lambda i: f"photo_{i}_jpg.rf.{i:032x}.jpg", root="pets")
        put(root / folders[split] / "_annotations.coco.json", text)
    return f"coco:{root}"


@tool(divided=False)
def coco_2017(root: Path) -> str:
    for split, numbers in SPLITS.items():
        for i in numbers:
            image(root / f"{split}2017", i)
        put(root / "annotations" / f"instances_{split}2017.json", coco(numbers, lambda i: f"photo {i}.jpg"))
        put(root / "annotations" / f"captions_{split}2017.json", coco(numbers, lambda i: f"photo {i}.jpg"))
    return f"coco:{root}"


@tool(divided=True)
def label_studio_coco(root: Path) -> str:
    for i in range(12):
        image(root / "images", i, f"90fbb0c{i:x}-photo {i}")
    forms = (
        "images\\1/90fbb0c{i:x}-photo {i}.jpg",
        "..\\..\\label-studio\\media\\upload\\4\\90fbb0c{i:x}-photo {i}.jpg",
        "/data/local-files/?d=pets%2F90fbb0c{i:x}-photo%20{i}.jpg",
        "https://localhost:8080/data/upload/1/90fbb0c{i:x}-photo%20{i}.jpg",
        "C:\\Users\\me\\90fbb0c{i:x}-photo {i}.jpg",
        "/home/me/pets/90fbb0c{i:x}-photo {i}.jpg",
    )
    put(root / "result.json", coco(range(12), lambda i: forms[i % 6].format(i=i), first=0))
    return f"coco:{root}"


@tool(divided=True)
def cvat_coco(root: Path) -> str:
    for i in range(12):
        image(root / "images" / "default", i)
    put(root / "annotations" / "instances_default.json", coco(range(12), lambda i: f"photo {i}.jpg"))
    return f"coco:{root}"


@tool(divided=True)
def fiftyone_coco(root: Path) -> str:
    for i in range(12):
        image(root / "data", i)
    put(root / "labels.json", coco(range(12), lambda i: f"photo {i}.jpg"))
    return f"coco:{root / 'labels.json'}"


# --- Pascal VOC ------------------------------------------------------------------------------------------------------


def xml(i: int, filename: str, path: str = "") -> str:
    objects = "".join(
        f"<object><name>{CLASSES[label]}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>"
        f"<bndbox><xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox>"
        "</object>"
        for left, top, right, bottom, label in THINGS[i]
    )
    size = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height><depth>3</depth></size><segmented>0</segmented>"
    head = f"<folder>pets</folder><filename>{filename}</filename><path>{path}</path>"
    return f"<annotation verified='yes'>{head}{size}{objects}</annotation>"


@tool(divided=True)
def labelimg(root: Path) -> str:
    for i in range(12):
        image(root, i)
        put(root / f"photo {i}.xml", xml(i, f"photo {i}.jpg", f"C:\\Users\\me\\pets\\photo {i}.jpg"))
    return f"voc:{root}"


@tool(divided=True)
def images_and_annotations(root: Path) -> str:
    for i in range(12):
        image(root / "images", i)
        put(root / "annotations" / "xmls" / f"photo {i}.xml", xml(i, f"photo {i}.jpg"))
    return f"voc:{root}"


@tool(divided=True)
def cvat_voc(root: Path) -> str:
    for i in range(12):
        image(root / "JPEGImages" / "day one", i)
        put(root / "Annotations" / "day one" / f"photo {i}.xml", xml(i, f"day one/photo {i}.jpg"))
    put(root / "ImageSets" / "Main" / "default.txt", "".join(f"day one/photo {i}\n" for i in range(12)))
    put(root / "labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:1,1,1::\ndog:2,2,2::\n")
    return f"voc:{root}"


@tool(divided=False)
def roboflow_voc(root: Path) -> str:
    folders = {"train": "train", "val": "valid"}
    for split, i in both():
        name = f"photo_{i}_jpg.rf.{i:032x}"
        image(root / folders[split], i, name)
        put(root / folders[split] / f"{name}.xml", xml(i, f"{name}.jpg", f"{name}.jpg"))
    put(root / "README.dataset.txt", "pets")
    return f"voc:{root}"


@tool(divided=False)
def devkit(root: Path) -> str:
    folder = root / "VOCdevkit" / "VOC2007"
    for split, i in both():
        image(folder / "JPEGImages", i)
        put(folder / "Annotations" / f"photo {i}.xml", xml(i, f"photo {i}.jpg"))
        with put(folder / "ImageSets" / "Main" / f"{split}.txt", "").open("w") as lines:
            lines.writelines(f"photo {number}\n" for number in SPLITS[split])
    return f"voc:{root}"


# --- The Object Detection API ----------------------------------------------------------------------------------------


def table(path: Path, numbers, name: Callable[[int], str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"])
        rows.writerows([name(i), *SIZE, CLASSES[thing[4]], *thing[:4]] for i in numbers for thing in THINGS[i])


@tool(divided=False)
def tutorial_csv(root: Path) -> str:
    for split, i in both():
        image(root / "images" / split, i)
    for split, numbers in SPLITS.items():
        table(root / "data" / f"{split}_labels.csv", numbers, lambda i: f"photo {i}.jpg")
    return f"csv:{root}/data/{{split}}_labels.csv"


@tool(divided=False)
def roboflow_csv(root: Path) -> str:
    folders = {"train": "train", "val": "valid"}
    for split, i in both():
        image(root / folders[split], i)
    for split, numbers in SPLITS.items():
        table(root / folders[split] / "_annotations.csv", numbers, lambda i: f"photo {i}.jpg")
    return f"csv:{root}"


def example(i: int) -> bytes:
    def feature(value) -> tf.train.Feature:
        if isinstance(value[0] if value else 0.0, bytes):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=value))
        if isinstance(value[0] if value else 0.0, int):
            return tf.train.Feature(int64_list=tf.train.Int64List(value=value))
        return tf.train.Feature(float_list=tf.train.FloatList(value=value))

    left, top, right, bottom, labels = zip(*THINGS[i], strict=True)
    features = {
        "image/height": [SIZE[1]],
        "image/width": [SIZE[0]],
        "image/filename": [f"photo {i}.jpg".encode()],
        "image/source_id": [f"photo {i}.jpg".encode()],
        "image/encoded": [encoded(i)],
        "image/format": [b"jpeg"],
        "image/object/bbox/xmin": [x / SIZE[0] for x in left],
        "image/object/bbox/xmax": [x / SIZE[0] for x in right],
        "image/object/bbox/ymin": [y / SIZE[1] for y in top],
        "image/object/bbox/ymax": [y / SIZE[1] for y in bottom],
        "image/object/class/text": [CLASSES[label].encode() for label in labels],
        "image/object/class/label": [label + 1 for label in labels],
    }
    return tf.train.Example(
        features=tf.train.Features(feature={key: feature(value) for key, value in features.items()})
    ).SerializeToString()


def records(path: Path, numbers) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(os.fspath(path)) as writer:
        for i in numbers:
            writer.write(example(i))


@tool(divided=True)
def tutorial_tfrecord(root: Path) -> str:
    records(root / "pets.record-00000-of-00002", range(0, 6))
    records(root / "pets.record-00001-of-00002", range(6, 12))
    return f"tfrecord:{root}/pets.record-*"


@tool(divided=False)
def roboflow_tfrecord(root: Path) -> str:
    for split, folder in {"train": "train", "val": "valid"}.items():
        records(root / folder / "pets.tfrecord", SPLITS[split])
        items = "".join(
            f'item {{\n    name: "{name}",\n    id: {i + 1},\n    display_name: "{name}"\n}}\n'
            for i, name in enumerate(CLASSES)
        )
        put(root / folder / "pets_label_map.pbtxt", items)
    return f"tfrecord:{root}/*/*.tfrecord"
