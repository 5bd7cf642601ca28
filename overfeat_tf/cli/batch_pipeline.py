"""The pipeline of `overfeat batch`: list images, predict in batches of bytes, write Parquet files."""

import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow
import tensorflow as tf
from apache_beam.io import fileio
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.metrics import Metrics, MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions, _BeamArgumentParser
from apache_beam.portability.api.beam_provision_api_pb2 import ProvisionInfo
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.portability.fn_api_runner.fn_runner import ExtendedProvisionInfo
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.shared import Shared
from apache_beam.utils.windowed_value import WindowedValue
from google.protobuf import struct_pb2

from overfeat_tf.cli.options import load_tensorflow
from overfeat_tf.cli.predict import encoded_call
from overfeat_tf.images.files import MAX_BYTES, SUFFIXES, read_image
from overfeat_tf.models.loading import find_model, load, read_config
from overfeat_tf.models.predictor import choose_task
from overfeat_tf.models.tasks import BY_NAME, TASKS
from overfeat_tf.suggestion import suggest
from serving.errors import reason

# Of a batch, unless a single image is larger. Images are run one by one, so larger ones gain nothing.
BATCH_BYTES, BATCH_IMAGES = 8 << 20, 32
REPORT_SECONDS = 60.0
DONE, FILES = "_SUCCESS", "predictions"
SCHEMA = pyarrow.schema(
    [
        ("image", pyarrow.string()),  # its path
        ("status", pyarrow.string()),  # empty where it was read, else why not
        ("boxes", pyarrow.list_(pyarrow.list_(pyarrow.float32(), 4))),  # normalised yxyx, in the image as displayed
        ("scores", pyarrow.list_(pyarrow.float32())),  # falling
        ("classes", pyarrow.list_(pyarrow.string())),
    ]
)

log = logging.getLogger(__name__)
Row = dict[str, Any]


class Result(NamedTuple):
    """How many images were run, how many could not be read, and the seconds it took."""

    images: int
    unreadable: int
    seconds: float


