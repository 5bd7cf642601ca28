"""The network as a feature extractor: any layer's output, by its name (3.2)."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from overfeat_tf.arguments import suggest
from overfeat_tf.compute.dense import feature_maps, find_windows, head_maps, run_heads
from overfeat_tf.compute.execution import execution_of
from overfeat_tf.network.convnet import Network
from overfeat_tf.network.presets import Preset
from overfeat_tf.options import InferenceOptions
from overfeat_tf.scan.pyramid import draw_scale, pad


def default_layer(preset: Preset) -> str:
    """Return the name of the second full layer, before its rectifier: the features of the authors' release."""
    *hidden, _ = preset.head("classifier", 1)
    return hidden[-1].name if hidden else preset.backbone.last_layer


def layer_names(network: Network) -> list[str]:
    """List the layers that `extract` knows, from the pixels up; each is given before its rectifier.

    `conv1`, `relu1`, `pool1` ... or a backbone's own names, to the classifier's `scores`, and the regressor's where it
    has been fitted.
    """
    names = network.preset.backbone.map_names
    if network.preset.last_pool > 1:
        names.append(_last_pool(network.preset))
    for part, model in network.parts.items():
        if part != "features":
            kinds = (keras.layers.Conv2D, keras.layers.ReLU)
            names += [layer.name for layer in model.layers if isinstance(layer, kinds)]
    return names


def extract(
    network: Network,
    images: Sequence[tf.Tensor],
    layer: str | None = None,
    scale: int | None = None,
    fine: bool = False,
    arithmetic: str = "direct",
) -> list[tf.Tensor]:
    """Compute a layer's output for images of any sizes; the heads' product is shared by all of them.

    Args:
        network: The network.
        images: uint8 [B, H, W, 3] each.
        layer: One of `layer_names`; `default_layer` if None.
        scale: Number of the preset's scale to show the images at, from 1; None for their native size, where a side
            shorter than the window is padded below and right with the mean pixel.
        fine: Take the last pooling at every offset, interleaved; at the first alone if not. Layers before it have
            but one stride.
        arithmetic: As of `InferenceOptions`.

    Returns:
        For each batch of images float32 [B, h, w, C].

    Raises:
        ValueError: no such layer or scale.
    """
    preset, layer, names = network.preset, layer or default_layer(network.preset), layer_names(network)
    if layer not in names:
        hint = suggest(layer, names)
        raise ValueError(f"expected a layer of '{preset.name}', one of {', '.join(names)}; got '{layer}'{hint}")
    (size,) = InferenceOptions(scales=(scale,)).scale_sizes(preset) if scale is not None else (None,)
    if not images:
        return []
    last_pool = preset.last_pool
    below = layer in preset.backbone.map_names
    maps_of = feature_maps if layer == _last_pool(preset) else head_maps
    until = network.features_until(layer) if below else None
    dtype = tf.as_dtype(until.output.dtype) if until else execution_of(network, arithmetic).dtype

    def run(pixels: tf.Tensor) -> tf.Tensor:
        return until(pixels) if until else maps_of(network, [pixels], arithmetic)[0]

    def one(image: tf.Tensor) -> tf.Tensor:
        pixels = pad(preset, tf.cast(image, tf.float32), preset.window)
        return run((pixels if size is None else draw_scale(preset, size, image)[0])[None])[0]

    # The images of a batch one at a time up to the heads: the convolutions gain nothing from more.
    maps = [tf.map_fn(one, batch, fn_output_signature=dtype, parallel_iterations=1) for batch in images]
    if below:
        return [tf.cast(each, tf.float32) for each in maps]
    if layer == _last_pool(preset):
        pooled = [tf.nn.max_pool2d(m, last_pool, 1 if fine else last_pool, "VALID") for m in maps]
        return [tf.cast(each, tf.float32) for each in pooled]
    head = next(part for part in network.parts.values() if layer in [own.name for own in part.layers])
    windows = find_windows(preset, maps, fine)
    (outputs,) = run_heads([head], windows, layer, execution_of(network, arithmetic))
    return windows.split(outputs)


def _last_pool(preset: Preset) -> str:
    return f"pool{preset.backbone.depth or ''}"
