"""Mutual TLS of the link: which PEM files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from splitvla_shared.errors import ConfigError
from splitvla_shared.tls import read_tls


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
        cert, key, ca = read_tls(self.cert, self.key, self.ca, ca_name="tls_ca")
        return ca, key, cert
