"""The 2013 release's weight files: layout and arithmetic against plain numpy and the release itself, and refusals."""

import io
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from command_line import run as overfeat
from PIL import Image

import overfeat_tf as of
from overfeat_tf.models.release_weights import file_layers, file_size, import_weights, read_labels, released
from overfeat_tf.network.presets import PRESETS
from overfeat_tf.scan.pyramid import draw_views

RELEASE = Path(__file__).resolve().parents[4] / "shared" / "release"
SHA256 = "9364adb82bfd9a4271b2f30c69610f00464d91a4c3a15184469f0bdcae0a796e"  # of its seeded random `fast`

# (out, in, height, width) of each weight, as the release has them
SHAPES = {
    "fast": [
        (96, 3, 11, 11),
        (256, 96, 5, 5),
        (512, 256, 3, 3),
        (1024, 512, 3, 3),
        (1024, 1024, 3, 3),
        (3072, 1024, 6, 6),
        (4096, 3072, 1, 1),
        (1000, 4096, 1, 1),
    ],
    "accurate": [
        (96, 3, 7, 7),
        (256, 96, 7, 7),
        (512, 256, 3, 3),
        (512, 512, 3, 3),
        (1024, 512, 3, 3),
        (1024, 1024, 3, 3),
        (4096, 1024, 5, 5),
        (4096, 4096, 1, 1),
        (1000, 4096, 1, 1),
    ],
}
# What the release does one after the other: convolution (stride), rectifier, pooling (side), zero padding, full layer
OPERATIONS = {
    "fast": "conv4 relu pool2 conv1 relu pool2" + 3 * " pad conv1 relu" + " pool2 full relu full relu full",
    "accurate": "conv2 relu pool3 conv1 relu pool2" + 4 * " pad conv1 relu" + " pool3 full relu full relu full",
}


def narrow(name):
    """Give a released network with few channels: the same layers, sizes and strides."""
    preset = PRESETS[name]
    convs = tuple(replace(row, channels=3 + number) for number, row in enumerate(preset.backbone.convs))
    backbone = replace(preset.backbone, convs=convs)
    return replace(preset, backbone=backbone, full=(7, 5), regressor=(2, 2), scales=preset.scales[1:2])


def narrow_tensors(name, seed=0):
    """Give random weights and biases for `narrow`, in the release's layout."""
    draw, channels, tensors = np.random.default_rng(seed), 3, []
    outputs = [*range(3, 3 + len(SHAPES[name]) - 3), 7, 5, 1000]
    for count, (_, _, *kernel) in zip(outputs, SHAPES[name], strict=True):
        deviation = np.sqrt(2 / channels / np.prod(kernel))
        tensors.append((draw.normal(0, deviation, (count, channels, *kernel)), draw.normal(0, 0.1, count)))
        channels = count
    return [(weight.astype("<f4"), bias.astype("<f4")) for weight, bias in tensors]


def write(path, tensors):
    path.write_bytes(b"".join(weight.tobytes() + bias.tobytes() for weight, bias in tensors))
    return path


def plain_forward(name, tensors, pixels):
    """Yield what each of the release's operations gives, float64 [C, H, W], from uint8 [H, W, 3]; plain numpy."""
    maps = (pixels.transpose(2, 0, 1) - 118.380951) / 61.8969116
    yield maps
    tensors = iter(tensors)
    for operation in OPERATIONS[name].split():
        if operation == "relu":
            maps = np.where(maps > 1e-6, maps, 0)
        elif operation == "pad":
            maps = np.pad(maps, ((0, 0), (1, 1), (1, 1)))
        elif operation.startswith("pool"):
            side = int(operation[4:])
            rows, columns = maps.shape[1] // side, maps.shape[2] // side
            maps = maps[:, : rows * side, : columns * side].reshape(len(maps), rows, side, columns, side).max((2, 4))
        else:
            weight, bias = next(tensors)
            stride = int(operation.removeprefix("conv")) if operation != "full" else 1
            windows = np.lib.stride_tricks.sliding_window_view(maps, weight.shape[2:], (1, 2))[:, ::stride, ::stride]
            maps = np.einsum("cyxij,ocij->oyx", windows, weight.astype(float), optimize=True) + bias[:, None, None]
        yield maps


