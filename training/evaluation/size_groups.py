"""Groups of objects by size and shape, by which detection figures are reported."""

import numpy as np

# Least and greatest measure of each group, both included: COCO's areas share their edges, as in pycocotools.
Range = tuple[float, float]
LARGEST = 1e10  # COCO's own end of the large areas
UNKNOWN = 1e11  # the measure of an object in an image that could not be read: in no group


def _below(edge: float) -> float:
    return float(np.nextafter(edge, 0.0))


GROUPINGS: dict[str, dict[str, Range]] = {
    "area": {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, LARGEST)},
    "share": {
        "below_1_8": (0.0, _below(1 / 8)),
        "1_8_to_1_3": (1 / 8, _below(1 / 3)),
        "1_3_to_2_3": (1 / 3, _below(2 / 3)),
        "above_2_3": (2 / 3, LARGEST),
    },
    "aspect": {"below_1.5": (0.0, _below(1.5)), "1.5_to_3": (1.5, _below(3.0)), "above_3": (3.0, LARGEST)},
}
# The figures that have a value for each group, as FIGURE/GROUPING/GROUP.
GROUP_FIGURES = ("objects", "map", "map50", "recall", "recall_displayed")


def group_names() -> list[str]:
    """List the groups as they stand in the names of figures, such as share/above_2_3."""
    return [f"{grouping}/{group}" for grouping, groups in GROUPINGS.items() for group in groups]


def measures(sides: np.ndarray, longest: np.ndarray | float) -> np.ndarray:
    """Measure boxes by each grouping, in the sequence of `GROUPINGS`.

    Args:
        sides: Height and width, or width and height, in pixels of the image as displayed: [n, 2].
        longest: The longer side of each box's image in pixels, 0 if it could not be read: [n] or one for all.

    Returns:
        Float64 [n, 3]: area in pixels; longer side of the box over longer side of the image; longer over shorter side.
    """
    sides, longest = np.asarray(sides, float).reshape(-1, 2), np.asarray(longest, float)
    longer, shorter = sides.max(axis=1), sides.min(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):  # boxes without width, images that were not read
        area = np.round(longer * shorter, 3)  # 32 x 32 pixels are so still after normalisation
        found = np.stack([area, longer / longest, longer / shorter], axis=1)
    found = np.minimum(np.nan_to_num(found, nan=1.0, posinf=LARGEST), LARGEST)
    return np.where((longest > 0.0)[..., None], found, UNKNOWN)


def memberships(boxes: np.ndarray, image_size: np.ndarray) -> np.ndarray:
    """Return which of `group_names()` each box is in: bool [n, groups].

    Args:
        boxes: Normalised yxyx, [n, 4].
        image_size: Height and width in pixels, as displayed; 0 if the image could not be read.
    """
    sides = (np.asarray(boxes, float)[:, 2:] - np.asarray(boxes, float)[:, :2]) * image_size
    columns = []
    for values, groups in zip(measures(sides, np.max(image_size)).T, GROUPINGS.values(), strict=True):
        columns += [(low <= values) & (values <= high) for low, high in groups.values()]
    return np.stack(columns, axis=1)
