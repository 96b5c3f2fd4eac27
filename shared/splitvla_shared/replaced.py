"""A folder whose files are replaced all at once or not at all, whenever the process dies.

The new folder is made beside the old one, out of hard links to what stays and of new files, and the two change places
in one system call. A process that is killed before leaves the old folder, one that is killed behind it the new.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from splitvla_shared.errors import BundleError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # fcntl.h, linux/fs.h
# The file system or the kernel has no exchange: overlays of old kernels, network file systems, other systems.
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM)


def check_place(path: Path) -> None:
    """Raises BundleError when `path` can't be replaced, or nothing written beside it: an early answer, no promise."""
    if path.is_mount():
        raise BundleError(f"{path} is a mount, which can't be replaced as a whole; mount the folder above it")
    parent = path.resolve().parent
    if not os.access(parent, os.W_OK | os.X_OK):
        raise BundleError(f"{parent} is not there or can't be written; {path.name} can't be replaced or made in it")


@contextlib.contextmanager
def staged_copy(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` with its files, by hard link where that can be; removed when the block ends.

    A file in it must be replaced, never written to: it is the old folder's too. Raises BundleError when the disk
    refuses; a killed process leaves the copy: `.NAME.partial-*`.
    """
    try:
        with tempfile.TemporaryDirectory(
            dir=folder.resolve().parent, prefix=f".{folder.name}.partial-", ignore_cleanup_errors=True
        ) as partial:
            whole = Path(partial) / "whole"
            shutil.copytree(folder, whole, copy_function=_link)
            yield whole
    except OSError as error:
        raise BundleError(f"can't replace {folder}: {error.strerror or error}; it is as it was") from error


def write_new(path: Path, data: bytes) -> None:
    """Write a file to the disk itself, over whatever link was there."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    settle(path)


def settle(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def exchange(whole: Path, folder: Path) -> None:
    """`whole` and `folder` change places. Raises OSError, with everything as it was.

    Where there is no such system call, by two renames: a process that is killed between these leaves no `folder`, and
    the old one as `.NAME.before` beside it.
    """
    target = folder.resolve()
    try:
        _exchange(whole, target)
    except OSError as error:
        if error.errno not in _NO_EXCHANGE:
            raise
        _two_renames(whole, target)


def _exchange(one: Path, other: Path) -> None:
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError as error:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from error
    if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(other))


def _two_renames(whole: Path, target: Path) -> None:
    before = target.with_name(f".{target.name}.before")
    target.rename(before)
    try:
        whole.rename(target)
    except OSError:
        before.rename(target)
        raise
    before.rename(whole)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
