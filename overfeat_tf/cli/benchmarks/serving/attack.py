"""Sends hostile requests to a server from several threads, and judges what it answers."""

import http.client
from collections import Counter
from collections.abc import Iterable
from concurrent import futures
from dataclasses import dataclass, field
from itertools import islice

import grpc
from tensorflow_serving.apis import predict_pb2

from overfeat_tf.cli.benchmarks.serving.hostile import Call

SENDERS = 8
_MADE_AHEAD = 100  # calls held in memory
TIMEOUT_SECONDS = 120.0  # no answer by then is none at all
_PREDICTION = "/tensorflow.serving.PredictionService/"
# What says which mistake was made; the rest says that the server was surprised. UNAVAILABLE and 503 too: so few
# senders fill no queue, and a server that is gone would answer so.
PROPER = frozenset(
    {
        *("OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED"),
        *("200", "400", "404", "405", "413", "501"),
    }
)
# What gRPC itself answers, before any server's code, where bytes are no message at all.
_NO_MESSAGE = "Exception deserializing request!"


@dataclass
class Outcome:
    """What became of requests.

    Attributes:
        answers: for each kind of request, how often each status came.
        improper: a line for each answer that was none, or no proper one.
    """

    answers: dict[str, Counter[str]] = field(default_factory=dict)
    improper: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Count the requests."""
        return sum(counter.total() for counter in self.answers.values())

    def table(self) -> str:
        """Render the answers in Markdown."""
        lines = ["| hostile requests | answers |", "| --- | --- |"]
        for kind, counter in sorted(self.answers.items()):
            lines.append(f"| {kind} | {', '.join(f'{status} {count}' for status, count in counter.most_common())} |")
        return "\n".join(lines)


def attack(address: str, rest: str, calls: Iterable[Call]) -> Outcome:
    """Send calls to a server, some at a time.

    Args:
        address: HOST:PORT of gRPC.
        rest: HOST:PORT of REST.
        calls: What to send.
    """
    outcome = Outcome()
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(address, options=options) as channel, futures.ThreadPoolExecutor(SENDERS) as senders:

        def send(call: Call) -> tuple[Call, str, bool]:
            return call, *(_ask_rest(rest, call) if call.target.startswith("/") else _ask_grpc(channel, call))

        stream = iter(calls)
        while some := list(islice(stream, _MADE_AHEAD)):
            for call, status, proper in senders.map(send, some):
                outcome.answers.setdefault(call.kind, Counter())[status] += 1
                if not proper:
                    outcome.improper.append(f"{call.kind}: {status}")
    return outcome


def _ask_grpc(channel: grpc.Channel, call: Call) -> tuple[str, bool]:
    # The stock stubs would not send what is no message; below them it is bytes.
    method = channel.unary_unary(_PREDICTION + call.target)
    try:
        response = method(call.body, timeout=TIMEOUT_SECONDS)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.INTERNAL and error.details() == _NO_MESSAGE:
            return "INTERNAL of gRPC: no message", True
        status = error.code().name
        return (status, True) if status in PROPER else (f"{status} {error.details()}", False)
    outputs = predict_pb2.PredictResponse.FromString(response).outputs if call.target == "Predict" else {}
    read = "status" not in outputs or not any(outputs["status"].string_val)
    return "OK" if read else "OK with the status of an image not read", not (read and call.kind == "bomb")


def _ask_rest(address: str, call: Call) -> tuple[str, bool]:
    connection = http.client.HTTPConnection(address, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("POST", call.target, call.body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        return str(response.status), str(response.status) in PROPER
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__} {error}", False
    finally:
        connection.close()
