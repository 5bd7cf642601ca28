"""Pictures of 64 x 64 pixels with one object each, as Tiny ImageNet's."""

from overfeat_tf.options import InferenceOptions
from training.recipes.recipe import Recipe, Schedule
from training.views.augmentation import ViewOptions
from training.views.targets import Matching


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
        classification=Schedule(
            steps=4000, batch=64, learning_rate=0.02, drops=(0.5, 0.75, 0.9), weight_decay=5e-4, decay="l2", epochs=16
        ),
        localization=Schedule(steps=3000, batch=32, learning_rate=0.03, epochs=5),
        detection=Schedule(steps=1500, batch=32, learning_rate=0.01, epochs=5),
        side=72,
        precision="auto",
        matching=Matching(sizes=(0.5, 1.2), shift=0.2),
        views=ViewOptions(per_image=2, stretch=0.3, colour=0.3, whole_image=True),
        inference=InferenceOptions(scales=(1, 2, 3), flips=True, merge_threshold=0.3),
    )
