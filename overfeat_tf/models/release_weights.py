"""Reading the weight files of the authors' 2013 release: net_weight_0 (`fast`) and net_weight_1 (`accurate`).

A file is little-endian float32 without a header: for each layer its weight (out, in, height, width), then its bias
(out,). The full layers are stored as the convolutions that they are (3.5). A file has no other mark than its size,
by which it is recognised.
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from overfeat_tf.models.model import Model, require_new
from overfeat_tf.models.tasks import CLASSIFICATION
from overfeat_tf.network.backbone import Layer
from overfeat_tf.network.convnet import Network, build
from overfeat_tf.network.presets import PRESETS, Preset

RELEASED = ("fast", "accurate")  # net_weight_0, net_weight_1
CLASSES = 1000
CLASS_ORDER = "ILSVRC2012 development kit ID order, not the sorted-WNID order of Keras and Caffe"
# The first class of the sorted-WNID order; the development kit's order begins with kit fox.
FIRST_SORTED = {"tench", "n01440764"}
MAX_LABEL_BYTES = 2**24  # a thousand names take some 30 KB; bounds what is read of a wrong file


def released(name: str) -> Preset:
    """Return the preset of a network that was released.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in RELEASED:
        raise ValueError(f"expected the preset of a released network, {' or '.join(RELEASED)}; got '{name}'")
    return PRESETS[name]


def file_layers(preset: Preset) -> list[tuple[str, Layer]]:
    """List a preset's layers in the file's order, each with the part of `Network` that has it."""
    classifier = preset.head("classifier", CLASSES)
    return [*(("features", one) for one in preset.backbone.layers), *(("classifier", one) for one in classifier)]


def file_size(preset: Preset) -> int:
    """Return the size in bytes of a preset's weight file."""
    return 4 * sum(layer.parameters for _, layer in file_layers(preset))


def import_weights(file: Path, preset: Preset, run: Path, labels: Path | None = None) -> None:
    """Convert a weight file into a run's folder, trained for classification; the folder appears once it is complete.

    Args:
        file: The weight file.
        preset: The network that it is of.
        run: The run's folder, new or empty.
        labels: See `read_labels`; without it the classes are named by their ILSVRC2012_ID, 1 to 1000.

    Raises:
        ValueError: the file is not this network's, the folder holds something, or the labels are refused; before
            anything is written.
    """
    require_new(run)
    _check_weights(file, preset)
    names = read_labels(labels) if labels else tuple(f"ILSVRC2012_ID {n + 1}" for n in range(CLASSES))
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    model = Model(build(preset, CLASSES, weights=False), names, tasks=(CLASSIFICATION.name,))
    _load(model.network, file)
    training = {
        "name": "import-weights",
        "data": "ILSVRC2012, by the authors' 2013 release, whose licence forbids passing its weights on",
        "file": file.name,
        "sha256": digest,
        "class_order": CLASS_ORDER,
        "labels": labels.name if labels else None,
    }
    model.save(run, training)


def read_names(file: Path) -> tuple[str, ...]:
    """Read class names, a line each, from UTF-8 text.

    Raises:
        ValueError: no such file, one that is too large or no such text, or an empty line.
    """
    size = _size(file, "a list of class names")
    if size > MAX_LABEL_BYTES:
        raise ValueError(f"expected class names in '{file}', at most {MAX_LABEL_BYTES} bytes; got {size}")
    names = _mat_names(file) if file.suffix.lower() == ".mat" else _text_names(file)
    if "" in names:
        raise ValueError(f"expected a class name in each line of '{file}'; line {names.index('') + 1} is empty")
    return tuple(names)


def read_labels(file: Path) -> tuple[str, ...]:
    """Read the class names in the order of the ILSVRC2012_ID.

    Args:
        file: UTF-8 text with a name in each line, or the development kit's meta.mat. Two names may be the same, as
            the two "crane" (bird and machine) of the real list are.

    Raises:
        ValueError: there are not 1000, they are in the order of Keras and Caffe, or the file can't be read as such.
        ImportError: a .mat file, and scipy is not there.
    """
    names = read_names(file)
    if len(names) != CLASSES:
        raise ValueError(f"expected {CLASSES} class names in '{file}', one in each line; got {len(names)}")
    if FIRST_SORTED & set(re.split(r"\W+", names[0].lower())):
        raise ValueError(f"expected the {CLASS_ORDER}; '{file}' begins with '{names[0][:40]}', so it has the latter")
    return names


def _text_names(file: Path) -> list[str]:
    try:
        text = file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"expected class names in UTF-8 in '{file}'; {error}") from None
    return [" ".join(line.split()) for line in text.removesuffix("\n").split("\n")] if text else []


def _mat_names(file: Path) -> list[str]:
    """Read the words of the synsets of ILSVRC2012_ID 1 to 1000; those above are not leaves, and no classes."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError(f"reading '{file}' needs scipy: pip install scipy") from error
    try:
        synsets = np.atleast_1d(loadmat(file, squeeze_me=True, variable_names=["synsets"])["synsets"])
        words = {int(one["ILSVRC2012_ID"]): " ".join(str(one["words"]).split()) for one in synsets}
    except Exception as error:  # a damaged file fails in more ways than scipy has names for
        raise ValueError(f"expected the development kit's meta.mat in '{file}'; {error!r}") from None
    return [words[number] for number in range(1, CLASSES + 1) if number in words]


def _size(file: Path, what: str) -> int:
    if not file.is_file():
        raise ValueError(f"expected {what}; '{file}' is {'a folder' if file.is_dir() else 'no file'}")
    return file.stat().st_size


def _check_weights(file: Path, preset: Preset) -> None:
    """Raise ValueError unless the file has the preset's size and numbers that can be weights."""
    size, expected = _size(file, "a weight file of the 2013 release"), file_size(preset)
    if size != expected:
        others = [name for name in RELEASED if size == file_size(PRESETS[name])]
        hint = f"; that is the size of `{others[0]}`: use --preset {others[0]}" if others else ""
        raise ValueError(f"expected {expected} bytes in '{file}', the weights of `{preset.name}`; got {size}{hint}")
    for _, layer, weight, bias in _tensors(file, preset):
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise ValueError(f"expected finite weights in '{file}'; those of its layer {layer.name} are not")
        if not weight.any():  # a download that took its space in advance, and broke off
            raise ValueError(f"expected weights in '{file}'; those of its layer {layer.name} are all zero")


def _tensors(file: Path, preset: Preset) -> Iterator[tuple[str, Layer, np.ndarray, np.ndarray]]:
    """Yield each layer with its part, weight and bias, mapped and not read: the whole would be a second copy."""
    numbers, start = np.memmap(file, "<f4", "r"), 0
    for part, layer in file_layers(preset):
        weight, bias = np.split(numbers[start : start + layer.parameters], [layer.multiply_adds])
        yield part, layer, weight.reshape(layer.channels, layer.inputs, layer.kernel, layer.kernel), bias
        start += layer.parameters


def _load(network: Network, file: Path) -> None:
    """Assign a checked file's weights; Keras has a kernel as (height, width, in, out)."""
    for part, layer, weight, bias in _tensors(file, network.preset):
        ours = getattr(network, part).get_layer(layer.name)
        ours.kernel.assign(weight.transpose(2, 3, 1, 0))
        ours.bias.assign(bias)
