"""Folders in Pascal VOC's layout."""

from training.recipes.recipe import Recipe, Schedule
from training.views.augmentation import ViewOptions


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
        classification=_slowing(3000, 64, epochs=5),
        localization=Schedule(steps=150, batch=32, learning_rate=0.03, epochs=1),
        detection=_slowing(2800, 32, epochs=7),
        side=157,
        scales="auto",
        fine=False,
        precision="auto",
        box_form="center_size",  # 0.044 more mAP on cards than edges, three seeds (docs/results.md)
        views=ViewOptions(mirror=False, object_share=0.7, stretch=0.3, colour=0.4),
    )


def _slowing(steps: int, batch: int, epochs: int) -> Schedule:
    drops = (0.5, 0.75, 0.9)
    return Schedule(steps, batch, learning_rate=0.02, drops=drops, weight_decay=5e-4, decay="l2", epochs=epochs)
