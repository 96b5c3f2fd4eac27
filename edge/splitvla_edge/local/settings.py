"""Settings of the local policy and of recording for one; apart, because the control process reads them too."""

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


@dataclass(frozen=True, slots=True)
class RecordingSettings:
    """folder: where answers are recorded to distil from, none = nowhere. max_mb: of one run; it ends there."""

    folder: Path | None = None
    max_mb: int = 2000

    def __post_init__(self) -> None:
        if not 1 <= self.max_mb <= 1_000_000:
            raise ConfigError(f"recording.max_mb is {self.max_mb}; expected 1..1000000")