def our_layers(network, pixels):
    """List what each of our layers gives, [C, H, W], from uint8 [H, W, 3], in the release's numbering."""

    def outputs(model, maps):
        layers = [each for each in model.layers if not isinstance(each, keras.layers.InputLayer | keras.layers.Dropout)]
        return keras.Model(model.input, [layer.output for layer in layers])(maps)

    features = outputs(network.features, pixels[None].astype(np.float32))
    pooled = tf.nn.max_pool2d(features[-1], network.preset.last_pool, network.preset.last_pool, "VALID")
    return [maps.numpy()[0].transpose(2, 0, 1) for maps in (*features, pooled, *outputs(network.classifier, pooled))]


def assert_near(found, expected, part, what):
    """Compare with a tolerance of `part` of the expected values' maximum."""
    assert found.shape == expected.shape, what
    np.testing.assert_allclose(found, expected, rtol=0, atol=part * np.abs(expected).max(), err_msg=str(what))


@pytest.mark.parametrize(("name", "size"), [("fast", 583_683_488), ("accurate", 578_625_952)])
def test_the_layout_is_the_releases(name, size):
    layers = file_layers(released(name))
    assert [(one.channels, one.inputs, one.kernel, one.kernel) for _, one in layers] == SHAPES[name]
    assert file_size(released(name)) == size
    assert [layer.name for _, layer in layers[-3:]] == {
        "fast": ["full6", "full7", "scores"],
        "accurate": ["full7", "full8", "scores"],
    }[name]


@pytest.mark.parametrize("name", SHAPES)
def test_every_layer_is_as_in_plain_numpy(name, tmp_path):
    preset, tensors = narrow(name), narrow_tensors(name)
    import_weights(write(tmp_path / "weights", tensors), preset, tmp_path / "run")
    model = of.load(tmp_path / "run")
    # No multiple of the stride, so that every floor counts, and several windows.
    height, width = preset.window + preset.coarse_stride + 5, preset.window + 2 * preset.coarse_stride + 7
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    expected = list(plain_forward(name, tensors, pixels))
    found = our_layers(model.network, pixels)
    assert len(found) == len(expected) == {"fast": 22, "accurate": 25}[name]
    assert expected[-1].shape == (1000, 2, 3)
    for number, (ours, plain) in enumerate(zip(found, expected, strict=True)):
        assert_near(ours, plain, 1e-5, number)
    (features,) = model.extract_features([pixels])
    assert_near(features.transpose(2, 0, 1), expected[-3], 1e-5, "features")
    assert (features < 0).any()  # before the rectifier


@pytest.mark.parametrize("name", SHAPES)
def test_classify_is_the_spatial_maximum_of_plain_numpys_softmax(name, tmp_path):
    preset, tensors = narrow(name), narrow_tensors(name)
    import_weights(write(tmp_path / "weights", tensors), preset, tmp_path / "run")
    model = of.load(tmp_path / "run").with_options(fine=False)
    pixels = np.random.default_rng(3).integers(0, 256, (*preset.scales[0], 3), np.uint8)  # so it is not resized
    *_, scores = plain_forward(name, tensors, pixels)
    softmax = np.exp(scores) / np.exp(scores).sum(0)
    assert scores.shape == (1000, 2, 3)
    np.testing.assert_allclose(model.classify(pixels[None])["logits"][0], np.log(softmax.max((1, 2))), atol=1e-4)


