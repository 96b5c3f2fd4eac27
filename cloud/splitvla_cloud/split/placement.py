"""A folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from splitvla_shared.errors import BundleError


def check_vacant(out: Path) -> None:
    """Raises BundleError when something is already at `out`; an empty folder may be, where a rename can replace it."""
    if out.is_dir() and (out.is_symlink() or out.is_mount() or out.samefile(Path.cwd())):
        raise BundleError(
            f"{out} is a link, a mount or the folder you are in, and can't be replaced as a whole; name a folder in it:"
            f" --out {out / 'bundles'}"
        )
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        raise BundleError(f"{out} exists and is not empty; choose another --out, or remove it first")


def check_room(out: Path, needed_bytes: int) -> None:
    """Raises BundleError when the disk below `out` has less than `needed_bytes` free."""
    folder = next(parent for parent in out.resolve().parents if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        left = sorted(file.name for file in folder.iterdir() if file.name.startswith(f".{out.name}.partial-"))
        remedy = f"; remove {left[0]} there, unless another split is writing it" if left else ""
        has = f"{folder} has {free / 1e9:.1f} GB free"
        raise BundleError(f"{has}, the bundles need {needed_bytes / 1e9:.1f} GB{remedy}")


@contextlib.contextmanager
def placed_whole(out: Path) -> Iterator[Path]:
    """A new folder beside `out`, renamed to `out` when the block ends well and removed when it does not.

    Raises BundleError when the disk refuses. A killed process leaves the folder: `.NAME.partial-*`.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=out.parent, prefix=f".{out.name}.partial-", ignore_cleanup_errors=True
        ) as partial:
            whole = Path(partial) / "whole"
            whole.mkdir()
            yield whole
            whole.replace(out)
    except (OSError, SafetensorError) as error:  # the library's own writer says in its own error that the disk is full
        reason = getattr(error, "strerror", None) or error
        raise BundleError(f"can't write {out}: {reason}; nothing was left there") from error