def run(
    model: str,
    pattern: str,
    output: str,
    task: str | None = None,
    processes: int = 1,
    threads: int | None = None,
    runner: str | None = None,
    options: Sequence[str] = (),
) -> Result:
    """Run a model over images, and write a row for each into Parquet files.

    A runner that retries part of the work writes beside the files, and renames only what is complete.

    Args:
        model: A run or a SavedModel, on any file system.
        pattern: A folder, a glob, or a text file of paths.
        output: Folder for the files. What an interrupted run left there is removed.
        task: The model's last by default.
        processes, threads: On this machine: so many processes of so many threads.
        runner: Another runner of Beam, whose `options` size it.
        options: Beam's own options.

    Raises:
        ValueError: no image, no such model or task, unknown options, or an output that is complete already.
        WorkerLostError: one of the processes died.
    """
    if runner is not None and processes > 1:
        raise ValueError(f"expected no --processes with --runner {runner}, whose own options set its workers")
    require_known(options)
    source = list_images(pattern)
    if runner is None and "://" not in model:  # elsewhere it may be in the workers' image
        read_config(find_model(model))
    if task is not None and task not in TASKS:
        raise ValueError(f"expected a task of {', '.join(TASKS)}; got '{task}'{suggest(task, TASKS)}")
    clear_output(output)
    local = ["--direct_num_workers", str(processes)]
    local += ["--direct_running_mode", "multi_processing" if processes > 1 else "in_memory"]
    local += ["--default_sdk_harness_log_level=ERROR", '--sdk_harness_log_level_overrides={"overfeat_tf": "INFO"}']
    chosen = PipelineOptions([*(local if runner is None else ["--runner", runner]), *options])
    if runner is None and threads is None and processes > 1:
        threads = max(1, len(os.sched_getaffinity(0)) // processes)
    began = time.monotonic()
    pipeline = beam.Pipeline(runner=_local_runner(chosen) if runner is None else None, options=chosen)
    rows = (
        pipeline
        | "List" >> source
        | "Once" >> beam.Distinct()  # also spreads the images over the workers
        | "Predict" >> beam.ParDo(Predict(model, task, threads))
    )
    prefix = FileSystems.join(output, FILES)
    _ = rows | "Write" >> beam.io.WriteToParquet(prefix, SCHEMA, codec="snappy", file_name_suffix=".parquet")
    done = _run_watched(pipeline) if processes > 1 else pipeline.run()
    done.wait_until_finish()
    counted = done.metrics().query(MetricsFilter().with_namespace(FILES))["counters"]
    counts = {each.key.metric.name: each.result for each in counted}
    with FileSystems.create(FileSystems.join(output, DONE)):
        pass
    return Result(counts.get("images", 0), counts.get("unreadable", 0), time.monotonic() - began)


def _local_runner(options: PipelineOptions) -> FnApiRunner:
    """Return the runner of this machine, whose processes know the options, such as those of file systems."""
    told = struct_pb2.Struct()
    told.update(
        {name: value for name, value in options.get_all_options(drop_default=True).items() if "direct_" not in name}
    )
    return FnApiRunner(provision_info=ExtendedProvisionInfo(ProvisionInfo(pipeline_options=told)))


class WorkerLostError(RuntimeError):
    """A process of the local runner died."""


def _run_watched(pipeline: beam.Pipeline) -> Any:
    """Run a pipeline; raise WorkerLostError where a process dies: the local runner would wait for it for ever."""
    ended: SimpleQueue[Any] = SimpleQueue()
    usual = threading.excepthook

    def lost(args: threading.ExceptHookArgs) -> None:
        watched = args.thread is not None and args.thread.name in ("run_worker", "beam_control_read")
        if watched:
            ended.put(WorkerLostError("expected all processes to live; one died: the same command starts again"))
        else:
            usual(args)

    def run() -> None:
        try:
            ended.put(pipeline.run())
        except Exception as error:
            ended.put(error)

    threading.excepthook = lost
    try:
        threading.Thread(target=run, daemon=True).start()
        outcome = ended.get()
    finally:
        threading.excepthook = usual
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def list_images(pattern: str) -> beam.PTransform:
    """Return the transform that lists the paths of images.

    Raises:
        ValueError: there is none.
    """
    if pattern.endswith(".txt"):
        if not FileSystems.exists(pattern):
            raise ValueError(f"expected a text file of paths, a line each; there is no '{pattern}'")
        strip = beam.Map(str.strip)
        return _chain(beam.io.ReadFromText(pattern), "Strip" >> strip, "Filled" >> beam.Filter(bool))
    folder = Path(pattern).is_dir()
    found = FileSystems.match([str(Path(pattern) / "**") if folder else pattern], None if folder else [1])[0]
    if not any(not folder or _is_image(each.path) for each in found.metadata_list):
        raise ValueError(f"expected image files; '{pattern}' matches none")
    paths = _chain(fileio.MatchFiles(found.pattern), beam.Map(lambda file: file.path))
    return _chain(paths, "Images" >> beam.Filter(_is_image)) if folder else paths


def clear_output(output: str) -> None:
    """Remove what an interrupted run left in the output folder.

    Raises:
        ValueError: a run is complete there.
    """
    if FileSystems.exists(FileSystems.join(output, DONE)):
        raise ValueError(f"expected an --output without a complete run; '{output}' has {DONE}")
    for pattern in (f"{FILES}-*.parquet", f"*beam-temp-{FILES}-*/**"):
        left = [each.path for each in FileSystems.match([FileSystems.join(output, pattern)])[0].metadata_list]
        if left:
            FileSystems.delete(left)


def require_known(options: Sequence[str]) -> None:
    """Raise ValueError for options that no runner of Beam has, and for arguments that are none."""
    parser = _BeamArgumentParser(allow_abbrev=False, add_help=False)
    for group in PipelineOptions.__subclasses__():
        group._add_argparse_args(parser)
    _, unknown = parser.parse_known_args(list(options))
    if unknown and not unknown[0].startswith("-"):
        raise ValueError(f"expected one INPUT_GLOB, in quotes if the shell would expand it; got '{unknown[0]}' too")
    if unknown:
        name = unknown[0].partition("=")[0]
        known = [flag for action in parser._actions for flag in action.option_strings]
        raise ValueError(f"expected an option of `overfeat batch` or of Beam; got '{name}'{suggest(name, known)}")


class Predict(beam.DoFn):
    """Predict images by their paths, in batches of `BATCH_BYTES`; the model is loaded once in a process."""

    def __init__(self, model: str, task: str | None, threads: int | None):
        self._model, self._task, self._threads, self._shared = model, task, threads, Shared()
        self._images, self._unreadable = (Metrics.counter(FILES, name) for name in ("images", "unreadable"))

    def setup(self) -> None:
        """Load the model, unless the process has it."""
        self._loaded = self._shared.acquire(lambda: _Loaded(self._model, self._task, self._threads))

    def start_bundle(self) -> None:
        """Begin with an empty batch."""
        self._batch: list[tuple[str, bytes]] = []
        self._bytes = 0

    def process(self, path: str) -> Iterator[Row]:
        """Read an image; run the batch before it, where that is full."""
        data, problem = read(path)
        if problem:
            yield self._row(path, problem)
            return
        if self._batch and (len(self._batch) == BATCH_IMAGES or self._bytes + len(data) > BATCH_BYTES):
            yield from self._rows()
        self._batch.append((path, data))
        self._bytes += len(data)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        """Run the last batch."""
        for row in self._rows():
            yield GlobalWindows.windowed_value(row)

    def _rows(self) -> Iterator[Row]:
        batch, self._batch, self._bytes = self._batch, [], 0
        answers = self._loaded.answer([data for _, data in batch])
        for (path, _), outputs in zip(batch, answers, strict=True):
            yield self._row(path, _text(outputs.pop("status")), outputs)

    def _row(self, path: str, status: str, outputs: dict[str, np.ndarray] | None = None) -> Row:
        self._images.inc()
        if status:
            self._unreadable.inc()
            outputs = None
        return {"image": path, "status": status, **_columns(outputs or {})}


def read(path: str) -> tuple[bytes, str]:
    """Return a file's bytes and "", or b"" and the reason, on any file system."""
    if "://" not in path:
        return read_image(Path(path))
    try:
        with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, BeamIOError, ValueError) as error:
        return b"", " ".join(str(getattr(error, "strerror", None) or error).split())
    return (data, "") if len(data) <= MAX_BYTES else (b"", f"expected an image of at most {MAX_BYTES} bytes")


