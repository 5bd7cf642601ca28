"""`overfeat features`: the three formats read back, the keys, what can't be read or written, and bounded memory."""

import logging
import os
import resource
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from command_line import run
from PIL import Image

import overfeat_tf as of
from overfeat_tf.cli import features
from overfeat_tf.cli.features import open_features, unique_names
from overfeat_tf.cli.info import table
from overfeat_tf.images.decode import decode_image
from overfeat_tf.models.model import SHARED_PRODUCT, Model
from overfeat_tf.models.predictor import Predictor
from overfeat_tf.scan.features import layer_names
from training import progress

SUFFIXES = [".npz", ".h5", ".txt"]
SIZES = {"a/one.png": (60, 80), "a/two.jpg": (91, 64), "b/one.png": (20, 50), "b/three.bmp": (33, 32)}
KEYS = ["a/one.png", "two.jpg", "b/one.png", "three.bmp"]
ARRAYS = {
    "plain.jpg": np.random.default_rng(0).normal(0, 3, (3, 2, 5000)).astype(np.float32),
    "folder/one.jpg": np.array([[[1.23456789, -0.5], [1e-7, 1234567]]], np.float32),
    "folder/other.jpg": np.zeros((1, 1, 1), np.float32),
    "Füße 写真.jpg/scale1": np.ones((2, 3, 4), np.float32),
    "line\nbreak %s {0} \\xe9.jpg": np.ones((1, 1, 2), np.float32),
}


def read(out: Path) -> dict[str, np.ndarray]:
    """Read a file of features back, in its own order where it has one."""
    if out.suffix == ".npz":
        with np.load(out) as arrays:
            return {key: arrays[key] for key in arrays.files}
    if out.suffix == ".h5":
        arrays = {}
        with h5py.File(out) as file:
            file.visititems(lambda key, item: arrays.update({key: item[()]} if isinstance(item, h5py.Dataset) else {}))
        return arrays
    lines = out.read_text("ascii").split("\n")[:-1]
    names = out.with_suffix(".names.txt").read_text("utf-8").split("\n")[:-1]
    assert len(lines) == 2 * len(names)
    arrays = {}
    for key, size, numbers in zip(names, lines[::2], lines[1::2], strict=True):
        channels, height, width = map(int, size.split(" "))
        values = [float(number) for number in numbers.split(" ")]
        arrays[key.replace("\\n", "\n")] = (
            np.array(values, np.float32).reshape(channels, height, width).transpose(1, 2, 0)
        )
    return arrays


@pytest.fixture(scope="module")
def a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    keras.utils.set_random_seed(3)
    model = Model(of.build("tiny", 2), ("cat", "dog"), tasks=("classification",))
    folder = tmp_path_factory.mktemp("run")
    model.save(folder)
    return folder


@pytest.fixture(scope="module")
def model(a_run):
    return of.load(a_run)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(5)
    for name, (height, width) in SIZES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / name)
    return folder


class Plain(Predictor):
    """Answers with as many numbers as asked, and does what it is told before its n-th call."""

    def __init__(self, numbers=4, calls=None):
        self.numbers, self.calls, self.count = numbers, calls or {}, 0

    def _run(self, signature, **inputs):
        raise AssertionError("expected features to be extracted alone")

    def _extract(self, images, layer, scale, fine):
        if not images:
            return []
        self.count += 1
        self.calls.get(self.count, lambda: None)()
        return [np.full((1, 1, self.numbers), image.shape[0], np.float32) for image in images]


def fail(error):
    raise error


def extract(model, files, out):
    return features.extract_files(model, files, out, None, False, (None,))


