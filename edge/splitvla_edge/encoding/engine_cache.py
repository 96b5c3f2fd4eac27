"""Where TensorRT keeps the engines that take it minutes to build: one owner-only folder for each thing that they fit.

An engine is code that the GPU runs: whoever may write it drives the robot. A folder that anybody else could have
written to is refused, not mended.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from splitvla_shared.errors import ConfigError

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, slots=True)
class EngineKey:
    """All that an engine depends on; anything else in one of them is another folder."""

    encoder_sha256: str
    onnxruntime_version: str
    options: Mapping[str, str]
    device: str

    def digest(self) -> str:
        parts = [self.encoder_sha256, self.onnxruntime_version, sorted(self.options.items()), self.device]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def user_cache_root(environment: Mapping[str, str]) -> Path:
    """The user's cache folder by the XDG base directory specification: absolute XDG_CACHE_HOME, else ~/.cache."""
    given = Path(environment.get("XDG_CACHE_HOME", ""))
    return given if given.is_absolute() else Path.home() / ".cache"


def engine_folder(root: Path, key: EngineKey) -> Path:
    """`root`/splitvla/tensorrt/DIGEST, made with mode 0700 where it is missing.

    Raises ConfigError when a folder on the way is a link, another user's, or writable by others.
    """
    folder = root
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("splitvla", "tensorrt", key.digest()):
            folder = folder / name
            folder.mkdir(mode=0o700, exist_ok=True)
            _check(folder, folder.lstat())
    except OSError as error:
        raise ConfigError(f"engine cache {folder}: {error.strerror}; set XDG_CACHE_HOME to another folder") from error
    return folder


def _check(folder: Path, found: os.stat_result) -> None:
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"engine cache {folder} is not a folder of its own; remove it")
    if found.st_uid != os.geteuid():
        raise ConfigError(f"engine cache {folder} belongs to user {found.st_uid}; remove it, or set XDG_CACHE_HOME")
    if found.st_mode & _OTHERS_WRITE:
        raise ConfigError(f"engine cache {folder} is writable by others; remove it: what is in it may be anyone's")
    if found.st_mode & _OTHERS:
        folder.chmod(0o700)
