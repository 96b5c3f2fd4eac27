"""A camera whose stamps can be set back: the clock that the perception process stamps its pictures with.

A stream has no stamps of its own, so that a small module, which Python imports at the start of every process in whose
path it lies, adds to the camera's clock what a file says. All other clocks of the daemon are left alone.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

_MODULE = """
import mmap, os, struct, sys, time
if "perceive" in sys.orig_argv:
    from splitvla_edge.robots.camera import LiveCamera
    step = mmap.mmap(os.open(os.environ["CAMERA_CLOCK"], os.O_RDONLY), 8, prot=mmap.PROT_READ)
    LiveCamera.__init__.__kwdefaults__["clock"] = lambda: time.monotonic() + struct.unpack("=d", step[:8])[0]
"""


class CameraClock:
    """Mutable state: the file that holds the step, in seconds."""

    def __init__(self, folder: Path) -> None:
        self._modules, self._file = folder / "camera-clock", folder / "camera-clock.step"
        self._modules.mkdir()
        (self._modules / "sitecustomize.py").write_text(_MODULE, encoding="ascii")
        self._file.write_bytes(struct.pack("=d", 0.0))

    @property
    def environment(self) -> dict[str, str]:
        """Of the daemon whose camera lives by this clock."""
        paths = [str(self._modules), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {"PYTHONPATH": os.pathsep.join(paths), "CAMERA_CLOCK": str(self._file)}

    def step(self, seconds: float) -> None:
        """From now on the camera's stamps are so far off."""
        with self._file.open("r+b") as file:
            file.write(struct.pack("=d", seconds))