def test_a_run_says_where_it_is_from(tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("".join(f"thing {n}\n" for n in range(1000)))
    file = write(tmp_path / "net_weight_0", narrow_tensors("fast"))
    for run, labels in ((tmp_path / "a", None), (tmp_path / "b", names)):
        import_weights(file, narrow("fast"), run, labels)
    model, named = of.load(tmp_path / "a"), of.load(tmp_path / "b")
    assert (model.tasks, model.network.background) == (("classification",), False)
    assert (model.labels[0], model.labels[999]) == ("ILSVRC2012_ID 1", "ILSVRC2012_ID 1000")
    assert (named.labels[0], named.labels[999]) == ("thing 0", "thing 999")
    training = json.loads((tmp_path / "b" / "config.json").read_text())["training"]
    assert training["file"] == "net_weight_0" and len(training["sha256"]) == 64
    assert training["labels"] == "names.txt" and "ILSVRC2012 development kit ID order" in training["class_order"]
    assert str(tmp_path) not in json.dumps(training)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "names.txt", "net_weight_0"]


def sparse(path, size):
    with path.open("wb") as file:
        file.truncate(size)


FAST = "expected 583683488 bytes in '{path}', the weights of `fast`; got"
REFUSED = {
    "short": (lambda path: sparse(path, 583_683_487), f"{FAST} 583683487"),
    "long": (lambda path: sparse(path, 583_683_489), f"{FAST} 583683489"),
    "empty": (lambda path: path.touch(), f"{FAST} 0"),
    "the other": (
        lambda path: sparse(path, 578_625_952),
        f"{FAST} 578625952; that is the size of `accurate`: use --preset accurate",
    ),
    "a folder": (os.mkdir, "expected a weight file of the 2013 release; '{path}' is a folder"),
    "nothing": (lambda path: None, "expected a weight file of the 2013 release; '{path}' is no file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_any_other_file_is_refused_by_its_size(name, tmp_path):
    make, line = REFUSED[name]
    path = tmp_path / "file"
    make(path)
    before = list(tmp_path.rglob("*"))
    with pytest.raises(ValueError) as caught:
        import_weights(path, released("fast"), tmp_path / "run")
    assert str(caught.value) == line.format(path=path)
    assert list(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("layer", "part"), [(0, 0), (2, 1), (5, 0), (7, 1)])
def test_weights_that_are_not_finite_are_refused(layer, part, value, tmp_path):
    tensors = narrow_tensors("fast")
    tensors[layer][part].flat[-1] = value
    path = write(tmp_path / "file", tensors)
    with pytest.raises(ValueError) as caught:
        import_weights(path, narrow("fast"), tmp_path / "run")
    name = file_layers(narrow("fast"))[layer][1].name
    assert str(caught.value) == f"expected finite weights in '{path}'; those of its layer {name} are not"
    assert list(tmp_path.iterdir()) == [path]


def test_a_download_that_broke_off_is_refused_though_its_size_is_right(tmp_path):
    tensors = narrow_tensors("fast")
    path = write(tmp_path / "file", [*tensors[:-1], tuple(np.zeros_like(each) for each in tensors[-1])])
    with pytest.raises(ValueError, match=r"expected weights in '.*file'; those of its layer scores are all zero"):
        import_weights(path, narrow("fast"), tmp_path / "run")


@pytest.mark.parametrize("name", ["tiny", "acurate", ""])
def test_a_network_that_was_not_released_is_refused(name):
    with pytest.raises(ValueError, match=f"^expected the preset of a released network, fast or accurate; got '{name}'"):
        released(name)


def test_a_folder_in_use_is_refused_and_an_empty_one_taken(tmp_path):
    file, used = write(tmp_path / "file", narrow_tensors("fast")), tmp_path / "used"
    used.mkdir()
    import_weights(file, narrow("fast"), used)
    was = (used / "config.json").read_bytes()
    for run in (used, file):
        with pytest.raises(ValueError, match=f"expected a new or empty folder for the run; '{run}' holds something"):
            import_weights(file, narrow("fast"), run)
    assert (used / "config.json").read_bytes() == was


def test_a_full_disk_leaves_nothing_that_loads_and_what_a_kill_leaves_makes_way(tmp_path, monkeypatch):
    file, partial = write(tmp_path / "file", narrow_tensors("fast")), tmp_path / ".run.partial"

    def fill(model, folder):
        save(model, folder)
        for broken in (partial, tmp_path / "run"):  # as a kill would leave it
            with pytest.raises(ValueError, match=r"has no (config\.json|weights yet)|is not there"):
                of.load(broken)
        shutil.copytree(partial, tmp_path / "killed")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        save = of.Model.save_weights
        patch.setattr(of.Model, "save_weights", fill)
        with pytest.raises(OSError, match="No space"):
            import_weights(file, narrow("fast"), tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "killed"]
    (tmp_path / "killed").rename(partial)
    import_weights(file, narrow("fast"), tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "run"]
    assert of.load(tmp_path / "run").tasks == ("classification",)


def test_class_names_come_from_text(tmp_path):
    file = tmp_path / "names.txt"
    names = ["kit fox, Vulpes macrotis", *(f"thing {n}" for n in range(997)), "crane", "crane"]
    for text in ("\n".join(names), "\n".join(names) + "\n", "\ufeff" + "\r\n".join(names) + "\r\n"):
        file.write_bytes(text.encode())
        assert read_labels(file) == tuple(names)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"a\n" * 999, "expected 1000 class names in '.*', one in each line; got 999"),
        (b"a\n" * 1001, "expected 1000 class names in '.*', one in each line; got 1001"),
        (b"", "expected 1000 class names in '.*', one in each line; got 0"),
        (b"a\n" * 6 + b" \n" + b"a\n" * 993, "expected a class name in each line of '.*'; line 7 is empty"),
        (b"\xff\n" * 1000, "expected class names in UTF-8 in '.*'; 'utf-8' codec .*"),
        (b"a" * (2**24 + 1), "expected class names in '.*', at most 16777216 bytes; got 16777217"),
        (b"tench, fish\n" + b"a\n" * 999, "expected the ILSVRC2012 .*'tench, fish', so it has the latter"),
        (b"n01440764\n" + b"a\n" * 999, "expected the ILSVRC2012 .*'n01440764', so it has the latter"),
        (None, "expected a list of class names; '.*' is no file"),
    ],
    ids=["999", "1001", "none", "an empty one", "no text", "too long", "tench", "WNID", "no file"],
)
def test_other_lists_of_class_names_are_refused(content, line, tmp_path):
    file = tmp_path / "names.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{line}$"):
        read_labels(file)


