"""Memory does not grow with a data set beyond some bytes for each detection."""

import resource
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from small_source import SmallSource

from overfeat_tf.models.predictor import Predictor
from training.evaluation.evaluate import evaluate
from training.evaluation.reports.report import Report
from training.sources.record import Record
from training.tasks import TRAINED_TASKS

CLASSES, DETECTIONS = 40, 100
BYTES = 44 + 13 + 13  # that the three metrics keep of a detection, and as much again for VOC's in the report
SLACK = 3.5  # a growing table's room to spare, the parts by class, and what pycocotools makes of one class


class Many(SmallSource):
    """Images that take a megabyte each, made as they are asked for."""

    def records(self, split: str, limit: int | None = None) -> Iterator[Record]:
        for number in range(limit or 0):
            draw = np.random.default_rng(number)
            corner = draw.uniform(0, 0.6, (3, 2))
            boxes = np.concatenate([corner, corner + draw.uniform(0.05, 0.4, (3, 2))], axis=1)
            yield Record.of_objects(bytes(1 << 20), str(number), boxes, draw.integers(0, CLASSES, 3))


class Fake(Predictor):
    """Detects a hundred boxes anywhere."""

    labels, tasks = (), ("detection",)

    def __init__(self):
        self._draw = np.random.default_rng(0)

    def _run(self, signature: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        images = inputs["image_bytes"]
        shape = (len(images), DETECTIONS)
        corner = self._draw.uniform(0, 0.6, (*shape, 2))
        return {
            "status": np.array([b"not decoded"] * len(images), object),
            "image_size": np.full((len(images), 2), 500, np.int32),
            "num_detections": np.full(len(images), DETECTIONS, np.float32),
            "detection_boxes": np.concatenate([corner, corner + self._draw.uniform(0.05, 0.4, corner.shape)], axis=-1),
            "detection_scores": -np.sort(-self._draw.random(shape), axis=1),
            "detection_classes": self._draw.integers(1, CLASSES + 1, shape).astype(np.float32),
        }


def peak_growth(images: int, folder) -> int:
    """Evaluate so many images with a report; give the bytes by which the process's peak grew from that of a few."""
    names = tuple(map(str, range(CLASSES)))
    peaks = []
    for limit in (200, images):
        report = Report(folder, {"detection": TRAINED_TASKS["detection"].observers}, names)
        evaluate(Fake(), Many({"val": []}, names), "val", limit=limit, quiet=True, callbacks=report.callbacks)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return peaks[1] - peaks[0]


@pytest.mark.long  # some minutes
@pytest.mark.parametrize("images", [20_000])
def test_memory_grows_by_some_bytes_a_detection(images, tmp_path):
    # In a process of its own, whose peak is no other test's.
    call = f"peak_growth({images}, pathlib.Path({str(tmp_path)!r}))"
    program = f"import pathlib, test_memory; print(test_memory.{call})"
    path = ":".join(sys.path)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env={"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < SLACK * BYTES * images * DETECTIONS  # the images alone would be 20 GB
