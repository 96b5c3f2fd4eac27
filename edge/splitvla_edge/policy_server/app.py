"""The routes: OpenVLA's `POST /act`, openpi's websocket on every path, and `GET /healthz`.

Rules of this file: what a browser sends (an Origin header) is refused before it is read; bodies and messages are
bounded; an error is told in the client's protocol, and an HTTP client may read the reason in a header.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from splitvla_edge.policy_server import openpi, openvla
from splitvla_edge.policy_server.complaints import remedied
from splitvla_edge.policy_server.desk import ClientGone, Desk
from splitvla_edge.policy_server.openvla import NotAnObject
from splitvla_edge.policy_server.request import MAX_MESSAGE_BYTES, ActionRequest
from splitvla_edge.policy_server.turns import MAX_TURNS, Turn, Turns
from splitvla_shared.errors import ObservationError, Overloaded, SplitVLAError, Superseded

REASON_HEADER = "X-SplitVLA-Reason"
_JSON = "application/json"
POLICY_VIOLATION, _TOO_BIG = 1008, 1009  # how we end a websocket (RFC 6455, 7.4.1)
TOO_MANY_FRAGMENTS = "the message came in too many fragments; send it in one, or in fragments of 4 kB and more"
# Connections that are open at once, of each protocol. Each may hold three messages of the largest size: one that comes,
# one that waits and one under way.
MAX_CONNECTIONS = 16


@dataclass(frozen=True, slots=True)
class OpenpiSettings:
    """cameras: see `openpi.read_observation`. metadata: what a client is told when it connects."""

    cameras: Sequence[str]
    metadata: Mapping[str, str | int | float]


def build_app(desk: Desk, settings: OpenpiSettings) -> ASGIApp:
    """The application around a desk."""
    act, stream = _ActRoute(desk), _OpenpiRoute(desk, settings)
    routes = [
        Route("/act", act.answer, methods=["POST"]),
        Route("/healthz", _healthy, methods=["GET"]),
        WebSocketRoute("/{path:path}", stream.serve),
    ]
    return OriginGuard(Starlette(routes=routes), desk)


def build_crowded_app(desk: Desk) -> ASGIApp:
    """What answers HTTP while too many connections are open."""

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        error = Overloaded("too many connections are open already; close those that are not used")
        desk.refuse("an HTTP client", error)
        headers = _reason(error) | {"Connection": "close"}
        await Response(openvla.ERROR, 503, media_type=_JSON, headers=headers)(scope, receive, send)

    return refuse


class OriginGuard:
    """Refuses what a web page sends: one that is open on the robot's screen must not move the arm."""

    def __init__(self, app: ASGIApp, desk: Desk) -> None:
        self._app, self._desk = app, desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: list[tuple[bytes, bytes]] = scope.get("headers", [])
        origin = next((value for name, value in headers if name.lower() == b"origin"), None)
        if origin is None:
            await self._app(scope, receive, send)
            return
        page = origin.decode("latin-1")
        self._desk.refuse("a web page", ObservationError(f"the Origin {page!r} is refused; call from a program"))
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # before it is accepted: status 403
        else:
            await PlainTextResponse("requests with an Origin are refused\n", 403)(scope, receive, send)


async def _healthy(request: Request) -> Response:
    return PlainTextResponse("OK\n")  # as openpi's server says it


class _ActRoute:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def answer(self, request: Request) -> Response:
        double_encoded = False

        async def read() -> ActionRequest:
            nonlocal double_encoded
            body = await _read_body(request)
            call = await run_in_threadpool(openvla.read_call, body)
            double_encoded = call.double_encoded
            return call.request

        try:
            chunk = await self._desk.act(self._desk.arrive("POST /act"), read, lambda: _hung_up(request.receive))
        except NotAnObject as error:
            detail = [{"type": "dict_type", "loc": ["body"], "msg": str(error)}]
            return JSONResponse({"detail": detail}, 422, headers=_reason(error))
        except SplitVLAError as error:
            return Response(openvla.ERROR, media_type=_JSON, headers=_reason(error))
        except (ClientGone, ClientDisconnect):
            return Response(status_code=499)  # nobody reads it
        # deploy.py's clients take one vector: of a chunk, its first action.
        return Response(openvla.write_action(chunk.actions[0], double_encoded), media_type=_JSON)


