"""Addresses to listen on, said as people and clients write them."""

import socket


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
            f"cannot listen on {bracketed(host)}:{port}: {why}; choose another port, or 0 for any free one"
        ) from None


def bracketed(host: str) -> str:
    """Writes a host as it stands before a port: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host
