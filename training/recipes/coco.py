"""COCO, 80 classes, from classification weights."""

from training.recipes.finetuned import finetuned
from training.recipes.recipe import Recipe


def coco_fast() -> Recipe:
    """Fit `fast` to COCO, from a run that classifies.

    overfeat train coco-fast --data coco:DIR/{split}2017:DIR/annotations/instances_{split}2017.json
        --from runs/fast --run runs/coco

    Not run here. A step takes 0.54 T multiply-adds (forward and backward) in classification, 0.71 T in localization
    and 1.49 T in detection: 8 hours in all at 10 T a second. The paper has no figure for COCO.
    """
    return finetuned("coco-fast", "fast", classification=40_000, localization=20_000, detection=160_000)


def coco_accurate() -> Recipe:
    """Fit `accurate` to COCO, from a run that classifies.

    overfeat train coco-accurate --data coco:DIR/{split}2017:DIR/annotations/instances_{split}2017.json
        --from runs/accurate --run runs/coco

    Not run here. A step takes 1.03 T multiply-adds (forward and backward) in classification, 1.24 T in localization
    and 2.97 T in detection: 15 hours in all at 10 T a second. The paper has no figure for COCO.
    """
    return finetuned("coco-accurate", "accurate", classification=40_000, localization=20_000, detection=160_000)
