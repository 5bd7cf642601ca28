"""Small networks fitted from nothing: the embedded digit scenes, Pascal VOC's layout, Tiny ImageNet."""

from dataclasses import replace

from overfeat_tf.options import InferenceOptions
from training.recipes.recipe import Recipe, Schedule
from training.views.augmentation import ViewOptions
from training.views.targets import Matching


def digits() -> Recipe:
    """Train `tiny` on the digit scenes.

    overfeat train digits --run runs/digits

    12 CPU minutes at most, five to seven on two cores; on the first 200 test scenes mAP of 0.65 to 0.66, and of 0.93 to
    0.95 at IoU 0.5.
    """
    return Recipe(
        name="digits",
        data="digits",
        preset="tiny",
        classification=Schedule(steps=900, batch=128, learning_rate=0.05, epochs=5),
        localization=Schedule(steps=100, batch=64, learning_rate=0.05, epochs=1),
        detection=Schedule(steps=1400, batch=64, learning_rate=0.05, epochs=7),
        side=68,
        scales="auto",
        fine=False,  # views fall at random offsets as it is: more views for the same work
        precision="auto",
        box_form="center_size",  # 0.015 more mAP than edges, three seeds (docs/results.md)
        ema=0.99,
        matching=Matching(sizes=(0.48, 0.92)),
        # Narrower and wider than they were written: train has few digits that are more than three times as high as
        # wide. With a stretch of 0.15 AP50 of the digit 1 is 0.68 on test scenes, with 0.8 it is 0.90.
        views=ViewOptions(per_image=8, mirror=False, object_share=0.7, stretch=0.8, colour=0.35),
    )


def digits_quick() -> Recipe:
    """Train `tiny` on the digit scenes in half the time, as the demo does.

    overfeat train digits-quick --run runs/digits

    Two to four minutes on two cores; on the first 200 test scenes mAP of 0.55 to 0.59, and of 0.88 to 0.91 at IoU 0.5.
    """
    recipe = digits()
    return replace(
        recipe,
        name="digits-quick",
        # So few steps find more digits, with boxes less exact, by edges (docs/results.md).
        box_form="edges",
        ema=None,
        # So few steps do not learn shapes that differ much: mAP is 0.56 with the stretch of the longer recipe.
        views=replace(recipe.views, stretch=0.15),
        classification=replace(recipe.classification, steps=540, epochs=3),
        localization=replace(recipe.localization, steps=60),
        detection=replace(recipe.detection, steps=640, epochs=4),
    )


def voc() -> Recipe:
    """Train `small` on a Pascal VOC folder of a few hundred photographs.

    overfeat train voc --data voc:DIR --run runs/NAME

    On 150 photographs of raccoons, which fill half of the picture and more, mAP at IoU 0.5 of 0.63 on 50 others (0.29
    over 0.5:0.95; 0.78 for those longer than two thirds of the picture) in 22 CPU minutes. On 290
    photographs of playing cards, 6 classes, it was 0.84 (0.60) before scales were chosen from the data, in under
    an hour on two cores. Since then half of the steps were run on them: 0.78 (0.52), at the four scales that are
    chosen now, of a run that was trained at three.
    """
    # So few pictures, so often: L2 decay and views that differ much keep them from being learnt by heart.
    return Recipe(
        name="voc",
        data=None,
        preset="small",
        classification=_three_drops(3000, 64, epochs=5),
        localization=Schedule(steps=150, batch=32, learning_rate=0.03, epochs=1),
        detection=_three_drops(2800, 32, epochs=7),
        side=157,
        scales="auto",
        fine=False,
        precision="auto",
        box_form="center_size",  # 0.044 more mAP on cards than edges, three seeds (docs/results.md)
        views=ViewOptions(mirror=False, object_share=0.7, stretch=0.3, colour=0.4),
    )


def tinyimagenet() -> Recipe:
    """Train `thumbnail` on pictures of 64 x 64 pixels with an object and a box each, from nothing.

    overfeat train tinyimagenet --data voc:DIR --run runs/NAME --stage classification,localization

    54 CPU minutes, half an hour on two cores. On 20 of Tiny ImageNet's classes, 3200 pictures: top-1 of 64 % on 800
    others, and 52 % with a box of IoU 0.5 (0.81 of those named rightly; of a box that never moves, 0.69).
    """
    return Recipe(
        name="tinyimagenet",
        data=None,
        preset="thumbnail",
        # So few pictures, so often: decay and views that differ much hold top-1 up by as much as more steps do.
        classification=_three_drops(4000, 64, epochs=16),
        localization=Schedule(steps=3000, batch=32, learning_rate=0.03, epochs=5),
        detection=Schedule(steps=1500, batch=32, learning_rate=0.01, epochs=5),
        side=72,
        precision="auto",
        matching=Matching(sizes=(0.5, 1.2), shift=0.2),
        views=ViewOptions(per_image=2, stretch=0.3, colour=0.3, whole_image=True),
        inference=InferenceOptions(scales=(1, 2, 3), flips=True, merge_threshold=0.3),
    )


def _three_drops(steps: int, batch: int, epochs: int) -> Schedule:
    """Return a schedule whose learning rate drops three times, with L2 decay."""
    drops = (0.5, 0.75, 0.9)
    return Schedule(steps, batch, learning_rate=0.02, drops=drops, weight_decay=5e-4, decay="l2", epochs=epochs)
