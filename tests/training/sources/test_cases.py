"""Sets with faults that people have reported for other tools: each is mended, or found and said."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from exports import coco, encoded, image, put, table, xml, yolo_lines
from findings import found, read, said
from PIL import Image

from overfeat_tf.images.decode import decode_image, read_size
from training.evaluation.inspection import open_faultless
from training.sources import open_source
from training.sources.checks import Kind

XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


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
    assert read_size(ODD[name])[1] == (height, width)
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


@pytest.mark.parametrize(
    "name", [f"{LONG}.jpg", "nul\0l.jpg", "http://[half/x.jpg", "..", "/", "lone \ud800.jpg", "a/" * 3000 + "b.jpg"]
)
def test_a_coco_name_that_no_file_can_have_is_skipped_and_said(name, tmp_path):
    image(tmp_path, 1)
    put(tmp_path / "train.json", coco([1, 2], lambda i: "photo 1.jpg" if i == 1 else name))
    kinds = found(f"coco:{tmp_path}")
    assert kinds.pop(Kind.NO_OBJECTS) == ["cat"]
    assert sum(map(len, kinds.values())) == 1 and kinds.keys() <= {Kind.MISSING_IMAGE, Kind.NOT_TAKEN}


@pytest.mark.parametrize("name", [LONG, r"nul\0l", "a/" * 3000])
def test_a_folder_that_no_file_system_has_is_one_line(name, tmp_path):
    image(tmp_path / "images", 1)
    put(tmp_path / "labels" / "photo 1.txt", yolo_lines(1))
    put(tmp_path / "data.yaml", f'train: images\nval: "{name}"\nnames: [cat, dog]\n')
    assert found(f"yolo:{tmp_path}")[Kind.NOT_TAKEN] == ["val"]
    for kind in ("voc", "coco", "yolo", "csv", "tfrecord", "ilsvrc", "folder"):
        with pytest.raises(ValueError, match=r"^expected [^\n]*$"):
            open_source(f"{kind}:{tmp_path}/{name}")


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
    spec = voc(tmp_path / "voc", lines=["a", "caf\xe9"], encoding="latin-1")
    with pytest.raises(ValueError, match=r"^expected text in UTF-8 in '[^\n]*train.txt'; got byte 0xe9 at 5[^\n]*$"):
        read(spec)
    table(tmp_path / "csv" / "boxes.csv", [1], lambda i: "caf\xe9.jpg")
    text = (tmp_path / "csv" / "boxes.csv").read_text()
    put(tmp_path / "csv" / "boxes.csv", text.encode("latin-1"))
    put(tmp_path / "yolo" / "data.yaml", "names: [caf\xe9]\ntrain: images\n".encode("latin-1"))
    for name, kind in (("boxes.csv", "csv"), ("data.yaml", "yolo")):  # by the folder too
        for path in (tmp_path / kind, tmp_path / kind / name):
            with pytest.raises(
                ValueError, match=rf"^expected text in UTF-8 in '[^\n]*{name}'; [^\n]*: save it as UTF-8$"
            ):
                open_source(f"{kind}:{path}")
        with pytest.raises(ValueError, match=rf" write {kind}:[^\n]*{name}$"):
            open_source(str(tmp_path / kind))


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


@pytest.mark.parametrize("ids", [("1629349812345678901", "1629349812345678902"), ("2_1", "21"), ("1e5", "100000")])
def test_ids_as_text_are_told_apart_to_the_last_digit(ids, tmp_path):
    content = json.loads(coco([1, 2], lambda i: f"photo {i}.jpg"))
    for one, key in [(each, "id") for each in content["images"]] + [(a, "image_id") for a in content["annotations"]]:
        one[key] = ids[one[key] - 1]
    if ids[0].isdigit():
        content["annotations"][0]["image_id"] = int(content["annotations"][0]["image_id"])
    for i in (1, 2):
        image(tmp_path, i)
    put(tmp_path / "train.json", json.dumps(content))
    assert {name: one.labels.tolist() for name, one in read(f"coco:{tmp_path}").items()} == {
        "photo 1.jpg": [1],
        "photo 2.jpg": [0],
    }
    assert said(f"coco:{tmp_path}") == []


@pytest.mark.parametrize(
    ("bbox", "why"),
    [
        ([1, 2, 3], "box without numbers: annotations[1]: 'cat' yxyx nan nan nan nan in 64x48"),
        ("1234", "box without numbers: annotations[1]: 'cat' yxyx nan nan nan nan in 64x48"),
        (
            [30, 20, -9, 5],
            "box whose corners are reversed: annotations[1]: 'cat' yxyx 20 30 25 21 in 64x48: xmax < xmin: swap them",
        ),
        ([70, 2, 3, 4], "box outside the image: annotations[1]: 'cat' yxyx 2 70 6 73 in 64x48"),
    ],
)
def test_a_bad_box_is_named_by_its_place(bbox, why, tmp_path):
    image(tmp_path, 2)
    content = json.loads(coco([2], lambda i: f"photo {i}.jpg"))
    content["annotations"].append({"image_id": 2, "category_id": 1, "bbox": bbox})
    put(tmp_path / "train.json", json.dumps(content))
    assert said(f"coco:{tmp_path}") == [f"left out an object of photo 2.jpg: {why}"]


def test_a_file_of_something_else_says_what_it_is(tmp_path):
    put(tmp_path / "x.json", '{"images": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(ValueError, match=r"^expected images, annotations and categories in '[^\n]*'; got [^\n]*$"):
        _ = open_source(f"coco:{tmp_path}:{tmp_path / 'x.json'}").class_names
    for content, got in (([1], "a list"), ({"images": [], "categories": 3}, ""), ("no", "a str")):
        put(tmp_path / "x.json", json.dumps(content))
        with pytest.raises(
            ValueError, match=rf"^expected images, annotations and categories in '[^\n]*'; got [^\n]*{got}"
        ):
            _ = open_source(f"coco:{tmp_path}:{tmp_path / 'x.json'}").class_names


def test_lvis_names_its_images_by_their_address(tmp_path):
    image(tmp_path / "val2017", 1, "000000000139")
    content = json.loads(coco([1], lambda i: ""))
    del content["images"][0]["file_name"]
    content["images"][0]["coco_url"] = "http://images.cocodataset.org/val2017/000000000139.jpg"
    put(tmp_path / "annotations" / "lvis_v1_val.json", json.dumps(content))
    assert [len(one.labels) for one in read(f"coco:{tmp_path}").values()] == [1]


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


@pytest.mark.parametrize("other", ["./photo 1.jpg", "photo%201.jpg", ".\\photo 1.jpg"])
def test_two_spellings_of_one_path_are_one_image(other, tmp_path):
    image(tmp_path, 1)
    content = json.loads(coco([1], lambda i: "photo 1.jpg"))
    content["images"].append({**content["images"][0], "id": 2, "file_name": other})
    content["annotations"].append({**content["annotations"][0], "image_id": 2, "category_id": 1})
    put(tmp_path / "train.json", json.dumps(content))
    assert found(f"coco:{tmp_path}")[Kind.BAD_ANNOTATION] == ["photo 1.jpg"]
    table(tmp_path / "boxes.csv", [1], lambda i: "photo 1.jpg")
    with (tmp_path / "boxes.csv").open("a") as rows:
        rows.write(f"{other},64,48,cat,1,2,33,34\n")
    assert {name: len(one.labels) for name, one in read(f"csv:{tmp_path}").items()} == {"photo 1.jpg": 2}


def test_an_image_has_the_annotation_of_its_name_and_a_second_is_said(tmp_path):
    image(tmp_path, 1)
    put(tmp_path / "photo 1.xml", xml(1, "photo 1.jpg"))
    put(tmp_path / "photo 1 copy.xml", xml(0, "photo 1.jpg"))  # of other objects
    (line,) = said(f"voc:{tmp_path}")
    assert line.startswith("skipped photo 1 copy.xml: ") and "which has the annotation photo 1.xml" in line
    assert [len(one.labels) for one in read(f"voc:{tmp_path}").values()] == [1]


def test_two_images_with_one_label_file_are_found(tmp_path):
    image(tmp_path / "images", 1)
    Image.new("RGB", (64, 48)).save(tmp_path / "images" / "photo 1.png")
    put(tmp_path / "labels" / "photo 1.txt", yolo_lines(1))
    put(tmp_path / "data.yaml", "train: images\nnames: [cat, dog]\n")
    (line,) = said(f"yolo:{tmp_path}")
    assert line.startswith("kept images/photo 1.png: duplicate image: has the label file of images/photo 1.jpg: ")


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


def test_what_macos_leaves_beside_files_is_none_of_them(tmp_path):
    junk = b"\0\5\x16\7\0\2\0\0Mac OS X"
    image(tmp_path / "yolo" / "images", 1)
    put(tmp_path / "yolo" / "labels" / "photo 1.txt", yolo_lines(1))
    for name in ("images/._photo 1.jpg", "labels/._photo 1.txt", "._data.yaml"):
        put(tmp_path / "yolo" / name, junk)
    put(tmp_path / "yolo" / "data.yaml", "train: images\nnames: [cat, dog]\n")
    image(tmp_path / "coco", 1)
    put(tmp_path / "coco" / "train.json", coco([1], lambda i: "photo 1.jpg"))
    put(tmp_path / "coco" / "._train.json", junk + b'"images" "categories"')
    image(tmp_path / "csv", 1)
    table(tmp_path / "csv" / "boxes.csv", [1], lambda i: "photo 1.jpg")
    put(tmp_path / "csv" / "._boxes.csv", junk)
    voc(tmp_path / "voc")
    for name in ("Annotations/._a.xml", "ImageSets/Main/._train.txt", "JPEGImages/._a.jpg"):
        put(tmp_path / "voc" / name, junk)
    image(tmp_path / "labelimg", 1)
    put(tmp_path / "labelimg" / "photo 1.xml", xml(1, "photo 1.jpg"))
    put(tmp_path / "labelimg" / "._photo 1.xml", junk), put(tmp_path / "labelimg" / "._photo 1.jpg", junk)
    image(tmp_path / "ilsvrc" / "Data" / "CLS-LOC" / "train" / "n01440764", 1)
    put(tmp_path / "ilsvrc" / "Data" / "CLS-LOC" / "train" / "__MACOSX" / "._n01440764", junk)
    put(tmp_path / "ilsvrc" / "ImageSets" / "CLS-LOC" / "._train.txt", junk)
    for folder in ("yolo", "coco", "csv", "voc", "labelimg", "ilsvrc"):
        spec = f"{'voc' if folder == 'labelimg' else folder}:{tmp_path / folder}"
        source = open_source(spec)
        assert source.splits == ("train",) and said(spec) == [], folder
        assert set(source.class_names) <= ({"n01440764"} if folder == "ilsvrc" else {"cat", "dog"}), folder


def test_classes_that_share_a_name_or_have_none_are_said(tmp_path):
    for i, name in enumerate(("cat", "cat ")):
        image(tmp_path / "folder" / name, i)
    assert said(f"folder:{tmp_path / 'folder'}") == ["merged cat: categories that share a name: folders 'cat', 'cat '"]
    (line,) = said(voc(tmp_path / "voc", classes="cat\ndog\ncat\n"))
    assert line.startswith("merged cat: categories that share a name: 2 lines of ")
    image(tmp_path / "images", 1)
    content = json.loads(coco([1], lambda i: "photo 1.jpg"))
    content["categories"] += [{"id": 7, "name": " "}, {"id": 8, "name": "\ud83d"}]  # half of a character
    put(tmp_path / "train.json", json.dumps(content))
    assert open_source(f"coco:{tmp_path}").class_names == ("cat", "dog", "category 7", r"\ud83d")
    put(tmp_path / "data.yaml", "train: images\nnames: [cat, '', dog]\n")
    assert open_source(f"yolo:{tmp_path}").class_names == ("cat", "class 1", "dog")


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
        (lambda text: f'<?xml version="1.0" encoding="utf-16"?>\n{text}'.encode("utf-8-sig"), 1),  # .NET's
        (lambda text: f'\n  <?xml version="1.0"?>\n{text}', 1),
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


# --- Paths -----------------------------------------------------------------------------------------------------------


def test_missing_images_are_not_taken_from_elsewhere(tmp_path):
    """Of two images of one name, one is gone: the other is not shown in its place."""
    image(tmp_path / "images" / "one", 1, "a")
    put(tmp_path / "images" / "train.json", coco([1, 2], lambda i: f"{('one', 'two')[i - 1]}/a.jpg"))
    spec = f"coco:{tmp_path / 'images'}:{tmp_path / 'images' / 'train.json'}"
    assert set(read(spec)) == {"one/a.jpg"} and found(spec)[Kind.MISSING_IMAGE] == ["two/a.jpg"]


def test_images_lie_in_any_folder_around_their_annotations_but_not_among_masks(tmp_path):
    """Kaggle's trees: the table in the root, names without suffixes, images in parts, and other folders of images."""
    for i in range(4):
        image(tmp_path / f"part_{i % 2}", i)
        image(tmp_path / "trimaps", i + 6)
    put(tmp_path / "notebooks" / "look.ipynb", "{}")
    put(tmp_path / "masks" / "photo 5.jpg", encoded(5))
    put(tmp_path / "train.json", coco(range(6), lambda i: f"/home/me/pets/photo {i}.png"))
    assert set(read(f"coco:{tmp_path}")) == {f"/home/me/pets/photo {i}.png" for i in range(4)}
    assert len(found(f"coco:{tmp_path}")[Kind.MISSING_IMAGE]) == 2
    (tmp_path / "train.json").unlink()
    table(tmp_path / "boxes.csv", range(4), lambda i: f"photo {i}.jpg")
    records = read(f"csv:{tmp_path / 'boxes.csv'}")
    assert len(records) == 4 and all(record.image_bytes == encoded(int(name[6])) for name, record in records.items())