def synsets(file, numbers):
    """Write what the development kit's meta.mat has."""
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss")
    rows = [(float(n), f"n{n:08}", f"crane, {n}" if n % 2 else "crane", "a bird") for n in numbers]
    table = np.array(rows, [(field, object) for field in fields]).reshape(-1, 1)
    pytest.importorskip("scipy.io").savemat(file, {"synsets": table, "more": 1})


def test_class_names_come_from_the_development_kit(tmp_path):
    file = tmp_path / "meta.mat"
    synsets(file, np.random.default_rng(0).permutation(np.arange(1, 1861)))  # those above 1000 are no leaves
    names = read_labels(file)
    assert (len(names), names[:3], names[-1]) == (1000, ("crane, 1", "crane", "crane, 3"), "crane")
    synsets(file, range(2, 1861))
    with pytest.raises(ValueError, match=r"expected 1000 class names in '.*meta.mat'.*; got 999"):
        read_labels(file)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"expected the development kit's .* in '.*meta\.mat'; ") as caught:
        read_labels(file)
    assert "\n" not in str(caught.value)


def test_a_mat_file_without_scipy_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    (tmp_path / "meta.mat").write_bytes(b"any")
    with pytest.raises(ImportError, match=r"reading '.*meta.mat' needs scipy: pip install scipy"):
        read_labels(tmp_path / "meta.mat")


