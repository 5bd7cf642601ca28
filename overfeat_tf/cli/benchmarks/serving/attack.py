"""Send hostile requests to a server from several threads and check the status of each response."""

import http.client
from collections import Counter
from collections.abc import Iterable
from concurrent import futures
from dataclasses import dataclass, field
from itertools import islice

import grpc
from tensorflow_serving.apis import predict_pb2

from overfeat_tf.cli.benchmarks.report import markdown_table
from overfeat_tf.cli.benchmarks.serving.hostile import Call

SENDERS = 8
BATCH = 100  # calls in memory at a time
TIMEOUT_SECONDS = 120.0
_PREDICTION = "/tensorflow.serving.PredictionService/"
# Statuses that name the client's mistake; any other one is the server's fault. UNAVAILABLE and 503 are not here: eight
# senders do not fill the queue, and a server that has crashed gives the same status.
EXPECTED_STATUSES = frozenset(
    {
        *("OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED"),
        *("200", "400", "404", "405", "413", "501"),
    }
)
# The response of the gRPC library where bytes are not a message; the server's code does not run.
_NO_MESSAGE = "Exception deserializing request!"


@dataclass
class Outcome:
    """The responses to the requests.

    Attributes:
        statuses: The count of each status, by kind of request.
        failures: A line for each request with an unexpected status, or without a response.
    """

    statuses: dict[str, Counter[str]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Number of requests."""
        return sum(counter.total() for counter in self.statuses.values())

    def table(self) -> str:
        """Render the statuses in Markdown."""
        rows = [
            (kind, ", ".join(f"{status} {count}" for status, count in counter.most_common()))
            for kind, counter in sorted(self.statuses.items())
        ]
        return markdown_table(("hostile requests", "responses"), rows)


def attack(address: str, rest: str, calls: Iterable[Call]) -> Outcome:
    """Send calls to a server, several at a time.

    Args:
        address: HOST:PORT of gRPC.
        rest: HOST:PORT of REST.
        calls: The calls.
    """
    outcome = Outcome()
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(address, options=options) as channel, futures.ThreadPoolExecutor(SENDERS) as senders:

        def send(call: Call) -> tuple[Call, str, bool]:
            return call, *(_send_rest(rest, call) if call.target.startswith("/") else _send_grpc(channel, call))

        stream = iter(calls)
        while batch := list(islice(stream, BATCH)):
            for call, status, expected in senders.map(send, batch):
                outcome.statuses.setdefault(call.kind, Counter())[status] += 1
                if not expected:
                    outcome.failures.append(f"{call.kind}: {status}")
    return outcome


def _send_grpc(channel: grpc.Channel, call: Call) -> tuple[str, bool]:
    # The generated stubs send only valid messages; a bare method sends any bytes.
    method = channel.unary_unary(_PREDICTION + call.target)
    try:
        response = method(call.body, timeout=TIMEOUT_SECONDS)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.INTERNAL and error.details() == _NO_MESSAGE:
            return "INTERNAL of gRPC: no message", True
        status = error.code().name
        return (status, True) if status in EXPECTED_STATUSES else (f"{status} {error.details()}", False)
    outputs = predict_pb2.PredictResponse.FromString(response).outputs if call.target == "Predict" else {}
    read = "status" not in outputs or not any(outputs["status"].string_val)
    return "OK" if read else "OK with the status of an image not read", not (read and call.kind == "bomb")


def _send_rest(address: str, call: Call) -> tuple[str, bool]:
    connection = http.client.HTTPConnection(address, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("POST", call.target, call.body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        return str(response.status), str(response.status) in EXPECTED_STATUSES
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__} {error}", False
    finally:
        connection.close()