def test_a_mask_is_no_image_of_its_own_and_text_beside_labels_no_label(tmp_path):
    image(tmp_path / "pets" / "images", 1)
    put(tmp_path / "pets" / "annotations" / "trimaps" / "photo 1.png", encoded(1))
    put(tmp_path / "pets" / "annotations" / "xmls" / "photo 1.xml", xml(1, "photo 1.jpg"))
    assert len(read(f"voc:{tmp_path / 'pets'}")) == 1 and said(f"voc:{tmp_path / 'pets'}") == []
    image(tmp_path / "yolo", 1)
    put(tmp_path / "yolo" / "photo 1.txt", yolo_lines(1))
    put(tmp_path / "yolo" / "README.txt", "Pictures of pets, of ours and others.")
    put(tmp_path / "yolo" / "data.yaml", "train: .\nnames: [cat, dog]\n")
    assert said(f"yolo:{tmp_path / 'yolo' / 'data.yaml'}") == []


def test_a_split_is_not_taken_from_the_folder_that_one_works_in(tmp_path, monkeypatch):
    for i, split in enumerate(("train", "val")):
        image(tmp_path / "a" / split / "images", i)
        put(tmp_path / "a" / split / "labels" / f"photo {i}.txt", yolo_lines(i))
    put(tmp_path / "a" / "data.yaml", "train: train/images\nval: val/images\ntest: ../test/images\nnames: [cat, dog]\n")
    image(tmp_path / "b" / "test" / "images", 2)
    monkeypatch.chdir(tmp_path / "b")
    assert open_source("yolo:../a/data.yaml").splits == ("train", "val")
    open_faultless("yolo:../a/data.yaml", None, ("train", "val"))  # that there is no test split is a remark
    with pytest.raises(ValueError, match="got a source that is open"):
        open_faultless(open_source("yolo:../a/data.yaml"), None, ("train",))


