"""Average precision computed otherwise: by pycocotools from files, and by the development kits' loops."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
from answers import answer
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from training.sources.record import Record

SIZES = ((100, 200), (460, 320), (90, 90))  # height, width


def by_pycocotools(pairs, names, folder: Path) -> np.ndarray:
    """Score by way of the files that COCO's own programs read."""
    images, truths, results = [], [], []
    for number, (truth, found) in enumerate(pairs, start=1):
        height, width = found["image_size"].tolist()
        images.append({"id": number, "height": height, "width": width})

        def box(edges, height=height, width=width):
            top, left, bottom, right = np.asarray(edges, float) * [height, width, height, width]
            return [left, top, right - left, bottom - top]

        for edges, label, crowd in zip(truth.boxes, truth.labels.tolist(), truth.crowd.tolist(), strict=True):
            x, y, w, h = box(edges)
            common = {"id": len(truths) + 1, "image_id": number, "iscrowd": int(crowd)}
            truths.append({**common, "category_id": label + 1, "bbox": [x, y, w, h], "area": w * h})
        for i in range(int(found["num_detections"])):
            score, category = float(found["detection_scores"][i]), int(found["detection_classes"][i])
            place = box(found["detection_boxes"][i])
            results.append({"image_id": number, "category_id": category, "bbox": place, "score": score})
    categories = [{"id": 1 + i, "name": name} for i, name in enumerate(names)]
    content = {"info": {}, "images": images, "annotations": truths, "categories": categories}
    (folder / "truth.json").write_text(json.dumps(content))
    (folder / "found.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(folder / "truth.json"))
        scoring = COCOeval(coco, coco.loadRes(str(folder / "found.json")), "bbox")
        for step in (scoring.evaluate, scoring.accumulate, scoring.summarize):
            step()
    return scoring.stats


def overlap(a, b) -> float:
    height, width = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(height, 0) * max(width, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def match_by_loops(boxes, scores, labels, truth, classes, ignored, threshold, crowd) -> list[int]:
    """Give the object of each detection, -1 without one: greedy by score, ignored ones last, repeatedly."""
    matched = [-1] * len(boxes)
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        for turn in (False, True):
            best = 0.0
            for j in range(len(truth)):
                taken = j in matched and not ignored[j]
                if ignored[j] != turn or taken or classes[j] != labels[i]:
                    continue
                shared = overlap(boxes[i], truth[j])
                if crowd[j]:
                    top, left = max(boxes[i][0], truth[j][0]), max(boxes[i][1], truth[j][1])
                    bottom, right = min(boxes[i][2], truth[j][2]), min(boxes[i][3], truth[j][3])
                    area = (boxes[i][2] - boxes[i][0]) * (boxes[i][3] - boxes[i][1])
                    shared = max(bottom - top, 0) * max(right - left, 0) / area
                if shared >= threshold and shared > best:
                    best, matched[i] = shared, j
            if matched[i] >= 0:
                break
    return matched


def by_the_kit(pairs, label: int, rule: str) -> tuple[float, float]:
    """Give a class's average precision by eleven points and by area; detections of all images in one falling list."""
    flat = [
        (float(found["detection_scores"][i]), image, found["detection_boxes"][i])
        for image, (_, found) in enumerate(pairs)
        for i in range(int(found["num_detections"]))
        if found["detection_classes"][i] == label + 1
    ]
    taken, objects = set(), 0
    for truth, _ in pairs:
        for own, hard in zip(truth.labels, truth.difficult, strict=True):
            objects += own == label and not (hard and rule == "voc")
    if not objects:
        return float("nan"), float("nan")
    right, wrong, points = 0, 0, []
    for _, image, box in sorted(flat, key=lambda each: -each[0]):
        best, best_overlap = None, -1.0
        truth, found_size = pairs[image][0], pairs[image][1]["image_size"]
        for number, (other, own) in enumerate(zip(truth.boxes, truth.labels, strict=True)):
            if own != label or (rule == "ilsvrc" and (image, number) in taken):
                continue
            shared, least = overlap(box, other), 0.5
            if rule == "ilsvrc":
                height, width = (other[2] - other[0]) * found_size[0], (other[3] - other[1]) * found_size[1]
                least = min(0.5, height * width / ((height + 10) * (width + 10)))
            if shared > best_overlap and (rule == "voc" or shared >= least):
                best, best_overlap = number, shared
        if best is None or (rule == "voc" and best_overlap < 0.5):
            wrong += 1
        elif rule == "voc" and truth.difficult[best]:
            continue
        elif (image, best) in taken:
            wrong += 1
        else:
            taken.add((image, best))
            right += 1
        points.append((right / objects, right / (right + wrong)))
    eleven = sum(max((p for r, p in points if r > level - 1e-9), default=0.0) for level in np.arange(11) / 10) / 11
    area, before = 0.0, 0.0
    for number, (recall, _) in enumerate(points):
        area += (recall - before) * max(precision for _, precision in points[number:])
        before = recall
    return eleven, area


def record(boxes, labels, **flags) -> Record:
    return Record.of_objects(b"", "", boxes, labels, **flags)


def random_boxes(rng, count: int) -> np.ndarray:
    first = rng.uniform(0, 0.6, (count, 2))
    return np.concatenate([first, first + rng.uniform(0.1, 0.4, (count, 2))], axis=1).astype(np.float32)


def random_pairs(seed: int, images: int = 12):
    """Truths, some of them crowds, and detections near them, in them or anywhere, of all three classes."""
    rng = np.random.default_rng(seed)
    for number in range(images):
        boxes, labels = random_boxes(rng, count := rng.integers(0, 5)), rng.integers(0, 3, count)
        crowd = rng.random(count) < 0.25
        centre = np.tile((boxes[:, :2] + boxes[:, 2:]) / 2, 2)
        shrunk = np.where(crowd[:, None], (boxes + centre) / 2, boxes)  # a quarter of a crowd is right by its own rule
        near = shrunk + rng.normal(0, 0.03, boxes.shape)
        places = np.concatenate([near, random_boxes(rng, 3)])
        named = np.concatenate([np.where(rng.random(count) < 0.8, labels, 0), rng.integers(0, 3, 3)])
        scores = np.sort(rng.random(len(named)).round(1))[::-1]  # some are equal
        yield record(boxes, labels, difficult=crowd, crowd=crowd), answer(places, named, scores, SIZES[number % 3])
