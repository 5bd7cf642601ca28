"""The embedded server: TF Serving's gRPC services for one machine, without TF Serving.

It answers tensorflow.serving.PredictionService and ModelService with the same status codes as TF Serving and, where
that is honest, the same messages. What it does not have: batching across requests, reloading, REST.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from concurrent import futures
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from serving.door import Door
from serving.loading import load_models
from serving.servables import Labels, Models
from serving.services import ModelService, PredictionService

DEFAULT_PORT = 8500
# A batch of sixteen photographs of 4 MB; one message, and one decoded tensor, may be no larger.
DEFAULT_MAX_MESSAGE_BYTES = 64 << 20
# Running and waiting requests together; the next is refused with RESOURCE_EXHAUSTED, which clients try again.
# A message is received only when a worker takes it, so that waiting requests hold next to no memory.
DEFAULT_MAX_CONCURRENT_RPCS = 128
# How long a stopping server lets requests finish; container runtimes kill after 10 s.
DEFAULT_GRACE_SECONDS = 8.0

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Server:
    """Serves models over gRPC from construction until `stop`; as a context manager, until the block ends."""

    def __init__(
        self,
        models: Models,
        host: str = "127.0.0.1",
        port: int = DEFAULT_PORT,
        *,
        workers: int | None = None,
        max_concurrent_rpcs: int = DEFAULT_MAX_CONCURRENT_RPCS,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    ):
        """Listens and answers.

        Args:
            models: what to serve.
            host: the address to listen on; the loopback address keeps other machines out.
            port: the port, or 0 for a free one.
            workers: requests that run at the same time; by default one for each CPU, TensorFlow using several CPUs
                for each of them anyway, and at least four, so that status requests pass long predictions.
            max_concurrent_rpcs: requests that run or wait; further ones are refused.
            max_message_bytes: the largest request, and the largest tensor in one.

        Raises:
            OSError: the address is taken or not ours.
        """
        self.models = models
        self.host = host
        self._workers = futures.ThreadPoolExecutor(workers or max(4, os.cpu_count() or 1), "serving")
        self._server = grpc.server(
            self._workers,
            maximum_concurrent_rpcs=max_concurrent_rpcs,
            options=[
                ("grpc.so_reuseport", 0),  # else two servers share a port in silence
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.max_send_message_length", -1),
            ],
        )
        self.door = Door(models, max_message_bytes)
        prediction = PredictionService(self.door)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(prediction, self._server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(self.door), self._server)
        require_free(host, port)
        try:
            self.port: int = self._server.add_insecure_port(f"{_bracketed(host)}:{port}")
        except RuntimeError as error:
            raise OSError(f"cannot listen on {_bracketed(host)}:{port}: {error}") from error
        self._server.start()

    @property
    def address(self) -> str:
        """Gives HOST:PORT, as a client takes it."""
        return f"{_bracketed(self.host)}:{self.port}"

    def stop(self, grace: float | None = DEFAULT_GRACE_SECONDS) -> None:
        """Refuses new requests, lets running ones finish within `grace` seconds (None: cuts them off), and closes."""
        self._server.stop(grace).wait()
        self._workers.shutdown(wait=False, cancel_futures=True)

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until the server has stopped; returns whether it has, within `timeout` seconds."""
        return not self._server.wait_for_termination(timeout)

    def __enter__(self) -> Self:
        """Returns the server, which is already listening."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops the server; at once if the block failed."""
        self.stop(None if kind else DEFAULT_GRACE_SECONDS)


def start(
    model_dirs: Sequence[Path],
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    *,
    all_versions: bool = False,
    labels: Labels | None = None,
    workers: int | None = None,
    max_concurrent_rpcs: int = DEFAULT_MAX_CONCURRENT_RPCS,
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
) -> Server:
    """Loads model directories (`saved_models/NAME`) and serves them.

    As with TF Serving the port opens only when all is loaded and warm: a port that answers is a server that is ready.

    Args:
        model_dirs: a directory for each model, with a directory for each version inside.
        host: see Server, as for `port`, `workers`, `max_concurrent_rpcs` and `max_message_bytes`.
        port: see Server.
        all_versions: whether to serve every version instead of the newest of each model.
        labels: for each model, version numbers under labels such as `stable`.
        workers: see Server.
        max_concurrent_rpcs: see Server.
        max_message_bytes: see Server.

    Raises:
        FileNotFoundError, ValueError, LoadError: a directory cannot be served; see load_models.
        OSError: the address is taken or not ours.
    """
    require_free(host, port)  # before the loading, which takes long
    models = Models(load_models(model_dirs, max_message_bytes, all_versions), labels)
    return Server(
        models,
        host,
        port,
        workers=workers,
        max_concurrent_rpcs=max_concurrent_rpcs,
        max_message_bytes=max_message_bytes,
    )


def run(
    model_dirs: Sequence[Path],
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    *,
    grace: float = DEFAULT_GRACE_SECONDS,
    **options: Any,
) -> None:
    """Serves until SIGTERM or SIGINT, then lets running requests finish; `overfeat serve` is this.

    A second signal ends the process the ordinary way. Must be called from the main thread.

    Args:
        model_dirs: see start, as for `host`, `port` and `options`.
        host: see start.
        port: see start.
        grace: how many seconds running requests may take to finish.
        **options: see start.

    Raises:
        FileNotFoundError, ValueError, LoadError, OSError: see start.
    """
    asked_to_stop = threading.Event()
    server = start(model_dirs, host, port, **options)
    before = {number: signal.signal(number, lambda *_: asked_to_stop.set()) for number in _STOP_SIGNALS}
    print(f"serving {server.models} on {server.address}", file=sys.stderr, flush=True)
    try:
        asked_to_stop.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        print(f"stopping; requests have {grace:g} s to finish", file=sys.stderr, flush=True)
        server.stop(grace)


def require_free(host: str, port: int) -> None:
    """Checks that a server may listen there; gRPC itself only says that it failed, and says it at length.

    Raises:
        OSError: the address is taken, not ours or not allowed, in one line.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        why = (error.strerror or str(error)).partition(" (while")[0]  # create_server repeats the address behind it
        raise OSError(
            f"cannot listen on {_bracketed(host)}:{port}: {why}; choose another port, or 0 for any free one"
        ) from None


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
