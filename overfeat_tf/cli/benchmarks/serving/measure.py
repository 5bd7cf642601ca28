"""Measure what serving adds to a call, what requests of several images gain, and how a server withstands abuse."""

import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import grpc
import tensorflow as tf
from tensorflow_serving.apis import get_model_status_pb2, predict_pb2, prediction_service_pb2_grpc

from overfeat_tf.cli.benchmarks.harness import Report, markdown_table, time_call, time_in_turn
from overfeat_tf.cli.benchmarks.inputs import encode_photograph, export_detector
from overfeat_tf.cli.benchmarks.serving.hostile import SERVER_MEGABYTES, HostileRequests, Outcome, attack
from overfeat_tf.cli.benchmarks.serving.load import Load, LoadStats, percentile
from overfeat_tf.cli.serving import ServerProcess
from overfeat_tf.images.files import image_example
from overfeat_tf.network.presets import PRESETS
from serving.version_folders import find_versions, read_signature_defs

TASK_SIGNATURES = ("detect", "localize", "classify")
WIRE_SECONDS, OVER_IN_PROCESS = 0.003, 1.05  # the goal over gRPC: p50 <= 1.05 x in process + 3 ms
BATCH_IMAGES = 8  # images of a request whose image rate is compared with that of single images
REQUESTS = 30  # of the one client in a repetition, alternating with as many calls in process
ROUND_SECONDS = 5.0  # of load with one kind of request before the other kind follows
WARM_ATTACKS = 600  # hostile requests before memory is read: allocators keep what the first of each kind needed
State = get_model_status_pb2.ModelVersionStatus

log = logging.getLogger(__name__)


class OneClient(NamedTuple):
    """The times of one client in a repetition and of the same calls in process, in seconds.

    Attributes:
        start: From the start of the server's process to its open port.
        first: The first response.
        grpc, in_process: The median of the later ones, and of the calls in process.
        loading: What the server reports about loading and warming up.
    """

    start: float
    first: float
    grpc: float
    in_process: float
    loading: str

    @property
    def bound(self) -> float:
        """The goal for the median over gRPC."""
        return OVER_IN_PROCESS * self.in_process + WIRE_SECONDS


def measure(
    presets: Sequence[str], model: Path | None, load_seconds: float, clients: int, repetitions: int, attacks: int
) -> Report:
    """Measure servers in separate processes, on a photograph.

    Args:
        presets: Presets to export with random weights and to measure. The first one is also put under load.
        model: A folder of a model to measure instead.
        load_seconds: Seconds of load by requests of several images, and by requests of one.
        clients: Number of concurrent clients under load.
        repetitions: Repetitions with one client, each with a fresh server.
        attacks: Number of hostile requests.
    """
    report = Report("serve")
    with TemporaryDirectory(prefix="overfeat-benchmark-") as name:
        folder = Path(name)
        exported = (export_detector(each, folder) for each in dict.fromkeys(presets))  # each once
        model_dirs = [copy_newest(model, folder)] if model else list(exported)
        _add_one_client(report, {each.name: one_client(each, repetitions) for each in model_dirs})
        _add_load(report, model_dirs[0], load_seconds, clients)
        _add_attacks(report, model_dirs[0], attacks)
        if not model:
            _add_starts(report, [name for name in PRESETS if name not in presets], folder)
    return report


def copy_newest(model_dir: Path, folder: Path) -> Path:
    """Copy a model's newest version to `folder`/NAME/1; return `folder`/NAME."""
    versions = find_versions(model_dir)
    shutil.copytree(versions[max(versions)], folder / model_dir.name / "1")
    return folder / model_dir.name


def detection_request(model_dir: Path, image: bytes, images: int = 1) -> predict_pb2.PredictRequest:
    """Return a request with `images` copies of an image for the first of `TASK_SIGNATURES` that version 1 has."""
    signatures = read_signature_defs(model_dir / "1")
    key = next((key for key in TASK_SIGNATURES if key in signatures), None)
    if key is None:
        raise ValueError(
            f"expected a model with a signature of {', '.join(TASK_SIGNATURES)}; got {', '.join(signatures)}"
        )
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = model_dir.name, key
    (name,) = signatures[key].inputs
    data = image_example(image).SerializeToString() if key == "classify" else image
    request.inputs[name].CopyFrom(tf.make_tensor_proto([data] * images))
    return request


