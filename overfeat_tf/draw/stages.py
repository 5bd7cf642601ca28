"""The stages of an image's answer, and a sheet of them: the paper's Fig. 6 and 7, drawn from the numbers themselves."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from overfeat_tf.draw.pictures import class_colour
from overfeat_tf.images.decode import decode_image
from overfeat_tf.models.batches import ONE_IMAGE
from overfeat_tf.models.inference import Detections, Stages, window_scores
from overfeat_tf.models.model import Model
from overfeat_tf.models.predictor import Answers, choose_task
from overfeat_tf.models.tasks import BY_NAME
from overfeat_tf.scan.dense_scan import ScaleScan, vote

DPI = 100
MOST_COLUMNS = 7  # further views wrap
HEAD: dict[str, Any] = {"fontsize": 14, "fontweight": "bold"}
LONGEST = 800  # pixels of the picture behind a panel
MOST_CLASSES = 6  # with a colour of their own; more could not be told apart
LONGEST_NAME = 16
Panel = Callable[..., None]  # paints a matplotlib Axes


class StagedModel:
    """A task of a run's, with the stages of its answers.

    Args:
        model: The run.
        task: Of its `answered_tasks`; if left out, the first that it was trained for of detection, localization and
            classification.

    Raises:
        ValueError: a SavedModel, a committee, views that are crops, or a task that the run does not answer.
    """

    def __init__(self, model: object, task: str | None = None):
        if not isinstance(model, Model):
            raise ValueError(
                "expected a run to show the stages of; got a SavedModel, which gives answers alone: use its run"
            )
        if model.others:
            raise ValueError("expected one network to show the stages of; a committee's members each have their own")
        if model.options.views != "dense":
            raise ValueError(f"expected dense views to show the stages of; got '{model.options.views}': use its scales")
        self.model = model
        self.task = choose_task(model, task)
        self._run = tf.function(partial(model.inference.stages, self.task), [ONE_IMAGE], autograph=False)

    def __call__(self, image: bytes) -> tuple[Answers, Stages | None]:
        """Answer an encoded image as `Model.detect`, `localize` or `classify` do, without the batch's dimension.

        Returns:
            The answer with its "status", and its stages in numpy; no stages of an image that can't be read.
        """
        pixels, status = decode_image(tf.constant(image))
        if status == "":
            stages = self._run(pixels)
            answer = self._named(stages.answer, tf.shape(pixels)[:2])
        else:
            stages = None
            answer = getattr(self.model.inference, BY_NAME[self.task].call)(tf.constant([image]))
        row = {key: values[0].numpy() for key, values in answer.items()}
        return row, tf.nest.map_structure(lambda value: None if value is None else value.numpy(), stages)

    def _named(self, answer: Detections | tf.Tensor, size: tf.Tensor) -> dict[str, tf.Tensor]:
        batch, status = tf.nest.map_structure(lambda value: value[None], answer), tf.constant([""])
        if isinstance(answer, Detections):
            return self.model.inference.box_outputs(batch, size[None], status)
        return self.model.inference.class_outputs(batch, status)


@dataclass(frozen=True)
class Scene:
    """What every panel needs: the picture, the classes with colours of their own, the network's geometry."""

    picture: np.ndarray  # uint8 [H, W, 3]
    dimmed: np.ndarray  # the same in dark grey, for colours to stand out from
    classes: tuple[int, ...]  # from 1, the most important first
    highest: float  # score of these on any map: what full colour means
    model: Model

    @classmethod
    def of(cls, image: np.ndarray, stages: Stages, model: Model) -> "Scene":
        """Prepare what an image uint8 [H, W, 3] and its stages need."""
        picture = Image.fromarray(image)
        picture.thumbnail((LONGEST, LONGEST))
        grey = np.asarray(picture.convert("L"), np.float32) * 0.45 + 20
        dimmed = np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1)
        classes = most_important(stages, model.network.background)
        highest = max(float(heat_map(scan, classes, model.network.background)[1].max()) for scan in stages.scans)
        return cls(np.asarray(picture), dimmed, classes, math.ceil(highest * 100) / 100, model)

    def name(self, number: int) -> str:
        """Return a class's name, short enough for a label."""
        name = self.model.labels[number - 1]
        name = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 2]}.."
        return name.replace("$", r"\$")  # matplotlib would read mathematics

    def colour(self, number: int) -> tuple[float, ...]:
        """Return a class's colour, RGB 0..1; grey for a class without a colour of its own."""
        if number not in self.classes:
            return (0.75, 0.75, 0.75)
        # By rank: of a thousand classes some have colours alike, and these few have to be told apart.
        return tuple(part / 255 for part in class_colour(self.classes.index(number)))