# --- What is written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "options", "arguments"),
    [
        (".npz", "", (None, None, False)),
        (".txt", "--scales 1 --layer conv2", ("conv2", 1, False)),
        (".h5", "--scales 3,1 --stride fine --layer pool4", ("pool4", (3, 1), True)),
    ],
)
def test_each_file_has_its_features_under_its_name(
    suffix, options, arguments, a_run, model, pictures, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "new" / f"out{suffix}"
    assert run(monkeypatch, "features", a_run, pictures, "--out", out, *options.split()) == 0
    layer, scales, fine = arguments
    expected = {}
    for key, name in zip(KEYS, SIZES, strict=True):
        pixels = decode_image(tf.constant((pictures / name).read_bytes()))[0].numpy()
        for scale in scales if isinstance(scales, tuple) else [scales]:
            suffix_of_scale = f"/scale{scale}" if isinstance(scales, tuple) else ""
            (expected[key + suffix_of_scale],) = model.extract_features([pixels], layer, scale, fine)
    found = read(out)
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        assert found[key].dtype == np.float32
        np.testing.assert_allclose(found[key], array, rtol=1e-4, atol=1e-5, err_msg=key)
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n" and "4 images, 0 unreadable, " in printed.err


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_arrays_come_back(suffix, tmp_path):
    out = tmp_path / "new" / f"x{suffix}"
    with open_features(out) as write:
        for key, array in ARRAYS.items():
            write(key, array)
        assert not out.exists()
    found = read(out)
    assert list(found) == list(ARRAYS) or (suffix == ".h5" and found.keys() == ARRAYS.keys())
    for key, array in ARRAYS.items():
        assert found[key].dtype == np.float32
        np.testing.assert_allclose(found[key], array, rtol=5e-6 if suffix == ".txt" else 0, err_msg=key)
    files = {"x.txt", "x.names.txt"} if suffix == ".txt" else {out.name}
    assert {path.name for path in out.parent.iterdir()} == files


def test_the_text_is_the_releases(tmp_path):
    with open_features(tmp_path / "x.txt") as write:
        write("folder/one.jpg", ARRAYS["folder/one.jpg"])  # [1, 2, 2]: a row of two places, two channels
        write("line\nbreak", np.zeros((1, 1, 1), np.float32))
    assert (tmp_path / "x.txt").read_text() == "2 1 2\n1.23457 1e-07 -0.5 1.23457e+06\n1 1 1\n0\n"
    assert (tmp_path / "x.names.txt").read_text() == "folder/one.jpg\nline\\nbreak\n"


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["/x/a.jpg", "/y/b.jpg"], ["a.jpg", "b.jpg"]),
        (["/x/a.jpg", "/y/a.jpg", "/y/b.jpg"], ["x/a.jpg", "y/a.jpg", "b.jpg"]),
        (["/p/x/a.jpg", "/q/x/a.jpg", "/q/y/a.jpg"], ["p/x/a.jpg", "q/x/a.jpg", "y/a.jpg"]),
        (["/a.jpg", "/x/a.jpg"], ["a.jpg", "x/a.jpg"]),
        (["/p/x/../a.jpg", "/q/a.jpg"], ["p/a.jpg", "q/a.jpg"]),
        (["/o/x", "/x/a", "/y/a"], ["o/x", "x/a", "y/a"]),  # the file x is not the folder x
        (["/x/\udcff\xe9.jpg"], ["\\xff\xe9.jpg"]),
    ],
)
def test_names_have_the_folders_that_it_takes_to_tell_them_apart(files, names):
    assert unique_names([Path(file) for file in files]) == names


