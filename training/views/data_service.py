"""Views from TensorFlow's tf.data service: its workers read, decode and draw, and the batches are those of one process.

The service gives elements in any order, and loses those of a worker that dies. So each is numbered; here they are put
in order, and one that does not come is drawn here. The workers are TensorFlow's own (`tf.data.experimental.service`),
without this package: they read the images from a file, which has to be on a file system that they share.
"""

import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain, count, islice
from pathlib import Path
from queue import Empty, Queue
from threading import Event, Lock, Thread
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from training.sources.checks import Finding, Kind
from training.sources.record import SCHEMA, Record, Source
from training.views.drawing import Views, draw_views
from training.views.reading import RecordStream, ReportUnreadable, decode_record, pack, stack, unpack

JOB = 4096  # images that the service is asked for at once
AHEAD = 64  # images that may overtake one before it is drawn here; 10 views of 224 pixels are 1.5 MB
PATIENCE = 10.0  # seconds without an image, after which they are drawn here until the next comes

OBJECT_KEYS = [key for key, spec in SCHEMA.items() if spec.shape.rank]

log = logging.getLogger(__name__)


class StoredSource:
    """A source whose images of one split are joined in one file, which TensorFlow's operations read.

    There `image_bytes` of a record is where its image lies: offset and length in the file, as the bytes of int64 [2].
    """

    def __init__(self, source: Source, split: str, folder: Path):
        self.images_file = (folder / f"{split}.images").resolve()
        self._source, self._split, self._objects = source, split, folder / f"{split}.npz"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def write(self) -> None:
        """Copy the split, unless that was done."""
        if self._objects.is_file():
            return
        self.images_file.parent.mkdir(parents=True, exist_ok=True)
        log.info("the images of split '%s' are copied to '%s', for the data service", self._split, self.images_file)
        spans: list[tuple[int, int]] = []
        ids: list[str] = []
        objects: list[list[np.ndarray]] = []
        with self.images_file.open("wb") as file:
            for record in self._source.records(self._split):
                spans.append((file.tell(), file.write(record.image_bytes)))
                ids.append(record.image_id)
                objects.append([getattr(record, key) for key in OBJECT_KEYS])
        columns: dict[str, Any] = dict(zip(OBJECT_KEYS, map(np.concatenate, zip(*objects, strict=True)), strict=True))
        ends = np.cumsum([len(first) for first, *_ in objects])
        new = self._objects.with_suffix(".new.npz")
        np.savez(new, spans=np.array(spans, np.int64), ids=np.array(ids), ends=ends, **columns)
        os.replace(new, self._objects)

    def records(self, split: str, limit: int | None = None) -> Iterator[Record]:
        """Yield a split's records, as the source does."""
        if split != self._split:
            yield from self._source.records(split, limit)
            return
        with np.load(self._objects) as stored:
            spans, ids, ends = (stored[name] for name in ("spans", "ids", "ends"))
            columns = {key: np.split(stored[key], ends[:-1]) for key in OBJECT_KEYS}
        for number, (span, name) in islice(enumerate(zip(spans, ids, strict=True)), limit):
            yield Record(span.tobytes(), str(name), **{key: column[number] for key, column in columns.items()})


