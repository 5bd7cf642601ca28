"""Transfer of weights: from another run (5) or a release, and to a classifier with a background class."""

import logging
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np

from overfeat_tf.models.loading import load_run
from overfeat_tf.models.model import Model
from overfeat_tf.models.tasks import BY_NAME
from overfeat_tf.network.convnet import build

log = logging.getLogger(__name__)


def start_from(model: Model, run: Path) -> Model:
    """Copy what fits of a run's weights into a fresh model, layer by layer; the features have to fit whole.

    Where the classes are the same, what the run was trained for counts as done and need not be fitted again: without
    the boxes where these start afresh, and nothing of a run that was trained for detection, since its classifier has
    grown a background class.

    Args:
        model: The fresh model, changed in place.
        run: The folder of a trained run, or of an imported release.

    Returns:
        The model with the tasks that count as done.

    Raises:
        ValueError: no run there, a committee, or one of other features.
    """
    old = load_run(run)
    if old.others:
        raise ValueError(f"expected one network to start from; '{run}' is a committee's: name one of its members")
    mine, theirs = model.network, old.network
    if [w.shape for w in mine.features.weights] != [w.shape for w in theirs.features.weights]:
        raise ValueError(
            f"expected a run with the features of '{mine.preset.name}' to start from; '{run}' has those of "
            f"'{theirs.preset.name}': choose a recipe for that network, or another run"
        )
    mine.features.set_weights(theirs.features.get_weights())
    known = model.labels == old.labels and not theirs.background
    fresh = _copy(mine.classifier, theirs.classifier, without=() if known else ("scores",))
    tasks = old.tasks if known and not fresh else ()
    if "regressor" in theirs.parts:
        other_box = mine.box_form != theirs.box_form or (mine.per_class and not known)
        fresh_boxes = _copy(mine.regressor, theirs.regressor, without=("box",) if other_box else ())
        if fresh_boxes:
            tasks = tuple(task for task in tasks if not BY_NAME[task].has_boxes)
        fresh += fresh_boxes
    log.info("starting from %s%s", run, f"; these layers start afresh: {', '.join(fresh)}" if fresh else "")
    return replace(model, tasks=tasks)


def with_background(model: Model) -> Model:
    """Add a background class to a classifier (5), keeping all that it has learnt; the new output starts at 0."""
    old = model.network
    network = build(
        old.preset,
        old.num_classes,
        background=True,
        per_class=old.per_class,
        box_form=old.box_form,
        context=old.context,
    )
    network.features.set_weights(old.features.get_weights())
    if "regressor" in old.parts:
        network.regressor.set_weights(old.regressor.get_weights())
    *_, kernel, bias = network.classifier.get_weights()
    *learnt, old_kernel, old_bias = old.classifier.get_weights()
    kernel[..., 0], kernel[..., 1:] = 0.0, old_kernel
    bias[0], bias[1:] = 0.0, old_bias
    network.classifier.set_weights([*learnt, kernel, bias])
    return Model(network, model.labels, model.options, model.tasks)


def _copy(mine: keras.Model, theirs: keras.Model, without: tuple[str, ...] = ()) -> list[str]:
    """Copy each layer's weights, but for those of other shapes and those named; return the names of the latter."""
    fresh, others = [], {layer.name: layer for layer in theirs.layers}
    for layer in mine.layers:
        if not layer.weights:
            continue
        weights = others[layer.name].get_weights() if layer.name in others else []
        if layer.name in without or [np.shape(w) for w in weights] != [tuple(w.shape) for w in layer.weights]:
            fresh.append(layer.name)
        else:
            layer.set_weights(weights)
    return fresh