def test_names_with_accents_are_found_however_they_are_composed(tmp_path):
    """An archive that macOS has written has the accent of an e apart, an annotation has it within."""
    for i, name in enumerate(("cafe\u0301", "na\xefve")):
        image(tmp_path, i, name)
    put(tmp_path / "train.json", coco(range(2), lambda i: ("caf\xe9.jpg", "nai\u0308ve.jpg")[i]))
    assert len(read(f"coco:{tmp_path}")) == 2 and found(f"coco:{tmp_path}") == {}


def test_links_to_folders_elsewhere_are_followed_and_others_said(tmp_path):
    for i in (1, 2):
        image(tmp_path / "real" / "images", i)
        put(tmp_path / "real" / "xmls" / f"photo {i}.xml", xml(i, f"photo {i}.jpg"))
    image(tmp_path / "folder" / "cat", 3)
    (tmp_path / "voc").mkdir()
    for name, target in (("voc/images", "real/images"), ("voc/annotations", "real/xmls"), ("folder/cat/more", "real")):
        (tmp_path / name).symlink_to(tmp_path / target)
    for name, target in (("voc/round", "voc"), ("folder/cat/round", "folder")):
        (tmp_path / name).symlink_to(tmp_path / target)
    for spec, count in ((f"voc:{tmp_path / 'voc'}", 2), (f"folder:{tmp_path / 'folder'}", 3)):
        assert len(read(spec)) == count
        (line,) = said(spec)
        assert line.endswith("round: file or folder not used: a link to a folder of the set; it is not followed")


