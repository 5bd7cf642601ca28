"""Checks that servers and clients share: PEM certificates, since gRPC does not say what is wrong, hosts and tokens."""

import ipaddress
import ssl
from pathlib import Path


def require_pair(cert: Path, key: Path) -> None:
    """Check that two files are a certificate and its private key.

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
