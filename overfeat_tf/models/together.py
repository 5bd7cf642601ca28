"""Images with equal canvases through the network together, as GPUs need.

A batch is read in blocks of `images_at_once` images, so that memory does not grow with it. Of a block, the images
whose canvases are equal at all scales are one group: their views go through the network together, and each is then
decided by itself. An image's answer is the same as alone, but for the rounding of products of other sizes.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf

from overfeat_tf.network.convnet import Network
from overfeat_tf.options import InferenceOptions
from overfeat_tf.scan.dense_scan import ScaleScan, place_windows, run_views
from overfeat_tf.scan.pyramid import Views, draw_views, mirrored_views

Read = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
Decide = Callable[[Sequence[list[ScaleScan]], tf.Tensor], object]


class GroupAnswer:
    """A task's answers for images with equal canvases; one tf.function, whatever signatures call it.

    Args:
        networks: The network, or a committee's members.
        options: Inference options.
        with_boxes: Whether the regressor takes part.
        decide: The answer of an image, from each member's scans and its int32 [2] size.
        nothing: Makes the answer for an image that cannot be read; it has the shapes of every answer.
    """

    def __init__(
        self,
        networks: Sequence[Network],
        options: InferenceOptions,
        with_boxes: bool,
        decide: Decide,
        nothing: Callable,
    ):
        self.options, self.nothing = options, nothing
        self.preset = networks[0].preset
        self.sizes = 1 if options.views != "dense" else len(options.scale_sizes(self.preset))
        self._networks, self._with_boxes, self._decide = networks, with_boxes, decide
        self.views = views = len(mirrored_views(options))
        pixels = tf.TensorSpec([None, views, None, None, 3], tf.float32)
        signature = [
            [pixels] * self.sizes,
            tf.TensorSpec([None, self.sizes, views, 2], tf.float32),
            tf.TensorSpec([None, self.sizes, 2], tf.int32),
            tf.TensorSpec([None, 2], tf.int32),
        ]
        self.answer = tf.function(self._answer, signature, autograph=False)

    def _answer(self, pixels: list[tf.Tensor], origins: tf.Tensor, drawn: tf.Tensor, sizes: tf.Tensor):
        """Answer the views of images: [n, V, h, w, 3] of each canvas, and what `Views` says of them, of each image."""
        flat = [_reshape(each, [-1], 2) for each in pixels]
        outputs = [run_views(network, flat, self.options, self._with_boxes) for network in self._networks]
        split = tf.nest.map_structure(lambda values: _reshape(values, [-1, self.views], 1), outputs)

        def one(values: tuple) -> object:
            each, origin, shown, size = values
            groups = [Views(pixels[n][0], origin[n], shown[n], mirrored_views(self.options)) for n in range(self.sizes)]
            pairs = zip(self._networks, each, strict=True)
            return self._decide([place_windows(*pair, groups, self.options) for pair in pairs], size)

        specs = tf.nest.map_structure(lambda value: tf.TensorSpec(value.shape, value.dtype), self.nothing())
        return tf.map_fn(one, (split, origins, drawn, sizes), fn_output_signature=specs, parallel_iterations=1)


def _reshape(values: tf.Tensor, first: list[int], dropped: int) -> tf.Tensor:
    """Put other dimensions in place of the first `dropped` ones; the others keep their static sizes."""
    reshaped = tf.reshape(values, tf.concat([first, tf.shape(values)[dropped:]], axis=0))
    return tf.ensure_shape(reshaped, [*(None if n < 0 else n for n in first), *values.shape[dropped:]])


def answer_batch(group: GroupAnswer, read: Read, count: tf.Tensor) -> tuple:
    """Answer a batch.

    Args:
        group: The answers of images with equal canvases.
        read: Gives the image uint8 [H, W, 3] of an index, and an empty status, or why there is none.
        count: int32 scalar, the images.

    Returns:
        The answers [B, ...], the images' int32 [B, 2] sizes and their statuses [B].
    """
    blocks = tf.maximum(-(-count // group.options.images_at_once), 1)
    length = tf.maximum(-(-count // blocks), 1)
    indices = tf.reshape(tf.range(blocks * length), [blocks, length])

    def block(some: tf.Tensor) -> tuple:
        return _answer_block(group, read, some, count)

    specs = tf.nest.map_structure(lambda value: tf.TensorSpec([None, *value.shape], value.dtype), group.nothing())
    signature = (specs, tf.TensorSpec([None, 2], tf.int32), tf.TensorSpec([None], tf.string))
    found = tf.map_fn(block, indices, fn_output_signature=signature, parallel_iterations=1)
    return tf.nest.map_structure(lambda values: _reshape(values, [-1], 2)[:count], found)


def _answer_block(group: GroupAnswer, read: Read, indices: tf.Tensor, count: tf.Tensor) -> tuple:
    views = group.views

    def draw(index: tf.Tensor) -> tuple:
        empty = (tf.zeros([0, 0, 3], tf.uint8), tf.constant("no image"))
        image, status = tf.cond(index < count, lambda: read(index), lambda: empty)

        def drawn() -> tuple:
            groups = draw_views(group.preset, image, group.options)
            flat = tf.concat([tf.reshape(each.pixels, [-1]) for each in groups], axis=0)
            shapes, origins, shown = (
                tf.stack(values)
                for values in zip(*((tf.shape(g.pixels)[1:3], g.origins, g.size) for g in groups), strict=True)
            )
            return flat, shapes, origins, shown

        def nothing() -> tuple:
            pairs = tf.zeros([group.sizes, 2], tf.int32)
            return tf.zeros([0]), pairs, tf.zeros([group.sizes, views, 2]), pairs

        return *tf.cond(status == "", drawn, nothing), tf.shape(image)[:2], status

    signature = (
        tf.RaggedTensorSpec([None], tf.float32, ragged_rank=0),
        tf.TensorSpec([group.sizes, 2], tf.int32),
        tf.TensorSpec([group.sizes, views, 2], tf.float32),
        tf.TensorSpec([group.sizes, 2], tf.int32),
        tf.TensorSpec([2], tf.int32),
        tf.TensorSpec([], tf.string),
    )
    flat, shapes, origins, shown, sizes, status = tf.map_fn(
        draw, indices, fn_output_signature=signature, parallel_iterations=1
    )
    canvases = tf.reshape(shapes, [-1, 2 * group.sizes])
    # The first image of a block with the same canvases stands for the group.
    first = tf.argmax(tf.reduce_all(canvases[:, None] == canvases[None], axis=-1), axis=1)
    firsts = tf.unique(tf.boolean_mask(first, status == "")).y

    def run(number: tf.Tensor, answers):
        rows = tf.where(first == firsts[number])[:, 0]
        areas = views * 3 * tf.reduce_prod(shapes[rows[0]], axis=1)
        lines = tf.reshape(tf.gather(flat, rows).flat_values, [tf.size(rows), tf.reduce_sum(areas)])
        parts = tf.split(lines, areas, axis=1, num=group.sizes)
        canvas = tf.unstack(shapes[rows[0]], group.sizes)
        pixels = [
            tf.reshape(p, tf.concat([[-1, views], side, [3]], axis=0)) for p, side in zip(parts, canvas, strict=True)
        ]
        pixels = [tf.ensure_shape(each, [None, views, None, None, 3]) for each in pixels]
        found = group.answer(pixels, *(tf.gather(values, rows) for values in (origins, shown, sizes)))
        return number + 1, tf.nest.map_structure(
            lambda every, part: tf.tensor_scatter_nd_update(every, rows[:, None], part), answers, found
        )

    length = tf.size(indices)
    answers = tf.nest.map_structure(lambda value: tf.repeat(value[None], length, axis=0), group.nothing())
    _, answers = tf.while_loop(
        lambda number, _: number < tf.size(firsts), run, (tf.constant(0), answers), parallel_iterations=1
    )
    return answers, sizes, status
