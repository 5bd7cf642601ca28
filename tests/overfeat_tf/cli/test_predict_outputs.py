"""`overfeat predict`: its lines, JSON, labels and crops; its folders, links, long names, videos and standard input."""

import io
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from command_line import run
from PIL import Image

from overfeat_tf.cli.options import JsonArray
from overfeat_tf.images.files import find_files
from overfeat_tf.models.predictor import Predictor

BOXES = np.array([[0.25, 0.5, 0.75, 1.0], [0.0, 0.0, 0.5, 0.5]], np.float32)


class Stub(Predictor):
    """Finds a dog that is shown and a cat that is not in each image, or ranks three classes."""

    labels = ("cat", "dog", "eel")
    display_threshold = 0.5

    def __init__(self, task: str, fails_at: int | None = None, failure: type[BaseException] = RuntimeError):
        self.tasks, self._fails_at, self._failure, self.seen = (task,), fails_at, failure, []

    def _run(self, signature, **inputs):
        (images,) = inputs.values()
        self.seen += list(images)
        if self._fails_at is not None and len(self.seen) > self._fails_at:
            raise self._failure("the power failed")
        rows = len(images)
        if signature == "classify":
            names = np.array([[b"eel", b"cat", b"dog"]] * rows, object)
            return {"classes": names, "scores": np.array([[0.7, 0.2, 0.1]] * rows, np.float32)}
        return {
            "detection_boxes": np.repeat(BOXES[None], rows, 0),
            "detection_scores": np.array([[0.9, 0.1]] * rows, np.float32),
            "detection_classes": np.array([[2.0, 1.0]] * rows, np.float32),
            "detection_class_entities": np.array([[b"dog", b"cat"]] * rows, object),
            "num_detections": np.full(rows, 2.0, np.float32),
            "image_size": np.array([Image.open(io.BytesIO(image)).size[::-1] for image in images], np.int32),
            "status": np.array([b""] * rows, object),
        }


@pytest.fixture
def predicts(tmp_path, monkeypatch, capsys):
    """Runs `overfeat predict` with a stub; gives its status, its rows, its lines and what it wrote on stderr."""

    def predict(stub, *arguments):
        monkeypatch.setattr("overfeat_tf.cli.predict.run.load", lambda *_: stub)
        answers, out = tmp_path / "answers.json", tmp_path / "out"
        status = run(monkeypatch, "predict", "m", *arguments, "--out", out, "--json", answers)
        printed = capsys.readouterr()
        return SimpleNamespace(
            status=status,
            rows=json.loads(answers.read_text()) if answers.exists() else None,
            lines=printed.out.splitlines(),
            err=printed.err,
            out=out,
        )

    return predict


def picture(path: Path, size: tuple[int, int] = (40, 20)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 100, 50)).save(path)
    return path


def test_each_image_has_a_line_and_all_a_summary(predicts, tmp_path):
    files = [picture(tmp_path / "in" / "a.png"), picture(tmp_path / "in" / "b.png")]
    done = predicts(Stub("detection"), tmp_path / "in")
    pictures = [done.out / "a.png", done.out / "b.png"]
    expected = [f"{f}: 1 dog (1 more below the threshold) -> {p}" for f, p in zip(files, pictures, strict=True)]
    assert done.status == 0 and done.lines == expected and all(each.is_file() for each in pictures)
    assert "overfeat: 2 images in " in done.err and done.err.endswith(f": 2 dog; pictures in {done.out}\n")
    ranked = predicts(Stub("classification"), files[0])
    assert ranked.lines == [f"{files[0]}: eel 0.70, cat 0.20, dog 0.10 -> {pictures[0]}"]


def test_the_best_classes_are_printed_alone(predicts, tmp_path):
    done = predicts(Stub("classification"), picture(tmp_path / "a.png"), "-n", 2)
    assert done.lines == ["eel 0.7", "cat 0.2"] and len(done.rows[0]["classes"]) == 3
    more = predicts(Stub("classification"), tmp_path / "a.png", "-n", 5)
    assert more.lines[-1] == "dog 0.1" and "the model answers 3 classes, fewer than -n" in more.err
    assert predicts(Stub("detection"), tmp_path / "a.png", "-n", 2).status == 2


@pytest.mark.parametrize(
    ("failure", "line"), [(RuntimeError, "overfeat: the power failed\n"), (KeyboardInterrupt, "Aborted!\n")]
)
def test_a_later_failure_or_an_interrupt_loses_no_answer(predicts, tmp_path, failure, line):
    files = [picture(tmp_path / "in" / f"{number:02}.png") for number in range(12)]
    done = predicts(Stub("detection", 8, failure), tmp_path / "in")
    assert done.status == 1 and done.err.endswith(line)
    assert [row["file"] for row in done.rows] == [str(file) for file in files[:8]] and len(done.lines) == 8