def test_the_verb_makes_a_run_that_exports(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PRESETS, "fast", narrow("fast"))  # or each step would move a gigabyte
    file, home = write(tmp_path / "net_weight_0", narrow_tensors("fast")), tmp_path / "runs" / "released"
    assert overfeat(monkeypatch, "import-weights", file, "--preset", "fast", "--run", home) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{home}\n"
    assert printed.err == f"{home}: imported; export it with: overfeat export {home} --to saved_models/fast\n"
    saved = tmp_path / "saved_models" / "fast"
    monkeypatch.setattr("serving.export.exporter.compare", lambda *_: None)  # measures in a process of its own
    assert overfeat(monkeypatch, "export", home, "--to", saved) == 0
    assert "ILSVRC2012, by the authors' 2013 release" in (saved / "1" / "MODEL_CARD.md").read_text()
    pixels = np.random.default_rng(2).integers(0, 256, (1, 247, 260, 3), np.uint8)
    live, exported = of.load(home), of.load(saved)
    np.testing.assert_allclose(exported.classify(pixels)["logits"], live.classify(pixels)["logits"], atol=1e-4)
    np.testing.assert_allclose(exported.extract_features(pixels), live.extract_features(pixels), atol=1e-4)
    capsys.readouterr()
    for arguments in (
        (file, "--preset", "fast", "--run", home),
        (file, "--preset", "accurate", "--run", tmp_path / "other"),
        (file, "--preset", "tiny", "--run", tmp_path / "other"),
        (tmp_path / "none", "--preset", "fast", "--run", tmp_path / "other"),
        (file, "--preset", "fast", "--run", tmp_path / "other", "--labels", file),
    ):
        assert overfeat(monkeypatch, "import-weights", *arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "other").exists()


