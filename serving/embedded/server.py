"""The embedded server: TF Serving's gRPC services for one machine, without TF Serving.

It answers tensorflow.serving.PredictionService and ModelService with TF Serving's status codes and, where possible, its
messages. It runs in one Python process: for more than one machine run TF Serving on the same model directories.
"""

import time
from collections.abc import Sequence
from concurrent import futures
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import grpc

from serving.embedded.access import Access, bracketed, require_free
from serving.embedded.config import ServedModel, from_directories
from serving.embedded.handler import DEFAULT_MAX_REQUESTS, DEFAULT_MAX_ROWS, Observer, RequestHandler
from serving.embedded.servables import Labels, Models
from serving.embedded.services import Interceptor, add_services
from serving.embedded.version_manager import DEFAULT_POLL_SECONDS, VersionManager

DEFAULT_PORT = 8500
# Sixteen photographs of 4 MB; the limit of one message, and of one decoded tensor.
DEFAULT_MAX_MESSAGE_BYTES = 64 << 20
# How long a stopping server lets requests finish; container runtimes kill after 10 s.
DEFAULT_GRACE_SECONDS = 8.0

_CONTROL_THREADS = 4  # for status, metadata, health and rejections
_REFLECTION_THREADS = 2
_CONTROL_RPCS = 256  # concurrent calls that run no model, watches of the health included


class Server(AbstractContextManager):
    """Serves models over gRPC from construction until `stop`; as a context manager, until the block ends.

    Attributes:
        models: what is served.
        handler: answers every request, of gRPC and REST.
        access: what clients need.
        host, port: where it listens.
    """

    def __init__(
        self,
        models: Models,
        host: str = "127.0.0.1",
        port: int = DEFAULT_PORT,
        *,
        workers: int | None = None,
        max_concurrent_rpcs: int = DEFAULT_MAX_REQUESTS,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        max_rows: int = DEFAULT_MAX_ROWS,
        access: Access | None = None,
        version_manager: VersionManager | None = None,
        observer: Observer | None = None,
    ):
        """Listen and answer.

        Args:
            models: what to serve.
            host, port: where to listen; the loopback address keeps other machines out, and port 0 is any free one.
            workers: requests that run at the same time; by default one for each CPU (TensorFlow uses several CPUs for
                each of them anyway), and at least four.
            max_concurrent_rpcs: requests that run or wait; further ones are rejected.
            max_message_bytes: the largest request, and the largest tensor in one.
            max_rows: the most images or examples in a request.
            access: what clients need; nothing by default.
            version_manager: keeps `models` up to date, and is closed with the server; None if they are fixed.
            observer: is told of every request.

        Raises:
            OSError: the address is taken or not ours.
        """
        require_free(host, port)
        self.models = models
        self.access = access or Access()
        self.host = host
        self._version_manager = version_manager
        self.handler = RequestHandler(
            models,
            max_message_bytes,
            observer,
            version_manager=version_manager,
            workers=workers,
            max_requests=max_concurrent_rpcs,
            max_rows=max_rows,
        )
        control = futures.ThreadPoolExecutor(_CONTROL_THREADS, "control")
        reload_thread = futures.ThreadPoolExecutor(1, "reload")
        reflection_threads = futures.ThreadPoolExecutor(_REFLECTION_THREADS, "reflection")
        self._threads = (self.handler.queue, control, reload_thread, reflection_threads)
        self._server = grpc.server(
            control,
            interceptors=[Interceptor(self.handler, self.access)],
            maximum_concurrent_rpcs=max_concurrent_rpcs + _CONTROL_RPCS,
            options=[
                ("grpc.so_reuseport", 0),  # or two servers share a port without an error
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.max_send_message_length", -1),
            ],
        )
        self._health = add_services(self._server, self.handler, reload_thread, reflection_threads)
        self.port: int = self._listen(port)
        self._server.start()

    @property
    def address(self) -> str:
        """Return HOST:PORT."""
        return f"{bracketed(self.host)}:{self.port}"

    def retire(self) -> None:
        """Report NOT_SERVING and load no new version, but go on answering."""
        self._health.enter_graceful_shutdown()
        if self._version_manager:
            self._version_manager.close(0)

    def stop(self, grace: float | None = DEFAULT_GRACE_SECONDS, notice: float = 0.0) -> None:
        """Report NOT_SERVING, reject new requests, let running and waiting ones finish, and close.

        Requests may take `grace` seconds to finish; None cancels them. The server goes on answering for `notice`
        seconds after it has reported NOT_SERVING, for load balancers to notice.
        """
        self.retire()
        time.sleep(notice)
        stopped = self._server.stop(grace)
        if grace is not None and self.handler.queue.wait_idle(grace):
            # Clients that watch the health, or use reflection, would keep it open until the grace is over.
            stopped = self._server.stop(min(grace, 0.5))
        stopped.wait()
        if self._version_manager:
            self._version_manager.close()
        for pool in self._threads:
            pool.shutdown(wait=False, cancel_futures=True)

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self.stop(None if kind else DEFAULT_GRACE_SECONDS)

    def _listen(self, port: int) -> int:
        where = f"{bracketed(self.host)}:{port}"
        credentials = self.access.server_credentials()
        try:
            if credentials is None:
                return self._server.add_insecure_port(where)
            return self._server.add_secure_port(where, credentials)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {where}: {error}") from error


def start(
    model_dirs: Sequence[Path], *, all_versions: bool = False, labels: Labels | None = None, **options: Any
) -> Server:
    """Load model directories and serve them; see from_directories and start_models."""
    return start_models(from_directories(model_dirs, all_versions, labels), **options)


def start_models(
    wanted: Sequence[ServedModel],
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    *,
    poll_seconds: float = DEFAULT_POLL_SECONDS,
    wait: bool = False,
    config: Path | None = None,
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    **options: Any,
) -> Server:
    """Load models, serve them, and follow the changes of their directories.

    As with TF Serving the port opens only when all is loaded and warm.

    Args:
        wanted: what to serve.
        poll_seconds, config: see VersionManager.
        wait: whether to wait for models that are not there yet.
        host, port, max_message_bytes, **options: see Server.

    Raises:
        FileNotFoundError, ValueError, LoadError: a model cannot be served; see VersionManager.start.
        OSError: the address is taken or not ours.
    """
    require_free(host, port)  # before loading, which takes long
    models = Models()
    manager = VersionManager(models, max_message_bytes, poll_seconds, config)
    manager.start(wanted, wait)
    try:
        return Server(models, host, port, max_message_bytes=max_message_bytes, version_manager=manager, **options)
    except BaseException:
        manager.close()
        raise
