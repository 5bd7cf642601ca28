"""Sets with faults that people have reported for other tools: each is mended, or found and said."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from exports import coco, image, put, records, table, xml, yolo_lines
from PIL import Image

from overfeat_tf.images.decode import decode_image
from training.evaluation.inspection import inspect
from training.sources import open_source
from training.sources.checks import Kind, read_size

XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


WATCHED = (Kind.ALIKE, Kind.BEYOND, Kind.GROUP, Kind.NO_OBJECTS)  # remarks


def found(spec: str) -> dict[Kind, list[str]]:
    """Inspect a set; return the names of what is found, by kind."""
    inspection = inspect(lambda report: open_source(spec, report))
    kinds: dict[Kind, list[str]] = {}
    for (_, kind), ones in inspection.findings.items():
        kinds.setdefault(kind, []).extend(one.name for one in ones)
    return {kind: names for kind, names in kinds.items() if kind.fault or kind in WATCHED}


def read(spec: str) -> dict:
    source = open_source(spec, lambda finding: None)
    return {record.image_id: record for split in source.splits for record in source.records(split)}


# --- Sizes -----------------------------------------------------------------------------------------------------------


def saved(form: str, **options) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    Image.fromarray(pixels).save(stream, form, **options)
    return stream.getvalue()


def exif(kind: int, count: int = 1) -> bytes:
    entry = struct.pack("<HHIHH", 0x0112, kind, count, 6, 0)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)


def segment(data: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data


def chunk(name: bytes, data: bytes, crc: int | None = None) -> bytes:
    return (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data) if crc is None else crc)
    )


def before_pixels(png: bytes, extra: bytes) -> bytes:
    place = png.index(b"IDAT") - 4
    return png[:place] + extra + png[place:]


JPEG, PNG = saved("JPEG"), saved("PNG")
SCAN = JPEG.index(b"\xff\xda")
ODD = {
    "XMP in JPEG": JPEG[:2] + segment(b"http://ns.adobe.com/xap/1.0/\0" + XMP) + JPEG[2:],
    "XMP in PNG": before_pixels(PNG, chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)),
    "XMP in WebP": saved("WEBP", xmp=XMP),
    "EXIF": saved("JPEG", exif=exif(3)),
    "EXIF in PNG": saved("PNG", exif=exif(3)[6:]),
    "EXIF as SSHORT": saved("JPEG", exif=exif(8)),
    "EXIF with count 2": saved("JPEG", exif=exif(3, 2)),
    "EXIF after SOF": JPEG[:SCAN] + segment(exif(3)) + JPEG[SCAN:],
    "large profile": before_pixels(PNG, chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(1_200_000)))),
    "bad CRC of a text": before_pixels(PNG, chunk(b"tEXt", b"Comment\0hello", crc=0)),
    "large text": before_pixels(PNG, chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(5_000_000)))),
}


@pytest.mark.parametrize("name", ODD)
def test_boxes_are_placed_by_the_size_that_is_decoded(name, tmp_path):
    pixels, status = decode_image(ODD[name])
    assert not status.numpy()
    height, width = pixels.shape[:2]
    assert read_size(ODD[name])[1] == (width, height)
    put(tmp_path / "a.jpg", ODD[name])
    box = "<bndbox><xmin>5</xmin><ymin>7</ymin><xmax>16</xmax><ymax>16</ymax></bndbox>"
    put(tmp_path / "a.xml", f"<annotation><object><name>cat</name>{box}</object></annotation>")
    (record,) = read(f"voc:{tmp_path}").values()
    np.testing.assert_allclose(record.boxes * [height, width, height, width], [[6, 4, 16, 16]], rtol=1e-5)


# --- Text ------------------------------------------------------------------------------------------------------------

LONG = "x" * 300


def voc(root: Path, names=("a", "b"), lines=None, encoding="utf-8", classes=None) -> str:
    for i, name in enumerate(names):
        image(root / "JPEGImages", i, name)
        put(root / "Annotations" / f"{name}.xml", xml(i, f"{name}.jpg"))
    put(root / "ImageSets" / "Main" / "train.txt", "\n".join(names if lines is None else lines).encode(encoding))
    if classes is not None:
        put(root / "classes.txt", classes.encode(encoding))
    return f"voc:{root}"


@pytest.mark.parametrize("name", [LONG, f"{LONG} 1", "nul\0l", "a/" * 3000])
def test_a_name_that_no_file_can_have_is_a_missing_image(name, tmp_path):
    spec = voc(tmp_path, lines=["a", "b", name])
    kinds = found(spec)
    assert kinds.keys() & {Kind.MISSING_ANNOTATION, Kind.BAD_ANNOTATION} and len(read(spec)) == 2
    put(tmp_path / "Annotations" / "c.xml", xml(2, f"{LONG}.jpg"))
    put(tmp_path / "ImageSets" / "Main" / "train.txt", "a\nb\nc\n")
    assert found(spec) == {Kind.MISSING_IMAGE: ["c"]} and len(read(spec)) == 2


@pytest.mark.parametrize("name", [f"{LONG}.jpg", "nul\0l.jpg", "lone \ud800.jpg", "a/" * 3000 + "b.jpg"])
def test_a_coco_name_that_no_file_can_have_is_skipped_and_said(name, tmp_path):
    image(tmp_path, 1)
    put(tmp_path / "train.json", coco([1, 2], lambda i: "photo 1.jpg" if i == 1 else name))
    kinds = found(f"coco:{tmp_path}")
    assert kinds.pop(Kind.NO_OBJECTS) == ["cat"]
    assert sum(map(len, kinds.values())) == 1 and kinds.keys() <= {Kind.MISSING_IMAGE, Kind.NOT_TAKEN}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_text_in_other_encodings_is_read(encoding, tmp_path):
    spec = voc(tmp_path / "voc", encoding=encoding, classes="dog\ncat\n")
    assert found(spec) == {} and open_source(spec).class_names == ("dog", "cat") and len(read(spec)) == 2
    image(tmp_path / "coco", 1)
    put(tmp_path / "coco" / "train.json", coco([1], lambda i: "photo 1.jpg").encode(encoding))
    put(tmp_path / "yolo" / "data.yaml", "train: images\nnames: [cat, dog]\n".encode(encoding))
    image(tmp_path / "yolo" / "images", 1)
    put(tmp_path / "yolo" / "labels" / "photo 1.txt", yolo_lines(1).encode(encoding))
    table(tmp_path / "csv" / "boxes.csv", [1], lambda i: "photo 1.jpg")
    image(tmp_path / "csv", 1)
    put(tmp_path / "csv" / "boxes.csv", (tmp_path / "csv" / "boxes.csv").read_text().encode(encoding))
    for kind in ("coco", "yolo", "csv"):
        assert [len(r.labels) for r in read(f"{kind}:{tmp_path / kind}").values()] == [1], kind


def test_text_that_is_none_names_its_file(tmp_path):
    spec = voc(tmp_path, lines=["a", "caf\xe9"], encoding="latin-1")
    with pytest.raises(ValueError, match=r"^expected text in UTF-8 in '[^\n]*train.txt'; got byte 0xe9 at 5[^\n]*$"):
        read(spec)


# --- COCO's entries --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flag", "crowd"), [("0", False), ("false", False), (0.0, False), (None, False), ("1", True)])
def test_a_flag_may_be_text(flag, crowd, tmp_path):
    image(tmp_path, 1)
    put(tmp_path / "train.json", coco([1], lambda i: "photo 1.jpg", iscrowd=flag))
    (record,) = read(f"coco:{tmp_path}").values()
    assert record.crowd.tolist() == record.difficult.tolist() == [crowd]


def test_ids_and_sizes_may_be_text_and_an_unknown_id_is_said(tmp_path):
    image(tmp_path, 1)
    content = json.loads(coco([1], lambda i: "photo 1.jpg"))
    content["images"][0] |= {"width": "64", "height": "48.0"}
    for one in content["annotations"]:
        one |= {"image_id": "1", "category_id": "2", "bbox": [str(edge) for edge in one["bbox"]]}
    content["annotations"].append({"image_id": 1.0, "category_id": "7", "bbox": [1, 1, 9, 9]})
    put(tmp_path / "train.json", json.dumps(content))
    details = []
    (record,) = open_source(f"coco:{tmp_path}", lambda finding: details.append(str(finding))).records("train")
    assert record.labels.tolist() == [1] and len(details) == 1 and "'category_id 7'" in details[0]


def test_a_box_that_is_missing_is_that_of_the_segmentation(tmp_path):
    image(tmp_path, 1)
    content = json.loads(coco([1], lambda i: "photo 1.jpg"))
    runs = np.zeros((48, 64), np.uint8)
    runs[10:20, 30:50] = 1
    flat = runs.T.ravel()
    counts = np.diff(np.flatnonzero(np.r_[True, np.diff(flat) != 0, True])).tolist()
    outlines = [[[4, 6, 20, 6, 20, 30]], {"size": [48, 64], "counts": counts}, [[1, 2, 3, 4]]]
    content["annotations"] = [
        {"image_id": 1, "category_id": 1, "segmentation": outline, **more}
        for outline, more in zip(outlines, ({}, {"bbox": []}, {"bbox": None}), strict=True)
    ]
    put(tmp_path / "train.json", json.dumps(content))
    (record,) = read(f"coco:{tmp_path}").values()
    pixels = record.boxes * [48, 64, 48, 64]
    np.testing.assert_allclose(pixels, [[6, 4, 30, 20], [10, 30, 20, 50]], rtol=1e-5)


@pytest.mark.parametrize(("same", "kind"), [(False, Kind.BAD_ANNOTATION), (True, Kind.LISTED_TWICE)])
def test_two_entries_of_one_image_are_found(same, kind, tmp_path):
    image(tmp_path, 1)
    content = json.loads(coco([1], lambda i: "photo 1.jpg"))
    content["images"].append({**content["images"][0], "id": 2})
    content["annotations"].append({**content["annotations"][0], "image_id": 2, "category_id": 2 if same else 1})
    put(tmp_path / "train.json", json.dumps(content))
    assert found(f"coco:{tmp_path}")[kind] == ["photo 1.jpg"] and len(read(f"coco:{tmp_path}")) == same


def test_a_list_with_a_name_three_times_and_every_object_twice(tmp_path):
    spec = voc(tmp_path, lines=["a", "b", "a", "a"])
    assert found(spec) == {Kind.LISTED_TWICE: ["a"]} and len(read(spec)) == 2
    for i, name in enumerate("ab"):
        text = xml(i, f"{name}.jpg")
        things = text[text.index("<object>") : text.rindex("</object>") + 9]
        put(tmp_path / "Annotations" / f"{name}.xml", text.replace("</annotation>", f"{things}</annotation>"))
    put(tmp_path / "ImageSets" / "Main" / "train.txt", "a\nb\n")
    assert set(found(spec)) == {Kind.OBJECT_TWICE} and [len(r.labels) for r in read(spec).values()] in ([1, 2], [2, 1])


# --- Classes ---------------------------------------------------------------------------------------------------------


def test_what_systems_leave_behind_is_no_class(tmp_path):
    for i, name in enumerate(("cat", "dog")):
        image(tmp_path / "pets" / name, i)
        put(tmp_path / "pets" / name / f"._photo {i}.jpg", b"\0\5\x16\7 Mac OS X")
        put(tmp_path / "pets" / "__MACOSX" / name / f"._photo {i}.jpg", b"\0\5\x16\7 Mac OS X")
        put(tmp_path / "pets" / "@eaDir" / name / "photo@SynoEAStream", b"")
    assert found(f"folder:{tmp_path / 'pets'}") == {}
    assert open_source(f"folder:{tmp_path}").class_names == ("cat", "dog")  # through the one folder that it holds


def test_categories_that_group_share_a_name_or_have_no_objects_are_said(tmp_path):
    image(tmp_path, 1)
    content = json.loads(coco([1], lambda i: "photo 1.jpg", root="pets"))
    content["categories"] += [{"id": 8, "name": "cat"}, {"id": 9, "name": "emu"}]
    put(tmp_path / "train.json", json.dumps(content))
    assert open_source(f"coco:{tmp_path}").class_names == ("cat", "dog", "emu")
    kinds = found(f"coco:{tmp_path}")
    assert kinds[Kind.GROUP] == ["pets"] and kinds[Kind.SAME_NAME] == ["cat"]
    assert set(kinds[Kind.NO_OBJECTS]) >= {"emu"}


def test_a_class_is_one_line_and_names_that_look_alike_are_said(tmp_path):
    image(tmp_path, 1)
    content = json.loads(coco([1], lambda i: "photo 1.jpg"))
    names = ("traffic\r\nlight", "Cat", "cat\u200b", "cat", "dog\u2028house", " emu\t")
    content["categories"] = [{"id": i, "name": name} for i, name in enumerate(names)]
    put(tmp_path / "train.json", json.dumps(content))
    labels = open_source(f"coco:{tmp_path}").class_names
    assert labels == ("traffic light", "Cat", "cat\u200b", "cat", "dog house", "emu")
    assert len("\n".join(labels).splitlines()) == len(labels)
    assert found(f"coco:{tmp_path}")[Kind.ALIKE] == [r"'cat\u200b'", "'cat'"]


# --- XML -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "objects"),
    [
        (lambda text: "<Error><Code>AccessDenied</Code></Error>", None),
        (lambda text: "<html><body>Not found</body></html>", None),
        (lambda text: text.replace("object>", "item>"), None),
        (lambda text: text.replace("<annotation", '<annotation xmlns="http://example.com/voc"'), 1),
        (lambda text: text.replace("object>", "Object>").replace("bndbox>", "BndBox>"), 1),
        (lambda text: text.replace("annotation", "Annotation"), 1),
        (lambda text: text.encode("utf-16"), 1),
        (lambda text: f'<?xml version="1.0" encoding="gbk"?>{text}'.replace("b.jpg", "猫.jpg").encode("gbk"), 1),
        (lambda text: f'<?xml version="1.0" encoding="utf-16"?>\n{text}', 1),
    ],
)
def test_xml_is_read_in_any_spelling_or_said_to_be_none(change, objects, tmp_path):
    spec = voc(tmp_path)
    put(tmp_path / "Annotations" / "b.xml", change(xml(1, "b.jpg")))
    records = read(spec)
    assert set(records) == ({"a"} if objects is None else {"a", "b"})
    assert found(spec) == ({Kind.BAD_ANNOTATION: ["b"]} if objects is None else {})


# --- YOLO ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", ["[no, 010, null]", "{0: no, 1: 010, 2: null}"])
def test_classes_are_named_as_they_are_written(names, tmp_path):
    image(tmp_path / "images", 1)
    put(tmp_path / "data.yaml", f"train: images\nnames: {names}\n")
    assert open_source(f"yolo:{tmp_path}").class_names == ("no", "010", "null")  # YAML: False, 8, None


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("2 0.5 0.5 0.2 0.2", Kind.UNKNOWN_CLASS),
        ("-1 0.5 0.5 0.2 0.2", Kind.UNKNOWN_CLASS),
        ("0 30 20 10 10", Kind.NOT_NORMALISED),
        ("0 0.5 0.5 0.2", Kind.BAD_ANNOTATION),
        ("0 0.5 0.5 0.2 0.2 0.9", Kind.BAD_ANNOTATION),
        ("cat 0.5 0.5 0.2 0.2", Kind.BAD_ANNOTATION),
        ("0 0.5 0.5 0 0.2", Kind.NO_AREA),
        ("0 0.99 0.5 0.4 0.2", Kind.BEYOND),
    ],
)
def test_a_label_that_is_wrong_is_said(line, kind, tmp_path):
    image(tmp_path / "images", 1)
    put(tmp_path / "labels" / "photo 1.txt", f"1 0.25 0.25 0.1 0.1\n{line}\n")
    put(tmp_path / "data.yaml", "train: images\nnames: [cat, dog]\n")
    kinds = found(f"yolo:{tmp_path}")
    assert kinds.pop(kind) == ["images/photo 1.jpg"] and kinds.keys() <= {Kind.NO_OBJECTS}


def test_a_class_list_that_contradicts_itself_is_said(tmp_path):
    image(tmp_path / "images", 1)
    put(tmp_path / "images" / "photo 1.txt", yolo_lines(1))  # beside the image
    put(tmp_path / "data.yaml", "train: images\nval: nowhere\nnc: 3\nnames: [cat, dog]\n")
    kinds = found(f"yolo:{tmp_path}")
    assert kinds[Kind.CLASS_LIST] == ["data.yaml"] and kinds[Kind.NOT_TAKEN] == ["val"]
    put(tmp_path / "images" / "photo 1.txt", b"")
    (tmp_path / "images" / "photo 1.txt").unlink()
    assert found(f"yolo:{tmp_path}")[Kind.MISSING_ANNOTATION] == ["train"]


# --- tf.Examples -----------------------------------------------------------------------------------------------------


def test_a_file_that_is_cut_short_gives_what_it_has_and_is_said(tmp_path):
    records(tmp_path / "pets.record", range(6))
    data = (tmp_path / "pets.record").read_bytes()
    put(tmp_path / "pets.record", data[:-100])
    assert found(f"tfrecord:{tmp_path / 'pets.record'}")[Kind.BAD_ANNOTATION] == ["pets.record#5"]
    assert len(read(f"tfrecord:{tmp_path / 'pets.record'}")) == 5
    put(tmp_path / "none.record", b"no records at all, but text that is long enough")
    with pytest.raises(ValueError, match=r"^expected tf.Examples in [^\n]*none.record' is damaged: [^\n]*$"):
        read(f"tfrecord:{tmp_path / 'none.record'}")


# --- Paths -----------------------------------------------------------------------------------------------------------


def test_missing_images_are_not_taken_from_elsewhere(tmp_path):
    """Of two images of one name, one is gone: the other is not shown in its place."""
    image(tmp_path / "images" / "one", 1, "a")
    put(tmp_path / "images" / "train.json", coco([1, 2], lambda i: f"{('one', 'two')[i - 1]}/a.jpg"))
    spec = f"coco:{tmp_path / 'images'}:{tmp_path / 'images' / 'train.json'}"
    assert set(read(spec)) == {"one/a.jpg"} and found(spec)[Kind.MISSING_IMAGE] == ["two/a.jpg"]
