"""The answers that are errors: a gRPC status code and one line, whatever went wrong underneath."""

import re

import grpc
import tensorflow as tf

# TensorFlow's canonical error codes and gRPC's are the same numbers.
_CODES = {code.value[0]: code for code in grpc.StatusCode if code is not grpc.StatusCode.OK}
# The message travels in an HTTP/2 header, and the peers' limit on headers is 8 KiB: a longer one would reach the
# client as a broken call instead of the error. Names out of the request are part of many messages.
_MAX_MESSAGE_CHARS = 1000
# What TensorFlow puts before (and, on one line, around) the reason of a failed graph.
_NOISE_LINE = re.compile(
    r"Graph execution error:|Detected at node .*|<stack traces unavailable>|File \".*|Node: .*|\d+ root error.*|"
)
_NOISE_INLINE = re.compile(r"^(\{\{\S+ \S+?\}\}\s*)+|^\(\d+\) [A-Z_]+: |\s*\[Op:\S*\]\s*$")


class Refusal(Exception):  # noqa: N818 - not an error of ours
    """Carries a request's refusal to the client: a gRPC status code and a message of one line."""

    def __init__(self, code: grpc.StatusCode, message: str):
        """Keeps the code and the message, the message cut to what a status can carry."""
        self.code = code
        self.message = _cut(message)
        super().__init__(f"{code.name}: {self.message}")


def invalid(message: str) -> Refusal:
    """Makes the commonest refusal: INVALID_ARGUMENT."""
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, message)


def refusal_of(error: Exception) -> Refusal:
    """Turns any exception into a refusal.

    A Refusal stays what it is, an error of the graph keeps its code and gives the reason out of its message, and
    anything else is INTERNAL.
    """
    if isinstance(error, UnicodeDecodeError):
        # A graph's error whose message quotes bytes of the request: TensorFlow fails to make a Python string of it,
        # and its code is lost with it. Only what a request holds is quoted.
        return invalid(reason(error.object.decode(errors="backslashreplace")))
    if isinstance(error, Refusal):
        return error
    if isinstance(error, tf.errors.OpError):
        return Refusal(_CODES.get(error.error_code, grpc.StatusCode.INTERNAL), reason(error.message))
    return Refusal(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {reason(str(error))}")


def reason(message: str) -> str:
    """Finds the line of a TensorFlow error that says why; the rest says where in whose source."""
    lines = (line.strip() for line in message.splitlines())
    told = next((line for line in lines if not _NOISE_LINE.fullmatch(line)), "no reason given")
    return _NOISE_INLINE.sub("", told)


def _cut(message: str) -> str:
    message = " ".join(message.split())
    return message if len(message) <= _MAX_MESSAGE_CHARS else message[: _MAX_MESSAGE_CHARS - 4] + " ..."
