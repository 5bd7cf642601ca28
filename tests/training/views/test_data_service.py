"""Batches from tf.data service are those of one process, also where a worker of the service dies."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice

import data_service as server
import numpy as np
import pytest
import tensorflow as tf
from small_run import RECIPE
from small_source import SmallSource, few_digits

from overfeat_tf.network.presets import PRESETS
from training.fit.train import train
from training.views import data_service as module
from training.views.augmentation import ViewOptions
from training.views.data_service import DataService, StoredSource, in_order
from training.views.drawing import Drawing, window_maps
from training.views.pipeline import training_batches
from training.views.targets import Matching


def damaged_among_others() -> SmallSource:
    source = few_digits(9, 2)
    records = source.records_of["train"]
    records[4] = replace(records[4], image_bytes=records[4].image_bytes[:2000], image_id="cut short")
    return source


def test_stored_records_are_those_of_the_source(tmp_path):
    source = damaged_among_others()
    stored = StoredSource(source, "train", tmp_path)
    for _ in range(2):
        stored.write()
    blob = stored.images_file.read_bytes()
    for found, record in zip(stored.records("train"), source.records("train"), strict=True):
        offset, length = np.frombuffer(found.image_bytes, np.int64)
        assert blob[offset : offset + length] == record.image_bytes and found.image_id == record.image_id
        for key in module.OBJECT_KEYS:
            np.testing.assert_array_equal(getattr(found, key), getattr(record, key))
        assert (
            module.read_span(str(stored.images_file), len(blob), tf.constant(found.image_bytes)) == record.image_bytes
        )


def test_values_come_in_order_and_those_that_do_not_come_are_made(monkeypatch, caplog):
    monkeypatch.setattr(module, "AHEAD", 4)
    monkeypatch.setattr(module, "PATIENCE", 0.2)

    def came() -> Iterator[tuple[int, str]]:
        yield from ((number, "came") for number in (1, 0, 3, 4, 5, 6, 7, 2, 8))
        raise OSError("gone")

    found = list(islice(in_order(came(), lambda number: f"made {number}"), 11))
    assert found == ["came", "came", "made 2", *["came"] * 6, "made 9", "made 10"]
    assert [line.partition(";")[0] for line in caplog.messages] == [
        "the data service has failed",
        "the data service has given nothing for 0 s",
    ]


def test_an_address_where_nothing_answers_is_refused(tmp_path):
    for address in ("localhost:1", "localhost"):
        with pytest.raises(
            OSError, match=rf"^expected the dispatcher of a tf.data service at '{address}' \(host:port\)"
        ):
            DataService(address, StoredSource(few_digits(1, 1), "train", tmp_path)).require()


@contextmanager
def serving(*arguments) -> Iterator[tuple[int, subprocess.Popen]]:
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    kind, *others = arguments
    command = [sys.executable, server.__file__, kind, str(port), *others]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        yield port, process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.long
def test_two_workers_of_which_one_is_killed_give_the_batches_of_one_process(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(module, "JOB", 40)
    monkeypatch.setattr(module, "PATIENCE", 5.0)
    views = ViewOptions(per_image=2, mosaic=0.5)
    shown = window_maps(Drawing(PRESETS["tiny"], PRESETS["tiny"].scales, Matching(), views, 96))
    source, rows = damaged_among_others(), range(1, 3)
    expected = training_batches(source, "train", shown, 4, 0, rows=rows).take(80)
    here = []
    monkeypatch.setattr(module, "in_order", lambda came, make: in_order(came, lambda n: (here.append(n), make(n))[1]))
    stored = StoredSource(source, "train", tmp_path)
    stored.write()
    with serving("dispatcher") as (port, _):
        address = f"localhost:{port}"
        with serving("worker", address) as (_, first), serving("worker", address):
            service = DataService(address, stored)
            service.require()
            served = training_batches(stored, "train", shown, 4, 0, rows=rows, service=service)
            for number, (found, wanted) in enumerate(zip(served, expected, strict=False)):
                tf.nest.map_structure(np.testing.assert_array_equal, found, wanted)
                if number == 20:
                    os.kill(first.pid, signal.SIGKILL)
    assert number == 79 and len(here) < 20, here
    assert len([line for line in caplog.messages if "cut short" in line]) == 2  # of each stream once


@pytest.mark.long
def test_a_run_with_the_service_ends_with_the_weights_of_one_without(tmp_path):
    source, stages = damaged_among_others(), ["detection"]
    alone, _ = train(RECIPE, source, tmp_path / "alone", stages)
    with serving("dispatcher") as (port, _), serving("worker", f"localhost:{port}"):
        served, _ = train(RECIPE, source, tmp_path / "served", stages, data_service=f"localhost:{port}")
    assert (tmp_path / "served" / "records" / "train.images").stat().st_size > 0
    for one, other in zip(alone.network.features.get_weights(), served.network.features.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
