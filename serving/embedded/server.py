"""The embedded server: TF Serving's gRPC services for one machine, without TF Serving.

It answers tensorflow.serving.PredictionService and ModelService with the same status codes as TF Serving and, where
that is honest, the same messages. It runs on Python's threads, in one process: for more than one machine, or for all
that a machine can give, run TF Serving on the same model directories.
"""

import os
import time
from collections.abc import Sequence
from concurrent import futures
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from serving.embedded.access import Access
from serving.embedded.address import bracketed, require_free
from serving.embedded.batching import Batcher
from serving.embedded.batching_options import BatchingOptions
from serving.embedded.configuration import ServedModel, from_directories
from serving.embedded.dispatch import BoundedPool, Dispatcher
from serving.embedded.door import Door
from serving.embedded.limits import DEFAULT_MAX_ROWS
from serving.embedded.observing import Observer
from serving.embedded.servables import Labels, Models
from serving.embedded.services import add_services
from serving.embedded.turns import Turns
from serving.embedded.versions import DEFAULT_POLL_SECONDS, Keeper
from serving.embedded.watch import Watch

DEFAULT_PORT = 8500
# A batch of sixteen photographs of 4 MB; one message, and one decoded tensor, may be no larger.
DEFAULT_MAX_MESSAGE_BYTES = 64 << 20
# Running and waiting requests together; the next is refused with UNAVAILABLE, which clients try again. A message is
# received only when a thread takes it, so that waiting requests hold next to no memory.
DEFAULT_MAX_CONCURRENT_RPCS = 128
# How long a stopping server lets requests finish; container runtimes kill after 10 s.
DEFAULT_GRACE_SECONDS = 8.0

_CONTROL_THREADS = 4  # for status, metadata, health and refusals
_REFLECTING_CLIENTS = 2  # at the same time
_CONTROL_RPCS = 256  # of which so many may be under way, watches of the health included