def draw_stages(image: bytes, stages: Stages, model: Model, least_score: float = 0.0) -> Image.Image:
    """Draw an image's stages: rows of stages by columns of scales, or one row where there is one scale.

    Args:
        image: Encoded.
        stages: What `StagedModel` gives for it, in numpy.
        model: The run that gave it.
        least_score: Leave merged boxes that score less without a label.
    """
    scene = Scene.of(decode_image(image)[0].numpy(), stages, model)
    return _render(_rows(scene, stages, least_score))


@dataclass(frozen=True)
class _Row:
    title: str
    note: str
    panels: list[Panel]
    width: float  # of a panel, in inches
    aspect: float  # height by width


def _rows(scene: Scene, stages: Stages, least_score: float) -> list[_Row]:
    """Lay the stages out: a row each, or all in one row where there is one view."""
    preset, options, scans = scene.model.network.preset, scene.model.options, stages.scans
    numbers = options.scales if options.scales is not None else range(1, len(preset.scales) + 1)
    names = [f"scale {number}{side}" for number in numbers for side in ("", ", mirrored")[: 1 + options.flips]]
    height, width = scene.picture.shape[:2]
    aspect = min(max(height / width, 0.3), 1.6)
    columns = min(len(names), MOST_COLUMNS)
    width = min(4.5, max(2.6, 18 / columns))
    fine = options.fine and preset.last_pool > 1
    coarse = [at_coarse_stride(scan, preset.last_pool) for scan in scans] if fine else scans
    heat = [heat_panel(scene, scan, False, name) for scan, name in zip(coarse, names, strict=True)]
    note = f"a window every {preset.coarse_stride} pixels, drawn at its centre; dashed: what the best one sees"
    rows = [_Row("1  Raw class scores", note, heat, width, aspect)]
    if fine:
        heat = [heat_panel(scene, scan, True, name) for scan, name in zip(scans, names, strict=True)]
        note = f"pooling at every offset gives a window every {preset.fine_stride} pixels"
        rows.append(_Row("2  Fine class scores", note, heat, width, aspect))
    final = []
    if stages.candidates is not None:
        boxes = [boxes_panel(scene, stages, view, name) for view, name in enumerate(names)]
        rows.append(_Row("3  Boxes before merging", "one from each window that takes part", boxes, width, aspect))
        everything = [boxes_panel(scene, stages, None, "before merging, all scales together")] if len(names) > 1 else []
        final = [*everything, merged_panel(scene, stages, least_score)]
    legend = legend_panel(scene, stages, least_score)
    if len(names) == 1:
        panels = [_titled(row.title, row.panels[0]) for row in rows] + [_titled("4  Merged boxes", p) for p in final]
        return [_Row("", "", [*panels, legend], 3.6, aspect)]
    wide = min(5.2, max(4.5, width * columns / 3))
    if not final:
        return [*rows, _Row("No boxes", "classification gives none", [legend], wide, 0.6)]
    return [*rows, _Row("4  Merged boxes", "scores add up where boxes agree", [*final, legend], wide, aspect)]


def _titled(title: str, panel: Panel) -> Panel:
    """Put the stage's title above a panel, and the panel's own beneath it."""

    def paint(axes) -> None:
        panel(axes)
        axes.set_xlabel(axes.get_title(), fontsize=10)
        axes.set_title(title, **HEAD)

    return paint


