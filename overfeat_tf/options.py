"""How inference is run: one frozen dataclass, written beside every run and export."""

from dataclasses import dataclass

from overfeat_tf.arithmetic import ARITHMETICS
from overfeat_tf.presets import Preset

VIEWS = ("dense", "centre", "ten")
AVERAGES = ("weighted", "plain")
SCORES = ("calibrated", "accumulated")


@dataclass(frozen=True)
class InferenceOptions:
    """Options of every inference call.

    Attributes:
        scales: Numbers of the preset's scales, from 1 as in Table 5; None for all.
        flips: Also show the image mirrored left to right (3.3); "ten" always does.
        fine: Take the last pooling at every offset (fine stride) rather than at the first alone (coarse).
        top_k: Classes that a scale may propose (4.3 a), and guesses of `localize` and `classify`.
        min_score: Least softmax score with which a window votes for a class in detection.
        max_windows: Windows that take part in merging; the least confident are left out first.
        merge_threshold: The t of 4.3: boxes merge while the smallest match score does not exceed it.
        merge_average: How two boxes become one: "weighted" by the predictions that each stands for, or "plain".
        merge_across_classes: Whether boxes of different classes merge too; the class is then read off the sums.
        max_detections: Boxes in an answer.
        one_box_per_object: Whether `detect` leaves out boxes that overlap a better one, of whatever class. They score
            low as it is where scores are calibrated; leaving them out costs mAP (digits: 0.02 at IoU 0.5), since the
            second guess at an object's class is often right.
        scores: What `detect` answers: "calibrated", the probability of being right where the model knows it
            (`overfeat_tf.calibration`), or "accumulated", s / (1 + s) of the accumulated score s (4.3).
        views: "dense" scans the scales; "centre" and "ten" show crops of the window's size: the centre one, or the
            four corners, the centre and their mirror images (Table 2).
        arithmetic: "direct", or "transformed": layers for which it is faster by minimal filtering, from the
            same weights (`overfeat_tf.arithmetic`); equal but for rounding.
    """

    scales: tuple[int, ...] | None = None
    flips: bool = False
    fine: bool = True
    top_k: int = 5
    min_score: float = 0.3
    max_windows: int = 400
    merge_threshold: float = 0.4
    merge_average: str = AVERAGES[0]
    merge_across_classes: bool = False
    max_detections: int = 100
    one_box_per_object: bool = False
    scores: str = SCORES[0]
    views: str = "dense"
    arithmetic: str = ARITHMETICS[0]

    def __post_init__(self) -> None:
        if self.views not in VIEWS:
            raise ValueError(f"expected views to be one of {', '.join(VIEWS)}; got '{self.views}'")
        if self.merge_average not in AVERAGES:
            raise ValueError(f"expected merge_average to be one of {', '.join(AVERAGES)}; got '{self.merge_average}'")
        if self.arithmetic not in ARITHMETICS:
            raise ValueError(f"expected arithmetic to be one of {', '.join(ARITHMETICS)}; got '{self.arithmetic}'")
        if self.scores not in SCORES:
            raise ValueError(f"expected scores to be one of {', '.join(SCORES)}; got '{self.scores}'")
        if not self.merge_threshold >= 0:
            raise ValueError(f"expected merge_threshold to be at least 0; got {self.merge_threshold}")

    def scale_sizes(self, preset: Preset) -> tuple[tuple[int, int], ...]:
        """Return the (height, width) of the chosen scales.

        Raises:
            ValueError: a scale that the preset does not have.
        """
        count = len(preset.scales)
        numbers = self.scales if self.scales is not None else tuple(range(1, count + 1))
        wrong = [n for n in numbers if not 1 <= n <= count]
        if wrong or not numbers:
            raise ValueError(f"expected scales of '{preset.name}' from 1 to {count}; got {list(numbers)}")
        return tuple(preset.scales[n - 1] for n in numbers)
