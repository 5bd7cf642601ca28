"""Connections: the channel of a client, and the checks of certificates, hosts and tokens that both sides share."""

import ipaddress
import json
import ssl
from pathlib import Path

import grpc

_OPTIONS = [
    ("grpc.max_receive_message_length", -1),  # clients default to 4 MiB
    ("grpc.max_send_message_length", -1),
    # Of a name with several addresses, such as Kubernetes' headless services, use all.
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    # The back-off of reconnecting; gRPC's default grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
]


def open_channel(
    address: str, ca_cert: Path | None = None, client_cert: Path | None = None, client_key: Path | None = None
) -> grpc.Channel:
    """Open a connection to HOST:PORT, made when first needed; with TLS where there is a certificate to trust.

    Args:
        address: HOST:PORT; with TLS, HOST is what the server's certificate is for.
        ca_cert: The PEM file of the authority that signed it, or of the certificate itself.
        client_cert: The client's own certificate, a PEM file, for servers that require one.
        client_key: Its private key, a PEM file.

    Raises:
        ValueError: a file cannot be read or holds something else, or half of what is needed was given.
    """
    if (client_cert is None) != (client_key is None):
        raise ValueError("expected a client's certificate and its key together: give --client-cert and --client-key")
    if ca_cert is None:
        if client_cert is not None:
            raise ValueError("expected --ca-cert with --client-cert: client certificates are used only with TLS")
        return grpc.insecure_channel(address, options=_OPTIONS)
    require_authority(ca_cert)
    pair: tuple[bytes, ...] = ()
    if client_cert is not None and client_key is not None:
        require_pair(client_cert, client_key)
        pair = (client_key.read_bytes(), client_cert.read_bytes())
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(ca_cert.read_bytes(), *pair), options=_OPTIONS)


def authorization(address: str, token: str | None, encrypted: bool) -> tuple[tuple[str, str], ...]:
    """Return the metadata that sends a token with every call.

    Raises:
        ValueError: it would cross a network as clear text, or is no token.
    """
    if token is None:
        return ()
    if not is_token(token):
        raise ValueError("expected a token of visible ASCII characters, on one line; got other ones")
    local = address.startswith(("unix:", "unix-abstract:")) or is_loopback(address.rpartition(":")[0])
    if not encrypted and not local:
        who = f"anyone on the network path to {address}"
        raise ValueError(f"expected --ca-cert with a token: without TLS {who} could read it")
    return (("authorization", f"Bearer {token}"),)


def require_pair(cert: Path, key: Path) -> None:
    """Check that two files are a certificate and its private key; gRPC does not say what is wrong with them.

    Raises:
        ValueError: a file cannot be read or holds something else, or they do not belong together.
    """
    try:
        # Without a password it would ask for one at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
    except OSError as error:
        raise ValueError(
            f"expected a certificate in {cert} and its private key, without a password, in {key}, both PEM: {error}"
        ) from None


def require_authority(file: Path) -> None:
    """Check that a file holds certificates of authorities.

    Raises:
        ValueError: it cannot be read or holds something else.
    """
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(file)
    except OSError as error:
        raise ValueError(f"expected the certificates of authorities in {file}, as PEM: {error}") from None


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a host; IPv6 may be in brackets."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def read_token(file: Path) -> str:
    """Read a bearer token from its file, without the white space around it.

    Raises:
        ValueError: the file cannot be read as text.
    """
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"expected a token in '{file}'; it cannot be read: {error}") from None


def is_token(text: str) -> bool:
    """Return whether a text can be a bearer token: visible ASCII characters."""
    return bool(text) and text.isascii() and text.isprintable() and " " not in text
