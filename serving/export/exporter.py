"""Export a SavedModel version: written to a staging folder, verified against the model, renamed into place."""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import tensorflow as tf

from overfeat_tf.compute.choice import processor
from overfeat_tf.models.loading import Exported
from overfeat_tf.models.model import CONFIG, SPLIT, Model
from overfeat_tf.models.predictor import Answers, choose_task
from overfeat_tf.models.tasks import BY_NAME
from serving.contract import SIGNATURES, differences
from serving.export.card import model_card
from serving.export.footprint import Comparison, compare
from serving.export.publishing import check_version, publish, staging_dir
from serving.export.signatures import ServingModule, signature_names
from serving.export.warmup import BATCHING, write_warmup
from serving.version_folders import read_signature_defs

TOLERANCE = 1e-4  # between the live model's answers and the reloaded one's, on values of about 1
LABELS = "labels.txt"
CARD = "MODEL_CARD.md"

_log = logging.getLogger(__name__)


def export(
    model: Model,
    to: Path,
    version: int | None = None,
    training: Mapping | None = None,
    metrics: Mapping | None = None,
    measure: bool = False,
    split: Mapping | None = None,
) -> Path:
    """Export a model as `to`/`version`.

    Nothing that a server would pick up is there before the reloaded model has answered as the live one, whenever the
    export may be killed. Several may export into one folder at the same time.

    Args:
        model: What to export.
        to: The model's folder; its name is the served model's.
        version: The version; the one after the highest if None.
        training: The run's configuration, for config.json and the card.
        metrics: Figures for the card by name; see `serving.export.card`.
        measure: Also measure memory and time for the card, in a process of its own (some ten seconds), by each
            arithmetic that may pay (a minute for the paper's networks).
        split: The run's split.json, if it has one: the export carries it, so that `evaluate` of the export holds out
            the same images.

    Returns:
        The version's folder.

    Raises:
        ValueError: the version exists, or is not a positive number.
        RuntimeError: the reloaded model answers otherwise, or does not in a fresh process.
    """
    check_version(to, version)
    name = to.resolve().name  # `to` may be `.`
    learnt = _without_paths(dict(training or {}))
    if split:
        learnt["split"] = f"{len(split['val'])} images held out as 'val', by seed {split['seed']}"
    module = ServingModule(model)
    signatures = module.signatures_to_save()
    with staging_dir(to) as folder:
        _log.info("%s: saving", to)
        tf.saved_model.save(module, str(folder), signatures=signatures)
        (folder / "assets").mkdir(exist_ok=True)
        (folder / "assets" / LABELS).write_text("".join(f"{label}\n" for label in model.labels))
        made = {
            "tensorflow": tf.__version__,
            "date": datetime.now(UTC).date().isoformat(),
            "arithmetic": model.options.arithmetic,
            "processor": processor(),
        }
        config = {
            "model": model.config(),
            "display_threshold": model.display_threshold,
            "training": learnt,
            "metrics": dict(metrics or {}),
            "exported": made,
        }
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        if split:
            carried = {**split, "source": _without_paths(split["source"])}
            (folder / SPLIT).write_text(json.dumps(carried, indent=1) + "\n")
        (folder / "batching_params.pbtxt").write_text(BATCHING)
        _log.info("%s: writing warm-up requests", to)
        write_warmup(folder, name, signature_names(model), module.default)
        _log.info("%s: comparing what was saved with the model", to)
        verify(model, folder)
        if measure:
            _log.info("%s: measuring memory and time", to)
        comparison = compare(model, folder) if measure else None
        if comparison is not None:
            _log_faster(comparison, model.options.arithmetic)

        def describe(number: int) -> None:
            card = model_card(model, name, number, folder, learnt, made, metrics, comparison)
            (folder / CARD).write_text(card)

        return publish(folder, to, version, describe)


def _log_faster(comparison: Comparison, chosen: str) -> None:
    seconds = {name: taken.next_seconds for name, taken in comparison.footprints.items()}
    best = min(seconds, key=lambda name: seconds[name])
    if seconds[best] < 0.85 * seconds[chosen]:
        times = f"{seconds[chosen]:.2f} s a request, {best} {seconds[best]:.2f} s"
        _log.info("%s took %s: see --arithmetic and the model card", chosen, times)


def verify(model: Model, folder: Path) -> None:
    """Compare the reloaded model's answer with the live one's, and each of its signatures with the contract.

    The task that a request without a name means runs every part of the network: it answers noise and a bad image. Of
    the other signatures, which call the same parts, the names, dtypes and shapes are read: a scan takes a large network
    some seconds.

    Raises:
        RuntimeError: they differ; the message says where.
    """
    found = read_signature_defs(folder)
    for name in signature_names(model):
        if name not in found:
            raise RuntimeError(f"expected the exported model to have the signature {name}: not exported")
        for difference in differences(SIGNATURES[name], found[name]):
            raise RuntimeError(f"the exported model's {name}: {difference}; not exported")
    pixels = np.random.default_rng(1).integers(0, 256, (1, 97, 131, 3), dtype=np.uint8)
    images = [tf.io.encode_png(pixels[0]).numpy(), b"no image"]
    task = BY_NAME[choose_task(model)]
    with _unoptimized():
        _compare(task.call, getattr(Exported(folder), task.call)(images), getattr(model, task.call)(images))


def _without_paths(value):
    """Leave out where on this machine the data lay: `voc:/home/me/cats` becomes `voc:cats`.

    What has a slash is a path, but for the names of TensorFlow Datasets, such as `tfds:voc/2007`.
    """
    if isinstance(value, Mapping):
        return {key: _without_paths(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_paths(each) for each in value]
    if isinstance(value, str):
        parts = re.split(r"([:,=] ?)", value)
        named = {at + 2 for at, part in enumerate(parts) if part.strip() == "tfds"}  # what comes after the colon
        return "".join(
            part if at in named and not part.startswith(("/", "~", ".")) else Path(part).name if "/" in part else part
            for at, part in enumerate(parts)
        )
    return value


def _compare(name: str, answer: Answers, live: Answers) -> None:
    for key, value in answer.items():
        same = value.shape == live[key].shape and (
            np.allclose(value, live[key], rtol=TOLERANCE, atol=TOLERANCE)
            if value.dtype.kind == "f"
            else np.array_equal(value, live[key])
        )
        if not same:
            raise RuntimeError(f"the exported model's {name} differs from the live one's in '{key}': not exported")


@contextmanager
def _unoptimized() -> Iterator[None]:
    """Leave graphs as they are: optimizing them for the one request of a verification takes half of an export."""
    before = tf.config.optimizer.get_experimental_options().get("disable_meta_optimizer", False)
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": before})
