"""The paper's own recipe on ImageNet (3.1, 4.2, 5).

The paper says when the rate halves, not when training ends: 90 epochs here, ten after the last halving. Nor does it
say what an epoch is: here as many views as there are images (1,281,167), ten of each decoded image. With all ten views
of all images it would be ten times as much work.

It gives no schedules for localization and detection: theirs here are 3.1's rates for fewer, larger views, and clipped
gradients, since a batch of windows from few images is less even than one of crops.

Expected times, here and for VOC and COCO, are arithmetic: 10 T multiply-adds a second are a GPU's 20 TFLOP/s.
"""

from dataclasses import replace

from overfeat_tf.options import InferenceOptions
from training.recipes.recipe import Recipe, Schedule
from training.views.augmentation import ViewOptions

IMAGES = 1_281_167
BATCH, EPOCHS = 128, 90
CLASSIFICATION = Schedule(  # 3.1
    steps=EPOCHS * (IMAGES // BATCH),
    batch=BATCH,
    learning_rate=5e-2,
    drops=(),
    drop_epochs=(30, 50, 60, 70, 80),
    factor=0.5,
    momentum=0.6,
    weight_decay=1e-5,
    decay="l2",
    clip=None,
    epochs=EPOCHS,
)
WINDOWS = replace(CLASSIFICATION, batch=32, learning_rate=1e-2, drops=(0.4, 0.6, 0.8), drop_epochs=(), clip=3.0)
SIDES = {"fast": 311, "accurate": 317}  # of Table 5's kind, the third scale: 6 x 6 and 9 x 9 windows at fine stride


def imagenet_fast() -> Recipe:
    """Train `fast` as the paper has it.

    overfeat train imagenet-fast --data ilsvrc:DIR --run runs/fast
    overfeat train imagenet-fast --data tfds:imagenet2012+boxes=DIR --run runs/fast

    Not run here. A step takes 1.08 T multiply-adds (forward and backward) in classification, and there are 900,810
    of them; 0.71 T in localization and 1.50 T in detection: 47 hours in all at 10 T a second. The paper's classifier
    has a top-5 error of 16.27 % with six scales at fine stride (Table 2).
    """
    return _paper("fast")


def imagenet_accurate() -> Recipe:
    """Train `accurate` as the paper has it.

    overfeat train imagenet-accurate --data ilsvrc:DIR --run runs/accurate

    Not run here. A step takes 2.06 T multiply-adds (forward and backward) in classification, and there are 900,810
    of them; 1.24 T in localization and 3.00 T in detection: 92 hours in all at 10 T a second. The paper's classifier
    has a top-5 error of 14.18 % with four scales at fine stride (Table 2); its localization error is 30.0 % with four
    scales (Fig. 9).
    """
    return _paper("accurate")


def _paper(preset: str) -> Recipe:
    return Recipe(
        name=f"imagenet-{preset}",
        data=None,
        preset=preset,  # with dropout 0.5 and initial weights from N(0, 0.01)
        classification=CLASSIFICATION,
        localization=replace(WINDOWS, steps=200_000, epochs=20),
        detection=replace(WINDOWS, steps=400_000, epochs=40),
        side=SIDES[preset],
        views=ViewOptions(per_image=5, plain=True),
        # As 3.3 and 4.3 have it. The scales keep the image's aspect, as the views of training do; the rows of Table 2
        # and Fig. 9 ask for Table 5's exact sizes themselves.
        inference=InferenceOptions(flips=True, merge_average="plain", localize_by="accumulated"),
        validation_images=500,
    )