def test_an_image_that_memory_has_no_room_for_costs_its_own_row(predicts, tmp_path):
    class Small(Stub):
        def _run(self, signature, **inputs):
            if any(Image.open(io.BytesIO(image)).width > 50 for image in inputs["image_bytes"]):
                raise tf.errors.ResourceExhaustedError(None, None, "no room for a tensor")
            return super()._run(signature, **inputs)

    for name, width in (("a", 40), ("b", 60), ("c", 40)):
        picture(tmp_path / "in" / f"{name}.png", (width, 20))
    done = predicts(Small("detection"), tmp_path / "in")
    assert done.status == 1 and [row["status"] for row in done.rows] == ["", "no room for a tensor", ""]
    assert "b.png: no room for a tensor" in done.err and len(done.lines) == 2


def test_files_folders_and_globs_are_taken_and_a_broken_file_costs_its_own_row(predicts, tmp_path):
    files = [picture(tmp_path / name) for name in ("in/a.png", "in/deep/b.png", "more/[1].png", "more/d.png")]
    (tmp_path / "in" / "broken.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "in" / "notes.txt").write_text("none")
    picture(tmp_path / "in" / "@eaDir" / "a.png" / "SYNOPHOTO_THUMB_M.png")  # of a Synology disk
    (tmp_path / "in" / "._a.png").write_bytes(b"\0\5\x16\7")  # of macOS
    stub = Stub("detection")
    done = predicts(stub, tmp_path / "in", files[2], tmp_path / "more" / "*.png", tmp_path / "in" / "a.png")
    assert [row["file"] for row in done.rows if not row["status"]] == [str(file) for file in files]
    assert done.status == 1 and len(done.rows) == 5 and len(done.lines) == len(stub.seen) == 4
    assert "broken.heic: " in done.err and ", 1 without an answer: 4 dog; " in done.err
    for nothing in ("nowhere.png", "x" * 300, "*.tga"):
        refused = predicts(stub, files[0], tmp_path / nothing)
        assert refused.status == 2 and "expected image files; '" in refused.err and "matches none" in refused.err


def test_the_json_is_complete_after_each_item(tmp_path):
    file = tmp_path / "rows.json"
    with JsonArray(file) as rows:
        assert json.loads(file.read_text()) == []
        for number in range(3):
            rows.append({"n": number, "not": float("nan")})
            assert json.loads(file.read_text()) == [{"n": n, "not": None} for n in range(number + 1)]
    reading, writing = os.pipe()
    with JsonArray(Path(f"/dev/fd/{writing}")) as rows:
        rows.append(1)
        rows.append(2)
    os.close(writing)
    with os.fdopen(reading) as piped:
        assert json.load(piped) == [1, 2]


def test_labels_and_crops_are_written_of_what_is_shown(predicts, tmp_path):
    file = picture(tmp_path / "a.png")
    done = predicts(Stub("detection"), file, "--save-txt", "--save-crops")
    assert (done.out / "labels" / "a.txt").read_text() == "1 0.750000 0.500000 0.500000 0.500000\n"
    assert done.rows[0]["labels"] == str(done.out / "labels" / "a.txt")
    (crop,) = (done.out / "crops").rglob("*.jpg")
    assert crop == done.out / "crops" / "dog" / "a_1.jpg"
    with Image.open(crop) as opened:
        assert opened.size == (20, 10)
    ranked = predicts(Stub("classification"), file, "--save-txt")
    assert (ranked.out / "labels" / "a.txt").read_text() == "0.70 eel\n0.20 cat\n0.10 dog\n"


def test_links_to_folders_are_followed_and_loops_are_not(predicts, tmp_path):
    for name in ("in/top.png", "real/one.png", "real/two.png", "real/deep/three.png"):
        picture(tmp_path / name)
    (tmp_path / "in" / "batch1").symlink_to(Path("..") / "real")
    (tmp_path / "real" / "deep" / "loop").symlink_to(tmp_path / "real")
    (tmp_path / "in" / "self").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "broken").symlink_to("nowhere")
    expected = ["batch1/deep/three.png", "batch1/one.png", "batch1/two.png", "top.png"]
    assert [str(file.relative_to(tmp_path / "in")) for file in find_files([str(tmp_path / "in")])] == expected
    assert len(predicts(Stub("detection"), tmp_path / "in").rows) == 4
    assert len(find_files([str(tmp_path / "i*")])) == 4  # a glob may name folders


def test_pictures_of_an_earlier_run_are_no_images(predicts, tmp_path):
    picture(tmp_path / "a.png")
    assert [len(predicts(Stub("detection"), tmp_path).rows) for _ in range(2)] == [1, 1]
    (tmp_path / "a.png").unlink()
    done = predicts(Stub("detection"), tmp_path)
    assert done.status == 2 and f"has none but those in '{done.out}', the --out" in done.err


def test_no_picture_is_written_over_an_image_that_is_read(predicts, tmp_path):
    file = picture(tmp_path / "out" / "a.png")
    before = file.read_bytes()
    done = predicts(Stub("detection"), tmp_path / "out")
    assert done.status == 2 and f"expected another --out: '{file}' is one of the images to read" in done.err
    assert file.read_bytes() == before and done.rows is None
    picture(tmp_path / "out" / "b.jpg")  # its picture is b.png
    assert predicts(Stub("detection"), tmp_path / "out" / "b.jpg").status == 0