class _Loaded:
    """A model in memory, which answers one batch at a time: one keeps the cores busy, and two need twice the memory."""

    def __init__(self, model: str, task: str | None, threads: int | None):
        if threads is not None:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(threads)
        load_tensorflow()
        loaded = load(fetch(model))
        self._call = encoded_call(loaded, BY_NAME[choose_task(loaded, task)])
        self._lock, self._images = threading.Lock(), 0
        self._began = self._told = time.monotonic()

    def answer(self, images: list[bytes]) -> list[dict[str, np.ndarray]]:
        """Return each image's outputs; one that the model fails for, or memory has no room for, has a status alone."""
        if not images:
            return []
        with self._lock:
            answers = self._answer(images)
            self._images += len(images)
            now = time.monotonic()
            if now - self._told > REPORT_SECONDS:
                log.info("%d images in this process, %.1f a second", self._images, self._images / (now - self._began))
                self._told = now
        return answers

    def _answer(self, images: list[bytes]) -> list[dict[str, np.ndarray]]:
        try:
            outputs = self._call(images)
        except tf.errors.OpError as error:
            if len(images) == 1:
                return [{"status": np.array(reason(error.message).encode(), object)}]
            return [answer for image in images for answer in self._answer([image])]
        return [{key: values[row] for key, values in outputs.items()} for row in range(len(images))]


def fetch(model: str) -> str:
    """Return a model's folder on this machine: a copy, where it is on another file system."""
    if "://" not in model:
        return model
    folder = tempfile.mkdtemp(prefix="overfeat-model-")
    found = FileSystems.match([model.rstrip("/") + "/**"])[0].metadata_list
    for each in found:
        target = Path(folder) / each.path.removeprefix(model.rstrip("/") + "/")
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileSystems.open(each.path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
            target.write_bytes(file.read())
    return folder


def _columns(outputs: dict[str, np.ndarray]) -> Row:
    """Return an image's outputs as the columns of its row: boxes without the padding, or classes alone."""
    if "detection_boxes" in outputs:
        count = int(outputs["num_detections"])
        kept = (outputs[f"detection_{name}"][:count] for name in ("boxes", "scores", "class_entities"))
        boxes, scores, classes = (values.tolist() for values in kept)
    else:
        shown = [bool(name) for name in outputs.get("classes", ())]
        scores, classes = (np.asarray(outputs.get(name, ()))[shown].tolist() for name in ("scores", "classes"))
        boxes = []
    return {"boxes": boxes, "scores": scores, "classes": [name.decode() for name in classes]}


def _text(status: np.ndarray | bytes) -> str:
    return (status if isinstance(status, bytes) else status.item()).decode(errors="replace")


def _is_image(path: str) -> bool:
    return Path(path).suffix.lower() in SUFFIXES


@beam.ptransform_fn
def _chain(source: Any, *transforms: beam.PTransform) -> Any:
    for transform in transforms:
        source = source | transform
    return source
