"""Pretrained feature layers by name: where a Keras model comes from, and the network that stands on it."""

import inspect
import warnings
import zipfile
from collections.abc import Callable, Iterator
from math import log
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from overfeat_tf.arguments import suggest
from overfeat_tf.network.keras_backbone import BACKBONE, KerasBackbone, leaf_layers, require_described, trace_steps
from overfeat_tf.network.presets import PRESETS, Preset

if TYPE_CHECKING:
    import keras

HUB = "keras_hub:"
IMAGENET = "imagenet"
STRIDE = 16  # of the default layer: finer maps know less of the object, coarser ones less of its place
REACH = 32  # pixels that the last pooling covers; a window is five of these along a side
CELLS = 5
NECK_CHANNELS = 128  # of the map that the heads read
LARGEST = 464  # the largest of a network's own scales: about that of Table 5
SIDE = 224  # pixels of the pictures that a classifier was trained on, where it takes any size
STEP = 1.4  # from one scale to the next (4.2)
SCALES = 4  # of a classifier
UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile)  # of damaged .keras and .h5 files


def backbone_preset(backbone: KerasBackbone) -> Preset:
    """Describe the network that stands on a backbone: a window of some 160 pixels, small heads, four scales.

    The last pooling covers 32 pixels at any stride, so that offset pooling gives windows every `stride` pixels.
    """
    stride = backbone.stride
    window = CELLS * stride * backbone.pool
    smallest, coarse = window + stride * (backbone.pool - 1), stride * backbone.pool
    count = 1 + round(log(LARGEST / smallest, STEP))
    sides = [smallest + coarse * round(smallest * (STEP**n - 1) / coarse) for n in range(max(count, 1))]
    return Preset(
        name=backbone.name,
        window=window,
        backbone=backbone,
        full=(256, 256),
        regressor=(256, 128),
        scales=tuple((side, side) for side in sides),
        shorter_side=round(window * 256 / 221),  # as `accurate`
        dropout=0.2,
        init_std=None,
    )


def classifier_preset(backbone: KerasBackbone) -> Preset:
    """Describe the network of `averaged`'s backbone: a linear classifier, and scales 1.4 apart from a window up."""
    window = backbone.reach * backbone.stride
    sides = [window + backbone.stride * round(window * (STEP**n - 1) / backbone.stride) for n in range(SCALES)]
    return Preset(
        name=backbone.name,
        window=window,
        backbone=backbone,
        full=(),
        regressor=(256, 128),
        scales=tuple((side, side) for side in sides),
        shorter_side=round(window * 256 / 224),
        init_std=None,
    )


