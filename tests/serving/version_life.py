"""Model directories that change while they are served, and clients that ask all the time."""

import contextlib
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
from stock_requests import call, good_request, status_request
from tensorflow_serving.apis import get_model_status_pb2

from serving.server import Server, start

State = get_model_status_pb2.ModelVersionStatus
POLL = 0.05


def put(model_dir: Path, base: Path, version: int, source: int = 1) -> Path:
    """Puts a version in place as an export does: beside first, then by its name."""
    beside = base / f"{version}.partial"
    shutil.copytree(model_dir / str(source), beside)
    return beside.rename(base / str(version))


def states(channel: grpc.Channel, model: str = "m") -> dict[int, int]:
    found = call(channel, "GetModelStatus", status_request(model)).model_version_status
    return {each.version: each.state for each in found}


class Load:
    """Clients that ask without a pause, each answer's version and each failure noted."""

    def __init__(self, address: str, clients: int = 4):
        self.versions: list[int] = []
        self.failures: list[grpc.RpcError] = []
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(address,)) for _ in range(clients)]

    def _ask(self, address: str) -> None:
        with grpc.insecure_channel(address) as channel:
            while not self._end.is_set():
                try:
                    self.versions.append(call(channel, "Predict", good_request()).model_spec.version.value)
                except grpc.RpcError as error:
                    self.failures.append(error)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        for thread in self._threads:
            thread.join()


@contextlib.contextmanager
def served(base: Path, **options) -> Iterator[tuple[Server, grpc.Channel]]:
    with (
        start([base], port=0, poll_seconds=POLL, **options) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        yield server, channel
