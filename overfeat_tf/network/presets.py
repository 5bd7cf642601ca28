"""The networks as data: Table 1 (`fast`), Table 3 (`accurate`) and the small ones, one row a layer."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import pairwise

from overfeat_tf.arguments import suggest
from overfeat_tf.network.backbone import INIT_STD, Backbone, Conv, ConvBackbone, Layer
from overfeat_tf.network.keras_backbone import KerasBackbone


@dataclass(frozen=True)
class Preset:
    """A network of the paper's kind.

    Attributes:
        name: What `overfeat_tf.build` calls it.
        window: Side in pixels of the square window that one classification sees.
        backbone: The feature layers, whose description builds them.
        full: Channels of the two hidden fully connected layers of the classifier; none for a linear one.
        regressor: Channels of the two hidden layers of the regressor (4.2).
        scales: Sizes (height, width) in pixels of the scales, smallest first; `pyramid.fit_scale` adapts
            them to an image's aspect, unless `InferenceOptions.scale_fit` asks for exactly these.
        shorter_side: Shorter side in pixels of the images whose central square ten views and single crops are taken
            from (3.1: 256).
        dropout: Rate on the hidden fully connected layers.
        init_std: Standard deviation of the initial weights (3.1: 0.01); None asks for He's in all but the last
            layers, which lets networks learn in minutes rather than epochs.
    """

    name: str
    window: int
    backbone: Backbone
    full: tuple[int, ...]
    regressor: tuple[int, ...]
    scales: tuple[tuple[int, int], ...]
    shorter_side: int = 256
    dropout: float = 0.5
    init_std: float | None = INIT_STD

    def head(self, part: str, outputs: int, context: bool = False) -> tuple[Layer, ...]:
        """Return the layers of a head, hidden ones and a linear one, numbered on from the feature layers.

        Args:
            part: "classifier" or "regressor".
            outputs: Channels of the linear layer.
            context: Whether the head also sees the features of half the resolution (5).
        """
        prefix, hidden, last = {
            "classifier": ("full", self.full, "scores"),
            "regressor": ("regress", self.regressor, "box"),
        }[part]
        number = self.backbone.depth
        names = [*(f"{prefix}{number + place}" for place, _ in enumerate(hidden, start=1)), last]
        channels = [self.backbone.channels * (1 + context), *hidden, outputs]
        kernels = [self.head_kernel, *[1] * len(hidden)]
        return tuple(
            Layer(name, inputs, outputs, kernel)
            for name, (inputs, outputs), kernel in zip(names, pairwise(channels), kernels, strict=True)
        )

    @property
    def mean(self) -> float:
        """The pixel value that pictures are padded with."""
        return self.backbone.mean

    @property
    def last_pool(self) -> int:
        """Side of the last pooling: k; there are k * k offsets."""
        return self.backbone.pool

    @property
    def fine_stride(self) -> int:
        """Pixels between windows when the last pooling is taken at every offset (12 for `accurate`)."""
        return self.backbone.stride

    @property
    def coarse_stride(self) -> int:
        """Pixels between windows at one offset alone (36 for `accurate`)."""
        return self.fine_stride * self.last_pool

    @property
    def head_kernel(self) -> int:
        """Side of the pooled map of one window: the kernel of the first fully connected layer."""
        return self.feature_side(self.window) // self.last_pool

    @property
    def smallest_input(self) -> int:
        """Smallest side for which every offset gives one output (245 for `accurate`)."""
        return self.window + self.fine_stride * (self.last_pool - 1)

    def feature_side(self, side: int) -> int:
        """Return the side of the last feature map before its pooling, for an input of `side` pixels."""
        return self.backbone.sides(side)[-1]

    def parameters(self, classes: int, background: bool, per_class: bool, context: bool) -> dict[str, int]:
        """Count the weights of each part of a network for so many classes, without building it."""
        outputs = {"classifier": classes + background, "regressor": 4 * classes if per_class else 4}
        heads = {part: self.head(part, count, context) for part, count in outputs.items()}
        counts = {part: sum(layer.parameters for layer in layers) for part, layers in heads.items()}
        return {"features": self.backbone.parameters, **counts}

    def stride(self, fine: bool = True) -> int:
        """Return the pixels from one window to the next (3.3): window (i, j) begins at pixel (i, j) times this."""
        return self.fine_stride if fine else self.coarse_stride

    def window_count(self, side: int, fine: bool = True) -> int:
        """Count the windows along an input of `side` pixels; 0 where none fits."""
        fine_count = max(0, self.feature_side(side) - self.last_pool * self.head_kernel + 1)
        return fine_count if fine else -(-fine_count // self.last_pool)

    def config(self) -> dict:
        """Describe the preset in JSON's types."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**own, "backbone": self.backbone.config()}

    @classmethod
    def from_config(cls, config: Mapping) -> "Preset":
        """Build the preset from `config`, or from what earlier versions wrote.

        Raises:
            KeyError, TypeError: it is neither.
        """
        known = dict(config)
        if "backbone" not in known:  # written when every network was a chain of convolutions
            known["backbone"] = {key: known.pop(key) for key in ("convs", "mean", "std")}
        kind = ConvBackbone if "convs" in known["backbone"] else KerasBackbone
        rows = {key: tuple(known[key]) for key in ("full", "regressor")}
        pairs = tuple(tuple(scale) for scale in known["scales"])
        return cls(**{**known, "backbone": kind.from_config(known["backbone"]), "scales": pairs, **rows})


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            name="fast",  # Table 1
            window=231,
            backbone=ConvBackbone(
                (
                    Conv(96, 11, stride=4, pool=2),
                    Conv(256, 5, pool=2),
                    Conv(512, 3, padding=1),
                    Conv(1024, 3, padding=1),
                    Conv(1024, 3, padding=1, pool=2),
                )
            ),
            full=(3072, 4096),
            regressor=(4096, 1024),
            # The paper lists none for it: Table 5's, at the nearest 247 + 32 k.
            scales=((247, 247), (279, 311), (311, 375), (375, 471), (439, 503), (471, 567)),
        ),
        Preset(
            name="accurate",  # Table 3, scales of Table 5
            window=221,
            backbone=ConvBackbone(
                (
                    Conv(96, 7, stride=2, pool=3),
                    Conv(256, 7, pool=2),
                    Conv(512, 3, padding=1),
                    Conv(512, 3, padding=1),
                    Conv(1024, 3, padding=1),
                    Conv(1024, 3, padding=1, pool=3),
                )
            ),
            full=(4096, 4096),
            regressor=(4096, 1024),
            scales=((245, 245), (281, 317), (317, 389), (389, 461), (425, 497), (461, 569)),
        ),
        Preset(
            # Sized to learn the digit scenes on two cores in two minutes: objects of a sixteenth to two thirds of
            # an image's side appear at 15 to 29 of the window's 32 pixels in two neighbouring scales.
            name="tiny",
            window=32,
            backbone=ConvBackbone(
                (Conv(24, 5, pool=2), Conv(48, 3, pool=2), Conv(96, 3, padding=1), Conv(96, 3, padding=1, pool=2))
            ),
            full=(128, 128),
            regressor=(128, 64),
            scales=((36, 36), (52, 52), (68, 68), (100, 100), (140, 140), (196, 196), (276, 276)),
            shorter_side=37,  # 256 / 221 windows, as `accurate`
            dropout=0.1,
            init_std=None,
        ),
        Preset(
            # For a few hundred photographs and half an hour on two cores: objects of a sixth to two thirds of an
            # image's side appear at 46 to 92 of the window's 109 pixels, where the pips of a playing card can be told.
            name="small",
            window=109,
            backbone=ConvBackbone(
                (
                    Conv(32, 7, stride=2, pool=2),
                    Conv(64, 3, pool=2),
                    Conv(128, 3, padding=1),
                    Conv(128, 3, padding=1, pool=2),
                )
            ),
            full=(256, 256),
            regressor=(128, 64),
            scales=((117, 117), (165, 165), (229, 229), (325, 325), (453, 453)),
            shorter_side=126,
            dropout=0.3,
            init_std=None,
        ),
        Preset(
            # For pictures of 64 x 64 pixels of one object each, an hour on two cores: they are the second scale as they
            # are, and a window sees four fifths of such a picture's side.
            name="thumbnail",
            window=52,
            backbone=ConvBackbone(
                (
                    Conv(48, 5, pool=2),
                    Conv(96, 3, padding=1, pool=2),
                    Conv(192, 3, padding=1),
                    Conv(192, 3, padding=1, pool=2),
                )
            ),
            full=(384, 384),
            regressor=(256, 128),
            scales=((56, 56), (64, 64), (72, 72), (88, 88), (104, 104)),
            shorter_side=64,
            init_std=None,
        ),
    )
}


def get_preset(name: str) -> Preset:
    """Return the preset of that name.

    Raises:
        ValueError: no such preset; the message names the nearest one.
    """
    if name in PRESETS:
        return PRESETS[name]
    raise ValueError(f"expected a preset, one of {', '.join(PRESETS)}; got '{name}'{suggest(name, PRESETS)}")
