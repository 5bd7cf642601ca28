"""Pretrained features fitted to other data (5): any Keras backbone, or the paper's networks from a run of ImageNet."""

from dataclasses import replace

from overfeat_tf.options import InferenceOptions
from training.recipes.imagenet import SIDES, WINDOWS
from training.recipes.recipe import Recipe, Schedule
from training.views.augmentation import ViewOptions
from training.views.targets import Matching


def finetune() -> Recipe:
    """Fit a pretrained backbone, and heads of OverFeat on it, to boxed photographs.

    overfeat train finetune --backbone NAME --data SOURCE --run runs/NAME

    With EfficientNet-Lite0 on 290 photographs of playing cards, 6 classes, 24 CPU minutes: mAP at IoU 0.5 of 0.95 on 73
    others, 0.78 over 0.5:0.95. On 150 photographs of raccoons, 10 CPU minutes: 0.86 to 0.91 and 0.50 to 0.53 on 50
    others.
    """
    return Recipe(
        name="finetune",
        data=None,
        preset="EfficientNetV2B0",
        classification=_adamw(10, most=20_000, batch=32, epochs=4, backbone_multiplier=0.0),
        localization=_adamw(2, most=2_000, batch=16, epochs=1),
        detection=_adamw(60, most=100_000, batch=16, epochs=8, backbone_multiplier=0.1),
        side=240,
        scales="auto",
        fine=False,
        precision="auto",
        box_form="center_size",
        box_loss="giou_l1",  # 0.002 to 0.024 more mAP than "giou" on four sets, one seed each
        box_weight=2.0,
        frozen_to="4",  # as detectron2 does: a fifth less time; raccoons and trees are no worse
        # The receptive fields of a deep backbone reach beyond the window, so objects may be larger, with more detail.
        matching=Matching(sizes=(0.6, 1.2)),
        views=ViewOptions(object_share=0.7, stretch=0.3, colour=0.4),
        # Boxes of pretrained features agree closely; merging those that agree less moves good boxes. Unsure windows
        # have good boxes too: with their votes recall rises by 0.02 on raccoons and on cards.
        inference=InferenceOptions(merge_threshold=0.2, min_score=0.1),
        validation_images=None,
    )


def finetune_classify() -> Recipe:
    """Fit a pretrained backbone to classes alone: a folder a class, or any other source.

    overfeat train finetune-classify --backbone NAME --data SOURCE --run runs/NAME

    With EfficientNet-Lite0 on 3200 pictures of 64x64 in 20 classes, 12 CPU minutes: 92.5 % top-1 of 800 others.
    """
    return replace(
        finetune(),
        name="finetune-classify",
        stages=("classification",),
        averaged=True,
        classification=Schedule(
            steps=100_000,
            passes=4,
            batch=32,
            learning_rate=0.02,
            drops=(0.5, 0.75, 0.9),
            decay="l2",
            epochs=4,
            warm_up=50,
            backbone_multiplier=0.2,
        ),
        inference=InferenceOptions(flips=True),
    )


def _adamw(passes: float, most: int, batch: int, epochs: int, backbone_multiplier: float = 1.0) -> Schedule:
    """Make a schedule that shows each image so often.

    On frozen features of 150 raccoons, SGD at a rate of 0.02 and L2 on the box left 37 % of the validation windows'
    boxes above an IoU of 0.75 after the same steps, AdamW and generalised IoU 48 %.
    """
    return Schedule(
        steps=most,
        passes=passes,
        batch=batch,
        optimizer="adamw",
        schedule="cosine",
        learning_rate=1e-3,
        weight_decay=0.02,
        epochs=epochs,
        warm_up=50,
        backbone_multiplier=backbone_multiplier,
    )


def _finetuned(name: str, preset: str, classification: int, localization: int, detection: int) -> Recipe:
    """Make a recipe of the given steps for a network that starts `--from` one that classifies (5).

    Rates are a fifth of 3.1's at most: the features are to be kept. Momentum and L2 decay are as in 3.1.
    """
    return Recipe(
        name=name,
        data=None,
        preset=preset,
        classification=replace(WINDOWS, steps=classification, batch=64, learning_rate=5e-3, epochs=10),
        localization=replace(WINDOWS, steps=localization, epochs=5),
        detection=replace(WINDOWS, steps=detection, learning_rate=5e-3, epochs=20),
        side=SIDES[preset],
        views=ViewOptions(object_share=0.7),
        validation_images=200,
    )


def voc_fast() -> Recipe:
    """Fit `fast` to Pascal VOC, from a run that classifies.

    overfeat train voc-fast --data voc:DIR --from runs/fast --run runs/voc

    Not run here. A step takes 0.54 T multiply-adds (forward and backward) in classification, 0.71 T in localization
    and 1.48 T in detection: 2 hours in all at 10 T a second. The paper has no figure for VOC.
    """
    return _finetuned("voc-fast", "fast", classification=8_000, localization=4_000, detection=32_000)


def voc_accurate() -> Recipe:
    """Fit `accurate` to Pascal VOC, from a run that classifies.

    overfeat train voc-accurate --data voc:DIR --from runs/accurate --run runs/voc

    Not run here. A step takes 1.03 T multiply-adds (forward and backward) in classification, 1.24 T in localization
    and 2.97 T in detection: 3 hours in all at 10 T a second. The paper has no figure for VOC.
    """
    return _finetuned("voc-accurate", "accurate", classification=8_000, localization=4_000, detection=32_000)


def coco_fast() -> Recipe:
    """Fit `fast` to COCO, from a run that classifies.

    overfeat train coco-fast --data coco:DIR/{split}2017:DIR/annotations/instances_{split}2017.json
        --from runs/fast --run runs/coco

    Not run here. A step takes 0.54 T multiply-adds (forward and backward) in classification, 0.71 T in localization
    and 1.49 T in detection: 8 hours in all at 10 T a second. The paper has no figure for COCO.
    """
    return _finetuned("coco-fast", "fast", classification=40_000, localization=20_000, detection=160_000)


def coco_accurate() -> Recipe:
    """Fit `accurate` to COCO, from a run that classifies.

    overfeat train coco-accurate --data coco:DIR/{split}2017:DIR/annotations/instances_{split}2017.json
        --from runs/accurate --run runs/coco

    Not run here. A step takes 1.03 T multiply-adds (forward and backward) in classification, 1.24 T in localization
    and 2.97 T in detection: 15 hours in all at 10 T a second. The paper has no figure for COCO.
    """
    return _finetuned("coco-accurate", "accurate", classification=40_000, localization=20_000, detection=160_000)
