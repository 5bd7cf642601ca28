"""The options of inference, a frozen dataclass that is written with every run and export."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

from overfeat_tf.arguments import check_choice
from overfeat_tf.network.presets import Preset

VIEWS = ("dense", "centre", "ten", "release")
SCALE_FITS = ("aspect", "exact")
LOCALIZE_BY = ("vote", "accumulated")
AVERAGES = ("weighted", "plain")
SCORES = ("calibrated", "accumulated")
ARITHMETICS = ("direct", "winograd", "bfloat16")


@dataclass(frozen=True)
class InferenceOptions:
    """Options of every inference call.

    Attributes:
        scales: Numbers of the preset's scales, from 1 as in Table 5; None for all.
        flips: Also show the image mirrored left to right (3.3); "ten" always does.
        fine: Take the last pooling at every offset (fine stride) rather than at the first alone (coarse).
        top_k: Classes that a scale may propose (4.3 a), and guesses of `localize` and `classify`.
        min_score: Least softmax score with which a window votes for a class in detection.
        max_windows: Windows that take part in merging, and twice as many with `flips`; the least confident are left
            out first. Localization by "accumulated" merges all windows, as 4.3 does.
        merge_threshold: The t of 4.3: boxes merge while the smallest match score does not exceed it.
        merge_average: How two boxes become one: "weighted" by the predictions that each stands for, or "plain".
        merge_across_classes: Whether boxes of different classes merge too; the class is then read off the sums.
        max_detections: Boxes in an answer.
        one_box_per_object: Whether `detect` leaves out boxes that overlap a better one, of whatever class. They score
            low as it is where scores are calibrated; leaving them out costs mAP (digits: 0.02 at IoU 0.5), since the
            second guess at an object's class is often right.
        scores: What `detect` answers: "calibrated", the probability of being right where the model knows it
            (`overfeat_tf.merge.calibration`), or "accumulated", s / (1 + s) of the accumulated score s (4.3).
        views: "dense" scans the scales; "centre" and "ten" show crops of the window's size, cut from the central
            square of the resized image: the centre one, or the four corners, the centre and their mirror images
            (Table 2). "release" shows what the command line of the authors' 2013 release classifies: the first window
            of the central square, of an image whose shorter side is 231.
        scale_fit: How an image is fitted to a scale. "aspect" keeps the image's aspect and the scale's area; "exact"
            stretches the image to the scale's own height and width, as Table 5 has them.
        localize_by: How `localize` ranks classes and picks windows. "vote" ranks by the vote of 3.3 and merges the
            most confident windows of each class; "accumulated" is 4.3: each scale proposes its top k classes, all
            windows of these take part, and the merged boxes with the largest accumulated scores are the answer.
        arithmetic: "direct", or "winograd": Winograd's, for the layers that it makes faster, from the same weights
            (`compute.execution`); equal but for rounding. Or "bfloat16": weights and maps of 8 significant bits
            (`compute.precision`), for processors that multiply them faster.
        images_at_once: Images of a batch whose views go through the network together where their canvases are equal,
            as GPUs need. With 1, images go one after the other: as fast on a CPU, and in less memory.
    """

    scales: tuple[int, ...] | None = None
    flips: bool = False
    fine: bool = True
    top_k: int = 5
    min_score: float = 0.3
    max_windows: int = 1500  # thirty small objects are seen by 3000; merging grows with the square
    merge_threshold: float = 0.4
    merge_average: str = AVERAGES[0]
    merge_across_classes: bool = False
    max_detections: int = 100
    one_box_per_object: bool = False
    scores: str = SCORES[0]
    views: str = "dense"
    arithmetic: str = ARITHMETICS[0]
    images_at_once: int = 1
    scale_fit: str = SCALE_FITS[0]
    localize_by: str = LOCALIZE_BY[0]

    def __post_init__(self) -> None:
        choices = {
            "views": VIEWS,
            "scale_fit": SCALE_FITS,
            "localize_by": LOCALIZE_BY,
            "merge_average": AVERAGES,
            "arithmetic": ARITHMETICS,
            "scores": SCORES,
        }
        for name, known in choices.items():
            check_choice(name, getattr(self, name), known)
        if self.scales is not None:
            numbers = tuple(self.scales) if isinstance(self.scales, Sequence) else (self.scales,)
            if not isinstance(self.scales, Sequence) or not all(isinstance(number, Integral) for number in numbers):
                raise ValueError(f"expected scales to be None or numbers from 1, such as (1, 2); got {self.scales!r}")
            object.__setattr__(self, "scales", tuple(map(int, numbers)))  # JSON takes no integers of numpy's
        for name in ("top_k", "max_windows", "max_detections", "images_at_once"):
            value = getattr(self, name)
            if not isinstance(value, Integral) or value < 1:
                raise ValueError(f"expected {name} to be a whole number, at least 1; got {value}")
            object.__setattr__(self, name, int(value))
        for name in ("flips", "fine", "merge_across_classes", "one_box_per_object"):
            object.__setattr__(self, name, bool(getattr(self, name)))
        for name in ("min_score", "merge_threshold"):
            object.__setattr__(self, name, float(getattr(self, name)))
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"expected min_score, a softmax score, to be between 0 and 1; got {self.min_score}")
        if not 0 <= self.merge_threshold < math.inf:
            raise ValueError(f"expected merge_threshold to be at least 0, and finite; got {self.merge_threshold}")

    @property
    def window_limit(self) -> int:
        """The windows that take part in merging, those of the mirror image included."""
        return self.max_windows * (2 if self.flips else 1)

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
