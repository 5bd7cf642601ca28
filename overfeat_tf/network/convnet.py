"""The ConvNet: features, classifier and regressor as Keras functional models, and all three as one."""

import os
from dataclasses import dataclass, field
from functools import cached_property
from operator import index
from typing import Any

import keras
import tensorflow as tf
from keras import layers

from overfeat_tf.boxes import BOX_FORMS
from overfeat_tf.network.context import Context, first_cell
from overfeat_tf.network.heads import DenseHead, build_head
from overfeat_tf.network.keras_backbone import BACKBONE
from overfeat_tf.network.presets import PRESETS, Preset, get_preset
from overfeat_tf.network.pretrained import IMAGENET, backbone_preset, read_backbone

PIXELS = [tf.TensorSpec([None, None, None, 3], tf.float32, name="pixels")]


@dataclass(frozen=True, repr=False)
class Network:
    """One network of the paper's kind; its three parts share nothing but the maps that pass between them.

    `as_model()` is all three as one Keras model, which Keras saves and loads: `network.as_model().save("w.keras")`.

    Attributes:
        preset: The tables that it was built from.
        num_classes: Object classes, without the background.
        background: Whether the classifier's output 0 is the background class of detection (5).
        per_class: Whether the regressor's last layer has a box for each class (PCR, 4.3) or one for all (SCR).
        box_form: What the four numbers of a box are, one of `boxes.BOX_FORMS`: edges (4.2), or centre and log size.
        context: Whether the heads also see the features of the view at half the resolution (5).
        features: Pixels [B, H, W, 3], 0..255, to the last feature map before its pooling [B, n, m, C].
        classifier: Pooled map [B, p, q, C] to class scores before softmax [B, p - kernel + 1, q - kernel + 1,
            classes].
        executions: How it is computed by each arithmetic that was asked for: `compute.execution.execution_of`.
        models: The `Model`s, by their options, that `detect(network, ...)` and its like have made. Both hold compiled
            functions over the network's variables, and go with it.
    """

    preset: Preset
    num_classes: int
    background: bool
    per_class: bool
    box_form: str
    context: bool
    features: keras.Model
    classifier: keras.Model
    executions: dict[str, Any] = field(default_factory=dict, init=False, compare=False)
    models: list[Any] = field(default_factory=list, init=False, compare=False)

    @cached_property
    def regressor(self) -> keras.Model:
        """Pooled map to the box (top, left, bottom, right) in window sides, or as `box_form` has it: [..., 4] (4).

        With `per_class`, [..., 4 * num_classes], class by class. Built on first use: a network that only
        classifies does without its 109 M weights.
        """
        return self._regressor(weights=True)

    def blank_regressor(self) -> keras.Model:
        """Build the regressor with zeros, where there is none yet: its weights are about to be loaded."""
        if "regressor" not in self.__dict__:
            self.__dict__["regressor"] = self._regressor(weights=False)
        return self.regressor

    @property
    def backbone(self) -> keras.Model:
        """The feature layers that pretrained weights are for: the Keras model within `features`, or all of these."""
        chain = self.preset.backbone.is_chain
        return self.features if chain else self.features.get_layer(BACKBONE)

    def features_until(self, layer: str) -> keras.Model:
        """Return the features up to one of the backbone's `map_names`."""
        if self.preset.backbone.is_chain or layer not in [own.name for own in self.backbone.layers]:
            return keras.Model(self.features.input, self.features.get_layer(layer).output)
        inner = keras.Model(self.backbone.input, self.backbone.get_layer(layer).output)
        names = [own.name for own in self.features.layers]
        padded = self.features.layers[names.index(BACKBONE) - 1].output
        return keras.Model(self.features.input, inner(padded))

    @property
    def parts(self) -> dict[str, keras.Model]:
        """The models by name; the regressor only once it is built."""
        built = {"features": self.features, "classifier": self.classifier}
        return {**built, "regressor": self.regressor} if "regressor" in self.__dict__ else built

    def __repr__(self) -> str:
        """Name the network, its classes and its windows."""
        preset, more = self.preset, " and background" if self.background else ""
        windows = f"windows of {preset.window} pixels, every {preset.fine_stride}"
        return f"<Network {preset.name}: {self.num_classes} class{'es' * (self.num_classes != 1)}{more}; {windows}>"

    def as_model(self, side: int | None = None, fine: bool = True) -> keras.Model:
        """Build pixels [B, side, side, 3] -> {"scores", "boxes"}: both heads over windows at fine or coarse stride.

        Shares its variables with the parts. Without `side` the input may have any size that holds a window.
        """
        pixels = keras.Input((side, side, 3), name="pixels")
        maps = self.head_maps(pixels)
        outputs = {
            "scores": DenseHead.of(self.classifier, self.preset, fine, name="scores")(maps),
            "boxes": DenseHead.of(self.regressor, self.preset, fine, name="boxes")(maps),
        }
        return keras.Model(pixels, outputs, name=self.preset.name)

    def head_maps(self, pixels: keras.KerasTensor) -> keras.KerasTensor:
        """Compute what the heads see of pixels [B, H, W, 3], before its pooling: features, and their context if any."""
        maps = self.features(pixels)
        if not self.context:
            return maps
        return Context(first_cell(self.preset), name="context")(maps, self.features(layers.AveragePooling2D(2)(pixels)))

    def _regressor(self, weights: bool) -> keras.Model:
        outputs = 4 * self.num_classes if self.per_class else 4
        with tf.init_scope():  # a trace may be the first to ask
            return build_head(self.preset, "regressor", outputs, self.context, weights)


