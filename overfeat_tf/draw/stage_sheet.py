"""The stages of an image's answer on one sheet: the paper's Fig. 6 and 7, drawn from the numbers themselves."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
from PIL import Image

from overfeat_tf.draw.stage_panels import Panel, Scene, boxes_panel, heat_panel, legend_panel, merged_panel
from overfeat_tf.images.decode import decode_image
from overfeat_tf.models.inference import Stages
from overfeat_tf.models.model import Model
from overfeat_tf.models.staged_model import at_coarse_stride

DPI = 100
MOST_COLUMNS = 7  # further views wrap
HEAD: dict[str, Any] = {"fontsize": 14, "fontweight": "bold"}


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
    names = _view_names(scene, len(scans))
    height, width = scene.picture.shape[:2]
    aspect = min(max(height / width, 0.3), 1.6)
    columns = min(len(names), MOST_COLUMNS)
    width = min(4.5, max(2.6, 18 / columns))
    coarse = [at_coarse_stride(scan, preset.last_pool) for scan in scans] if options.fine else scans
    heat = [heat_panel(scene, scan, False, name) for scan, name in zip(coarse, names, strict=True)]
    note = f"a window every {preset.coarse_stride} pixels, drawn at its centre; dashed: what the best one sees"
    rows = [_Row("1  Raw class scores", note, heat, width, aspect)]
    if options.fine:
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
        return [*rows, _Row("No boxes", "this run was trained to classify only", [legend], wide, 0.6)]
    return [*rows, _Row("4  Merged boxes", "scores add up where boxes agree", [*final, legend], wide, aspect)]


def _titled(title: str, panel: Panel) -> Panel:
    """Put the stage's title above a panel, and the panel's own beneath it."""

    def paint(axes) -> None:
        panel(axes)
        axes.set_xlabel(axes.get_title(), fontsize=10)
        axes.set_title(title, **HEAD)

    return paint


def _view_names(scene: Scene, count: int) -> list[str]:
    options, scales = scene.model.options, len(scene.model.network.preset.scales)
    numbers = options.scales if options.scales is not None else range(1, scales + 1)
    names = [f"scale {number}{side}" for number in numbers for side in ("", ", mirrored")[: 1 + options.flips]]
    assert len(names) == count
    return names


def _render(rows: Sequence[_Row]) -> Image.Image:
    """Paint the rows one above the other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width = max(min(len(row.panels), MOST_COLUMNS) * row.width for row in rows)
    lines = [math.ceil(len(row.panels) / MOST_COLUMNS) for row in rows]
    tall = [0.8 + count * (row.width * row.aspect + 0.5) for row, count in zip(rows, lines, strict=True)]
    figure = Figure((width + 0.4, sum(tall)), dpi=DPI, layout="constrained")
    parts = figure.subfigures(len(rows), 1, squeeze=False, height_ratios=tall)[:, 0]
    for part, row, count in zip(parts, rows, lines, strict=True):
        if row.title:
            part.suptitle(f"{row.title}: {row.note}", x=0.01, ha="left", **HEAD)
        columns = max(math.ceil(len(row.panels) / count), int(width / row.width))  # empty ones at the right
        cells = part.subplots(count, columns, squeeze=False).flatten()
        for axes, paint in zip_longest(cells, row.panels, fillvalue=lambda axes: axes.set_axis_off()):
            paint(axes)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a name in a script that the font lacks
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
