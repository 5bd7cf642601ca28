"""Clients in a process of their own, so that they share neither Python's lock nor memory with what they measure.

The process takes a command a line on its standard input, in JSON, and answers each with a line: what its clients saw.
"""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import ceil
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

TIMEOUT_SECONDS = 120.0  # of a request; who gets no answer by then has failed


@dataclass
class Seen:
    """What clients saw of a server, each asking again as soon as it was answered.

    Attributes:
        seconds: from the first request to the last answer.
        latencies: of the requests that were answered rightly, in seconds.
        failures: how often each status code came; "status" is an image that was not read.
        versions: how many requests each version answered.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Give the answers a second."""
        return len(self.latencies) / self.seconds

    def __add__(self, other: "Seen") -> "Seen":
        """Join what was seen one after the other."""
        return Seen(
            self.seconds + other.seconds,
            self.latencies + other.latencies,
            dict(Counter(self.failures) + Counter(other.failures)),
            dict(Counter(self.versions) + Counter(other.versions)),
        )


def percentile(values: Sequence[float], percent: float) -> float:
    """Give the least of the values that so many percent of them do not exceed (the nearest rank).

    Raises:
        ValueError: there is none.
    """
    if not values:
        raise ValueError("expected at least one value; no request was answered")
    return sorted(values)[max(ceil(percent / 100 * len(values)), 1) - 1]


class Load:
    """Drives the process of the clients, from the start of a `with` block until its end."""

    def __init__(self, request: predict_pb2.PredictRequest, clients: int):
        """Take what every client asks, and how many there are."""
        self._request, self._clients = request, clients

    def __enter__(self) -> Self:
        """Start the process."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "overfeat_tf.cli.benchmarks.serving.load", str(self._clients)],
            cwd=Path(__file__).parents[4],
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._tell(self._request.SerializeToString().hex())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                stream.close()
        self._process.kill()
        self._process.wait()

    def run(self, address: str, seconds: float) -> Seen:
        """Let all clients ask a server for so long."""
        self.begin(address, seconds)
        return self.seen()

    def begin(self, address: str, seconds: float | None = None) -> None:
        """Let all clients ask a server for so long, or until `end`."""
        self._tell(json.dumps({"address": address, "seconds": seconds}))

    def end(self) -> Seen:
        """Let the clients have their last answers, and give what they saw."""
        self._tell("")
        return self.seen()

    def seen(self) -> Seen:
        """Wait for what the clients saw.

        Raises:
            RuntimeError: their process ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("expected the clients' answer; their process ended, and said why above")
        return Seen(**json.loads(line))

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


async def _drive(
    request: predict_pb2.PredictRequest, clients: int, address: str, seconds: float | None, stop: threading.Event
) -> Seen:
    own = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]  # a connection each
    channels = [grpc.aio.insecure_channel(address, options=own) for _ in range(clients)]
    await asyncio.gather(*(channel.channel_ready() for channel in channels))
    begun = time.perf_counter()
    end = begun + seconds if seconds is not None else float("inf")
    seen, failures, versions = Seen(), Counter[str](), Counter[str]()

    async def ask_again_and_again(channel: grpc.aio.Channel) -> None:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        while time.perf_counter() < end and not stop.is_set():
            asked = time.perf_counter()
            try:
                response = await stub.Predict(request, timeout=TIMEOUT_SECONDS)
            except grpc.aio.AioRpcError as error:
                failures[error.code().name] += 1
                await asyncio.sleep(0.05)  # a server that refuses at once would be asked without end
                continue
            if any(response.outputs["status"].string_val if "status" in response.outputs else ()):
                failures["status"] += 1
                continue
            seen.latencies.append(time.perf_counter() - asked)
            versions[str(response.model_spec.version.value)] += 1

    await asyncio.gather(*map(ask_again_and_again, channels))
    seen.seconds = time.perf_counter() - begun
    await asyncio.gather(*(channel.close() for channel in channels))
    seen.failures, seen.versions = dict(failures), dict(versions)
    return seen


def main() -> None:
    """Answer commands until there are no more."""
    clients = int(sys.argv[1])
    request = predict_pb2.PredictRequest.FromString(bytes.fromhex(sys.stdin.readline()))
    while line := sys.stdin.readline():
        stop = threading.Event()
        command = json.loads(line)
        if command["seconds"] is None:
            threading.Thread(target=lambda stop=stop: (sys.stdin.readline(), stop.set())).start()
        seen = asyncio.run(_drive(request, clients, stop=stop, **command))
        print(json.dumps(asdict(seen)), flush=True)


if __name__ == "__main__":
    main()