# --- Layouts ---------------------------------------------------------------------------------------------------------


def test_labels_are_found_beside_images_in_any_case(tmp_path):
    image(tmp_path / "Images" / "train", 1)
    put(tmp_path / "labels" / "train" / "photo 1.txt", yolo_lines(1))
    put(tmp_path / "deep" / "er" / "data.yaml", f"path: {tmp_path}\ntrain: Images/train\nnames: [cat, dog]\n")
    assert [len(one.labels) for one in read(f"yolo:{tmp_path}").values()] == [1]


@pytest.mark.parametrize(
    "form", ["JPEGImages/{}.jpg", "/home/me/pets/JPEGImages/{}.jpg", "JPEGImages\\{}.jpg", "{}.jpg"]
)
@pytest.mark.parametrize("place", ["ImageSets/Main", "ImageSets"])
def test_the_lists_of_voc_may_have_paths_and_lie_in_image_sets(place, form, tmp_path):
    voc(tmp_path, names="abc")
    (tmp_path / "ImageSets" / "Main" / "train.txt").unlink()
    for split, names in (("train", "ab"), ("val", "c")):
        put(tmp_path / place / f"{split}.txt", "".join(f"{form.format(name)}\r\n" for name in names))
    source = open_source(f"voc:{tmp_path}")
    assert [len(list(source.records(split))) for split in source.splits] == [2, 1]


def test_open_images_groups_are_crowds_and_minus_1_is_unknown(tmp_path):
    for i in range(3):
        image(tmp_path / "images", i, f"{i:016x}")
    head = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf"
    rows = [f"{i:016x},xclick,/m/01,1,0.1,0.5,0.2,0.6,{i},{1 - i},{i - 1}" for i in range(3)]
    put(tmp_path / "train-annotations-bbox.csv", "\n".join([head, *rows]))
    found = read(f"csv:{tmp_path}")
    flags = [(one.crowd, one.difficult, one.truncated, one.occluded) for _, one in sorted(found.items())]
    assert np.squeeze(flags).tolist() == [[False, False, True, False], [False] * 3 + [True], [True, True, False, True]]
