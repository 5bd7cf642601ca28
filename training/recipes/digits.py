"""The embedded digit scenes."""

from overfeat_tf.options import InferenceOptions
from training.pipeline import ViewOptions
from training.recipes.recipe import Recipe, Schedule
from training.targets import Matching


def digits() -> Recipe:
    """Train `tiny` on the digit scenes.

    overfeat train digits --run runs/digits

    Five minutes on two cores; mAP at IoU 0.5 of 0.90 on the first 200 test scenes (0.57 over 0.5:0.95).
    """
    return Recipe(
        name="digits",
        data="digits",
        preset="tiny",
        classification=Schedule(steps=540, batch=128, rate=0.05, epochs=3),
        localization=Schedule(steps=60, batch=64, rate=0.05, epochs=1),
        detection=Schedule(steps=640, batch=64, rate=0.05, epochs=4),
        side=68,
        fine=False,  # views fall at random offsets as it is: more views for the same work
        matching=Matching(sizes=(0.48, 0.92)),
        views=ViewOptions(per_image=8, mirror=False, object_share=0.7, colour=0.35),
        inference=InferenceOptions(min_score=0.2, merge_threshold=0.5),
    )
