"""Who may reach the server: this machine alone, or others over TLS with a token."""

import hmac
import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from serving.certificates import require_authority, require_pair

_SHORTEST_TOKEN = 16  # characters: what cannot be guessed over a network


@dataclass(frozen=True)
class Access:
    """Holds what a client has to bring: nothing, by default, since only this machine can come.

    Attributes:
        cert: the server's certificate chain, a PEM file; None for no TLS.
        key: its private key, a PEM file.
        client_ca: the authority that has to have signed a client's certificate, a PEM file; None for no such demand.
        token: what a request's `authorization: Bearer TOKEN` has to say; None for nothing.
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
        """Reads what was chosen; other machines are let in only with TLS and a token, or by saying `insecure`.

        Raises:
            FileNotFoundError: a file is not there.
            ValueError: half of what is needed was given, or nothing for a host that others reach, or a file holds
                something else.
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
            require_pair(cert, key)  # gRPC would refuse them too, but once all models are loaded
        if client_ca is not None:
            require_authority(client_ca)
        return cls(cert, key, client_ca, None if token_file is None else _read_token(token_file))

    def server_credentials(self) -> grpc.ServerCredentials | None:
        """Gives gRPC's credentials; None for no TLS."""
        if self.cert is None or self.key is None:
            return None
        ca = None if self.client_ca is None else self.client_ca.read_bytes()
        pair = (self.key.read_bytes(), self.cert.read_bytes())
        return grpc.ssl_server_credentials([pair], root_certificates=ca, require_client_auth=ca is not None)

    def permits(self, authorization: str | bytes | None) -> bool:
        """Tells whether a request's `authorization` is what it has to be; in the same time however wrong it is."""
        if self.token is None:
            return True
        if authorization is None:
            return False
        given = authorization.encode("utf-8", "replace") if isinstance(authorization, str) else authorization
        scheme, _, token = given.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self.token.encode())


def is_loopback(host: str) -> bool:
    """Tells whether an address is this machine's own, which no other machine reaches."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _read_token(file: Path) -> str:
    token = file.read_text().strip()
    if len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(
            f"expected a token of at least {_SHORTEST_TOKEN} printable characters in {file}; "
            "make one with: openssl rand -hex 32"
        )
    return token
