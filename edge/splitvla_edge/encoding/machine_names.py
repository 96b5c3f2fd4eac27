"""What the accelerator of this machine is called: part of the key under which its compiled engines are kept."""

from __future__ import annotations

import platform
from pathlib import Path

_JETSON = Path("proc/device-tree/model")


def accelerator_name(root: Path = Path("/")) -> str:
    """The names of NVIDIA's GPUs as its driver tells them, a Jetson's board, or the processor's architecture.

    root: of the file system. Read from files, because the robot's side has no library that would ask the driver.
    """
    names = [
        line.split(":", 1)[1].strip()
        for file in sorted(root.glob("proc/driver/nvidia/gpus/*/information"))
        for line in _text(file).splitlines()
        if line.startswith("Model:")
    ]
    return ", ".join(names) or _text(root / _JETSON).strip("\0\n ") or platform.machine()


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
