"""Any Keras model as feature layers: a model of `keras.applications`, a KerasHub preset or a `.keras` file.

The model is cut at one of its layers. Its own graph says everything else: strides, channels, map sides, multiply-adds,
and where each cell of the last map looks. A network with SAME padding has no window with sharp borders, and its cells
may look several pixels to the side: those of EfficientNet at stride 16 are centred 7.5 pixels below and right of the
middle of their 16 x 16 pixels. `KerasBackbone.build` pads the pixels so that cell (i, j) is centred on the pixels
[16 i, 16 i + 16) by [16 j, 16 j + 16), within half a pixel. A window of n x n cells is then the square of pixels that
these cells tile, and boxes are placed by it as by a window of the paper's networks.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product, takewhile
from typing import TYPE_CHECKING, NamedTuple

from overfeat_tf.network.backbone import GREY, INIT_STD, Backbone, Layer, initializer

if TYPE_CHECKING:
    import keras

BACKBONE = "backbone"  # name of the Keras model within the features
# Standard deviation of a normalised cell to begin with. A head's first layer has some 17,000 inputs: at 1 its steps
# overshoot at rates at which the layers above it learn.
NORMALISED = 0.15
NORMALISED_NECK = 1.0
NECK = "neck"  # name of the 1 x 1 convolution


class Step(NamedTuple):
    """What a layer does to the side of a map, along one axis.

    Attributes:
        name: Of the Keras layer.
        source: Number of the step that it reads; -1 for the pixels.
        kernel: Cells that one output sees, dilation included.
        stride: Cells from one output to the next.
        before, after: Cells padded at either end, or cropped where negative; SAME pads by the size.
        same: Whether padding is SAME.
    """

    name: str
    source: int
    kernel: int = 1
    stride: int = 1
    before: int = 0
    after: int = 0
    same: bool = False


class Axis(NamedTuple):
    """A map along one axis: its cells, pixels from one to the next, and the centre of the first in pixels."""

    side: int
    stride: int
    first: float


@dataclass(frozen=True)
class KerasBackbone(Backbone):
    """Feature layers that are a Keras model, up to one of its layers.

    Attributes:
        name: What it was called: a name, a preset or a file's.
        layer: The layer whose output is the last map.
        architecture: The Keras model from pixels [B, H, W, 3], 0..255, to that layer, as its `to_json` gives it.
        pool, mean: See `Backbone`.
        reach: Cells along a side that one cell of the last map averages, where a classifier's pooling is part of it.
        exact: Whether the model is computed as it is, since its own last layer is the head: its last map is not
            normalised, and no padding places its cells.
        neck: Channels of a 1 x 1 convolution after the normalised map, from which the heads read; 0 for none.
    """

    is_chain = False
    name: str
    layer: str
    architecture: str = field(repr=False)
    pool: int = 2
    mean: float = GREY
    reach: int = 1
    exact: bool = False
    neck: int = 0

    @classmethod
    def from_config(cls, config: Mapping) -> "KerasBackbone":
        """Build the backbone from `config`."""
        return cls(**config)

    @property
    def depth(self) -> int:
        """0: the layers have names of their own, and those of the heads are numbered from 1."""
        return 0

    @property
    def last_layer(self) -> str:
        return NECK if self.neck else self.layer

    @property
    def stride(self) -> int:
        return self.along(self._steps, 1024)[-1].stride

    @property
    def channels(self) -> int:
        return self.neck or self._model.output.shape[-1]

    @property
    def parameters(self) -> int:
        normalised = 0 if self.exact else 2 * self._model.output.shape[-1]
        return self._model.count_params() + normalised + (self.layers[-1].parameters if self.neck else 0)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers with weights for each place, first to last."""
        return tuple(layer for layer, _ in self._rows)

    @property
    def map_names(self) -> list[str]:
        named = {layer.name for layer in self._model.layers}  # a step may be an operation, which has no output to take
        added = [*["normalise"] * (not self.exact), *[NECK] * (self.neck > 0)]
        # The model's own layer has the name where both have.
        return [
            *(step.name for step in self._steps if step.name in named),
            *(name for name in added if name not in named),
        ]

    def sides(self, side: int) -> list[int]:
        before, after, _, _ = self.placement
        maps = self.along(self._steps, side + before + after)
        lasts = 2 if self.neck else 1
        below = [maps[step].side if step is not None else 1 for _, step in self._rows[:-lasts]]
        return below + [self._last(side)] * lasts

    def layers_to_stride(self, stride: int) -> list[str]:
        """List the layers before the first one whose map has a larger stride, in pixels."""
        maps = zip(self._steps, self.along(self._steps, 1024), strict=True)
        return [step.name for step, _ in takewhile(lambda pair: pair[1].stride <= stride, maps)]

    def build(self, weights: bool = True, init_std: float | None = INIT_STD) -> "keras.Model":
        """Build the model, with the padding that places its cells, and normalise each cell of its last map.

        The heads learn nothing from a map of large values, such as those of a linear bottleneck.
        """
        import keras
        from keras import layers

        before, after, first, last = self.placement
        x = pixels = keras.Input((None, None, 3), name="pixels")
        if before or after:  # with the mean pixel
            x = layers.Rescaling(1.0, -self.mean, name="centre")(x)
            x = layers.ZeroPadding2D(((before, after),) * 2, name="pad")(x)
            x = layers.Rescaling(1.0, self.mean, name="restore")(x)
        model = self._read_architecture()
        model.name = BACKBONE
        x = model(x)
        if first or last:
            x = layers.Cropping2D(((first, last),) * 2, name="crop")(x)
        if not self.exact:
            small = keras.initializers.Constant(NORMALISED_NECK if self.neck else NORMALISED)
            x = layers.LayerNormalization(epsilon=1e-3, gamma_initializer=small, name="normalise")(x)
        if self.neck:
            draw = initializer(init_std, weights)
            x = layers.Conv2D(self.neck, 1, activation="relu", kernel_initializer=draw, name=NECK)(x)
        return keras.Model(pixels, x, name="features")

    @cached_property
    def placement(self) -> tuple[int, int, int, int]:
        """The pixels to pad before and after, and the cells to crop first and last: the fewest that place the cells.

        Raises:
            ValueError: cells that see too much around their own pixels, where the model itself pads nothing.
        """
        if self.exact:
            return 0, 0, 0, 0
        stride = self.stride
        side = (8 + self.reach) * stride
        for most in (2 * stride, 8 * stride, 32 * stride):  # at either end; a model that pads needs only the first
            lasts = [self.along(self._steps, side + padded)[-1] for padded in range(2 * most - 1)]
            found = []
            for before, after in product(range(most), repeat=2):
                last = lasts[before + after]
                wanted = before + self.reach * stride / 2
                first = round((wanted - last.first) / stride)
                error = abs(last.first + first * stride - wanted)
                spare = last.side - first - (side // stride - self.reach + 1)
                if first >= 0 and spare >= 0:
                    apart = error if error > 0.5 else 0.0
                    found.append((apart, before + after, abs(before - after), before, after, first, spare))
            if found:
                *_, before, after, first, spare = min(found)
                return before, after, first, spare
        raise ValueError(
            f"expected cells that see at most {64 * stride} pixels; those of '{self.layer}' see more: "
            "choose a --layer before it"
        )

    def _last(self, side: int) -> int:
        before, after, first, last = self.placement
        return max(self.along(self._steps, side + before + after)[-1].side - first - last, 0)

    @cached_property
    def _model(self) -> "keras.Model":
        return self._read_architecture()

    def _read_architecture(self) -> "keras.Model":
        """Return a new model of the architecture.

        Raises:
            ValueError: it has a custom layer or function that nothing in this process has registered.
        """
        import keras

        try:
            return keras.models.model_from_json(self.architecture)
        except TypeError as error:
            unknown = re.search(r"Could not locate (\w+ '[^']+')", str(error))
            if unknown is None:
                raise
            raise ValueError(
                f"expected the custom {unknown[1]} of the backbone '{self.name}' to be registered with Keras: import "
                "the module that defines it first"
            ) from None

    @cached_property
    def _steps(self) -> tuple[Step, ...]:
        return trace_steps(self._model)

    @cached_property
    def _rows(self) -> list[tuple[Layer, int | None]]:
        """The layers with weights, and the number of each one's step; none where it sees the whole map pooled."""
        import keras

        numbers = {step.name: number for number, step in enumerate(self._steps)}
        rows = []
        for layer, outer in leaf_layers(self._model):
            number = numbers.get(outer)
            if isinstance(layer, keras.layers.Dense) and len(layer.output.shape) == 4:
                rows.append((Layer(layer.name, *layer.kernel.shape), number))
            elif isinstance(layer, keras.layers.SeparableConv2D):
                kernel, (_, _, between, filters) = layer.kernel_size[0], layer.pointwise_kernel.shape
                padding = kernel // 2 * (layer.padding == "same")
                rows.append((Layer(f"{layer.name}_depthwise", 1, between, kernel, layer.strides[0], padding), number))
                rows.append((Layer(layer.name, between, filters), number))
            elif isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D):
                inputs = 1 if isinstance(layer, keras.layers.DepthwiseConv2D) else layer.kernel.shape[-2]
                down, across = layer.kernel_size
                same = layer.padding == "same" and down > 1
                row = Layer(layer.name, inputs, layer.output.shape[-1], down, layer.strides[0], down // 2 * same)
                if across != down:
                    row = row._replace(kernel=1, inputs=inputs * down * across, padding=0)
                rows.append((row, number))
        if self.neck:
            rows.append((Layer(NECK, self._model.output.shape[-1], self.neck), None))
        return rows

    @staticmethod
    def along(steps: tuple[Step, ...], side: int) -> list[Axis]:
        """Follow the map of each step for an input of `side` pixels."""
        maps: list[Axis] = []
        for step in steps:
            source = maps[step.source] if step.source >= 0 else Axis(side, 1, 0.5)
            before, after = step.before, step.after
            if step.same:
                total = max((-(-source.side // step.stride) - 1) * step.stride + step.kernel - source.side, 0)
                before, after = total // 2, total - total // 2
            count = max((source.side + before + after - step.kernel) // step.stride + 1, 0)
            first = source.first + source.stride * ((step.kernel - 1) / 2 - before)
            maps.append(Axis(count, source.stride * step.stride, first))
        return maps


def trace_steps(model: "keras.Model", ends_in_map: bool = True) -> tuple[Step, ...]:
    """List what each layer of a functional model that keeps places does to a map's side, the last one's last.

    Layers that pool a whole map away, and what reads those alone, are left out; where several maps are joined, the
    first tells the place.

    Args:
        model: The model.
        ends_in_map: Whether its output has to be a map; if not, what is known of the layers below.

    Raises:
        ValueError: a layer whose map is no smaller picture of its input, or an output that is no map.
    """
    known: dict[int, int | None] = {id(model.inputs[0]): -1}
    steps: list[Step] = []
    for operation in model.operations:
        outputs = _listed(operation.output)
        if id(outputs[0]) in known:  # the pixels
            continue
        inputs = _listed(operation.input)
        if any(id(tensor) not in known for tensor in inputs):  # the output of a layer's second call
            raise ValueError(
                f"expected layers that are called once; '{operation.name}' reads another call of a shared layer: build "
                "the model with a layer of its own for each call"
            )
        sources = [known[id(tensor)] for tensor in inputs]
        placed = [source for source in sources if source is not None]
        step = _step_of(operation, placed[0]) if placed else None
        if step is not None:
            steps.append(step)
        for tensor in outputs:
            known[id(tensor)] = None if step is None else len(steps) - 1
    if ends_in_map and (not steps or known.get(id(model.outputs[0])) != len(steps) - 1):
        raise ValueError(
            f"expected a layer with a map [B, h, w, C]; got '{model.layers[-1].name}': choose another --layer"
        )
    return tuple(steps)


def require_described(model: "keras.Model") -> None:
    """Raise ValueError if a function of `keras.ops` in a model gives another side than `trace_steps` says."""
    import keras

    steps = trace_steps(model, ends_in_map=False)
    numbers = {step.name: number for number, step in enumerate(steps)}
    functions = [each for each in model.operations if not isinstance(each, keras.layers.Layer) and each.name in numbers]
    if not functions:
        return
    probe = keras.Model(model.inputs[0], [each.output for each in functions])
    for side in (256, 321):
        maps = KerasBackbone.along(steps, side)
        given = _listed(probe.compute_output_spec(keras.KerasTensor((1, side, side, 3))))
        for function, tensor in zip(functions, given, strict=True):
            if tensor.shape[1:3] != (maps[numbers[function.name]].side,) * 2:
                raise ValueError(
                    f"expected functions that keep a map's side; '{function.name}' does not: use a layer of "
                    "keras.layers for it, or choose a --layer before it"
                )


def leaf_layers(model: "keras.Model") -> Iterator[tuple["keras.Layer", str]]:
    """List a model's layers, those of the models within it for these, each with the name of the model's own layer."""
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from ((inner, layer.name) for inner, _ in leaf_layers(layer))
        else:
            yield layer, layer.name


def _listed(tensors: object) -> list:
    return list(tensors) if isinstance(tensors, list | tuple) else [tensors]


def _step_of(operation: "keras.Operation", source: int) -> Step | None:
    """Describe a layer; None where it keeps no places."""
    from keras import layers

    shape, name = _listed(operation.output)[0].shape, operation.name
    if len(shape) != 4 or shape[1] == 1:
        return None
    if getattr(operation, "data_format", None) == "channels_first":
        raise ValueError(f"expected layers of maps [B, h, w, C]; '{name}' has the channels first")

    def along(axis: int) -> Step | None:
        if isinstance(operation, layers.Conv2D | layers.DepthwiseConv2D | layers.SeparableConv2D):
            kernel = (operation.kernel_size[axis] - 1) * operation.dilation_rate[axis] + 1
            return Step(name, source, kernel, operation.strides[axis], same=operation.padding == "same")
        if isinstance(operation, layers.MaxPooling2D | layers.AveragePooling2D):
            kernel, stride = operation.pool_size[axis], operation.strides[axis]
            return Step(name, source, kernel, stride, same=operation.padding == "same")
        if isinstance(operation, layers.ZeroPadding2D):
            return Step(name, source, before=operation.padding[axis][0], after=operation.padding[axis][1])
        if isinstance(operation, layers.Cropping2D):
            return Step(name, source, before=-operation.cropping[axis][0], after=-operation.cropping[axis][1])
        if isinstance(operation, layers.Add | layers.Concatenate | layers.Multiply):
            return Step(name, source)
        if isinstance(operation, layers.Layer):
            return None
        # A function of keras.ops: `require_described` finds those that change the side and are no padding.
        before, after = getattr(operation, "pad_width", ((0, 0),) * 4)[1 + axis]
        return Step(name, source, before=before, after=after)

    down, across = along(0), along(1)
    if down is None or across is None:
        return _opaque(operation, source)
    # Kernels of 1 x 7 and 7 x 1, as Inception's, are both centred by SAME padding.
    centred = down.same and down.stride == 1 and down.kernel % 2 == across.kernel % 2 == 1
    if down != (across._replace(kernel=down.kernel) if centred else across):
        raise ValueError(
            f"expected layers that treat rows and columns alike; '{name}' does not: choose a --layer before it"
        )
    return down


def _opaque(layer: "keras.Layer", source: int) -> Step:
    """Describe a layer of an unknown kind by the shape that it gives: its cells are taken to tile its input's."""
    import keras

    def side_for(side: int) -> int:
        maps = [keras.KerasTensor((1, side, side, each.shape[-1])) for each in _listed(layer.input)]
        given = layer.compute_output_spec(maps if isinstance(layer.input, list) else maps[0])
        return _listed(given)[0].shape[1]

    given, of_one_more, of_twice = (side_for(side) for side in (64, 65, 128))
    if given > 64:
        raise ValueError(
            f"expected layers that keep or reduce a map's side; '{layer.name}' enlarges it: choose a --layer before it"
        )
    if given == of_twice:
        raise ValueError(
            f"expected layers whose maps grow with the picture; '{layer.name}' gives {given} cells of any: "
            "save the model without it"
        )
    ratio = 64 // given
    return Step(layer.name, source, ratio, ratio, same=of_one_more > given)