class DataService(NamedTuple):
    """A service's dispatcher, host:port, and the source whose images its workers read."""

    address: str
    source: StoredSource

    def require(self) -> None:
        """Raise OSError unless something answers at the address."""
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=PATIENCE).close()
        except (OSError, ValueError, OverflowError) as error:
            raise OSError(
                f"expected the dispatcher of a tf.data service at '{self.address}' (host:port); {error}"
            ) from error

    def drawn_views(self, stream: RecordStream, views: Views, seed: int, report: ReportUnreadable) -> tf.data.Dataset:
        """Return the drawn views of a stream of `source`'s records, in order; `report` hears of unreadable images."""
        file, size = str(self.source.images_file), self.source.images_file.stat().st_size

        def draw(number: tf.Tensor, packed: dict[str, Any]) -> tuple:
            record = unpack(packed, stream.signature)
            record["image_bytes"] = read_span(file, size, record["image_bytes"])
            if stream.partners:
                spans = tf.unstack(record["partners"]["image_bytes"])
                record["partners"]["image_bytes"] = tf.stack([read_span(file, size, span) for span in spans])
            record = decode_record(record)
            return number, (record["id"], record["status"], draw_views(views, seed, record))

        def dataset(first: int, packed: list[dict]) -> tf.data.Dataset:
            numbers = np.arange(first, first + len(packed))
            return tf.data.Dataset.from_tensor_slices((numbers, stack(packed))).map(draw, tf.data.AUTOTUNE)

        service = tf.data.experimental.service.distribute(
            tf.data.experimental.service.ShardingPolicy.DYNAMIC, f"grpc://{self.address}", compression=None
        )
        draw_here = tf.function(draw, autograph=False)

        def elements() -> Iterator[tuple]:
            jobs = Jobs(stream)

            def here(number: int) -> tuple:
                packed = tf.nest.map_structure(tf.constant, jobs[number // JOB][number % JOB])
                return draw_here(tf.constant(number, tf.int64), packed)[1]

            asked = (dataset(job * JOB, jobs[job]).apply(service) for job in count() if jobs[job])
            for number, (name, status, drawn) in enumerate(in_order(chain.from_iterable(asked), here)):
                if status != b"":
                    report(number, Finding(Kind.UNREADABLE, name.numpy().decode(), status.numpy().decode()))
                yield drawn

        _, (_, _, signature) = dataset(0, [pack(next(iter(stream)))]).element_spec
        return tf.data.Dataset.from_generator(elements, output_signature=signature)


class Jobs:
    """A stream of records in parts of `JOB`, packed. Two threads go through them, and of old ones nothing is left."""

    def __init__(self, stream: RecordStream):
        self._records, self._lock = iter(stream), Lock()
        self._jobs: list[list[dict]] = []

    def __getitem__(self, job: int) -> list[dict]:
        with self._lock:
            while len(self._jobs) <= job:
                self._jobs.append([pack(record) for record in islice(self._records, JOB)])
                for old in self._jobs[:-2]:
                    old.clear()
            return self._jobs[job]


def in_order(came: Iterator[tuple[int, Any]], make: Callable[[int], Any]) -> Iterator[Any]:
    """Yield values by their numbers, from 0 on.

    Args:
        came: Gives numbers with their values in nearly this order, each once or never; a thread iterates over it.
        make: Makes a value that does not come: `AHEAD` others have overtaken it, or none came for `PATIENCE`.
    """
    received: Queue[tuple[int, Any]] = Queue(AHEAD)
    ended = Event()

    def receive() -> None:
        try:
            for number, value in came:
                received.put((int(number), value))
                if ended.is_set():
                    return
        except Exception as error:
            log.warning("the data service has failed; images are drawn here: %s", str(error).partition("\n")[0])

    Thread(target=receive, name="data-service", daemon=True).start()
    waiting: dict[int, Any] = {}
    patience = PATIENCE
    try:
        for wanted in count():
            while wanted not in waiting and len(waiting) < AHEAD:
                try:
                    number, value = received.get(timeout=patience)
                except Empty:
                    if patience:
                        log.warning("the data service has given nothing for %.0f s; images are drawn here", patience)
                    patience = 0.0
                    break
                patience = PATIENCE
                if number >= wanted:
                    waiting[number] = value
            yield waiting.pop(wanted) if wanted in waiting else make(wanted)
    finally:
        ended.set()
        with suppress(Empty):  # the thread may wait to put another one
            while True:
                received.get_nowait()


def read_span(file: str, size: int, span: tf.Tensor) -> tf.Tensor:
    """Return the bytes of a file at `span`, the bytes of int64 offset and length; of an empty span none."""

    def read() -> tf.Tensor:
        offset, length = tf.unstack(tf.reshape(tf.io.decode_raw(span, tf.int64), [2]))
        # One record of so many bytes between a header and a footer.
        record = tf.data.FixedLengthRecordDataset([file], length, offset, size - offset - length)
        return record.get_single_element()

    return tf.cond(span == b"", lambda: b"", read)
