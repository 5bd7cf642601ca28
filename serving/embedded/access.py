"""Who may reach the server, and where it listens: this machine alone, or others over TLS with a token."""

import hmac
import socket
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from serving.connections import is_loopback, is_token, read_token, require_authority, require_pair

_MIN_TOKEN_CHARS = 16  # shorter tokens can be guessed over a network


@dataclass(frozen=True)
class Access:
    """What a client needs; nothing by default, since only this machine reaches the server.

    Attributes:
        cert: the server's certificate chain, a PEM file; None for no TLS.
        key: its private key, a PEM file.
        client_ca: the authority that signs client certificates, a PEM file; None to ask for none.
        token: the token of a request's `authorization: Bearer TOKEN`; None for no token.
    """

    cert: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    token: str | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        host: str,
        cert: Path | None = None,
        key: Path | None = None,
        client_ca: Path | None = None,
        token_file: Path | None = None,
        insecure: bool = False,
    ) -> "Access":
        """Read the options; a host that other machines reach needs TLS and a token, or `insecure`.

        Raises:
            FileNotFoundError: a file does not exist.
            ValueError: options are missing, or a file holds something else.
        """
        for file in (cert, key, client_ca, token_file):
            if file is not None and not file.is_file():
                raise FileNotFoundError(f"expected a file at {file}: there is none; check the path")
        if (cert is None) != (key is None):
            raise ValueError("expected a certificate and its key together: give --tls-cert and --tls-key")
        if client_ca is not None and cert is None:
            raise ValueError("expected TLS where clients need certificates: give --tls-cert and --tls-key too")
        if not insecure and not is_loopback(host) and (cert is None or token_file is None):
            raise ValueError(
                f"expected TLS and a token on {host}, which other machines reach: give --tls-cert, --tls-key and "
                "--token-file, or say --insecure where something in front of the server sees to both"
            )
        if cert is not None and key is not None:
            require_pair(cert, key)  # gRPC would reject them only after all models are loaded
        if client_ca is not None:
            require_authority(client_ca)
        token = None if token_file is None else read_token(token_file)
        if token is not None and (len(token) < _MIN_TOKEN_CHARS or not is_token(token)):
            raise ValueError(
                f"expected a token of at least {_MIN_TOKEN_CHARS} printable characters in {token_file}; "
                "make one with: openssl rand -hex 32"
            )
        return cls(cert, key, client_ca, token)

    def server_credentials(self) -> grpc.ServerCredentials | None:
        """Return gRPC's credentials; None without TLS."""
        if self.cert is None or self.key is None:
            return None
        ca = None if self.client_ca is None else self.client_ca.read_bytes()
        pair = (self.key.read_bytes(), self.cert.read_bytes())
        return grpc.ssl_server_credentials([pair], root_certificates=ca, require_client_auth=ca is not None)

    def permits(self, authorization: str | None) -> bool:
        """Compare a request's `authorization` with the token, in constant time."""
        if self.token is None:
            return True
        scheme, _, token = (authorization or "").encode("utf-8", "replace").partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self.token.encode())


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket, for `::` of IPv6 and IPv4, as gRPC does; the message of its OSError is one line."""
    dual = ":" in host and socket.has_dualstack_ipv6()
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, dualstack_ipv6=dual)
    except OSError as error:
        why = (error.strerror or str(error)).partition(" (while")[0]  # create_server repeats the address behind it
        raise OSError(
            f"cannot listen on {bracketed(host)}:{port}: {why}; choose another port, or 0 for any free one"
        ) from None


def bracketed(host: str) -> str:
    """Write a host as it stands before a port: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host
