"""Tables of boxes: rows that are wrong are named by their lines, and the rest is used."""

import json

import pytest
from exports import coco, image, put, table
from findings import read, said

from training.sources import open_source

NUMBERS = "box without numbers: line 3: 'cat' yxyx"


@pytest.fixture
def folder(tmp_path):
    """A table with one object, and its image."""
    image(tmp_path, 1)
    table(tmp_path / "boxes.csv", [1], lambda i: "photo 1.jpg")
    return tmp_path


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("photo 1.jpg,64,48,cat,left,6,40,30", f"left out an object of photo 1.jpg: {NUMBERS} 6 nan 30 40 in 64x48"),
        ('photo 1.jpg,64,48,cat,"8,5",6,40,30', f"left out an object of photo 1.jpg: {NUMBERS} 6 nan 30 40 in 64x48"),
        ("photo 1.jpg,64,48,cat", f"left out an object of photo 1.jpg: {NUMBERS} nan nan nan nan in 64x48"),
        (
            "photo 1.jpg,64,48,cat,40,30,8,6",
            "left out an object of photo 1.jpg: box whose corners are reversed: line 3: 'cat' yxyx 30 40 6 8 in 64x48: "
            "xmax < xmin and ymax < ymin: swap them",
        ),
        (
            "photo 1.jpg,64,48,,8,6,40,30",
            "left out an object of photo 1.jpg: class not listed: line 3: '' yxyx 6 8 30 40 in 64x48",
        ),
        (",64,48,cat,8,6,40,30", "skipped boxes.csv, line 3: unreadable annotation: no file name"),
        (
            "photo, 1.jpg,64,48,cat,8,6,40,30",
            "skipped boxes.csv, line 3: unreadable annotation: 9 values for 8 columns: "
            "put a name with a comma into quotes",
        ),
        ("photo 2.jpg,64,48,cat,8,6,40,30", "skipped photo 2.jpg: missing image: no file of that name below '"),
        ("photo 1.jpg,64,49,dog,8,6,40,30", "skipped photo 1.jpg: unreadable annotation: "),
    ],
)
def test_a_bad_row_is_named_by_its_line(row, message, folder):
    with (folder / "boxes.csv").open("a", newline="") as rows:
        rows.write(f"{row}\r\n\r\n")
    (line,) = said(f"csv:{folder}")
    assert line.startswith(message) and (line == message or message[-1] in " '")
    assert len(read(f"csv:{folder}")) == ("have sizes" not in line)


def test_quotes_hold_commas_and_line_breaks_and_a_last_comma_is_none(folder):
    image(folder, 2, "a, b")
    text = (folder / "boxes.csv").read_text()
    put(
        folder / "boxes.csv",
        f'{text}"a, b.jpg",64,48,"traffic\n light",8,6,40,30,\n"a, b.jpg",64,48,stop\u2028sign,2,6,40,30\n',
    )
    assert open_source(f"csv:{folder}").class_names == ("dog", "stop sign", "traffic light")
    assert said(f"csv:{folder}") == [] and len(read(f"csv:{folder}")["a, b.jpg"].labels) == 2


def test_a_row_without_edges_is_an_image_without_objects_whatever_its_class(folder):
    image(folder, 2)
    with (folder / "boxes.csv").open("a", newline="") as rows:
        rows.write("photo 2.jpg,64,48,No finding,,,,\r\n")
    assert open_source(f"csv:{folder}").class_names == ("dog",) and said(f"csv:{folder}") == []
    assert len(read(f"csv:{folder}")["photo 2.jpg"].labels) == 0


def test_boxes_that_are_all_at_most_1_are_shares_of_the_image(folder):
    put(folder / "boxes.csv", "filename,class,xmin,ymin,xmax,ymax\nphoto 1.jpg,cat,0.25,0.5,0.75,1\n")
    content = json.loads(coco([1], lambda i: "photo 1.jpg"))
    content["annotations"][0]["bbox"] = [0.25, 0.5, 0.5, 0.5]
    put(folder / "train.json", json.dumps(content))
    for spec in (f"csv:{folder}", f"coco:{folder}"):
        (record,) = read(spec).values()
        assert record.boxes.tolist() == [[0.5, 0.25, 1.0, 0.75]], spec
    put(folder / "boxes.csv", (folder / "boxes.csv").read_text() + "photo 1.jpg,dog,0.5,0.5,1.00001,1\n")
    (record,) = read(f"csv:{folder}").values()
    assert record.boxes.tolist() == [[0.5, 0.25, 1.0, 0.75], [0.5, 0.5, 1.0, 1.0]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            'filename,class,xmin,ymin,xmax,ymax\n"a.jpg,cat,1,2,3,4\nb.jpg,cat,1,2,3,4\n',
            "line 3: unexpected end of data",
        ),
        ("a.jpg,1,2,3,4,cat\n", "got a.jpg, 1, 2, 3, 4, cat, without filename, class"),
        ("<html><body>Not found</body></html>", "got <html><body>Not found"),
        ("", "got nothing, without"),
        ("version https://git-lfs.github.com/spec/v1\n", "without filename"),
    ],
)
def test_what_is_no_table_is_one_line(content, message, folder):
    put(folder / "boxes.csv", content)
    with pytest.raises(ValueError, match=r"^expected [^\n]*$") as caught:
        open_source(f"csv:{folder / 'boxes.csv'}")
    assert message in str(caught.value) and "boxes.csv" in str(caught.value)
