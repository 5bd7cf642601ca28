"""What a folder or a file looks like, and which SOURCE to write for it."""

from pathlib import Path

from training.sources.annotation_xml import UNREADABLE, parse_xml
from training.sources.coco import coco_files_in
from training.sources.csv_table import csv_files_in
from training.sources.listing import files_below, folders_below, is_image
from training.sources.splits import DEPTH, PARTS, split_of
from training.sources.yolo import yolo_files_in

RECORDS = (".tfrecord", ".tfrecords", ".record")
# Words in the files of tools that nothing here reads.
TOOLS = (
    (".json", b'"_via_img_metadata"', "a project of VIA; export it as COCO"),
    (".json", b'"shapes"', "LabelMe's files; convert them to COCO (labelme2coco)"),
    (".json", b'"file_upload"', "Label Studio's own JSON; export it as COCO"),
    (".json", b'"coordinates"', "CreateML's JSON; export the set as COCO"),
    (".json", b'"regions"', "regions of VIA; export them as COCO"),
    (".xml", b"<annotations>", "CVAT for images; export it as Pascal VOC, COCO or YOLO"),
)
HEAD = 1 << 16  # bytes of a file that are looked at


def describe(path: Path) -> str:
    """Return in one line what a path looks like and which SOURCE fits it; "" where there is nothing to say."""
    if path.is_file():
        path = path.parent if path.suffix.lower() in (".txt", ".xml", ".names") or is_image(path.name) else path
    if path.is_file():
        sources = {".json": "coco", ".csv": "csv", ".yaml": "yolo", ".yml": "yolo", ".data": "yolo"}
        kind = "tfrecord" if path.suffix in RECORDS else sources.get(path.suffix.lower())
        return f"'{path}' is a file for {kind}: write {kind}:{path}" if kind else ""
    if not path.is_dir():
        return ""
    own = _looks_like(path)
    if "write" not in own and (split_of(path.name, whole=True) or path.name.lower() in PARTS):
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
    files = list(files_below(folder, (".xml", ".json", ".txt", *RECORDS), DEPTH))
    if any(_is_voc(path) for path in files if path.suffix.lower() == ".xml"):
        return f"'{folder}' looks like Pascal VOC: write voc:{folder}"
    if found := csv_files_in(folder):
        return f"'{folder}' has tables of boxes: write {_ways('csv', found)}"
    if found := [path for path in files if path.suffix in RECORDS]:
        inner = found[0].parent if len({path.parent for path in found}) == 1 else folder / "**"
        return f"'{folder}' has files of tf.Examples: write 'tfrecord:{inner}/*{found[0].suffix}'"
    for suffix, word, text in TOOLS:
        if any(word in _head(path) for path in files if path.suffix.lower() == suffix):
            return f"'{folder}' looks like {text}"
    if any(_is_yolo(path) for path in files if path.suffix == ".txt"):
        return (
            f"'{folder}' looks like YOLO without a data.yaml: write one with path, train, val and names, and yolo:FILE"
        )
    classes = [below for below in folders_below(folder, 2) if any(is_image(entry.name) for entry in below.iterdir())]
    plain = [below for below in classes if not split_of(below.name, whole=True) and below.name.lower() not in PARTS]
    if plain and len(plain) == len(classes):
        return f"'{folder}' looks like a folder of images a class: write folder:{folder}"
    if classes or any(is_image(entry.name) for entry in folder.iterdir()):
        return f"'{folder}' has images and no annotations"
    return ""


def _ways(kind: str, paths: list[Path]) -> str:
    return " or ".join(f"{kind}:{path}" for path in paths[:3])


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD)


def _is_voc(path: Path) -> bool:
    try:
        parse_xml(path)
    except UNREADABLE:
        return False
    return True


def _is_yolo(path: Path) -> bool:
    """Return whether a text file's first line is five numbers."""
    try:
        words = path.read_text(errors="replace").partition("\n")[0].split()
        return len(words) >= 5 and all(-1 <= float(word) <= 2 for word in words[1:])
    except (OSError, ValueError):
        return False
