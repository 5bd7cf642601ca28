"""What serving adds to a call, what requests of several images gain, and what a server withstands."""

import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import tensorflow as tf
from tensorflow_serving.apis import get_model_status_pb2, prediction_service_pb2_grpc

from overfeat_tf.cli.benchmarks.machine import describe, seconds
from overfeat_tf.cli.benchmarks.report import Report
from overfeat_tf.cli.benchmarks.serving.attack import Outcome, attack
from overfeat_tf.cli.benchmarks.serving.hostile import SERVER_MEGABYTES, Hostile
from overfeat_tf.cli.benchmarks.serving.load import Load, Seen, percentile
from overfeat_tf.cli.benchmarks.serving.served import (
    ServerProcess,
    copy_newest,
    detection_request,
    export_preset,
    photograph,
)
from overfeat_tf.network.presets import PRESETS
from serving.version_folders import find_versions

WIRE_SECONDS, OVER_IN_PROCESS = 0.003, 1.05  # what the way over gRPC may cost: p50 <= 1.05 x in process + 3 ms
BATCH_IMAGES = 8  # of a request whose rate is compared with that of single images
ASKED = 30  # requests of the one client in a repetition, and as many calls in process, in turn
TURN_SECONDS = 5.0  # of load by one kind of request, before the other kind follows
WARM_ATTACKS = 600  # hostile requests before memory is read: allocators keep what the first of each kind took
State = get_model_status_pb2.ModelVersionStatus

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Alone:
    """What one client saw in a repetition, and the same in process, in seconds; what the server said of its loading."""

    start: float
    first: float
    grpc: float
    in_process: float
    loading: str

    @property
    def bound(self) -> float:
        """Give the greatest p50 that is good enough."""
        return OVER_IN_PROCESS * self.in_process + WIRE_SECONDS


@dataclass
class Compared:
    """What the clients saw with requests of several images and with requests of one, turn by turn."""

    batched: list[Seen] = field(default_factory=list)
    single: list[Seen] = field(default_factory=list)

    @property
    def gains(self) -> list[float]:
        """Return the rate of images in requests of several over that in requests of one, for each pair of turns."""
        return [BATCH_IMAGES * one.rate / other.rate for one, other in zip(self.batched, self.single, strict=True)]


def measure(
    presets: Sequence[str], model: Path | None, load_seconds: float, clients: int, repetitions: int, attacks: int
) -> Report:
    """Measure servers in processes of their own, on a photograph.

    Args:
        presets: Exported with random weights; the first one is also put under load. All others are only started.
        model: A model's folder to measure instead.
        load_seconds: Of load by requests of several images, and by requests of one.
        clients: How many ask at the same time under load.
        repetitions: Of the single client, each with a server that has just started.
        attacks: How many hostile requests.
    """
    report = Report("serve", describe())
    with TemporaryDirectory(prefix="overfeat-benchmark-") as name:
        folder = Path(name)
        if model:
            places = [copy_newest(model, folder)]
        else:
            log.info("exporting %s", ", ".join(presets))
            places = [export_preset(each, folder) for each in presets]
        _add_alone(report, {place.name: one_client(place, repetitions) for place in places})
        _add_load(report, places[0], load_seconds, clients)
        _add_attacks(report, places[0], attacks)
        if not model:
            _add_starts(report, [name for name in PRESETS if name not in presets], folder)
    return report