def build(
    preset: Preset | str | os.PathLike[str],
    num_classes: int,
    background: bool = False,
    per_class: bool = False,
    weights: bool | str | None = True,
    box_form: str = BOX_FORMS[0],
    context: bool = False,
    layer: str | int | None = None,
) -> Network:
    """Build a network: one of the paper's kind with fresh weights, or OverFeat's heads on a pretrained backbone.

        network = overfeat_tf.build("accurate", num_classes=1000)
        network = overfeat_tf.build("EfficientNetV2B0", num_classes=20)    # starts from ImageNet's weights
        network.features, network.classifier, network.regressor            # Keras functional models

    Args:
        preset: "fast" or "accurate" (Tables 1 and 3), "tiny", "small", "thumbnail", or a `Preset`; or a backbone by its
            name in `keras.applications`, "keras_hub:" and a preset of KerasHub, or the path of a `.keras` file
            (`pretrained.read_backbone`).
        num_classes: Object classes.
        background: Add the background class of detection (5) as output 0 of the classifier.
        per_class: Let the regressor have a box for each class (PCR) rather than one for all (SCR; 4.3).
        weights: True for the ImageNet weights of a backbone that is named (a `.keras` file has its own), and fresh ones
            in all other layers; "imagenet" for the same, or an error where there are none; the path of a weights file
            of the backbone; None for fresh ones everywhere. False leaves zeros in features and classifier, for others
            to be loaded: drawing takes seconds, and for a moment three times their memory.
        box_form: How the regressor tells a box, one of `boxes.BOX_FORMS`.
        context: Let the heads also see the features of half the resolution (5).
        layer: Where a backbone that is named is cut, as for `pretrained.read_backbone`.

    Raises:
        ValueError: unknown network, layer or form, no class, a window too small for context, or pretrained weights
            or a layer asked of a preset, which has none.
        OSError: weights that cannot be downloaded.
    """
    try:
        num_classes = index(num_classes)  # of numpy's integers too, which JSON does not take
    except TypeError:
        raise ValueError(f"expected a whole number of classes; got {num_classes!r}") from None
    if num_classes < 1:
        raise ValueError(f"expected at least one class; got {num_classes}")
    if isinstance(preset, os.PathLike):
        preset = os.fspath(preset)
    if not isinstance(preset, str | Preset):
        raise ValueError(f"expected the name of a preset or of a backbone, or a Preset; got '{type(preset).__name__}'")
    pretrained = None
    if isinstance(preset, str) and preset not in PRESETS:
        backbone, pretrained = read_backbone(preset, layer, IMAGENET if weights is True else weights or None)
        preset = backbone_preset(backbone)
    elif layer is not None:
        raise ValueError(f"expected a backbone by its name for layer '{layer}'; a preset is not cut: leave it out")
    elif isinstance(weights, str):
        name = preset if isinstance(preset, str) else preset.name
        raise ValueError(
            f"expected a backbone by its name for weights '{weights}'; the preset '{name}' has none: build "
            "'EfficientNetV2B0' or another, or leave weights out and load a run"
        )
    preset = get_preset(preset) if isinstance(preset, str) else preset
    drawn = weights is not False
    if box_form not in BOX_FORMS:
        raise ValueError(f"expected box_form to be one of {', '.join(BOX_FORMS)}; got '{box_form}'")
    if context and preset.feature_side(preset.window // 2) < 1:
        raise ValueError(
            f"expected a window whose half still has features, for context; that of '{preset.name}' is too small"
        )
    network = Network(
        preset=preset,
        num_classes=num_classes,
        background=background,
        per_class=per_class,
        box_form=box_form,
        context=context,
        features=preset.backbone.build(drawn, preset.init_std),
        classifier=build_head(preset, "classifier", num_classes + background, context, drawn),
    )
    if pretrained is not None and weights:
        network.backbone.set_weights(pretrained.get_weights())
    return network
