"""Both arithmetics of a model side by side, for its card: what each takes, and how far their scores are apart."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tensorflow as tf

from overfeat_tf.compute.execution import ARITHMETICS, execution_of
from overfeat_tf.models.model import Model
from serving.contract import DEFAULT_KEY
from serving.footprint import Footprint, measure
from serving.signatures import Servable


@dataclass(frozen=True)
class Comparison:
    """What was measured of a model.

    Attributes:
        footprints: What it takes by each arithmetic; one alone where no layer is transformed.
        error: The largest difference between the class scores before softmax, over the largest score; None likewise.
    """

    footprints: dict[str, Footprint]
    error: float | None


def compare(model: Model, folder: Path) -> Comparison | None:
    """Measure an exported model, and the same by the other arithmetic, each in a fresh process.

    Args:
        model: The model.
        folder: Its SavedModel.

    Returns:
        None where the system does not tell a process's memory.

    Raises:
        RuntimeError: it does not load or answer in a fresh process.
    """
    own = model.options.arithmetic
    footprint = measure(folder)
    if footprint is None:
        return None
    if not any(execution_of(network, "transformed").sides for network in model.networks):
        return Comparison({own: footprint}, None)
    other = next(name for name in ARITHMETICS if name != own)
    twin = model.with_options(arithmetic=other)
    with TemporaryDirectory(prefix="overfeat-arithmetic-") as place:
        servable = Servable(twin)
        tf.saved_model.save(servable, place, signatures={DEFAULT_KEY: servable.signatures_to_save()[DEFAULT_KEY]})
        found = {own: footprint, other: measure(Path(place)) or footprint}
    return Comparison({name: found[name] for name in ARITHMETICS}, _error(model, twin))


def _error(model: Model, twin: Model) -> float:
    height, width = max(model.options.scale_sizes(model.network.preset))
    noise = tf.constant(np.random.default_rng(1).integers(0, 256, (1, height, width, 3), np.uint8))
    scores, others = (each.inference.classify_images(noise)["logits"].numpy() for each in (model, twin))
    return float(np.abs(scores - others).max() / np.abs(scores).max())
