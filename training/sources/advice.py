"""What a folder or a file looks like, and which SOURCE to write for it."""

import re
from pathlib import Path

from training.sources.formats.annotation_xml import UNREADABLE, parse_xml
from training.sources.formats.coco import coco_files_in
from training.sources.formats.csv_table import csv_files_in
from training.sources.formats.yolo import holds_labels, yolo_files_in
from training.sources.listing import files_below, folders_below, is_dir, is_file, is_image
from training.sources.splits import DEPTH, PARTS, split_of
from training.sources.text import read_head

RECORDS = re.compile(r"\.(tfrecords?|tfrec|record)(-\d+-of-\d+)?$")
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
# Words in the files of tools that nothing here reads.
TOOLS = (
    (".json", '"_via_img_metadata"', "a project of VIA; export it as COCO"),
    (".json", '"shapes"', "LabelMe's files; convert them to COCO (labelme2coco)"),
    (".json", '"file_upload"', "Label Studio's own JSON; export it as COCO"),
    (".json", '"coordinates"', "CreateML's JSON; export the set as COCO"),
    (".json", '"regions"', "regions of VIA; export them as COCO"),
    (".json", '"classTitle"', "Supervisely's JSON; export it as COCO or Pascal VOC"),
    (".xml", "<annotations>", "CVAT for images; export it as Pascal VOC, COCO or YOLO"),
)


def describe(path: Path) -> str:
    """Return in one line what a path looks like and which SOURCE fits it; "" where there is nothing to say."""
    if is_file(path):
        path = path.parent if path.suffix.lower() in (".txt", ".xml", ".names") or is_image(path.name) else path
    if is_file(path):
        if path.name.lower().endswith(ARCHIVES):
            return f"'{path}' is an archive: unpack it, and write the SOURCE of its folder"
        sources = {".json": "coco", ".csv": "csv", ".yaml": "yolo", ".yml": "yolo", ".data": "yolo"}
        kind = "tfrecord" if RECORDS.search(path.name) else sources.get(path.suffix.lower())
        return f"'{path}' is a file for {kind}: write {kind}:{path}" if kind else ""
    if not is_dir(path):
        return ""
    own = _looks_like(path)
    if "write" not in own and (split_of(path.name, folder=True) or path.name.lower() in PARTS):
        above = _looks_like(path.resolve().parent)
        if "write" in above:
            return f"above it, {above}"
    return own or f"'{path}' has nothing that a SOURCE reads"


def _looks_like(folder: Path) -> str:
    """Return what a folder looks like; "" where it looks like nothing."""
    if any((place / "Data" / task).is_dir() for place in (folder, folder / "ILSVRC") for task in ("CLS-LOC", "DET")):
        return f"'{folder}' looks like ImageNet: write ilsvrc:{folder}"
    if found := yolo_files_in(folder):
        return f"'{folder}' looks like YOLO: write {_ways('yolo', found)}"
    if coco_files_in(folder):
        return f"'{folder}' looks like COCO: write coco:{folder}"
    files = [path for path in files_below(folder, ("",), DEPTH) if not is_image(path.name)]
    if any(_is_voc(path) for path in files if path.suffix.lower() == ".xml"):
        return f"'{folder}' looks like Pascal VOC: write voc:{folder}"
    if found := csv_files_in(folder):
        return f"'{folder}' has tables of boxes: write {_ways('csv', found)}"
    if found := [path for path in files if RECORDS.search(path.name)]:
        inner = found[0].parent if len({path.parent for path in found}) == 1 else folder / "**"
        suffix = re.sub(r"-\d.*", "-*", found[0].suffix)
        return f"'{folder}' has files of tf.Examples: write 'tfrecord:{inner}/*{suffix}'"
    for suffix, word, text in TOOLS:
        if any(word in read_head(path) for path in files if path.suffix.lower() == suffix):
            return f"'{folder}' looks like {text}"
    if any(holds_labels(path) for path in files if path.suffix == ".txt"):
        return (
            f"'{folder}' looks like YOLO without a data.yaml: write one with path, train, val and names, and open it "
            "as yolo:FILE"
        )
    classes = [below for below in folders_below(folder, 2) if any(is_image(entry.name) for entry in below.iterdir())]
    plain = [below for below in classes if not split_of(below.name, folder=True) and below.name.lower() not in PARTS]
    if plain and len(plain) == len(classes):
        return f"'{folder}' looks like a folder of images per class: write folder:{folder}"
    if classes or any(is_image(entry.name) for entry in folder.iterdir()):
        other = next((path for path in files if path.suffix.lower() in (".csv", ".json", ".jsonl", ".xml")), None)
        if other is None:
            return f"'{folder}' has images and no annotations"
        what = "of another kind"
        if other.suffix.lower() == ".csv":
            what = "a table without columns of boxes: of classes alone, sort the images into a folder for each class"
        return f"'{folder}' has images and no annotations that a SOURCE reads; '{other}' is {what}"
    return ""


def _ways(kind: str, paths: list[Path]) -> str:
    return " or ".join(f"{kind}:{path}" for path in paths[:3])


def _is_voc(path: Path) -> bool:
    try:
        parse_xml(path)
    except UNREADABLE:
        return False
    return True