def one_client(model_dir: Path, repetitions: int) -> list[OneClient]:
    """Compare the requests of one client with calls in process, in turn, with a fresh server in each repetition."""
    request = detection_request(model_dir, encode_photograph())
    ((input_name, tensor),) = request.inputs.items()
    call = tf.saved_model.load(str(model_dir / "1")).signatures[request.model_spec.signature_name]

    def in_process() -> None:
        for output in call(**{input_name: tf.constant(list(tensor.string_val))}).values():
            output.numpy()

    found = []
    for number in range(1, repetitions + 1):
        with ServerProcess(model_dir) as server, grpc.insecure_channel(server.address) as channel:
            predict = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict
            over_wire = partial(predict, request, timeout=120)
            first = time_call(over_wire)
            pairs = time_in_turn((over_wire, in_process), REQUESTS)
            over_grpc, direct = (percentile(times, 50) for times in zip(*pairs, strict=True))
            found.append(OneClient(server.start_seconds, first, over_grpc, direct, server.loading))
            text = "%s %d of %d: served after %.1f s (%s), first response %.1f ms, p50 %.1f ms, %.1f ms in process"
            times = first * 1e3, over_grpc * 1e3, direct * 1e3
            log.info(text, model_dir.name, number, repetitions, server.start_seconds, server.loading, *times)
    return found


def compare_batches(batched: Load, single: Load, address: str, load_seconds: float) -> Iterator[dict[Load, LoadStats]]:
    """Load a server with requests of several images and of one, in turn, so that noise affects both."""
    rounds = max(round(load_seconds / ROUND_SECONDS), 1)
    for number in range(rounds):
        order = (batched, single) if number % 2 == 0 else (single, batched)
        stats = {load: load.run(address, load_seconds / rounds) for load in order}
        text = "load %d of %d: %.1f images/s in requests of %d, %.1f in requests of one"
        log.info(text, number + 1, rounds, BATCH_IMAGES * stats[batched].rate, BATCH_IMAGES, stats[single].rate)
        yield stats


def _batching_gain(batched: LoadStats, single: LoadStats) -> float:
    return BATCH_IMAGES * batched.rate / single.rate


def change_under_load(load: Load, server: ServerProcess, model_dir: Path) -> tuple[LoadStats, LoadStats]:
    """Publish a new version under load, then a corrupt one; return the statistics of each load."""
    load.begin(server.address)
    _publish(model_dir, 2)
    server.wait_for_state(2, State.AVAILABLE)
    server.wait_for_state(1, State.END)
    time.sleep(1)
    switch = load.end()
    load.begin(server.address)
    _publish(model_dir, 3, corrupt=True)
    server.wait_for_state(3, State.END)
    time.sleep(1)
    return switch, load.end()


def attack_server(model_dir: Path, attacks: int) -> tuple[Outcome, float]:
    """Send hostile requests; return their outcome and the ratio of the server's memory after to before."""
    image = encode_photograph()
    request = detection_request(model_dir, image)
    hostile = HostileRequests(request, image)
    with ServerProcess(model_dir, "--rest-port", "0", "--max-megabytes", str(SERVER_MEGABYTES)) as server:
        attack(server.address, server.rest, map(hostile.call, range(attacks, attacks + WARM_ATTACKS)))
        before = server.resident_bytes
        outcome = attack(server.address, server.rest, map(hostile.call, range(attacks)))
        if not server.alive:
            raise RuntimeError("expected the server to survive hostile requests; its process exited")
        growth = server.resident_bytes / before
        with grpc.insecure_channel(server.address) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            stub.Predict(request, timeout=120)
    text = "%d hostile requests: %d without an expected status, memory x %.3f"
    log.info(text, attacks, len(outcome.failures), growth)
    return outcome, growth


def _add_one_client(report: Report, found: dict[str, list[OneClient]]) -> None:
    rounds = list(zip(*found.values(), strict=True))
    names = " and ".join(f"`{name}`" for name in found)
    ratios = [max(each.grpc / each.in_process for each in one) for one in rounds]
    report.add("p50_of_in_process", ratios, f"p50 of one client over that of calls in process; the greater of {names}")
    bound = [max(each.grpc / each.bound for each in one) for one in rounds]
    report.add("p50_of_bound", bound, f"the same over {OVER_IN_PROCESS} x in process + 3 ms", ("<=", 1.0))
    first = [max(each.first / each.grpc for each in one) for one in rounds]
    report.add("first_of_steady", first, "the first response of a fresh server over its later p50", ("<=", 2.0))
    titles = ("one client", "served after s", "loading", "first response ms", "p50 ms", "in process ms", "bound ms")
    rows = []
    for name, repetitions in found.items():
        for each in repetitions:
            ms = (f"{value * 1e3:.1f}" for value in (each.first, each.grpc, each.in_process, each.bound))
            rows.append((name, f"{each.start:.1f}", each.loading, *ms))
    report.tables.append(markdown_table(titles, rows))