def _render(rows: Sequence[_Row]) -> Image.Image:
    """Paint the rows one above the other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width = max(min(len(row.panels), MOST_COLUMNS) * row.width for row in rows)
    lines = [math.ceil(len(row.panels) / MOST_COLUMNS) for row in rows]
    # Empty ones at the right. Those of a row share the whole width, so a panel may be wider than it asked for.
    columns = [
        max(math.ceil(len(row.panels) / count), int(width / row.width)) for row, count in zip(rows, lines, strict=True)
    ]
    shape = zip(rows, lines, columns, strict=True)
    tall = [0.8 + count * (width / across * row.aspect + 0.5) for row, count, across in shape]
    figure = Figure((width + 0.4, sum(tall)), dpi=DPI, layout="constrained")
    parts = figure.subfigures(len(rows), 1, squeeze=False, height_ratios=tall)[:, 0]
    for part, row, count, across in zip(parts, rows, lines, columns, strict=True):
        if row.title:
            part.suptitle(f"{row.title}: {row.note}", x=0.01, ha="left", **HEAD)
        cells = part.subplots(count, across, squeeze=False).flatten()
        for axes, paint in zip_longest(cells, row.panels, fillvalue=lambda axes: axes.set_axis_off()):
            paint(axes)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a name in a script that the font lacks
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def most_important(stages: Stages, background: bool) -> tuple[int, ...]:
    """Return the classes to show, from 1: those of the merged boxes, best first; without boxes the three most voted."""
    if stages.merged is not None and len(stages.merged.classes):
        return tuple(dict.fromkeys(stages.merged.classes.tolist()))[:MOST_CLASSES]
    votes = vote(stages.scans, background).numpy()
    return tuple((np.argsort(-votes)[:3] + 1).tolist())


def heat_map(scan: ScaleScan, classes: Sequence[int], background: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the best of some classes (from 1) at each window: its number int [h, w] and its score float32 [h, w].

    The windows of a mirror image are turned to run from left to right.
    """
    lines = window_scores(scan, background).numpy()
    scores = lines.reshape(*scan.logits.shape[:2], -1)[..., np.array(classes) - 1]
    if scan.windows[0, 0, 1] > scan.windows[0, -1, 1]:
        scores = scores[:, ::-1]
    return np.array(classes)[scores.argmax(axis=-1)], scores.max(axis=-1)


def heat_panel(scene: Scene, scan: ScaleScan, fine: bool, name: str) -> Panel:
    """Colour each window's centre by the class that scores best there, the more opaque the higher its score."""
    preset = scene.model.network.preset
    classes, scores = heat_map(scan, scene.classes, scene.model.network.background)
    first, last = np.minimum(scan.windows[0, 0], scan.windows[-1, -1]), scan.windows.max(axis=(0, 1))
    sides = first[2:] - first[:2]  # of a window, normalised
    step = sides * preset.stride(fine) / preset.window
    top, left = (first[:2] + first[2:]) / 2 - step / 2
    bottom, right = (last[:2] + last[2:]) / 2 + step / 2
    height, width = np.rint(preset.window / sides).astype(int)
    colours = np.array([[*scene.colour(number), 0.0] for number in range(max(scene.classes) + 1)])[classes]
    colours[..., 3] = scores / scene.highest
    row, column = np.unravel_index(scores.argmax(), scores.shape)
    centre = np.array([top, left]) + (np.array([row, column]) + 0.5) * step

    def paint(axes) -> None:
        axes.imshow(colours, extent=(left, right, bottom, top), interpolation="nearest", zorder=1)
        _show(axes, scene.dimmed)
        corner = centre - sides / 2
        _frame(axes, [*corner, *(corner + sides)], "white", 1.0, 1.0, style=(0, (4, 3)))
        grid = f"{scores.shape[0]}x{scores.shape[1]}"
        axes.set_title(f"{name}: {height}x{width} px\n{grid} windows, best {scores.max():.2f}", fontsize=10)

    return paint


def boxes_panel(scene: Scene, stages: Stages, view: int | None, name: str) -> Panel:
    """Draw the candidates of a view, or of all, coloured by class, the more opaque the higher their scores."""
    assert stages.candidates is not None
    boxes, scores, classes, views = stages.candidates
    chosen = np.flatnonzero(views == view) if view is not None else np.arange(len(views))

    def paint(axes) -> None:
        _show(axes, scene.dimmed)
        for i in chosen[np.argsort(scores[chosen])]:  # the most confident on top
            _frame(axes, boxes[i], scene.colour(classes[i]), 1.5, min(1.0, float(scores[i]) / scene.highest))
        count = "1 box" if len(chosen) == 1 else f"{len(chosen)} boxes"
        axes.set_title(f"{name}\n{count}", fontsize=10)

    return paint