class _OpenpiRoute:
    """Mutable state: how many connections there are."""

    def __init__(self, desk: Desk, settings: OpenpiSettings) -> None:
        self._desk, self._cameras = desk, tuple(settings.cameras)
        self._metadata = openpi.metadata_message(settings.metadata)
        self._connections = 0

    async def serve(self, socket: WebSocket) -> None:
        if self._connections >= MAX_CONNECTIONS:
            error = Overloaded(f"{MAX_CONNECTIONS} websockets are open already; close one")
            self._desk.refuse("a websocket", error)
            await socket.send_denial_response(PlainTextResponse(f"{error}\n", 503))
            return
        self._connections += 1
        try:
            await socket.accept()
            await socket.send_bytes(self._metadata)
            await self._converse(socket)
        except WebSocketDisconnect:
            return
        finally:
            self._connections -= 1

    async def _converse(self, socket: WebSocket) -> None:
        turns = Turns()
        # Takes every message when it comes: only so are its time and a client that hangs up known while another waits.
        reading = asyncio.ensure_future(self._read(socket, turns))
        previous_ms: float | None = None
        try:
            while True:
                previous_ms = await self._reply(socket, await turns.next(), turns, previous_ms)
        except ClientGone:
            if turns.too_many:
                await socket.close(POLICY_VIOLATION, "too many messages without an answer")
        finally:
            reading.cancel()
            await asyncio.wait((reading,))
            if not reading.cancelled():
                reading.result()

    async def _read(self, socket: WebSocket, turns: Turns) -> None:
        """Until the client is gone."""
        try:
            while not turns.gone.is_set():
                message = await socket.receive()
                if message["type"] == "websocket.disconnect":
                    if message.get("code") == _TOO_BIG:
                        self._desk.refuse("websocket", _too_large("too many"))
                    elif message.get("reason") == TOO_MANY_FRAGMENTS:
                        self._desk.refuse("websocket", ObservationError(TOO_MANY_FRAGMENTS))
                    return
                turns.add(self._desk.arrive("websocket"), message)
            self._desk.refuse("websocket", Overloaded(f"{MAX_TURNS} messages came without answers; wait for each"))
        finally:
            turns.end()

    async def _reply(self, socket: WebSocket, turn: Turn, turns: Turns, previous_ms: float | None) -> float:
        """Answer a message; returns what that took, in ms. Raises ClientGone, WebSocketDisconnect."""
        arrival, message = turn.arrival, turn.message

        async def read() -> ActionRequest:
            data = message.get("bytes") if message else None
            if data is None:
                raise ObservationError("a text frame came; send the observation as msgpack, in a binary one")
            return await run_in_threadpool(openpi.read_observation, data, self._cameras)

        try:
            if message is None:
                raise self._desk.refuse(
                    arrival.what,
                    Superseded("not computed: newer messages came before its turn; wait for each answer"),
                )
            chunk = await self._desk.act(arrival, read, turns.gone.wait)
        except SplitVLAError as error:
            await socket.send_text(remedied(error))
        else:
            timing = openpi.Timing(self._desk.elapsed_ms(arrival), chunk.stages.total_ms, previous_ms)
            await socket.send_bytes(openpi.write_actions(chunk.actions, timing))
        return self._desk.elapsed_ms(arrival)


async def _read_body(request: Request) -> bytes:
    """Raises ObservationError when it is over the limit, before that much has been read; NotAnObject."""
    kind = request.headers.get("content-type")
    if kind is not None and kind.partition(";")[0].strip().lower() != _JSON:
        raise NotAnObject(f"the body is {kind!r}; send {_JSON}")
    parts: list[bytes] = []
    size = 0
    declared = request.headers.get("content-length", "0")
    if not declared.isdigit() or int(declared) > MAX_MESSAGE_BYTES:
        raise _too_large(declared)
    async for part in request.stream():
        size += len(part)
        if size > MAX_MESSAGE_BYTES:
            raise _too_large(f"over {size}")
        parts.append(part)
    return b"".join(parts)


def _too_large(size: str) -> ObservationError:
    return ObservationError(f"the request has {size} bytes, at most {MAX_MESSAGE_BYTES:,}; scale the picture down")


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _reason(error: SplitVLAError) -> dict[str, str]:
    return {REASON_HEADER: remedied(error).encode("ascii", "replace").decode()}