def _add_load(report: Report, model_dir: Path, load_seconds: float, clients: int) -> None:
    one, several = (detection_request(model_dir, encode_photograph(), images) for images in (1, BATCH_IMAGES))
    as_many_images = max(clients // BATCH_IMAGES, 1)
    with ServerProcess(model_dir) as server, Load(several, as_many_images) as batched, Load(one, clients) as single:
        for load in (batched, single):  # the first requests of many threads are slower
            load.run(server.address, min(1.0, load_seconds))
        rounds = list(compare_batches(batched, single, server.address, load_seconds))
        switch, corrupt = change_under_load(single, server, model_dir)
    gains = [_batching_gain(stats[batched], stats[single]) for stats in rounds]
    batched_stats, single_stats = (sum((stats[load] for stats in rounds), LoadStats()) for load in (batched, single))
    p50, p99 = (percentile(single_stats.latencies, percent) for percent in (50, 99))
    what = f"`{model_dir.name}`, {clients} clients, {load_seconds:g} s"
    remark = f"{what}: images a second in requests of {BATCH_IMAGES} over requests of one"
    report.add("batching_gain", gains, remark, (">=", 1.5))
    report.add("p99_of_p50", [p99 / p50], f"{what}: latency of requests of one image", ("<=", 10.0))
    failed = sum(sum(stats.failures.values()) for stats in (batched_stats, single_stats, switch, corrupt))
    loads = f"requests of {BATCH_IMAGES}, of one, while a version is switched, while a corrupt one is published"
    report.add("failed_requests", [failed], f"{what}: {loads}", ("<=", 0))
    if "2" not in switch.versions or set(corrupt.versions) != {"2"}:
        raise RuntimeError(f"expected responses from version 2; got {switch.versions}, then {corrupt.versions}")
    names = (f"{BATCH_IMAGES} images a request", "one image", "version 1, then 2", "a corrupt version 3")
    rows = []
    for name, stats in zip(names, (batched_stats, single_stats, switch, corrupt), strict=True):
        ms = (f"{percentile(stats.latencies, percent) * 1e3:.0f}" for percent in (50, 99))
        rows.append((name, len(stats.latencies), f"{stats.rate:.1f}", *ms, stats.failures or 0))
    report.tables.append(markdown_table(("load", "responses", "per second", "p50 ms", "p99 ms", "failed"), rows))


def _add_attacks(report: Report, model_dir: Path, attacks: int) -> None:
    outcome, growth = attack_server(model_dir, attacks)
    for line in outcome.failures[:20]:
        log.warning("unexpected status: %s", line)
    what = f"{outcome.count} hostile requests, gRPC and REST"
    report.add("hostile_improper", [len(outcome.failures)], f"{what}: without an expected status in time", ("<=", 0))
    remark = f"the server's resident memory after over before; {WARM_ATTACKS} of the same kinds were sent first"
    report.add("hostile_memory", [growth], remark, ("<=", 1.1))
    report.tables.append(outcome.table())


def _add_starts(report: Report, presets: Sequence[str], folder: Path) -> None:
    """Start a server once for each preset that was not measured; report its times of loading and warming up."""
    rows = []
    for name in presets:
        with ServerProcess(export_detector(name, folder)) as server:
            rows.append((name, f"{server.start_seconds:.1f}", server.loading))
    if presets:
        report.tables.append(markdown_table(("only started", "served after s", "loading"), rows))


def _publish(model_dir: Path, number: int, corrupt: bool = False) -> None:
    """Publish a copy of version 1 under another number, atomically."""
    staging_dir = model_dir / f".{number}.partial"
    shutil.copytree(model_dir / "1", staging_dir)
    if corrupt:
        os.truncate(staging_dir / "saved_model.pb", 1000)
    staging_dir.rename(model_dir / str(number))
