"""`POST /act` as OpenVLA's deploy.py serves it, and as its users call it: JSON, the image as json_numpy.

Source: vla-scripts/deploy.py of openvla/openvla. What is added: an image may also come as a JPEG in base64, the reply's
headers hold the tokens and the server's own time, and one lock keeps two requests from sharing the model at once.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from typing import Any

import json_numpy
import requests
from fastapi import FastAPI, Request, Response

from benchmarks.end_to_end.pictures import Prepare, from_jpeg
from benchmarks.end_to_end.ways import DEADLINE_S, Answered, Family
from benchmarks.end_to_end.whole import Whole
from splitvla_shared.errors import ServerFault, Unreachable
from splitvla_shared.nouns import Image

_JSON = "application/json"
_TOKENS, _SERVER_MS = "X-Tokens", "X-Server-Ms"


def build_app(whole: Whole) -> FastAPI:
    """The server's application around a loaded model."""
    app = FastAPI(openapi_url=None)
    one_at_a_time = threading.Lock()

    def answer(body: bytes) -> Response:
        started = time.perf_counter()
        try:
            payload = json_numpy.loads(body)
            jpeg = payload.get("jpeg")
            image = payload["image"] if jpeg is None else from_jpeg(base64.b64decode(jpeg))
            with one_at_a_time:
                acted = whole.act(image, payload["instruction"])
        except (KeyError, ValueError, TypeError, AttributeError):
            return Response('"error"', media_type=_JSON)  # deploy.py's own answer to whatever went wrong
        headers = {
            _TOKENS: ",".join(map(str, acted.tokens)),
            _SERVER_MS: f"{(time.perf_counter() - started) * 1e3:.3f}",
        }
        return Response(json_numpy.dumps(acted.action), media_type=_JSON, headers=headers)

    @app.post("/act")
    async def act(request: Request) -> Response:
        from starlette.concurrency import run_in_threadpool

        # As for deploy.py's plain `def`: FastAPI hands it to a thread, and the event loop stays free.
        return await run_in_threadpool(answer, await request.body())

    return app


class RestWay:
    """A user's client: one connection that is kept, which is quicker than the `requests.post` of the README."""

    def __init__(self, name: str, address: str, prepare: Prepare, family: Family) -> None:
        """Raises Unreachable when nothing answers there."""
        self.name, self.family = name, family
        self._url, self._prepare = f"http://{address}/act", prepare
        self._session = requests.Session()
        self._session.trust_env = False  # a proxy that is set for downloads must not get between robot and server
        try:
            self._session.get(self._url, timeout=5.0)
        except requests.RequestException as error:
            raise Unreachable(
                f"no REST server at {address}; start one there: python -m benchmarks.end_to_end.serve rest --help"
            ) from error

    def act(self, image: Image, instruction: str) -> Answered:
        started = time.perf_counter()
        sent = self._prepare(image)
        picture: dict[str, Any] = (
            {"jpeg": base64.b64encode(sent).decode()} if isinstance(sent, bytes) else {"image": sent}
        )
        body = json_numpy.dumps(picture | {"instruction": instruction}).encode()
        sent_at = time.perf_counter()
        try:
            reply = self._session.post(self._url, data=body, headers={"Content-Type": _JSON}, timeout=DEADLINE_S)
        except requests.RequestException as error:
            raise Unreachable(f"{self._url} gave no answer: {type(error).__name__}") from error
        if reply.content == b'"error"' or _TOKENS not in reply.headers:
            raise ServerFault(f"{self._url} answered {reply.status_code} {reply.text[:60]}")
        action = tuple(json_numpy.loads(reply.text).tolist())
        return Answered(
            tokens=tuple(json.loads(f"[{reply.headers[_TOKENS]}]")),
            action=action,
            total_ms=(time.perf_counter() - started) * 1e3,
            robot_ms=(sent_at - started) * 1e3,
            server_ms=float(reply.headers[_SERVER_MS]),
            up_bytes=len(body),
            down_bytes=len(reply.content),
        )

    def close(self) -> None:
        self._session.close()
