"""PEM files of mutual TLS, held against what they are for.

gRPC says of a wrong one on the robot that nobody is there; on the server that it can't bind, once the model is loaded.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from splitvla_shared.errors import ConfigError

_REMEDY = "docs/operations.md makes them"


def read_tls(cert: Path, key: Path, ca: Path, ca_name: str) -> tuple[bytes, bytes, bytes]:
    """The bytes of (cert, key, ca): one side's certificate, its key, and the authority of the other side's.

    ca_name: what the setting is called. Raises ConfigError naming a file that is missing, or not what it is for.
    """
    data = _read_pem("tls_cert", cert), _read_pem("tls_key", key), _read_pem(ca_name, ca)
    _check_kinds(cert, key, ca, ca_name)
    return data


def _check_kinds(cert: Path, key: Path, ca: Path, ca_name: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")  # how strong keys must be is gRPC's to say
    try:
        context.load_cert_chain(cert, key, password=lambda: "")  # an encrypted one must not ask the terminal
    except OSError as error:
        raise ConfigError(
            f"tls_cert {cert} and tls_key {key} are no certificate and its unencrypted key, but swapped, damaged or of"
            f" two machines ({_reason(error)}); {_REMEDY}"
        ) from error
    try:
        context.load_verify_locations(ca)
    except OSError as error:
        raise ConfigError(f"{ca_name} {ca} has no certificate ({_reason(error)}); take ca.pem: {_REMEDY}") from error


def _reason(error: OSError) -> str:
    return str(getattr(error, "reason", None) or error)


def _read_pem(name: str, path: Path) -> bytes:
    if path.exists() and not path.is_file():
        raise ConfigError(f"{name} {path} is no regular file; it is read more than once, so a pipe won't do")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{name} {path}: {error.strerror}") from error
    if b"-----BEGIN " not in data:
        raise ConfigError(f"{name} {path} is not PEM; expected a line '-----BEGIN ...'")
    return data