@pytest.mark.parametrize("letter", ["x", "é", "\udcff"])
def test_long_names_are_cut_and_cost_nobody_a_picture(predicts, tmp_path, letter):
    long = letter * (251 // len(os.fsencode(letter))) + ".png"
    for folder in ("a", "b"):
        picture(tmp_path / "in" / folder / long)
    picture(tmp_path / "in" / "c.png")
    done = predicts(Stub("detection"), tmp_path / "in", "--save-txt", "--save-crops")
    assert done.status == 0 and [row["status"] for row in done.rows] == [""] * 3
    assert len({row["picture"] for row in done.rows}) == 3 == len(list(done.out.glob("*.png")))
    assert len(list((done.out / "labels").iterdir())) == 3


def test_a_picture_that_cannot_be_written_costs_its_own_row(predicts, tmp_path, monkeypatch):
    picture(tmp_path / "in" / "a.png"), picture(tmp_path / "in" / "b.png")
    (tmp_path / "out" / "a.png").mkdir(parents=True)
    done = predicts(Stub("detection"), tmp_path / "in")
    assert done.status == 1 and [bool(row["status"]) for row in done.rows] == [True, False]
    assert done.rows[0]["status"] == "its picture cannot be written: Is a directory" and done.rows[0]["objects"]


def test_standard_input_has_one_image_or_a_stream_of_ppm(predicts, tmp_path, monkeypatch):
    pixels = np.arange(40 * 20 * 3, dtype=np.uint8).reshape(20, 40, 3)
    ppm = b"P6\n# a comment 7\n40 20\n255\n" + pixels.tobytes()
    grey = b"P5 40 20 255\n" + pixels[..., 0].tobytes()
    (tmp_path / "file.ppm").write_bytes(ppm)
    files = [picture(tmp_path / name).read_bytes() for name in ("a.png", "a.tif", "a.pgm")]
    for data, count in ((ppm + ppm + b"\0" + grey, 3), *((data, 1) for data in files)):
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(data)))
        stub = Stub("detection")
        done = predicts(stub, "-")
        assert [(row["file"], row["frame"], row["status"]) for row in done.rows] == [
            ("-", number, "") for number in range(1, count + 1)
        ]
        assert (done.out / f"stdin_{count}.png").is_file() and len(stub.seen) == count
    assert predicts(stub, tmp_path / "file.ppm").status == 0
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(stub.seen[-1]))), pixels)
    for data, problem in ((b"", "expected images on standard input; got none"), (ppm[:99], "damaged or of a kind")):
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(data)))
        (row,) = predicts(Stub("detection"), "-").rows
        assert problem in row["status"]


@pytest.fixture
def clip(tmp_path) -> Path:
    """Writes a video of ten frames, at ten a second."""
    cv2 = pytest.importorskip("cv2")
    file = tmp_path / "in" / "clip.avi"
    file.parent.mkdir(exist_ok=True)
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), 10.0, (64, 48))
    for number in range(10):
        writer.write(np.full((48, 64, 3), 20 * number, np.uint8))
    writer.release()
    return file


def test_a_video_becomes_a_video_and_a_row_for_each_frame(predicts, clip):
    picture(clip.with_name("photo.png"))
    done = predicts(Stub("detection"), clip.parent, "--every", 3, "--save-txt")
    frames = [(row["frame"], row["seconds"]) for row in done.rows if row["file"] == str(clip)]
    assert done.status == 0 and frames == [(1, 0.0), (4, 0.3), (7, 0.6), (10, 0.9)] and len(done.rows) == 5
    assert done.lines[1] == f"{clip}, 4: 1 dog (1 more below the threshold) -> {done.out / 'clip.mp4'}"
    from overfeat_tf.images.video import Video

    with Video(str(done.out / "clip.mp4")) as video:
        assert len(list(video.frames())) == 4
    assert {path.name for path in (done.out / "labels").iterdir()} == {
        "photo.txt",
        *(f"clip_{number}.txt" for number in (1, 4, 7, 10)),
    }


def test_a_video_that_is_none_is_a_row_and_stages_are_for_images(predicts, clip):
    clip.write_bytes(b"no video")
    done = predicts(Stub("detection"), clip)
    assert done.status == 1 and "it cannot open" in done.rows[0]["status"]
    assert predicts(Stub("detection"), "camera:77").status == 1
    assert "expected images with --stages" in predicts(Stub("detection"), clip, "--stages").err


def test_without_opencv_a_video_is_one_line(predicts, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    (tmp_path / "clip.mp4").write_bytes(b"x")
    done = predicts(Stub("detection"), tmp_path / "clip.mp4")
    assert done.status == 2 and "pip install opencv-python-headless" in done.err
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    done = predicts(Stub("detection"), tmp_path / "clip.mp4", tmp_path / "a.png")
    assert done.status == 1 and "pip install opencv-python-headless" in done.rows[0]["status"]
    assert done.rows[1]["status"] == "" and len(done.rows) == 2
