"""One device, several, or several machines, with the same results as one device; and the memory of the process."""

import ctypes
import json
import os
import platform
from collections.abc import Callable

import tensorflow as tf

from training.views.reading import CORES


def choose_strategy() -> tf.distribute.Strategy:
    """Mirror the model on the workers of TF_CONFIG; else on all GPUs where there are several (or several logical
    CPUs); else take the default strategy.

    Workers have to be joined before TensorFlow computes anything.

    Raises:
        ValueError: TF_CONFIG is not JSON.
    """
    if has_workers():
        return tf.distribute.MultiWorkerMirroredStrategy()
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if len(devices) > 1:
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()


def device_name(strategy: tf.distribute.Strategy) -> str:
    """Return what a strategy trains on, such as "2 x NVIDIA A100" or "CPU, 8 cores"."""
    gpus = tf.config.list_physical_devices("GPU")
    kind = f"CPU, {CORES} cores"
    if gpus:
        kind = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
    devices = strategy.num_replicas_in_sync
    return f"{devices} x {kind}" if devices > 1 else kind


def has_workers() -> bool:
    """Return whether TF_CONFIG names a cluster of workers."""
    try:
        cluster = json.loads(os.environ.get("TF_CONFIG") or "{}").get("cluster") or {}
        if not all(isinstance(addresses, list | dict) for addresses in cluster.values()):
            raise ValueError("its cluster has no lists of addresses")
        return bool(cluster)
    except (ValueError, AttributeError):
        raise ValueError(
            "expected TF_CONFIG to be a JSON object with a cluster of lists of addresses, and a task; got "
            f"'{os.environ['TF_CONFIG'][:80]}'"
        ) from None


def worker_count(strategy: tf.distribute.Strategy) -> int:
    """Return how many workers there are: 1 without a cluster."""
    resolver = strategy.cluster_resolver
    cluster = resolver.cluster_spec().as_dict() if resolver is not None else {}
    return max(1, sum(len(cluster.get(kind, ())) for kind in ("chief", "worker")))


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Return whether this process is the one that writes: the chief, or else worker 0; without workers, always."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.task_type:
        return True
    named = resolver.cluster_spec().as_dict()
    return resolver.task_type == "chief" or (
        "chief" not in named and (resolver.task_type, resolver.task_id) == ("worker", 0)
    )


def barrier(strategy: tf.distribute.Strategy) -> None:
    """Wait until all workers have come here."""
    any_worker(strategy, False)


def any_worker(strategy: tf.distribute.Strategy, flag: bool) -> bool:
    """Return whether the flag is set in any worker, once all have come here."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return flag

    def total(own: tf.Tensor) -> tf.Tensor:
        placed = tf.identity(own)  # on this replica's device: an argument is on none, which all_reduce refuses
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, placed)

    sums = strategy.run(tf.function(total), (tf.constant(float(flag)),))
    return bool(strategy.experimental_local_results(sums)[0] > 0)


def check_batch(strategy: tf.distribute.Strategy, batch: int, accumulate: int, stage: str) -> None:
    """Raise ValueError unless a global batch divides among the devices, and a device's share into its parts."""
    devices = strategy.num_replicas_in_sync
    if batch % (devices * accumulate):
        parts = f" and {accumulate} parts" if accumulate > 1 else ""
        raise ValueError(f"expected {stage}.batch to divide among {devices} devices{parts}; got {batch}")


def more_parts(strategy: tf.distribute.Strategy, batch: int, accumulate: int) -> int | None:
    """Find the next number of parts that a device's share of a global batch divides into, if there is one."""
    share = batch // strategy.num_replicas_in_sync
    return next((parts for parts in range(accumulate + 1, share + 1) if share % parts == 0), None)


def check_compiled(strategy: tf.distribute.Strategy, compiled: bool) -> None:
    """Raise ValueError for XLA on several CPU devices, where TensorFlow cannot compile a step."""
    devices = strategy.num_replicas_in_sync
    if compiled and devices > 1 and not tf.config.list_logical_devices("GPU"):
        raise ValueError(f"expected jit_compile=False on {devices} CPU devices, or one device; got True")


def shard_batches(strategy: tf.distribute.Strategy, make: Callable[[range], tf.data.Dataset], batch: int):
    """Divide global batches among the workers, each of which makes its own rows of every one.

    TensorFlow's own sharding gives each worker other records, or each the same rows, and so other numbers than one
    process has. On one machine `fit` divides the batches by itself.

    Args:
        strategy: The strategy.
        make: Makes these rows of all batches.
        batch: Examples in a global batch.

    Returns:
        What `fit` takes.
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return make(range(batch))
    return strategy.distribute_datasets_from_function(lambda context: own_rows(make, batch, context))


def own_rows(
    make: Callable[[range], tf.data.Dataset], batch: int, context: tf.distribute.InputContext
) -> tf.data.Dataset:
    """Return a worker's rows of global batches of `batch` examples, an element for each of its devices in turn."""
    devices, share = context.num_replicas_in_sync // context.num_input_pipelines, batch // context.num_replicas_in_sync
    first = context.input_pipeline_id * devices * share

    def by_device(part: tf.Tensor) -> tf.Tensor:
        return tf.reshape(part, [devices, share, *tf.unstack(tf.shape(part))[1:]])

    batches = make(range(first, first + devices * share))
    return batches.map(lambda *parts: tf.nest.map_structure(by_device, parts)).unbatch().prefetch(devices)


# mallopt's: how many blocks may be mapped by themselves, and how much free memory at the end is handed back.
_MMAP_MAX, _TRIM_THRESHOLD = -4, -1
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Keep memory for the next batch rather than hand it back: glibc's allocator; elsewhere nothing is changed.

    By default each large buffer is mapped anew, and the system clears it page by page as it is written: of the
    classification pipeline (3.1), which makes and drops 3 MB of crops for each image, that took two fifths of the time.
    The process then stays as large as it once was.

    Returns:
        Whether it was changed.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, _NEVER))