def merged_panel(scene: Scene, stages: Stages, least_score: float) -> Panel:
    """Draw the merged boxes with their accumulated scores, those below the least score faintly."""
    merged, answer = stages.merged, stages.answer
    assert merged is not None
    count = int(answer.count)
    rows = zip(answer.classes[:count], answer.boxes[:count], answer.scores[:count], strict=True)
    labelled = {(int(number), *box.tolist()) for number, box, score in rows if score >= least_score}
    kept = [(int(number), *box.tolist()) in labelled for number, box in zip(merged.classes, merged.boxes, strict=True)]

    def paint(axes) -> None:
        _show(axes, scene.picture)
        for i in range(len(merged.scores))[::-1]:
            colour = scene.colour(merged.classes[i])
            _frame(axes, merged.boxes[i], colour, 2.5 if kept[i] else 1.0, 1.0 if kept[i] else 0.6)
            if kept[i]:
                ymin, xmin = np.maximum(merged.boxes[i][:2], 0)
                text = f"{scene.name(merged.classes[i])}: {merged.scores[i]:.1f}"
                box = {"facecolor": colour, "edgecolor": "none", "pad": 1.5}
                axes.text(xmin, ymin, text, fontsize=9, va="bottom" if ymin > 0.06 else "top", bbox=box, clip_on=True)
        count = "1 box" if len(kept) == 1 else f"{len(kept)} boxes"
        axes.set_title(f"after merging\n{count}", fontsize=10)

    return paint


def legend_panel(scene: Scene, stages: Stages, least_score: float) -> Panel:
    """Draw a strip for each class, from score 0 to the highest, and say beneath what else needs saying."""
    names = [scene.name(number) for number in scene.classes]
    if stages.merged is None:
        votes = np.exp(np.asarray(stages.answer))
        names = [f"{name}\nvote {votes[n - 1]:.2f}" for name, n in zip(names, scene.classes, strict=True)]
        note = (
            "The vote for a class is the mean, over the scales,\nof the best score on each map;"
            " the answer gives it\nas a share of all classes' votes."
        )
    else:
        note = (
            "The number at a merged box is s, the sum of the scores\nof the boxes that it was merged from."
            " Detection answers\nthe probability of being right that s stands for, or\ns / (1 + s) where it is not"
            " calibrated; localization\nthe vote for the class, or s / (1 + s) if it ranks by s."
            f"\nFaint and without a number: not in the answer, or below\na score of {least_score:.2g}."
        )
    if len(set(np.ravel(stages.merged.classes if stages.merged else []))) > MOST_CLASSES:
        note += "\nBoxes of further classes are in grey."
    tall = 0.1 if stages.merged else 0.2  # of a strip, in panels

    def paint(axes) -> None:
        ramp = np.linspace(0, 1, 256)
        strips = np.array([np.outer(ramp, scene.colour(n)) + (1 - ramp)[:, None] * 0.2 for n in scene.classes])
        area = axes.inset_axes((0.28, 1 - tall * len(strips), 0.7, tall * len(strips)))
        area.imshow(strips, extent=(0, scene.highest, len(strips), 0), aspect="auto", interpolation="nearest")
        area.set_yticks(np.arange(len(strips)) + 0.5, names, fontsize=10)
        area.set_xlabel(f"score of a window (softmax){' and its box' if stages.merged else ''}\n\n{note}", fontsize=10)
        axes.set_axis_off()

    return paint


def _show(axes, picture: np.ndarray) -> None:
    """Lay a picture beneath what is painted in normalised coordinates; sets the axes' limits and aspect."""
    height, width = picture.shape[:2]
    axes.imshow(picture, extent=(0, 1, 1, 0), aspect=height / width, zorder=0)
    axes.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[], autoscale_on=False)


def _frame(axes, box, colour, line: float, opacity: float, style: object = "-") -> None:
    from matplotlib.patches import Rectangle

    ymin, xmin, ymax, xmax = np.clip(box, -1.0, 2.0)  # a box may end anywhere; beyond the picture it is not seen
    look = {"fill": False, "edgecolor": colour, "linewidth": line, "alpha": opacity, "linestyle": style}
    axes.add_patch(Rectangle((xmin, ymin), xmax - xmin, ymax - ymin, **look, zorder=2))


def at_coarse_stride(scan: ScaleScan, last_pool: int) -> ScaleScan:
    """Return a fine scan's windows at the first offset of the last pooling: those of a coarse scan (3.3)."""
    return ScaleScan(*(None if values is None else values[::last_pool, ::last_pool] for values in scan))
