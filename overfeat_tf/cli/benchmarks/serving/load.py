"""Load from concurrent clients in a separate process, which shares neither Python's lock nor memory with the server.

The process reads one command per line from its standard input, in JSON, and prints one line of statistics for each.
"""

import asyncio
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import ceil
from typing import Self

import grpc
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from overfeat_tf.cli.benchmarks.harness import LineProgram

TIMEOUT_SECONDS = 120.0  # of a request; a timeout counts as a failure


@dataclass
class LoadStats:
    """Statistics of clients that each send the next request as soon as the last one is answered.

    Attributes:
        seconds: From the first request to the last response.
        latencies: Of the successful requests, in seconds.
        failures: The count of each status code; "status" counts images that the server could not read.
        versions: The number of requests that each version answered.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Successful responses per second."""
        return len(self.latencies) / self.seconds

    def __add__(self, other: "LoadStats") -> "LoadStats":
        """Add the statistics of a later load."""
        return LoadStats(
            self.seconds + other.seconds,
            self.latencies + other.latencies,
            dict(Counter(self.failures) + Counter(other.failures)),
            dict(Counter(self.versions) + Counter(other.versions)),
        )


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile by the nearest-rank method.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("expected at least one value; no request was answered")
    return sorted(values)[max(ceil(percent / 100 * len(values)), 1) - 1]


class Load(LineProgram):
    """Clients in a separate process that each send a request again and again."""

    def __init__(self, request: predict_pb2.PredictRequest, clients: int):
        super().__init__("overfeat_tf.cli.benchmarks.serving.load", clients)
        self._request = request

    def __enter__(self) -> Self:
        super().__enter__()
        self.write(self._request.SerializeToString().hex())
        return self

    def run(self, address: str, seconds: float) -> LoadStats:
        """Send requests to a server from all clients for so many seconds."""
        self.begin(address, seconds)
        return self._stats()

    def begin(self, address: str, seconds: float | None = None) -> None:
        """Start all clients for so many seconds, or until `end`."""
        self.write(json.dumps({"address": address, "seconds": seconds}))

    def end(self) -> LoadStats:
        """Stop the clients after their last responses; return their statistics."""
        self.write("")
        return self._stats()

    def _stats(self) -> LoadStats:
        return LoadStats(**json.loads(self.read()))


async def _drive(
    request: predict_pb2.PredictRequest, clients: int, address: str, seconds: float | None, stop: threading.Event
) -> LoadStats:
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]  # one connection each
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(clients)]
    async with asyncio.timeout(TIMEOUT_SECONDS):  # the server may have exited
        await asyncio.gather(*(channel.channel_ready() for channel in channels))
    started = time.perf_counter()
    end = started + seconds if seconds is not None else float("inf")
    stats, failures, versions = LoadStats(), Counter[str](), Counter[str]()

    async def send_requests(channel: grpc.aio.Channel) -> None:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        while time.perf_counter() < end and not stop.is_set():
            sent = time.perf_counter()
            try:
                response = await stub.Predict(request, timeout=TIMEOUT_SECONDS)
            except grpc.aio.AioRpcError as error:
                failures[error.code().name] += 1
                await asyncio.sleep(0.05)  # do not flood a server that refuses at once
                continue
            if any(response.outputs["status"].string_val if "status" in response.outputs else ()):
                failures["status"] += 1
                continue
            stats.latencies.append(time.perf_counter() - sent)
            versions[str(response.model_spec.version.value)] += 1

    await asyncio.gather(*map(send_requests, channels))
    stats.seconds = time.perf_counter() - started
    await asyncio.gather(*(channel.close() for channel in channels))
    stats.failures, stats.versions = dict(failures), dict(versions)
    return stats


def main() -> None:
    """Run commands until the input ends."""
    clients = int(sys.argv[1])
    request = predict_pb2.PredictRequest.FromString(bytes.fromhex(sys.stdin.readline()))
    while line := sys.stdin.readline():
        stop = threading.Event()
        command = json.loads(line)
        if command["seconds"] is None:
            threading.Thread(target=lambda stop=stop: (sys.stdin.readline(), stop.set())).start()
        stats = asyncio.run(_drive(request, clients, stop=stop, **command))
        print(json.dumps(asdict(stats)), flush=True)


if __name__ == "__main__":
    main()
