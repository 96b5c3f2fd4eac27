"""A network camera (MJPEG over HTTP) that plays real frames, and can go black, freeze, repeat itself, be unplugged."""

from __future__ import annotations

import enum
import http.server
import threading
import time
from collections.abc import Sequence
from types import TracebackType

import numpy as np
import simplejpeg

from splitvla_shared.nouns import Image

_QUALITY = 90
_HEAD = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"


class Mood(enum.Enum):
    """What the camera does. SILENT: connected, no frames. STUCK: the same picture again and again. GONE: unplugged."""

    GOOD = "good"
    BLACK = "black"
    SILENT = "silent"
    STUCK = "stuck"
    GONE = "gone"


class StreamCamera:
    """Serves http://127.0.0.1:port/camera.mjpg. A context manager. Mutable state: the mood, and the frame's number."""

    def __init__(self, frames: Sequence[Image], fps: float) -> None:
        self.mood = Mood.GOOD
        self._period_s = 1 / fps
        self._pictures = [simplejpeg.encode_jpeg(np.ascontiguousarray(frame), _QUALITY) for frame in frames]
        self._black = simplejpeg.encode_jpeg(np.zeros_like(frames[0]), _QUALITY)
        self._ending = threading.Event()
        camera = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                camera._stream(self)

            def log_message(self, format: str, *args: object) -> None:
                """Nothing: the runner prints a table."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="camera", daemon=True)
        self.address = f"http://127.0.0.1:{self._server.server_port}/camera.mjpg"

    def __enter__(self) -> StreamCamera:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _mood_now(self) -> Mood:
        return self.mood

    def _stream(self, request: http.server.BaseHTTPRequestHandler) -> None:
        if self.mood is Mood.GONE:
            request.send_error(503)
            return
        request.send_response(200)
        request.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        request.end_headers()
        number = 0
        due = time.monotonic()
        while not self._ending.is_set() and (mood := self._mood_now()) is not Mood.GONE:
            if mood is not Mood.SILENT:
                number += mood is not Mood.STUCK
                picture = self._black if mood is Mood.BLACK else self._pictures[number % len(self._pictures)]
                try:
                    request.wfile.write(_HEAD % len(picture) + picture + b"\r\n")
                except OSError:
                    return  # whoever looked has gone
            due = max(due + self._period_s, time.monotonic())
            self._ending.wait(due - time.monotonic())
