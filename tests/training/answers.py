"""An image's answer, made of lists."""

import numpy as np


def answer(boxes, labels, scores=None, size=(100, 200), status=b"") -> dict[str, np.ndarray]:
    """Make one image's rows of the contract's outputs, by falling score, and two of padding; labels are from 0."""
    count = len(labels)
    scores = np.linspace(1, 0.5, count) if scores is None else np.asarray(scores, float)
    ranking = np.argsort(-scores, kind="stable")

    def padded(values) -> np.ndarray:
        return np.concatenate([values[ranking], np.zeros((2, *values.shape[1:]))]).astype(np.float32)

    return {
        "status": status,
        "image_size": np.array(size, np.int32),
        "num_detections": np.float32(count),
        "detection_boxes": padded(np.reshape(boxes, (count, 4))),
        "detection_scores": padded(scores),
        "detection_classes": padded(np.array(labels, int) + 1),
    }
