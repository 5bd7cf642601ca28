"""`overfeat inspect`: describe a data set and its faults, as text and as pictures."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from overfeat_tf.draw.pictures import contact_sheet, draw_boxes, draw_classes, file_stem
from overfeat_tf.images.decode import decode_image
from training.evaluation.inspection import Inspection, inspect
from training.recipes import Recipe
from training.sources import open_source
from training.sources.checks import Finding
from training.sources.record import Record
from training.views.coverage import read_objects
from training.views.drawing import Drawing, object_windows, view_seed, window_maps
from training.views.reading import RecordStream, decode_records
from training.views.targets import window_origins

VIEWED = 6  # images of which views are drawn
PICTURES = 24  # per split, and per kind of finding in a split
COLUMNS, CELL = 6, 300  # of the contact sheet of a split; pixels
CLASSES = 40  # to list; with more, the most and the least frequent ones
EXAMPLES = 3  # of each finding


class Pictures:
    """Draws records into a folder: SPLIT/ID.png, SPLIT/FINDING/ID.png, and a contact sheet SPLIT.png."""

    def __init__(self, out: Path, class_names: tuple[str, ...]):
        self._out, self._names = out, class_names
        self._drawn: Counter[tuple[str, str]] = Counter()
        self._sheet: list[Image.Image] = []
        self._split = ""

    def draw(self, split: str, record: Record, findings: list[Finding]) -> None:
        """Draw a record if it is one of the first of its split or of one of its findings."""
        if split != self._split:
            self.close()
            self._split = split
        kinds = ["", *dict.fromkeys(finding.kind.words for finding in findings)]
        kinds = [kind for kind in kinds if self._drawn[split, kind] < PICTURES]
        if not kinds:
            return
        pixels = decode_image(record.image_bytes)[0].numpy()
        picture = self._draw(record, pixels)
        for kind in kinds:
            self._drawn[split, kind] += 1
            folder = self._out / split / kind.replace(" ", "_").replace(",", "")
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{file_stem(record.image_id)}.png")
            if not kind:
                small = Image.fromarray(pixels)
                small.thumbnail((CELL, CELL))  # before drawing, to keep the names legible
                self._sheet.append(self._draw(record, np.asarray(small)))

    def close(self) -> None:
        """Write the contact sheet of the last split."""
        if self._sheet:
            contact_sheet(self._sheet, COLUMNS, CELL).save(self._out / f"{self._split}.png")
        self._sheet = []

    def _draw(self, record: Record, pixels: np.ndarray) -> Image.Image:
        names = [self._names[label] for label in record.labels]
        if names and not record.boxed.any():
            return draw_classes(pixels, [(name, None) for name in names])
        return draw_boxes(pixels, truth=(record.boxes, names))


def run(spec: str, split: str | None, out: Path | None, limit: int | None, recipe: Recipe) -> Inspection:
    """Inspect one split of a SOURCE or all, draw pictures into `out`, and measure the coverage of a recipe's scales."""
    pictures = Pictures(out, open_source(spec).class_names) if out is not None else None
    splits = [split] if split is not None else None
    draw = pictures.draw if pictures is not None else None
    inspection = inspect(lambda report: open_source(spec, report), splits, limit, draw)
    inspection.measure_coverage(recipe)
    if pictures is not None:
        pictures.close()
    return inspection


def draw_views(spec: str, split: str | None, out: Path, recipe: Recipe) -> Path:
    """Draw what training sees of the first images, with the boxes that windows learn, as rows of a sheet in `out`."""
    source, preset = open_source(spec), recipe.network
    chosen = split or recipe.train_split
    scales = recipe.scales_for(preset, read_objects(source, chosen))
    options = recipe.inference
    drawing = Drawing(preset, scales, recipe.matching, recipe.views, recipe.side, recipe.fine, options.scale_fit)
    views = window_maps(drawing) if source.boxed else object_windows(drawing)
    records = RecordStream(source, chosen, recipe.seed, partners=views.partners, shows=views.shows).dataset()
    pictures: list[Image.Image] = []
    count = 0
    readable = decode_records(records).filter(lambda record: record["status"] == "")
    for record in readable.take(VIEWED):
        names = [source.class_names[label] for label in record["labels"].numpy()]
        pixels = record["image"].numpy()
        row = [draw_boxes(pixels, truth=(record["boxes"].numpy(), names)) if source.boxed else Image.fromarray(pixels)]
        for view, targets in views.draw(view_seed(recipe.seed, record["place"]), record):
            shown = np.clip(view.numpy(), 0, 255).astype(np.uint8)
            if isinstance(targets, dict):
                boxes, labels = _learnt(targets["boxes"].numpy(), drawing, len(shown))
                row.append(draw_boxes(shown, truth=(boxes, [source.class_names[label] for label in labels])))
            else:
                row.append(draw_classes(shown, [(source.class_names[int(targets)], None)]))
        pictures, count = pictures + row, len(row)
    if not pictures:
        raise ValueError(f"expected images with something to learn in split '{chosen}' of {spec}; there are none")
    out.mkdir(parents=True, exist_ok=True)
    contact_sheet(pictures, count, CELL, ("image", *["view"] * (count - 1))).save(out / "views.png")
    return out / "views.png"


