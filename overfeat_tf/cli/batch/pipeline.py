"""The pipeline of `overfeat batch`: list images, predict in batches of bytes, write Parquet files."""

import argparse
import atexit
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow
from apache_beam.io import fileio
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.metrics import Metrics, MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.shared import Shared
from apache_beam.utils.windowed_value import WindowedValue

from overfeat_tf.arguments import suggest
from overfeat_tf.cli.batch.models import Models
from overfeat_tf.cli.options import Processed
from overfeat_tf.cli.predict.outputs import Outputs
from overfeat_tf.images.files import MAX_BYTES, SUFFIXES, read_image
from overfeat_tf.models.loading import find_model, read_config
from overfeat_tf.models.tasks import TASKS

# Of a batch, unless a single image is larger. Images are run one by one, so larger ones gain nothing, and processes
# that wait for the last one lose more.
BATCH_BYTES, BATCH_IMAGES = 8 << 20, 8
LOCAL_RUNNER = "FnApiRunner"  # in this process; "DirectRunner" would first look for another one on the internet
DONE, FILES = "_SUCCESS", "predictions"
OPTIONS = ("--output", "--task", "--processes", "--threads", "--runner")  # of `overfeat batch` itself
SCHEMA = pyarrow.schema(
    [
        ("image", pyarrow.string()),  # its path
        ("status", pyarrow.string()),  # empty where it was read, else why not
        ("boxes", pyarrow.list_(pyarrow.list_(pyarrow.float32(), 4))),  # normalised yxyx, in the image as displayed
        ("scores", pyarrow.list_(pyarrow.float32())),  # falling
        ("classes", pyarrow.list_(pyarrow.string())),
    ]
)

Row = dict[str, Any]


def run(
    model: str,
    pattern: str,
    output: str,
    task: str | None = None,
    processes: int = 1,
    threads: int | None = None,
    runner: str | None = None,
    options: Sequence[str] = (),
) -> Processed:
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
    chosen = PipelineOptions([*(() if runner is None else ("--runner", runner)), *options])
    began = time.monotonic()
    pipeline = beam.Pipeline(runner=LOCAL_RUNNER if runner is None else None, options=chosen)
    rows = (
        pipeline
        | "List" >> source
        | "Once" >> beam.Distinct()  # also spreads the images over the workers
        | "Predict" >> beam.ParDo(Predict(model, task, threads, processes))
    )
    prefix = FileSystems.join(output, FILES)
    _ = rows | "Write" >> beam.io.WriteToParquet(prefix, SCHEMA, codec="snappy", file_name_suffix=".parquet")
    try:
        done = pipeline.run()
        done.wait_until_finish()
    except Exception as error:  # which has the traceback of the first one as its text
        if BrokenProcessPool.__name__ not in f"{type(error)} {error}":
            raise
        raise WorkerLostError("a process has died; run the same command again") from error
    counted = done.metrics().query(MetricsFilter().with_namespace(FILES))["counters"]
    counts = {each.key.metric.name: each.result for each in counted}
    with FileSystems.create(FileSystems.join(output, DONE)):
        pass
    return Processed(counts.get("images", 0), counts.get("unreadable", 0), time.monotonic() - began)


class WorkerLostError(RuntimeError):
    """One of the processes on this machine died."""


def list_images(pattern: str) -> beam.PTransform:
    """Return the transform that lists the paths of images.

    Raises:
        ValueError: there is none.
    """
    if pattern.endswith(".txt"):
        if not FileSystems.exists(pattern):
            raise ValueError(f"expected a text file of paths, a line each; there is no '{pattern}'")
        strip = beam.Map(lambda line: line.strip().strip("\ufeff"))  # a byte order mark
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
    parsers: list[argparse.ArgumentParser] = []
    known = PipelineOptions([]).get_all_options(add_extra_args_fn=parsers.append)  # it hands its parser out
    _, unknown = parsers[0].parse_known_args(list(options))
    if unknown and not unknown[0].startswith("-"):
        raise ValueError(f"expected one INPUT_GLOB, in quotes if the shell would expand it; got '{unknown[0]}' too")
    if unknown:
        name = unknown[0].partition("=")[0]
        close = suggest(name, [*OPTIONS, *(f"--{key}" for key in known)])
        raise ValueError(f"expected an option of `overfeat batch` or of Beam; got '{name}'{close}")


class Predict(beam.DoFn):
    """Predict images by their paths, in batches of `BATCH_BYTES`; the models are loaded once in a process.

    While batches are answered the next ones are read, so many that no model waits.
    """

    def __init__(self, model: str, task: str | None, threads: int | None, processes: int):
        self._arguments, self._processes, self._shared = (model, task, threads), processes, Shared()
        self._images, self._unreadable = (Metrics.counter(FILES, name) for name in ("images", "unreadable"))

    def setup(self) -> None:
        """Load the models, unless the process has them."""
        model, task, threads = self._arguments
        self._models = self._shared.acquire(lambda: Models(fetch(model), task, threads, self._processes))

    def start_bundle(self) -> None:
        """Begin with an empty batch."""
        self._batch: list[tuple[str, bytes]] = []
        self._bytes = 0
        self._asked: deque[tuple[list[str], Future[list[Outputs]]]] = deque()

    def process(self, path: str) -> Iterator[Row]:
        """Read an image; ask for the batch before it, where that is full."""
        data, problem = read(path)
        if problem:
            yield self._row(path, problem)
            return
        if self._batch and (len(self._batch) == BATCH_IMAGES or self._bytes + len(data) > BATCH_BYTES):
            self._ask()
            yield from self._rows(left=2 * self._processes)
        self._batch.append((path, data))
        self._bytes += len(data)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        """Ask for the last batch, and wait for all."""
        if self._batch:
            self._ask()
        for row in self._rows(left=0):
            yield GlobalWindows.windowed_value(row)

    def _ask(self) -> None:
        answers = self._models.submit([data for _, data in self._batch])
        self._asked.append(([path for path, _ in self._batch], answers))
        self._batch, self._bytes = [], 0

    def _rows(self, left: int) -> Iterator[Row]:
        """Yield the rows of all batches but the last ones."""
        while len(self._asked) > left:
            paths, answers = self._asked.popleft()
            for path, outputs in zip(paths, answers.result(), strict=True):
                yield self._row(path, outputs.pop("status").decode(errors="replace"), outputs)

    def _row(self, path: str, status: str, outputs: Outputs | None = None) -> Row:
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


def fetch(model: str) -> str:
    """Return a model's folder on this machine; the copy of a remote one is removed when the process ends."""
    if "://" not in model:
        return model
    folder = tempfile.mkdtemp(prefix="overfeat-model-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    found = FileSystems.match([model.rstrip("/") + "/**"])[0].metadata_list
    for each in found:
        target = Path(folder) / each.path.removeprefix(model.rstrip("/") + "/")
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileSystems.open(each.path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
            target.write_bytes(file.read())
    return folder


def _columns(outputs: Outputs) -> Row:
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


def _is_image(path: str) -> bool:
    return Path(path).suffix.lower() in SUFFIXES


@beam.ptransform_fn
def _chain(source: Any, *transforms: beam.PTransform) -> Any:
    for transform in transforms:
        source = source | transform
    return source
