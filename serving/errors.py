"""Status errors: a gRPC status code and a message of one line, from any exception."""

import re

import grpc
import tensorflow as tf

# TensorFlow's canonical error codes and gRPC's are the same numbers.
_CODES = {code.value[0]: code for code in grpc.StatusCode if code is not grpc.StatusCode.OK}
# The message travels in an HTTP/2 header, a byte beyond ASCII as three, and peers limit headers to 8 KiB: a longer one
# would reach the client as a broken call. Many messages repeat names out of the request.
_MAX_MESSAGE_BYTES = 1000
# What TensorFlow puts before (and, on one line, around) the reason of a failed graph.
_NOISE_LINE = re.compile(
    r"Graph execution error:|Detected at node .*|<stack traces unavailable>|File \".*|Node: .*|\d+ root error.*|"
)
_NOISE_INLINE = re.compile(r"^(\{\{\S+ \S+?\}\}\s*)+|^\(\d+\) [A-Z_]+: |\s*\[Op:\S*\]\s*$")


class StatusError(Exception):
    """A request's error status: a gRPC status code and a message of one line.

    Attributes:
        code, message: the status.
        counted: whether the server's observer has been told of it.
    """

    counted = False

    def __init__(self, code: grpc.StatusCode, message: str):
        """Keep the code and the message, which is cut to what a status can carry."""
        self.code = code
        text = " ".join(message.split()).encode(errors="replace")
        cut = text[: _MAX_MESSAGE_BYTES - 4].decode(errors="ignore") + " ..."
        self.message = cut if len(text) > _MAX_MESSAGE_BYTES else text.decode()
        super().__init__(f"{code.name}: {self.message}")


def invalid(message: str) -> StatusError:
    """Return an INVALID_ARGUMENT error."""
    return StatusError(grpc.StatusCode.INVALID_ARGUMENT, message)


def to_status_error(error: Exception) -> StatusError:
    """Convert any exception: graph errors keep their code and the reason in their message, others become INTERNAL."""
    if isinstance(error, UnicodeDecodeError):
        # TensorFlow fails to decode a graph error whose message quotes bytes of the request, and the code is lost.
        return invalid(reason(error.object.decode(errors="backslashreplace")))
    if isinstance(error, StatusError):
        return error
    if isinstance(error, UnicodeEncodeError):  # half of a surrogate pair, which JSON can write
        return invalid("expected valid UTF-8 text in the request")
    if isinstance(error, tf.errors.OpError):
        return StatusError(_CODES.get(error.error_code, grpc.StatusCode.INTERNAL), reason(error.message))
    return StatusError(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {reason(str(error))}")


def reason(message: str) -> str:
    """Return the line of a TensorFlow error message that says why; the other lines say where."""
    lines = (line.strip() for line in message.splitlines())
    first = next((line for line in lines if not _NOISE_LINE.fullmatch(line)), "no reason given")
    return _NOISE_INLINE.sub("", first)
