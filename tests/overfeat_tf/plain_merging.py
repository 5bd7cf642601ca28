"""Greedy merging (4.3 d-g) written plainly: all pairs are compared before each step."""

import math

import numpy as np

THRESHOLD = 0.9
F = np.float32


def plain_area(box):
    return max(box[2] - box[0], F(0)) * max(box[3] - box[1], F(0))


def plain_match(a, b):
    """Score two boxes as the docstring of the module says, rounding as float32 does: ties must be the same ties."""
    dy, dx = (a[0] + a[2]) / F(2) - (b[0] + b[2]) / F(2), (a[1] + a[3]) / F(2) - (b[1] + b[3]) / F(2)
    shared = plain_area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    area = plain_area(a) / F(2) + plain_area(b) / F(2)
    return np.sqrt((dy * dy + dx * dx) / area) + (F(1) - shared / area)


def plain_merge(boxes, scores, classes, threshold=THRESHOLD, average="weighted", across_classes=False):
    """Merge the best of all pairs, the first of equals, until it exceeds the threshold: (g) to the letter."""
    rows = [
        (np.asarray(box, F), F(1), int(label), {int(label): F(score)})
        for box, score, label in zip(np.reshape(boxes, (-1, 4)), scores, classes, strict=True)
        if all(map(math.isfinite, (*box, score))) and plain_area(np.asarray(box, F)) > 0
    ]
    rows.sort(key=lambda row: (*row[0], row[2], *row[3].values()))
    if not across_classes:
        rows.sort(key=lambda row: row[2])
    while True:
        pairs = [
            (plain_match(rows[i][0], rows[j][0]), i, j)
            for i in range(len(rows))
            for j in range(i + 1, len(rows))
            if across_classes or rows[i][2] == rows[j][2]
        ]
        if not pairs or min(pairs)[0] > F(threshold):
            break
        _, i, j = min(pairs)
        (box, count, label, votes), (other, others, _, more) = rows[i], rows.pop(j)
        share = others / (count + others) if average == "weighted" else F(0.5)
        votes = {key: votes.get(key, F(0)) + more.get(key, F(0)) for key in {*votes, *more}}
        rows[i] = (box + (other - box) * share, count + others, label, votes)
    rows = [(box, max(votes.values()), max(votes, key=votes.get), count) for box, count, _, votes in rows]
    rows.sort(key=lambda row: -row[1])
    boxes, scores, classes, counts = zip(*rows, strict=True) if rows else ([], [], [], [])
    return np.reshape(boxes, (-1, 4)), np.array(scores, F), np.array(classes), np.array(counts, F)