def one_client(place: Path, repetitions: int) -> list[Alone]:
    """Compare requests of one client with calls in process, one after the other, for each start of a server."""
    image = photograph()
    request = detection_request(place, image)
    (input_name, proto), key = next(iter(request.inputs.items())), request.model_spec.signature_name
    loaded = tf.saved_model.load(str(place / "1"))
    value = proto.string_val[0]

    def in_process() -> None:
        outputs = loaded.signatures[key](**{input_name: tf.constant([value])})
        [tensor.numpy() for tensor in outputs.values()]

    in_process()
    found = []
    for number in range(1, repetitions + 1):
        with ServerProcess(place) as server, grpc.insecure_channel(server.address) as channel:
            ask = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict
            over_wire = partial(ask, request, timeout=120)
            first = seconds(over_wire)
            pairs = [(seconds(over_wire), seconds(in_process)) for _ in range(ASKED)]
            over_grpc, alone = (percentile(times, 50) for times in zip(*pairs, strict=True))
            found.append(Alone(server.start_seconds, first, over_grpc, alone, server.loading))
            text = "%s %d of %d: served after %.1f s (%s), first answer %.1f ms, p50 %.1f ms, %.1f ms in process"
            times = first * 1e3, over_grpc * 1e3, alone * 1e3
            log.info(text, place.name, number, repetitions, server.start_seconds, server.loading, *times)
    return found


def compare_batches(batched: Load, single: Load, address: str, load_seconds: float) -> Compared:
    """Put load by requests of several images and of one on a server in turn, so that noise falls on both."""
    found = Compared()
    turns = max(round(load_seconds / TURN_SECONDS), 1)
    for number in range(turns):
        order = [(batched, found.batched), (single, found.single)]
        for load, seen in order if number % 2 == 0 else reversed(order):
            seen.append(load.run(address, load_seconds / turns))
        rates = BATCH_IMAGES * found.batched[-1].rate, found.single[-1].rate
        text = "load %d of %d: %.1f images/s in requests of %d, %.1f in requests of one"
        log.info(text, number + 1, turns, rates[0], BATCH_IMAGES, rates[1])
    return found


def change_under_load(load: Load, server: ServerProcess, place: Path) -> tuple[Seen, Seen]:
    """Give a server a new version, then a corrupt one, each under load; return what the clients saw of each."""
    load.begin(server.address)
    _publish(place, 2, lambda folder: None)
    server.wait_for_state(2, State.AVAILABLE)
    server.wait_for_state(1, State.END)
    time.sleep(1)
    switch = load.end()
    load.begin(server.address)
    _publish(place, 3, lambda folder: os.truncate(folder / "saved_model.pb", 1000))
    server.wait_for_state(3, State.END)
    time.sleep(1)
    return switch, load.end()


def attack_server(place: Path, attacks: int) -> tuple[Outcome, float]:
    """Send hostile requests; return what became of them, and the server's memory after over before."""
    image = photograph()
    hostile = Hostile(detection_request(place, image), image)
    with ServerProcess(place, "--max-megabytes", str(SERVER_MEGABYTES)) as server:
        attack(server.address, server.rest, map(hostile.call, range(attacks, attacks + WARM_ATTACKS)))
        before = server.resident_bytes
        outcome = attack(server.address, server.rest, map(hostile.call, range(attacks)))
        if not server.alive:
            raise RuntimeError("expected the server to live; hostile requests ended it")
        growth = server.resident_bytes / before
        with grpc.insecure_channel(server.address) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            stub.Predict(detection_request(place, image), timeout=120)
    log.info("%d hostile requests: %d not answered properly, memory x %.3f", attacks, len(outcome.improper), growth)
    return outcome, growth


def _add_alone(report: Report, found: dict[str, list[Alone]]) -> None:
    rounds = list(zip(*found.values(), strict=True))
    names = " and ".join(f"`{name}`" for name in found)
    plain = [max(each.grpc / each.in_process for each in one) for one in rounds]
    report.add("p50_of_in_process", plain, f"one client's p50 over the same call's in process; the greater of {names}")
    bound = [max(each.grpc / each.bound for each in one) for one in rounds]
    report.add("p50_of_bound", bound, f"the same over {OVER_IN_PROCESS} x in process + 3 ms", ("<=", 1.0))
    first = [max(each.first / each.grpc for each in one) for one in rounds]
    report.add("first_of_steady", first, "a fresh server's first answer over its p50 afterwards", ("<=", 2.0))
    lines = [
        "| one client | served after s | of which | first answer ms | p50 ms | in process ms | bound ms |",
        "| --- " * 7 + "|",
    ]
    for name, repetitions in found.items():
        for each in repetitions:
            ms = (f"{value * 1e3:.1f}" for value in (each.first, each.grpc, each.in_process, each.bound))
            lines.append(f"| {name} | {each.start:.1f} | {each.loading} | {' | '.join(ms)} |")
    report.tables.append("\n".join(lines))


