"""Batching across requests: those that ask the same of the same model run together, and each gets its own rows."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import grpc
import numpy as np
import tensorflow as tf

from serving.embedded.batching_options import BatchingOptions
from serving.embedded.turns import require_wanted, seconds_left, too_late
from serving.embedded.watch import Watch
from serving.refusal import Refusal, invalid

Tensors = Mapping[str, tf.Tensor]
Rows = Mapping[str, np.ndarray]

_log = logging.getLogger(__name__)


class Batcher:
    """Runs functions of tensors, of which dimension 0 is the batch, for several callers at once.

    Callers whose `key` is equal share a run: the key has to hold all that their tensors must have in common. Under a
    load that keeps all runs busy those who wait in the meantime become the next batch, so that no one need wait for
    company: a timeout of 0 is a good choice.
    """

    def __init__(self, options: BatchingOptions, watch: Watch | None = None):
        """Starts the threads that run the batches; daemons, since a model may compute for long.

        Args:
            options: how large batches are, and how many.
            watch: who cuts off a batch of which nobody waits any more.
        """
        self.options = options
        self._watch = watch or Watch()
        self._capacity = options.max_enqueued_batches * options.max_batch_size
        self._changed = threading.Condition()
        self._queues: dict[Hashable, deque[_Task]] = {}  # in the order of their first tasks' coming
        self._waiting_rows = 0
        self._closed = False
        for number in range(options.num_batch_threads):
            threading.Thread(target=self._work, name=f"batch-{number}", daemon=True).start()

    @property
    def waiting(self) -> int:
        """Counts the requests that wait."""
        with self._changed:
            return sum(map(len, self._queues.values()))

    def run(
        self,
        key: Hashable,
        function: Callable[..., Tensors],
        inputs: Tensors,
        deadline: float | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Rows:
        """Runs `function(**inputs)`, perhaps together with others' inputs of the same key, and waits for it.

        Returns:
            The rows of each output that belong to these inputs.

        Raises:
            Refusal: INVALID_ARGUMENT for a batch larger than the largest, UNAVAILABLE where the queue is full,
                DEADLINE_EXCEEDED or CANCELLED where it waited too long.
            tf.errors.OpError: the graph rejected these inputs, whatever others' were.
        """
        rows = _batch_size(inputs)
        if rows > self.options.max_batch_size:
            raise invalid(f"Task size {rows} is larger than maximum input batch size {self.options.max_batch_size}")
        if rows == 0:  # nothing to merge; TF Serving never answers these
            return _arrays(function(**inputs))
        task = _Task(function, inputs, rows, deadline, cancelled)
        with self._changed:
            if self._closed or self._waiting_rows + rows > self._capacity:
                message = "The batch scheduling queue to which this task was submitted is full"
                raise Refusal(grpc.StatusCode.UNAVAILABLE, message)
            self._queues.setdefault(key, deque()).append(task)
            self._waiting_rows += rows
            self._changed.notify()
        if not task.done.wait(seconds_left(deadline)):
            raise too_late()  # whoever takes it up sees the same
        outputs, error = task.result
        del task
        if error is None:
            return outputs
        try:
            raise error
        finally:
            del error  # else this frame, and what it holds, stays until the garbage is collected

    def close(self) -> None:
        """Ends the threads once nothing waits any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _work(self) -> None:
        while (batch := self._next_batch()) is not None:
            live = [task for task in batch if task.is_wanted()]
            try:
                _run(live, self._watch)
            except BaseException as error:  # a thread that ends leaves its callers waiting
                _log.exception("a batch failed")
                for task in live:
                    task.finish(error=RuntimeError(str(error)))
            del batch, live  # else the model stays until the next batch comes

    def _next_batch(self) -> list["_Task"] | None:
        with self._changed:
            while True:
                now = time.monotonic()
                soonest: float | None = None
                for key, queue in self._queues.items():
                    left = queue[0].came + self.options.batch_timeout_micros / 1e6 - now
                    if left <= 0 or self._closed or sum(task.rows for task in queue) >= self.options.max_batch_size:
                        return self._take(key)
                    soonest = left if soonest is None else min(soonest, left)
                if self._closed:
                    return None
                self._changed.wait(soonest)

    def _take(self, key: Hashable) -> list["_Task"]:
        queue, batch, rows = self._queues.pop(key), [], 0
        while queue and rows + queue[0].rows <= self.options.max_batch_size:
            rows += queue[0].rows
            batch.append(queue.popleft())
        if queue:  # behind the others: each key in its turn
            self._queues[key] = queue
            self._changed.notify()
        self._waiting_rows -= rows
        return batch


