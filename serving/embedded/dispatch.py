"""What happens to an RPC before it is read: is its client known, is there a place for it, whose threads run it."""

import threading
from collections.abc import Callable
from concurrent import futures
from typing import Any

import grpc
from grpc_health.v1 import health

from serving.embedded.access import Access
from serving.embedded.door import Door
from serving.embedded.turns import full
from serving.refusal import Refusal

# The methods that compute: they wait in the queue of a pool of their own; all others pass them.
COMPUTING = frozenset({"Predict", "Classify", "Regress", "MultiInference"})
_PREDICTION = "/tensorflow.serving.PredictionService/"
_HEALTH = f"/{health.SERVICE_NAME}/"


class BoundedPool(futures.ThreadPoolExecutor):
    """Runs calls on so many threads, and says when so many more wait that the next should be refused.

    gRPC hands over calls whose messages it has not received yet: those that wait hold next to no memory.
    """

    def __init__(self, workers: int, waiting: int):
        """Takes how many calls run at the same time, and how many may wait."""
        super().__init__(workers, "serving")
        self.most_waiting = waiting
        self._workers = workers
        self._calls = 0
        self._counting = threading.Condition()

    @property
    def waiting(self) -> int:
        """Counts the calls that wait for a thread."""
        return max(self._calls - self._workers, 0)

    @property
    def is_full(self) -> bool:
        """Tells whether the next call is one too many."""
        return self.waiting >= self.most_waiting and self._calls >= self._workers

    def submit(self, function: Callable, /, *args: Any, **options: Any) -> futures.Future:
        """Takes a call, even if full: who asks `is_full` first decides."""
        with self._counting:
            self._calls += 1
        future = super().submit(function, *args, **options)
        future.add_done_callback(self._done)
        return future

    def wait_idle(self, timeout: float) -> bool:
        """Waits until no call runs or waits; returns whether that came within `timeout` seconds."""
        with self._counting:
            return self._counting.wait_for(lambda: self._calls == 0, timeout)

    def _done(self, _: futures.Future) -> None:
        with self._counting:
            self._calls -= 1
            self._counting.notify_all()


class Dispatcher(grpc.ServerInterceptor):
    """Refuses what lacks the token, and what finds the queue full; health checks pass in any case."""

    def __init__(self, door: Door, access: Access, pool: BoundedPool):
        """Takes who is told of refusals, what clients have to bring, and the pool of the computing methods."""
        self._door = door
        self._access = access
        self._pool = pool

    def intercept_service(self, continuation: Callable, handler_call_details: Any) -> grpc.RpcMethodHandler | None:
        """Gives the method's handler, or one that refuses."""
        path = handler_call_details.method
        if path.startswith(_HEALTH):
            return continuation(handler_call_details)
        method = path.rpartition("/")[2]
        metadata = dict(handler_call_details.invocation_metadata)
        if not self._access.permits(metadata.get("authorization")):
            message = "expected this server's token in the metadata: authorization: Bearer TOKEN"
            return self._refusing(method, Refusal(grpc.StatusCode.UNAUTHENTICATED, message))
        if path.startswith(_PREDICTION) and method in COMPUTING and self._pool.is_full:
            return self._refusing(method, full(self._pool.most_waiting))
        return continuation(handler_call_details)

    def _refusing(self, method: str, refusal: Refusal) -> grpc.RpcMethodHandler:
        """Makes a handler that refuses; as of a stream, since the message of a stream need not be received."""

        def refuse(_: Any, context: grpc.ServicerContext) -> None:
            self._door.turned_away(method, refusal)
            context.abort(refusal.code, refusal.message)

        return grpc.stream_unary_rpc_method_handler(refuse)