@pytest.fixture(scope="module")
def of_the_release(tmp_path_factory):
    """The model of the release's seeded random `fast` file, and what the released library computes from it."""
    if not (RELEASE / "fast_231.npz").is_file():
        pytest.skip("needs the release's figures")
    folder = tmp_path_factory.mktemp("release")
    file, run = folder / "net_weight_0", folder / "run"
    try:
        command = [sys.executable, str(RELEASE / "make_random_weights.py"), "0", str(file)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        import_weights(file, released("fast"), run)
        assert json.loads((run / "config.json").read_text())["training"]["sha256"] == SHA256
        with np.load(RELEASE / "fast_231.npz") as figures:
            yield of.load(run), dict(figures)
    finally:
        shutil.rmtree(folder)  # more than a gigabyte


def test_every_layer_is_as_the_released_library_has_it(of_the_release):
    model, figures = of_the_release
    layers = our_layers(model.network, figures["pixels"])
    assert [list(maps.shape) for maps in layers] == figures["shapes"].tolist()
    for number, maps in enumerate(layers):
        stats, samples = figures["stats"][number], figures["samples"][number]
        flat = maps.astype(float).ravel()
        count = min(128, flat.size)
        picked = flat[(2 * np.arange(count) + 1) * flat.size // (2 * count)]
        near = 2e-5 * np.abs(stats[2:4]).max()
        np.testing.assert_allclose(picked, samples[:count], rtol=0, atol=near, err_msg=str(number))
        np.testing.assert_allclose(
            [flat.mean(), flat.std(), flat.min(), flat.max()], stats[:4], rtol=0, atol=near, err_msg=str(number)
        )
        assert np.linalg.norm(flat) == pytest.approx(stats[4], rel=2e-5), number
    for number, name in ((17, "fc6"), (19, "features"), (21, "scores")):
        assert_near(layers[number], figures[name], 2e-5, name)


def test_the_public_calls_are_as_the_released_library(of_the_release):
    model, figures = of_the_release
    (features,) = model.extract_features([figures["pixels"]])
    assert_near(features.transpose(2, 0, 1), figures["features"], 2e-5, "features")
    scores = our_layers(model.network, figures["pixels"])[-1][:, 0, 0].astype(float)
    probabilities = np.exp(scores) / np.exp(scores).sum()
    assert probabilities.argmax() == figures["prob"].argmax()
    np.testing.assert_allclose(figures["prob"], probabilities, rtol=0.25)  # the release's softmax is an approximation
    # The scan's smallest scale at coarse stride is one window.
    image = np.pad(figures["pixels"], ((0, 16), (0, 16), (0, 0)), mode="reflect")
    scores = our_layers(model.network, image)[-1][:, 0, 0].astype(float)
    logits = model.with_options(scales=(1,), fine=False).classify(image[None])["logits"][0]
    np.testing.assert_allclose(logits, scores - np.log(np.exp(scores).sum()), rtol=0, atol=1e-4)


def test_its_command_lines_classification_is_reproduced(of_the_release, tmp_path, monkeypatch, capsys):
    model, figures = of_the_release
    exact = np.exp(figures["scores"].ravel() - figures["scores"].max()).astype(float)
    exact /= exact.sum()
    release = model.with_options(views="release", fine=False)
    logits = release.classify(figures["pixels"][None])["logits"][0]
    near = 2e-5 * np.abs(figures["scores"]).max()
    np.testing.assert_allclose(logits, np.log(exact), rtol=0, atol=2 * near)
    # A wide picture is cut to its central square; a PPM stream on standard input is what the release's -p took.
    wide = np.pad(figures["pixels"], ((0, 0), (30, 31), (0, 0)), mode="symmetric")
    stream = b"".join(
        b"P6\n# made here\n%d 231\n255\n" % each.shape[1] + each.tobytes() for each in (figures["pixels"], wide)
    )
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stream)))
    monkeypatch.setattr("overfeat_tf.cli.predict.run.load", lambda *_: model)
    status = overfeat(monkeypatch, "predict", "run", "-", "-n", 3, "--views", "release", "--out", tmp_path)
    printed = capsys.readouterr()
    assert status == 0, printed.err
    lines = [line.rsplit(" ", 1) for line in printed.out.splitlines()]
    best = np.argsort(-exact)[:3]
    assert [name for name, _ in lines] == [f"ILSVRC2012_ID {n + 1}" for n in best] * 2
    np.testing.assert_allclose([float(score) for _, score in lines], [*exact[best]] * 2, rtol=1e-3)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("size", [(231, 231), (260, 231), (500, 375), (120, 200)])
def test_the_releases_view_is_the_central_square_of_the_picture_at_231(name, size):
    pixels = np.random.default_rng(4).integers(0, 256, (size[0] // 5, size[1] // 5, 3), np.uint8)
    pixels = np.kron(pixels, np.ones((5, 5, 1), np.uint8))[: size[0], : size[1]]
    pixels = np.pad(pixels, ((0, size[0] - pixels.shape[0]), (0, size[1] - pixels.shape[1]), (0, 0)), mode="edge")
    scale = 231 / min(size)
    height, width = (math.floor(side * scale + 0.5) for side in size)
    larger = scale > 1
    filters = Image.Resampling.BICUBIC if larger else Image.Resampling.LANCZOS
    resized = np.asarray(Image.fromarray(pixels).resize((width, height), filters), float)
    top, left = (height - 231) // 2, (width - 231) // 2
    window = PRESETS[name].window
    (views,) = draw_views(PRESETS[name], tf.constant(pixels), of.InferenceOptions(views="release"))
    seen = views.pixels.numpy()
    assert seen.shape == (1, window, window, 3) and (seen == np.round(seen)).all()
    np.testing.assert_array_equal(views.origins, [[top, left]])
    apart = np.abs(seen[0] - resized[top : top + window, left : left + window])
    assert apart.max() <= (60 if larger else 2.0) and apart.mean() < (6 if larger else 0.3)  # Mitchell's is softer