def _learnt(targets: np.ndarray, drawing: Drawing, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes [n, 4] that the windows of a view learn, normalised in the view, and their classes [n]."""
    origins = window_origins(drawing.preset, side, drawing.fine).numpy()
    learnt = targets[..., 4] > 0
    edges = np.concatenate([origins, origins], axis=-1) + targets[..., :4] * drawing.preset.window
    found = np.concatenate([edges, targets[..., 4:]], axis=-1)[learnt]
    found = np.unique(found.round(), axis=0)
    return np.clip(found[:, :4] / side, 0, 1), found[:, 4].astype(int) - 1


def lines(inspection: Inspection) -> Iterator[str]:
    """Yield the lines of an inspection: counts by split, coverage, classes, findings."""
    splits = {split: counts.as_dict() for split, counts in inspection.counts.items()}
    yield f"{inspection.source}: {len(inspection.class_names)} classes; splits: {', '.join(splits)}"
    yield ""
    yield _row("", splits)
    for key in ("images", "without_objects", "objects", "without_boxes"):
        yield _row(key.replace("_", " "), (counts[key] for counts in splits.values()))
    for key in ("image_height", "image_width", "box_size", "box_aspect"):
        for place, name in ((0, "least"), (2, "median"), (4, "most")):
            values = (f"{counts[key][place]:g}" if key in counts else "-" for counts in splits.values())
            yield _row(f"{key.replace('_', ' ')}, {name}", values)
    yield ""
    yield from _coverage(inspection)
    yield from _classes(inspection)
    yield ""
    yield from _findings(inspection)


def _coverage(inspection: Inspection) -> Iterator[str]:
    if inspection.recipe is None or not inspection.coverage:
        return
    yield f"objects that the scales of `train {inspection.recipe.name}` cover (--recipe NAME checks another)"
    for split, coverage in inspection.coverage.items():
        yield from (f"  {split}: {line}" for line in coverage.lines())
        yield from (f"  {split}: warning: {line}" for line in coverage.warning(inspection.recipe.scales))
    yield from (f"  {line}" for line in coverage.cost_remark())  # the scales are the same for all splits
    yield ""


def _classes(inspection: Inspection) -> Iterator[str]:
    total: Counter[str] = Counter({name: 0 for name in inspection.class_names})
    for counts in inspection.counts.values():
        total += counts.per_class
    names = list(inspection.class_names)
    yield "objects of each class"
    if len(names) > CLASSES:
        names.sort(key=lambda name: -total[name])
        yield f"({CLASSES // 2} most and {CLASSES // 2} least frequent of {len(names)})"
        names = names[: CLASSES // 2] + names[-CLASSES // 2 :]
    for name in names:
        yield _row(name, (counts.per_class[name] for counts in inspection.counts.values()))


def _findings(inspection: Inspection) -> Iterator[str]:
    for fault, title in ((True, "faults"), (False, "remarks")):
        found = {key: ones for key, ones in inspection.findings.items() if key[1].fault == fault}
        yield f"{title}: {sum(inspection.totals[key] for key in found) or 'none'}"
        for (split, kind), ones in found.items():
            count = inspection.totals[split, kind]
            yield f"  {split}: {kind.words} ({kind.action}): {count}"
            yield from (f"      {one.name}: {one.detail}" for one in ones[:EXAMPLES])
            if count > EXAMPLES:
                yield f"      and {count - EXAMPLES} more"
    for split, counts in inspection.counts.items():
        for other, count in counts.shared.items():
            yield f"  {split}: {count} images are also in {other}, under the same name"


def _row(title: str, values) -> str:
    return f"{title:24.24}" + "".join(f" {value!s:>14}" for value in values)
