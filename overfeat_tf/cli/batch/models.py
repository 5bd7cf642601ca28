"""The models of `overfeat batch`: one in this process, or one in each of several processes."""

import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import tensorflow as tf

from overfeat_tf.cli.options import load_tensorflow
from overfeat_tf.cli.predict.outputs import Outputs
from overfeat_tf.cli.predict.run import answer_each, encoded_call
from overfeat_tf.models.loading import load
from overfeat_tf.models.predictor import choose_task
from overfeat_tf.models.tasks import BY_NAME

REPORT_SECONDS = 60.0

log = logging.getLogger(__name__)


class Models:
    """Answers batches of encoded images, as many at a time as there are processes: one keeps its cores busy."""

    def __init__(self, folder: str, task: str | None, threads: int | None, processes: int):
        self.processes = processes
        self._executor: Executor
        self._answer: Callable[[list[bytes]], list[Outputs]]
        if processes == 1:
            self._executor, self._answer = ThreadPoolExecutor(1), LoadedModel(folder, task, threads).answer
        else:
            threads = threads or max(1, len(os.sched_getaffinity(0)) // processes)
            spawn = get_context("spawn")  # TensorFlow does not survive a fork
            self._executor = ProcessPoolExecutor(processes, spawn, _load, (folder, task, threads))
            self._answer = _answer
        self._images, self._began = 0, time.monotonic()
        self._told = self._began

    def submit(self, images: list[bytes]) -> Future[list[Outputs]]:
        """Ask for the outputs of images.

        Raises:
            BrokenProcessPool: here or by the result: a process has died.
        """
        self._images += len(images)
        now = time.monotonic()
        if now - self._told > REPORT_SECONDS:
            log.info("%d images, %.1f a second", self._images, self._images / (now - self._began))
            self._told = now
        return self._executor.submit(self._answer, images)


class LoadedModel:
    """A model in memory."""

    def __init__(self, folder: str, task: str | None, threads: int | None):
        if threads is not None:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(threads)
        load_tensorflow()
        loaded = load(folder)
        self._call = encoded_call(loaded, BY_NAME[choose_task(loaded, task)])

    def answer(self, images: list[bytes]) -> list[Outputs]:
        """Return each image's outputs, or its status alone."""
        return answer_each(self._call, images)


_models: list[LoadedModel] = []  # of a process that `Models` starts: the one that it has loaded


def _load(folder: str, task: str | None, threads: int | None) -> None:
    _models.append(LoadedModel(folder, task, threads))


def _answer(images: list[bytes]) -> list[Outputs]:
    return _models[0].answer(images)