def test_a_file_named_twice_is_extracted_once(a_run, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(pictures / "a")
    assert run(monkeypatch, "features", a_run, "one.png", pictures / "b/../a/one.png", "--out", tmp_path / "x.npz") == 0
    assert list(read(tmp_path / "x.npz")) == ["one.png"]


def test_info_prints_the_name_of_every_layer():
    network = of.build("tiny", 2)
    network.regressor  # noqa: B018 - built by asking for it
    assert set(layer_names(network)) <= set(table("tiny").split())


# --- What can't be read ----------------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_reported_and_left_out(a_run, pictures, tmp_path, monkeypatch, capsys):
    folder, image = tmp_path / "mixed", (pictures / "a/one.png").read_bytes()
    folder.mkdir()
    for name in (b"first.png", b"latin \xe9.png", b"line\nbreak.png"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(image)
    (folder / "empty.jpg").touch()
    (folder / "broken.png").write_bytes(image[:300])
    (folder / "dangling.jpg").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.jpg")
    with (folder / "huge.jpg").open("wb") as file:
        file.truncate(10 << 30)
    assert run(monkeypatch, "features", a_run, folder, "--out", tmp_path / "out.npz") == 1
    assert list(read(tmp_path / "out.npz")) == ["first.png", "latin \\xe9.png", "line\nbreak.png"]
    error = capsys.readouterr().err
    for name, reason in {
        "empty.jpg": "expected the bytes of an image file, got none",
        "broken.png": "damaged or truncated",
        "dangling.jpg": "No such file or directory",
        "pipe.jpg": "expected a regular file",
        "huge.jpg": "expected an image of at most 450000000 bytes, got 10737418240",
    }.items():
        assert f"overfeat: {folder / name}: {reason}" in error
    assert "3 images, 5 unreadable, " in error
    assert extract(Plain(), [folder / "empty.jpg"], tmp_path / "none.npz")[:2] == (0, 1)
    assert read(tmp_path / "none.npz") == {}


def test_where_memory_runs_out_the_images_are_run_one_by_one(pictures, tmp_path, capsys):
    def short():
        fail(tf.errors.ResourceExhaustedError(None, None, "no memory"))

    done = extract(Plain(calls={1: short, 3: short}), [pictures / name for name in SIZES], tmp_path / "x.npz")
    assert done[:2] == (3, 1)
    assert list(read(tmp_path / "x.npz")) == [KEYS[0], *KEYS[2:]]
    assert f"{pictures / 'a/two.jpg'}: not enough memory for 91x64 pixels" in capsys.readouterr().err


def test_images_share_a_call_up_to_a_number_and_a_size(monkeypatch):
    monkeypatch.setattr(features, "MAX_PIXELS", 100)
    sides = [1] * (SHARED_PRODUCT + 2) + [9, 4, 1, 10, 20, 3]
    images = (features.Decoded(Path("x"), "x", np.zeros((side, side, 3), np.uint8)) for side in sides)
    groups = [[len(image.pixels) for image in group] for group in features._groups(images)]
    assert groups == [[1] * SHARED_PRODUCT, [1, 1, 9, 4, 1], [10], [20], [3]]


# --- What can't be written -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "x.npy"], "expected --out FILE.npz, FILE.h5 or FILE.txt; got 'x.npy'"),
        (["--out", "x"], "got 'x'"),
        (["--out", "x.h5", "--layer", "ful6"], "did you mean 'full6'?"),
        (["--out", "x.h5", "--layer", "regress5"], "got 'regress5'"),
        (["--out", "x.h5", "--scales", "1,8"], "expected scales of 'tiny' from 1 to 7; got [8]"),
        (["--out", "x.h5", "--scales", "all"], "expected --scales native or numbers such as 1,2; got 'all'"),
        (["--out", "x.h5", "--scales", "1,,2"], "got '1,,2'"),
        (["--out", "x.h5", "--stride", "middle"], "'middle' is not one of 'coarse', 'fine'"),
        (["--outt", "x.h5"], "--outt"),
        (["--out", "."], "is a directory"),
        (["nothing.jpg", "--out", "x.h5"], "'nothing.jpg' matches none"),
    ],
)
def test_mistakes_get_one_line_before_any_work(options, message, a_run, pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "features", a_run, pictures, *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len([line for line in error.splitlines() if line and not line.startswith(("Usage", "Try "))]) == 1
    assert not list(tmp_path.iterdir())


def test_no_model_is_a_mistake(pictures, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, "features", tmp_path / "nowhere", pictures, "--out", tmp_path / "x.npz") == 2
    assert "expected the folder of a run or of a SavedModel" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_known_at_once(a_run, pictures, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr(features, "_decode", None)  # not reached
    for out in (tmp_path / "file" / "x.npz", Path("/proc/overfeat/x.h5")):
        assert run(monkeypatch, "features", a_run, pictures, "--out", out) in (1, 2)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("overfeat: ") and line.endswith(f"'{out}'")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_breaks_off_leaves_what_was_there(suffix, error, tmp_path):
    def broken(out):
        with pytest.raises(error), open_features(out) as write:
            write("a", np.ones((1, 1, 4), np.float32))
            assert {path.name[0] for path in set(tmp_path.iterdir()) - before} == {"."}
            raise error

    out, before = tmp_path / f"x{suffix}", set()
    broken(out)
    assert not list(tmp_path.iterdir())
    (tmp_path / f".x{suffix}.partial").write_text("of a run that was killed")
    with open_features(out) as write:
        write("b", np.ones((1, 1, 2), np.float32))
    before = set(tmp_path.iterdir())
    broken(out)
    assert set(tmp_path.iterdir()) == before and list(read(out)) == ["b"]


def test_a_broken_extraction_leaves_nothing(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "SHARED_PRODUCT", 2)
    for error in (KeyboardInterrupt, RuntimeError):
        with pytest.raises(error):
            extract(Plain(calls={2: lambda: fail(error)}), [pictures / name for name in SIZES], tmp_path / "x.h5")  # noqa: B023
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("numbers", [50, 100_000])
def test_a_full_disk_is_one_line_and_leaves_nothing(suffix, numbers, tmp_path):
    limits, written = resource.getrlimit(resource.RLIMIT_FSIZE), 0
    array = np.full((1, 1, numbers), 1 / 3, np.float32)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, limits[1]))  # as on a full disk, no write gets further
        with (
            pytest.raises(OSError, match=f"File too large: '.*x{suffix}'"),
            open_features(tmp_path / f"x{suffix}") as write,
        ):
            for written in range(10_000):
                write(f"{written}.jpg", array)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert written * array.nbytes > 200_000
    assert not list(tmp_path.iterdir())