@dataclass(eq=False)
class _Task:
    """Holds what one caller waits for."""

    function: Callable[..., Tensors]
    inputs: Tensors
    rows: int
    deadline: float | None
    cancelled: Callable[[], bool] | None
    came: float = field(default_factory=time.monotonic)
    done: threading.Event = field(default_factory=threading.Event)
    result: tuple[Rows, Exception | None] = ({}, None)

    def is_wanted(self) -> bool:
        """Tells whether its caller still waits; else it is done with."""
        try:
            self.require_wanted()
        except Refusal as refusal:
            self.finish(error=refusal)
        return not self.done.is_set()

    def require_wanted(self) -> None:
        """Raises the Refusal of a caller that waits no more."""
        require_wanted(self.deadline, self.cancelled)

    def finish(self, outputs: Rows | None = None, error: Exception | None = None) -> None:
        """Gives the caller its answer, the first one that there is."""
        if not self.done.is_set():
            if error is not None:  # without frames, which hold the tasks, which hold the error
                error.__context__ = None
                error = error.with_traceback(None)
            self.result = outputs or {}, error  # in one step: the watch finishes tasks too
            self.done.set()


def _run(tasks: Sequence[_Task], watch: Watch) -> None:
    """Runs tasks together; if that fails each by itself, so that nobody fails for another's sake."""
    if len(tasks) > 1:
        try:
            with watch.over(lambda: _require_one(tasks)):
                together = tasks[0].function(**_merged([task.inputs for task in tasks]))
                for task, outputs in zip(tasks, _split(together, [task.rows for task in tasks]), strict=True):
                    task.finish(outputs)
            return
        except Exception as error:
            _log.debug("%d requests run one by one: %s", len(tasks), error)
    for task in tasks:
        if task.is_wanted():
            try:
                with watch.over(task.require_wanted):
                    task.finish(_arrays(task.function(**task.inputs)))
            except Exception as error:
                task.finish(error=error)


def _require_one(tasks: Sequence[_Task]) -> None:
    """Refuses a batch of which nobody waits any more, and lets those go in the meantime who do not."""
    if not any([task.is_wanted() for task in tasks]):
        raise too_late()


def _arrays(outputs: Tensors) -> Rows:
    return {name: tensor.numpy() for name, tensor in outputs.items()}


def _merged(inputs: Sequence[Tensors]) -> Tensors:
    return {name: tf.concat([each[name] for each in inputs], axis=0) for name in inputs[0]}


def _split(outputs: Tensors, sizes: Sequence[int]) -> list[Rows]:
    """Gives each task its rows of every output.

    Raises:
        ValueError: an output has not a row for each of the inputs.
    """
    arrays = _arrays(outputs)
    for name, array in arrays.items():
        if array.ndim == 0 or len(array) != sum(sizes):
            raise ValueError(f"expected {sum(sizes)} rows of {name}, got the shape {array.shape}")
    ends = np.cumsum(sizes)
    return [
        {name: array[end - size : end] for name, array in arrays.items()} for size, end in zip(sizes, ends, strict=True)
    ]


def _batch_size(inputs: Tensors) -> int:
    if any(tensor.shape.rank == 0 for tensor in inputs.values()):
        raise invalid("Batching Run() input tensors must have at least one dimension")
    sizes = {int(tensor.shape[0]) for tensor in inputs.values()}
    if len(sizes) != 1:
        raise invalid("Batching Run() input tensors must have equal 0th-dimension size")
    return sizes.pop()
