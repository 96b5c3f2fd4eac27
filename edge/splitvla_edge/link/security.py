"""Mutual TLS of the link: which PEM files, and reading them."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from splitvla_shared.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Security:
    """Mutual TLS from PEM files: the authority that signed the server's certificate, and this robot's own pair."""

    ca: Path
    cert: Path
    key: Path

    @classmethod
    def from_files(cls, ca: Path | str | None, cert: Path | str | None, key: Path | str | None) -> Security | None:
        """Three settings that make sense together or not at all; None without any. Raises ConfigError on a part."""
        given = {"tls_ca": ca, "tls_cert": cert, "tls_key": key}
        missing = [name for name, path in given.items() if not path]
        if len(missing) == len(given):
            return None
        if missing or not (ca and cert and key):
            raise ConfigError(f"TLS needs all of {', '.join(given)}; missing: {', '.join(missing)}")
        return cls(Path(ca), Path(cert), Path(key))

    def read(self) -> tuple[bytes, bytes, bytes]:
        """The bytes of (ca, key, cert). Raises ConfigError naming a file that is missing, or not what it is for."""
        data = _read_pem("ca", self.ca), _read_pem("key", self.key), _read_pem("cert", self.cert)
        self._check_kinds()
        return data

    def _check_kinds(self) -> None:
        """gRPC would take any PEM, and tell of a wrong one as of a server that is away."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.set_ciphers("ALL:@SECLEVEL=0")  # how strong a key must be is gRPC's to say
        try:
            context.load_verify_locations(self.ca)
        except ssl.SSLError as error:
            raise ConfigError(f"TLS ca file {self.ca} holds no certificate ({error.reason})") from error
        try:
            context.load_cert_chain(self.cert, self.key, password=lambda: b"")
        except ssl.SSLError as error:
            raise ConfigError(
                f"TLS cert file {self.cert} and key file {self.key} are no certificate and its private key without a "
                f"password ({error.reason}); are they swapped, or of two machines?"
            ) from error


def _read_pem(name: str, path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"TLS {name} file {path}: {error.strerror}") from error
    if b"-----BEGIN " not in data:
        raise ConfigError(f"TLS {name} file {path} is not PEM; expected a line '-----BEGIN ...'")
    return data