class Server:
    """Serves models over gRPC from construction until `stop`; as a context manager, until the block ends.

    Attributes:
        models: what is served.
        door: where every request goes through, whatever protocol brings it.
        access: what clients have to bring.
        host, port: where it listens.
    """

    def __init__(
        self,
        models: Models,
        host: str = "127.0.0.1",
        port: int = DEFAULT_PORT,
        *,
        workers: int | None = None,
        max_concurrent_rpcs: int = DEFAULT_MAX_CONCURRENT_RPCS,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        max_rows: int = DEFAULT_MAX_ROWS,
        batching: BatchingOptions | None = None,
        access: Access | None = None,
        keeper: Keeper | None = None,
        observer: Observer | None = None,
    ):
        """Listens and answers.

        Args:
            models: what to serve.
            host: the address to listen on; the loopback address keeps other machines out.
            port: the port, or 0 for a free one.
            workers: requests that run at the same time; by default one for each CPU, TensorFlow using several CPUs
                for each of them anyway, and at least four.
            max_concurrent_rpcs: requests that run or wait; further ones are refused.
            max_message_bytes: the largest request, and the largest tensor in one.
            max_rows: the most images or examples in a request.
            batching: how Predict requests are run together; None for each by itself.
            access: what clients have to bring; nothing by default.
            keeper: who keeps `models` up to date, and is closed with the server; None where they are fixed.
            observer: who is told of every request.

        Raises:
            OSError: the address is taken or not ours.
        """
        require_free(host, port)
        self.models = models
        self.access = access or Access()
        self.host = host
        self._keeper = keeper
        workers = workers or max(4, os.cpu_count() or 1)
        watch = Watch()
        self._batcher = Batcher(batching, watch) if batching else None
        # A request holds a thread while it waits for its batch: enough for those that run and as many to come.
        batches = batching.max_batch_size * (batching.num_batch_threads + 1) if batching else 0
        threads = min(max(workers, batches), max_concurrent_rpcs)
        self._pool = BoundedPool(threads, max_concurrent_rpcs - threads)
        self.door = Door(
            models,
            max_message_bytes,
            observer,
            keeper=keeper,
            turns=Turns(workers, max_concurrent_rpcs),
            batcher=self._batcher,
            watch=watch,
            max_rows=max_rows,
        )
        self.door.count_also(lambda: self._pool.waiting)
        self._control = futures.ThreadPoolExecutor(_CONTROL_THREADS, "control")
        self._reloading = futures.ThreadPoolExecutor(1, "reload")
        self._reflecting = futures.ThreadPoolExecutor(_REFLECTING_CLIENTS, "reflection")
        self._server = grpc.server(
            self._control,
            interceptors=[Dispatcher(self.door, self.access, self._pool)],
            maximum_concurrent_rpcs=max_concurrent_rpcs + _CONTROL_RPCS,
            options=[
                ("grpc.so_reuseport", 0),  # else two servers share a port in silence
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.max_send_message_length", -1),
            ],
        )
        self._health = add_services(self._server, self.door, self._pool, self._reloading, self._reflecting)
        self.port: int = self._listen(port)
        self._server.start()

    @property
    def address(self) -> str:
        """Gives HOST:PORT, as a client takes it."""
        return f"{bracketed(self.host)}:{self.port}"

    def retire(self) -> None:
        """Says in its health that it is about to stop, and loads no new version; goes on answering."""
        self._health.enter_graceful_shutdown()
        if self._keeper:
            self._keeper.close(0)

    def stop(self, grace: float | None = DEFAULT_GRACE_SECONDS, notice: float = 0.0) -> None:
        """Stops in order: says so in its health, refuses new requests, lets those that it has finish, and closes.

        Args:
            grace: how many seconds running and waiting requests may take; None cuts them off.
            notice: how many seconds it goes on answering after its health says NOT_SERVING, so that who looks at it
                sends requests elsewhere first.
        """
        self.retire()
        time.sleep(notice)
        stopped = self._server.stop(grace)
        if grace is not None and self._pool.wait_idle(grace):
            # Those who watch the health, or reflect, would else keep it waiting until the grace is over.
            stopped = self._server.stop(min(grace, 0.5))
        stopped.wait()
        if self._keeper:
            self._keeper.close()
        if self._batcher:
            self._batcher.close()
        for pool in (self._pool, self._control, self._reloading, self._reflecting):
            pool.shutdown(wait=False, cancel_futures=True)

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
    model_dirs: Sequence[Path],
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    *,
    all_versions: bool = False,
    labels: Labels | None = None,
    **options: Any,
) -> Server:
    """Loads model directories (`saved_models/NAME`) and serves them; see start_models.

    Args:
        model_dirs: a directory for each model, with a directory for each version inside.
        host: see Server.
        port: see Server.
        all_versions: whether to serve every version instead of the newest of each model.
        labels: for each model, version numbers under labels such as `stable`.
        **options: see start_models.
    """
    return start_models(from_directories(model_dirs, all_versions, labels), host, port, **options)


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
    """Loads models, serves them, and from then on follows what becomes of their directories.

    As with TF Serving the port opens only when all is loaded and warm: a port that answers is a server that is ready.

    Args:
        wanted: what to serve.
        host: see Server.
        port: see Server.
        poll_seconds: how often to look for new versions.
        wait: whether to wait for models that are not there yet.
        config: the file that `wanted` was read from; read again whenever it is saved.
        max_message_bytes: see Server.
        **options: see Server.

    Raises:
        FileNotFoundError, ValueError, LoadError: a model cannot be served; see Keeper.start.
        OSError: the address is taken or not ours.
    """
    require_free(host, port)  # before the loading, which takes long
    models = Models()
    keeper = Keeper(models, max_message_bytes, poll_seconds, config)
    keeper.start(wanted, wait)
    try:
        return Server(models, host, port, max_message_bytes=max_message_bytes, keeper=keeper, **options)
    except BaseException:
        keeper.close()
        raise
