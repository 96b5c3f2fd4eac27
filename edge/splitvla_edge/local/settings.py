"""Settings of the local policy; apart, because the control process reads them too, and loads no model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from splitvla_shared.errors import ConfigError


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """policy: an ONNX file, none = no local policy. within_bins: how far each dimension of an answer may lie from the
    server's, in bins of its 256, to count as agreeing.
    """

    policy: Path | None = None
    within_bins: int = 25

    def __post_init__(self) -> None:
        if not 0 <= self.within_bins <= 255:
            raise ConfigError(f"local.within_bins is {self.within_bins}; expected 0..255")
