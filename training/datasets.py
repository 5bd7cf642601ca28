"""Data sets from Python: records as tf.data, and the batches that `fit` takes. `overfeat_tf.datasets` is this module.

data = overfeat_tf.datasets.open("voc:DIR")
data.splits, data.class_names
data.records("train")                                       # a tf.data.Dataset of dictionaries
data.batches("detection", network, "voc")                   # a tf.data.Dataset of (pixels, targets)
"""

from collections.abc import Sequence
from dataclasses import replace

import tensorflow as tf

from overfeat_tf.arguments import suggest
from overfeat_tf.models.tasks import CLASSIFICATION, TASKS
from overfeat_tf.network.convnet import Network
from training.recipes import Recipe, get_recipe
from training.sources import open_data
from training.sources.dataset import Data
from training.sources.record import Source, as_dataset
from training.tasks import stage_views
from training.views.pipeline import training_batches

__all__ = ["Dataset", "open"]


class Dataset:
    """An open data set, which `overfeat_tf.train` takes too.

    Attributes:
        source: The source of its records.
    """

    def __init__(self, source: Source):
        self.source = source

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of its splits."""
        return self.source.splits

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in the order of their labels."""
        return self.source.class_names

    def records(self, split: str) -> tf.data.Dataset:
        """Stream a split's records, in a fixed order, each a dictionary.

        "image_bytes" string [] is encoded; "boxes" float32 [n, 4] are [ymin, xmin, ymax, xmax], normalised in the image
        as displayed; "labels" int32 [n] are from 0. Besides there are "image_id", and bool [n] "boxed" (False: a class
        without a box, whose box is the whole image), "difficult", "crowd", "truncated" and "occluded". What can't be
        used is left out, with a line in the log.

        Raises:
            ValueError: no such split.
        """
        return as_dataset(self.source, split)

    def batches(
        self,
        stage: str,
        network: Network,
        recipe: Recipe | str,
        split: str = "train",
        batch: int | None = None,
        seed: int | None = None,
    ) -> tf.data.Dataset:
        """Batch the views of a split that a stage learns from, for ever, as `fit` takes them.

        Args:
            stage: "classification" gives (pixels float32 [B, window, window, 3], labels int32 [B]); "localization" and
                "detection" give (pixels [B, side, side, 3], {"scores": int32 [B, h, w], "boxes": float32 [B, h, w, 5]})
                for the outputs of `network.as_model(recipe.side, recipe.fine)`: of each window its label (-1 is
                ignored, 0 background, else class + 1), and the box [top, left, bottom, right] in window sides with the
                class that it is of (0: none). Localization has no "scores" unless the recipe has `through_features`.
            network: The network that is fitted, at whose scales the images are shown.
            recipe: How they are shown: its views, side, stride, matching, batch and seed; or its name.
            split: The split.
            batch: Views in a batch; the recipe's if left out.
            seed: Of the order and of the views; the recipe's if left out. The same seed gives the same batches.

        Raises:
            ValueError: no such stage, recipe or split, data that has nothing to learn, or a network whose windows are
                larger than the recipe's views, of stages with boxes.
        """
        if stage not in TASKS:
            raise ValueError(f"expected a stage, one of {', '.join(TASKS)}; got '{stage}'{suggest(stage, TASKS)}")
        if stage != CLASSIFICATION.name and not self.source.boxed:
            raise ValueError(f"expected boxes for {stage}; {self.source.name} has classes alone")
        recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
        if stage != CLASSIFICATION.name:
            recipe.check_side(network.preset)
        options = replace(recipe.inference, scales=None) if recipe.scales != "preset" else recipe.inference
        views = stage_views(stage, network.preset, recipe, options)
        if not any(map(views.shows, self.source.records(split))):
            raise ValueError(
                f"expected images with something to learn in split '{split}' of {self.source.name}; got none"
            )
        size = getattr(recipe, stage).batch if batch is None else batch
        return training_batches(self.source, split, views, size, recipe.seed if seed is None else seed)

    def __repr__(self) -> str:
        """Name the data, its classes and splits."""
        count = len(self.class_names)
        return f"<Dataset {self.source.name}: {count} class{'es' * (count != 1)}; splits {', '.join(self.splits)}>"


def open(data: Data, class_names: Sequence[str] | None = None) -> Dataset:
    """Open a data set.

    Args:
        data: A SOURCE of the command line, such as "digits", "voc:DIR", "coco:IMAGES_DIR:ANNOTATIONS.json" or
            "folder:DIR"; or a `tf.data.Dataset` of dictionaries with "image" or "image_bytes", "labels", and "boxes"
            [ymin, xmin, ymax, xmax] from 0 to 1; or a dictionary of such data sets by split
            (`training.sources.dataset.DatasetSource` has the details).
        class_names: Of tf.data, in the order of the labels; if left out, the labels are read for them.

    Raises:
        ValueError: no such source, nothing there, or elements of another kind.
    """
    return Dataset(open_data(data, class_names))
