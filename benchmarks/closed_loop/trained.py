"""The trained policy: where its checkpoint is, and its two halves, split anew for whoever runs them."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from splitvla_cloud.split import split
from splitvla_shared.errors import ConfigError

_FOLDER = Path(__file__).resolve().parent.parent / "world"


def find_trained() -> Path | None:
    """The committed checkpoint; None in a checkout without one."""
    return next((path.parent for path in sorted(_FOLDER.glob("*/config.json"))), None)


def trained() -> Path:
    """Raises ConfigError in a checkout without the checkpoint."""
    found = find_trained()
    if found is None:
        raise ConfigError(f"no trained policy under {_FOLDER}; name a checkpoint with --checkpoint")
    return found


@contextlib.contextmanager
def halves(checkpoint: Path, bundles: Path | None = None) -> Iterator[Path]:
    """A folder with edge/ and cloud/: `bundles` where it is given, otherwise split into a folder that goes away."""
    if bundles is not None:
        yield bundles
        return
    with tempfile.TemporaryDirectory(prefix="splitvla-") as folder:
        split(checkpoint, Path(folder) / "bundles")
        yield Path(folder) / "bundles"