def _add_load(report: Report, place: Path, load_seconds: float, clients: int) -> None:
    one, several = (detection_request(place, photograph(), images) for images in (1, BATCH_IMAGES))
    with ExitStack() as stack:
        server = stack.enter_context(ServerProcess(place))
        batched = stack.enter_context(Load(several, max(clients // BATCH_IMAGES, 1)))  # as many images at a time
        single = stack.enter_context(Load(one, clients))
        for load in (batched, single):  # the first requests of so many threads make their own way warm
            load.run(server.address, min(1.0, load_seconds))
        compared = compare_batches(batched, single, server.address, load_seconds)
        switch, corrupt = change_under_load(single, server, place)
    together, alone = sum(compared.batched, Seen()), sum(compared.single, Seen())
    p50, p99 = (percentile(alone.latencies, percent) for percent in (50, 99))
    what = f"`{place.name}`, {clients} clients, {load_seconds:g} s"
    remark = f"{what}: images a second in requests of {BATCH_IMAGES} over requests of one"
    report.add("batching_gain", compared.gains, remark, (">=", 1.5))
    report.add("p99_of_p50", [p99 / p50], f"{what}: latency of requests of one image", ("<=", 10.0))
    failed = sum(sum(seen.failures.values()) for seen in (together, alone, switch, corrupt))
    told = f"requests of {BATCH_IMAGES}, of one, while a version is switched, while a corrupt one comes"
    report.add("failed_requests", [failed], f"{what}: {told}", ("<=", 0))
    if "2" not in switch.versions or set(corrupt.versions) != {"2"}:
        raise RuntimeError(f"expected version 2 to answer; got {switch.versions}, then {corrupt.versions}")
    names = (f"{BATCH_IMAGES} images a request", "one image", "version 1, then 2", "a corrupt version 3")
    lines = ["| load | answers | a second | p50 ms | p99 ms | failed |", "| --- " * 6 + "|"]
    for name, seen in zip(names, (together, alone, switch, corrupt), strict=True):
        ms = " | ".join(f"{percentile(seen.latencies, percent) * 1e3:.0f}" for percent in (50, 99))
        lines.append(f"| {name} | {len(seen.latencies)} | {seen.rate:.1f} | {ms} | {seen.failures or 0} |")
    report.tables.append("\n".join(lines))


def _add_attacks(report: Report, place: Path, attacks: int) -> None:
    outcome, growth = attack_server(place, attacks)
    for line in outcome.improper[:20]:
        log.warning("not proper: %s", line)
    what = f"{outcome.count} hostile requests, gRPC and REST"
    report.add("hostile_improper", [len(outcome.improper)], f"{what}: without a proper status in time", ("<=", 0))
    remark = f"the server's resident memory after over before, {WARM_ATTACKS} of the same kinds having gone before"
    report.add("hostile_memory", [growth], remark, ("<=", 1.1))
    report.tables.append(outcome.table())


def _add_starts(report: Report, presets: Sequence[str], folder: Path) -> None:
    """Start a server of each preset that was not measured, once, for the times of its loading and warming up."""
    lines = ["| only started | served after s | of which |", "| --- " * 3 + "|"]
    for name in presets:
        log.info("exporting %s", name)
        with ServerProcess(export_preset(name, folder)) as server:
            lines.append(f"| {name} | {server.start_seconds:.1f} | {server.loading} |")
    if presets:
        report.tables.append("\n".join(lines))


def _publish(place: Path, number: int, change: Callable[[Path], None]) -> None:
    """Copy the newest version that there is as another number, in one step for whoever looks."""
    found = find_versions(place)
    beside = place / f".{number}.partial"
    shutil.copytree(found[max(found)], beside)
    change(beside)
    beside.rename(place / str(number))