def test_hdf5_takes_no_more_space_than_it_needs(tmp_path):
    with open_features(tmp_path / "x.h5") as write:
        for n in range(3000):
            write(f"ILSVRC2012_val_{n:08}.JPEG", np.ones((1, 1, 100), np.float32))
    assert 3000 * 400 < (tmp_path / "x.h5").stat().st_size < 3000 * 900
    assert len(read(tmp_path / "x.h5")) == 3000


# --- Many images -----------------------------------------------------------------------------------------------------


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell the resident memory so")
def test_memory_does_not_grow_with_the_images(tmp_path):
    calls, numbers, seen = 25, 250_000, []
    files = [tmp_path / f"{n}.png" for n in range(calls * SHARED_PRODUCT)]
    for n, file in enumerate(files):
        Image.fromarray(np.full((n % 7 + 1, 5, 3), n, np.uint8)).save(file)
    model = Plain(numbers, {call: lambda: seen.append(resident()) for call in range(1, calls + 1)})
    assert extract(model, files, tmp_path / "x.npz").images == len(files)
    assert (tmp_path / "x.npz").stat().st_size > 4 * numbers * len(files)  # 200 MB
    assert max(seen) - seen[4] < 50e6


def test_progress_is_told_in_lines_where_there_is_no_terminal(pictures, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, progress.__name__)
    monkeypatch.setattr(progress, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(progress, "GROWTH", 0.0)
    monkeypatch.setattr(features, "SHARED_PRODUCT", 3)
    extract(Plain(), [pictures / name for name in SIZES], tmp_path / "x.npz")
    assert [line.split(",")[0] for line in caplog.messages] == ["3 of 4 images", "4 of 4 images"]