def read_backbone(
    name: str, layer: str | int | None = None, weights: str | None = IMAGENET
) -> tuple[KerasBackbone, "keras.Model"]:
    """Read a Keras model and cut it at a layer.

    Args:
        name: Of `keras.applications`, such as "EfficientNetV2B0"; "keras_hub:" and a preset of KerasHub; or the path
            of a `.keras` file.
        layer: Where to cut it: the name of a layer, or a stride in pixels, of which `activation_at_stride` finds the
            layer; 16 if None.
        weights: "imagenet" for the weights that Keras or KerasHub download; the path of a weights file; None for random
            ones. A `.keras` file brings its own with "imagenet".

    Returns:
        The description, and the model from pixels [B, H, W, 3], 0..255, to the layer, with its weights.

    Raises:
        ValueError: no such name or layer, a model that takes no pixels, or a weights file that is missing, damaged or
            of another model.
        OSError: the weights cannot be downloaded.
        ImportError: a KerasHub preset without KerasHub.
    """
    import keras

    model = open_model(name, weights)
    layer = _layer_name(model, name, layer or STRIDE)
    names = [each.name for each in model.layers]
    if layer not in names:
        raise ValueError(f"expected a layer of '{name}'; got '{layer}'{suggest(layer, names)}")
    cut = keras.Model(model.inputs[0], model.get_layer(layer).output, name=BACKBONE)
    stride = KerasBackbone.along(trace_steps(cut), 1024)[-1].stride
    cut = of_any_size(cut)
    require_described(cut)
    pool = max(1, REACH // stride)
    return KerasBackbone(shown_name(name), layer, cut.to_json(), pool=pool, neck=NECK_CHANNELS), cut


def read_averaged(
    name: str, layer: str | int | None = None, weights: str | None = IMAGENET
) -> tuple[KerasBackbone, "keras.Model"]:
    """Read a Keras model for classes alone: the mean of its last map over each window, normalised.

    Arguments, results and errors are those of `read_backbone`; `layer` is the last map by default.
    """
    model = open_model(name, weights)
    maps = [each.name for each in model.layers if len(getattr(each.output, "shape", ())) == 4]
    layer = None if layer is None else _layer_name(model, name, layer)
    if layer is not None and layer not in maps:
        raise ValueError(f"expected a layer of '{name}' with a map; got '{layer}'{suggest(layer, maps)}")
    return averaged(model, model.get_layer(layer or maps[-1]).output, name, normalise=True)


def averaged(
    model: "keras.Model", maps: "keras.KerasTensor", name: str, side: int | None = None, normalise: bool = False
) -> tuple[KerasBackbone, "keras.Model"]:
    """Cut a Keras model at a map and average it over each window, as global pooling does at its own input size.

    Args:
        model: From pixels [B, H, W, 3], 0..255.
        maps: The map [B, h, w, C].
        name: What the backbone is called by: a name, a preset or a file.
        side: Side in pixels of the pictures that the model was trained on; by default its input's, or `SIDE`.
        normalise: Whether to normalise each mean, for a head that has to learn.

    Raises:
        ValueError: a layer that enlarges its map.
    """
    import keras

    side = side or model.inputs[0].shape[1] or SIDE
    cells = KerasBackbone.along(trace_steps(keras.Model(model.inputs[0], maps)), side)[-1].side
    x = keras.layers.AveragePooling2D(cells, 1, name="average")(maps)
    if normalise:
        x = keras.layers.LayerNormalization(epsilon=1e-3, name="average_normalised")(x)
    cut = of_any_size(keras.Model(model.inputs[0], x, name=BACKBONE))
    layer = cut.layers[-1].name
    return KerasBackbone(shown_name(name), layer, cut.to_json(), pool=1, reach=cells, exact=True), cut


def shown_name(name: str) -> str:
    """Return what a backbone is called in short: a preset's or file's own name."""
    return name.removeprefix(HUB).rstrip("/").rpartition("/")[2].removesuffix(".keras")


def of_any_size(model: "keras.Model") -> "keras.Model":
    """Return a model of pixels [B, H, W, 3] of any size with the weights of one that may be of a fixed size."""
    import keras

    if tuple(model.inputs[0].shape[1:3]) == (None, None):
        return model
    free = keras.models.clone_model(model, input_tensors=keras.Input((None, None, 3), name="pixels"))
    free.set_weights(model.get_weights())
    return free


def _layer_name(model: "keras.Model", name: str, layer: str | int) -> str:
    """Return the name of a layer that may be given by its stride."""
    return activation_at_stride(model, name, int(layer)) if str(layer).isdigit() else str(layer)


def activation_at_stride(model: "keras.Model", name: str, stride: int) -> str:
    """Return the last activation with the most channels at a stride, in pixels.

    In a network of inverted residuals that is the expansion of the first block at stride 32, before its stride is
    taken; in a ResNet of the second kind the last block's normalised input.

    Raises:
        ValueError: the model has no activation layer at that stride.
    """
    found = [(channels, number, layer) for number, (layer, channels) in enumerate(_activations(model, stride))]
    if not found:
        raise ValueError(
            f"expected an activation layer at a stride of {stride} pixels in '{name}'; there is none: name a --layer"
        )
    return max(found)[-1]


def _activations(model: "keras.Model", stride: int) -> Iterator[tuple[str, int]]:
    """List the names and channels of the layers of a stride whose output is not linear."""
    import keras

    linear = keras.activations.linear
    steps = trace_steps(model, ends_in_map=False)
    maps = KerasBackbone.along(steps, 64 * stride)
    strides = {step.name: each.stride for step, each in zip(steps, maps, strict=True)}
    for layer in model.layers:
        kind = keras.layers.Activation | keras.layers.ReLU | keras.layers.LeakyReLU | keras.layers.PReLU
        activation = getattr(layer, "activation", None)
        if strides.get(layer.name) == stride and (isinstance(layer, kind) or activation not in (None, linear)):
            yield layer.name, layer.output.shape[-1]


def open_model(name: str, weights: str | None) -> "keras.Model":
    """Open a functional model of pixels [B, H, W, 3], 0..255, as `flattened` gives it.

    Weights and errors are those of `read_backbone`.
    """
    import keras

    if name.startswith(HUB):
        model = _from_hub(name.removeprefix(HUB), weights)
    elif name.endswith(".keras"):
        if not Path(name).is_file():
            raise ValueError(f"expected a .keras file; '{name}' is not there")
        try:
            model = keras.models.load_model(name, compile=False)
        except (*UNREADABLE, TypeError) as error:
            line = str(error).strip().partition("\n")[0]
            raise ValueError(f"expected a Keras model in '{name}'; it cannot be loaded: {line}") from None
        if weights is None:
            model = keras.models.clone_model(model)
    else:
        model = _from_applications(name, weights)
    if weights not in (None, IMAGENET):
        try:
            model.load_weights(weights)
        except UNREADABLE as error:
            line = str(error).partition("\n")[0]
            raise ValueError(f"expected weights of '{name}' in '{weights}'; {line}") from None
    inputs = getattr(model, "inputs", None) or ()  # unknown of a subclass, and before a first call
    if [tuple(each.shape[3:]) for each in inputs] != [(3,)]:
        shapes = ", ".join(str(list(each.shape)) for each in inputs) or "inputs of unknown shape"
        raise ValueError(f"expected a functional model of pixels [B, H, W, 3]; '{name}' takes {shapes}")
    for layer, _ in leaf_layers(model):
        if layer.compute_dtype != layer.variable_dtype:  # what it was trained in; a network has its own arithmetic
            layer.dtype_policy = layer.variable_dtype
    return flattened(model)


def flattened(model: "keras.Model") -> "keras.Model":
    """Return a functional model with the layers of the models within it as its own, and none that augment at random.

    A network calls its backbone in training too, where a random flip would move the objects away from their boxes.
    """
    import keras

    def is_model(layer: "keras.Layer") -> bool:
        return isinstance(layer, keras.Model) and hasattr(layer, "inputs")

    def augments(layer: "keras.Layer") -> bool:
        name = type(layer).__name__
        return name.startswith("Rand") and name != "RandomCrop" and getattr(keras.layers, name, None) is type(layer)

    def joined(model: "keras.Model") -> "keras.Model":
        if isinstance(model, keras.Sequential):  # whose layers know nothing of what they are connected to
            model = keras.Model(model.inputs[0], model.outputs[0])
        return keras.models.clone_model(model, clone_function=lambda layer: layer, call_function=call)

    def call(layer: "keras.Layer", *args, **kwargs):
        if augments(layer):
            return args[0]
        return joined(layer).call(*args) if is_model(layer) else layer(*args, **kwargs)

    if not isinstance(model, keras.Sequential) and not any(is_model(row) or augments(row) for row in model.layers):
        return model
    shared = joined(model)
    copy = keras.models.clone_model(shared)  # whose layers are connected once
    for layer in copy.layers:
        layer.set_weights(shared.get_layer(layer.name).get_weights())
    return copy


def _from_applications(name: str, weights: str | None) -> "keras.Model":
    """Build a model of `keras.applications`, its own preprocessing included."""
    import keras

    known = {each.lower(): each for each in dir(keras.applications) if each[0].isupper()}
    if name.lower() not in known:
        kinds = "a preset, a model of keras.applications, keras_hub:PRESET or a .keras file"
        raise ValueError(f"expected {kinds}; got '{name}'{suggest(name, [*PRESETS, *known.values()])}")
    make = getattr(keras.applications, known[name.lower()])
    options = {"include_preprocessing": True} if "include_preprocessing" in inspect.signature(make).parameters else {}
    x = _preprocessed(keras.Input((None, None, 3), name="pixels"), make)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that the weights are those of 224 pixels
            return make(include_top=False, weights=IMAGENET if weights == IMAGENET else None, input_tensor=x, **options)
    except Exception as error:  # what Keras raises where it cannot download is a plain Exception
        if type(error) is not Exception:
            raise
        raise OSError(
            f"expected to download the weights of {known[name.lower()]}; {error}: connect, or use a .keras file"
        ) from None


def _preprocessed(pixels: "keras.KerasTensor", make: Callable) -> "keras.KerasTensor":
    """Apply what an application's `preprocess_input` does to pixels 0..255: a factor, an offset, and perhaps BGR."""
    import keras

    preprocess = inspect.getmodule(make).preprocess_input  # type: ignore[union-attr]
    black, white = (np.ravel(preprocess(np.full((1, 1, 1, 3), value, np.float32))) for value in (0, 255))
    red = np.ravel(preprocess(np.array([[[[255, 0, 0]]]], np.float32)))
    scale = (white - black) / 255
    x = pixels
    if red[0] != white[0]:  # red came last
        x = keras.layers.Concatenate(name="bgr")([pixels[..., 2:], pixels[..., 1:2], pixels[..., :1]])
    if not (np.allclose(scale, 1) and np.allclose(black, 0)):
        x = keras.layers.Rescaling(scale.tolist(), black.tolist(), name="preprocess")(x)
    return x


def _from_hub(preset: str, weights: str | None) -> "keras.Model":
    """Load a preset of KerasHub, which keeps a backbone's preprocessing beside it, in an `ImageConverter`."""
    import keras

    try:
        import keras_hub
    except ImportError:
        raise ImportError(
            f"expected KerasHub for '{HUB}{preset}'; it is not installed: pip install keras-hub"
        ) from None
    model = keras_hub.models.Backbone.from_preset(preset, load_weights=weights is not None)
    try:
        converter = keras_hub.layers.ImageConverter.from_preset(preset)
    except (FileNotFoundError, ValueError):  # none, as in presets that take pixels 0..255
        return model
    if converter.scale is None and converter.offset is None:
        return model
    pixels = keras.Input(model.inputs[0].shape[1:], name="pixels")
    scale = 1.0 if converter.scale is None else converter.scale
    offset = 0.0 if converter.offset is None else converter.offset
    return keras.Model(pixels, model(keras.layers.Rescaling(scale, offset, name="preprocess")(pixels)))
