"""Data that goes away while a stage is fitted: one line, a checkpoint, and an end."""

import math
from dataclasses import replace
from itertools import islice

import pytest
import tensorflow as tf
from small_run import RECIPE
from small_source import few_digits

from overfeat_tf.models.model import Model
from overfeat_tf.network.convnet import build
from training.fit import supply as module
from training.fit.supply import Supply, validation_data
from training.fit.train import train
from training.sources.checks import Finding, Kind


class Vanishing:
    """Has records for so many passes, and then none, or fails."""

    def __init__(self, passes: int, error: Exception | None = None):
        self._source, self._left, self._error = few_digits(8, 2), passes, error

    def __getattr__(self, name: str):
        return getattr(self._source, name)

    def records(self, split: str, limit: int | None = None):
        self._left -= split == "train"
        if self._left >= 0:
            return self._source.records(split, limit)
        if self._error is not None:
            raise self._error
        return iter(())


def test_a_pass_that_gives_nothing_ends_the_supply():
    supply = Supply(Vanishing(2))
    assert (supply.splits, supply.name) == (("train", "val"), "small")
    assert [len(list(supply.records("train"))) for _ in range(2)] == [8, 8]
    with pytest.raises(OSError, match="expected images in split 'train' of small; none is left: is the data still"):
        list(supply.records("train"))
    assert isinstance(supply.problem, OSError)


def test_passes_without_anything_to_show_end_it_too():
    source = few_digits(8, 2)
    supply, rare = Supply(source), source.records_of["train"][3]
    shows = supply.noting("train", lambda record: record is rare)
    for _ in range(9):  # one in so many may go on for ever
        assert [shows(record) for record in supply.records("train")].count(True) == 1
    with pytest.raises(OSError, match=r"none has an object to learn: `overfeat inspect` shows what is wrong$"):
        for _ in range(module.PASSES + 1):
            list(supply.records("train"))


def test_images_that_cannot_be_read_end_it_where_so_many_follow_each_other(caplog):
    supply = Supply(few_digits(8, 2))
    damaged = Finding(Kind.UNREADABLE, "cut short", "damaged or truncated")
    numbers = [*range(0, 3 * module.IN_A_ROW, 2), *range(100, 99 + module.IN_A_ROW)]
    for number in numbers:  # every other one may go on for ever
        supply.unreadable(number, damaged)
    assert len(caplog.messages) == 1
    with pytest.raises(OSError, match=r"^expected images that can be read in small; 32 one after the other cannot"):
        supply.unreadable(99 + module.IN_A_ROW, damaged)
    assert isinstance(supply.problem, OSError)


def test_it_stops_at_the_next_record_where_asked():
    supply = Supply(few_digits(8, 2))
    records = supply.records("train")
    assert len(list(islice(records, 3))) == 3
    supply.stop()
    with pytest.raises(OSError, match="stopped"):
        next(records)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        pytest.param(
            None,
            "expected images in split 'train' of small; none is left: is the data still there?",
            marks=pytest.mark.long,
        ),
        (FileNotFoundError(2, "No such file or directory", "lists/train.txt"), "lists/train.txt"),
    ],
)
def test_a_run_whose_data_goes_away_ends_with_a_line_and_keeps_its_step(tmp_path, error, line):
    schedule = replace(RECIPE.classification, steps=10_000, epochs=2)
    recipe = replace(RECIPE, classification=schedule, val_split="none")
    with pytest.raises(OSError) as ended:
        train(recipe, Vanishing(6, error), tmp_path / "run", ["classification"])
    told = str(ended.value)
    assert line in told and "\n" not in told and "Traceback" not in told
    (step,) = (int(word) for word in told.partition("step ")[2].split()[:1])
    assert step > 0 and (tmp_path / "run" / "checkpoints" / "classification" / f"ckpt-{step}.index").is_file()
    assert told.endswith(f"step {step} is kept, and the same command resumes from there")


def test_validation_sees_each_image_once_or_at_each_scale():
    """Views count, not images: mirrored crops are two of one image, complete images one at each scale."""
    source = few_digits(3, 8)
    model = Model(build("tiny", 10, weights=False), source.class_names, RECIPE.inference)
    for stage, views, rows in (
        ("classification", replace(RECIPE.views, plain=True), 8),
        ("localization", replace(RECIPE.views, whole_image=True), 16),
    ):
        recipe = replace(RECIPE, views=views)
        batches, count = validation_data(stage, model, recipe, source, Supply(source))
        pixels = [tf.nest.flatten(batch)[0].numpy() for batch in batches.take(count)]
        firsts = {each.tobytes() for batch in pixels for each in batch}
        assert count == math.ceil(rows / 4) and len(firsts) >= 8
