"""Who is told of requests."""

from typing import Protocol

import grpc

# The RPCs that come through here.
METHODS = frozenset(
    {
        "Predict",
        "Classify",
        "Regress",
        "MultiInference",
        "GetModelMetadata",
        "GetModelStatus",
        "HandleReloadConfigRequest",
    }
)


class Observer(Protocol):
    """Is told of every request, once it is answered or refused; what it raises is logged and harms no request."""

    def observe(self, method: str, model: str, version: int | None, code: grpc.StatusCode, seconds: float) -> None:
        """Takes one request.

        Args:
            method: the RPC's name, one of METHODS; empty where it is none: others too are without number.
            model: the model asked, empty where it is none that is served: names from outside are without number.
            version: the version that answered, None where none did.
            code: the status of the answer.
            seconds: from its coming in to its answer.
        """
