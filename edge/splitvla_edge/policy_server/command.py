"""`splitvla-edge serve-policy`: open the policy, listen, answer until a signal, leave politely."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from importlib.util import find_spec
from typing import Any, TextIO

from splitvla_edge.policy import EdgePolicy
from splitvla_edge.policy_server.complaints import Complaints
from splitvla_edge.policy_server.options import PolicyServerSettings
from splitvla_shared.addresses import join_address, split_address
from splitvla_shared.encoders import FP32
from splitvla_shared.errors import ConfigError
from splitvla_shared.operator_lines import Printer

_LAST_WORDS_S = 1.0  # for clients to be told that there is no action; the encoder can't be interrupted
_NEEDED = ("msgpack", "starlette", "uvicorn", "websockets")


def serve_policy(settings: PolicyServerSettings, out: TextIO = sys.stdout, err: TextIO = sys.stderr) -> int:
    """Serve until SIGTERM or SIGINT; a second one ends the call under way. Returns the exit code.

    Raises ConfigError, BundleError or ObservationError when it can't start, SpecMismatch when the first server that
    answers holds another model.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigError(f"serve-policy needs {', '.join(missing)}; pip install 'splitvla[policy-server]'")
    from splitvla_edge.policy_server.port import bind

    with contextlib.ExitStack() as stack:
        # A terminal that hangs or is gone costs no action: lines are printed on threads of their own.
        told, ready = Printer(err), Printer(out, prefix="")
        stack.callback(told.close)
        stack.callback(ready.close)
        listener = stack.enter_context(bind(settings.listen))
        if not settings.loopback:
            told.say(f"INSECURE: {settings.listen} has no TLS; whoever reaches it can use the robot's policy")
        policy = stack.enter_context(EdgePolicy.open(settings.bundle, settings.server, **settings.options))
        if len(settings.cameras) > policy.model.spec.max_cameras:
            raise ConfigError(
                f"cameras names {len(settings.cameras)} pictures, {', '.join(settings.cameras)}; "
                f"this model takes {policy.model.spec.max_cameras} at most"
            )
        if policy.selection is not None:
            told.say(f"encoder {settings.options.get('encoder', FP32)} on {policy.selection.describe()}")
        return asyncio.run(_serve(settings, policy, listener, told, ready))


async def _serve(
    settings: PolicyServerSettings, policy: EdgePolicy, listener: socket.socket, told: Printer, ready: Printer
) -> int:
    from splitvla_edge.policy_server.app import OpenpiSettings, build_app, build_crowded_app
    from splitvla_edge.policy_server.desk import Desk
    from splitvla_edge.policy_server.port import Port
    from splitvla_edge.policy_server.worker import PolicyWorker

    spec, statistics = policy.model.spec, policy.model.statistics
    address = join_address(split_address(settings.listen)[0], listener.getsockname()[1])
    complaints = Complaints(told.say)
    worker = PolicyWorker(policy, complaints, accept_clipped=settings.accept_clipped)
    desk = Desk(worker, complaints, served_key=statistics.key, deadline_s=settings.deadline_ms / 1e3)
    metadata: dict[str, str | int | float] = {
        "model": spec.name,
        "fingerprint": spec.fingerprint[:16],
        "unnorm_key": statistics.key,
        "action_dims": statistics.dims,
        "chunk_length": spec.chunk_length,
        "deadline_ms": settings.deadline_ms,
    }
    port = Port(
        build_app(desk, OpenpiSettings(settings.cameras, metadata)),
        build_crowded_app(desk),
        lambda: ready.say(f"ready on {address}: POST http://{address}/act, ws://{address}"),
    )
    leave, hurry = asyncio.Event(), asyncio.Event()
    _on_signals(leave, hurry)
    worker.start()
    ended = asyncio.wrap_future(worker.ended)
    serving = asyncio.ensure_future(port.serve([listener]))
    try:
        await _first(serving, ended, asyncio.ensure_future(leave.wait()))
        if leave.is_set():
            closing = asyncio.ensure_future(desk.close())
            await _first(closing, asyncio.ensure_future(hurry.wait()))
            if hurry.is_set():
                worker.hurry()
                await asyncio.wait((closing,), timeout=_LAST_WORDS_S)
        port.should_exit = True
        await serving
    except OSError as error:
        raise ConfigError(f"can't listen on {address}: {error.strerror or error}; give --listen another") from error
    finally:
        await asyncio.to_thread(worker.close)
        await asyncio.wait((ended,))
    ended.result()
    told.say(f"stopped; {desk.answered} requests had an action, {desk.failed} an error")
    return 0


async def _first(*work: asyncio.Future[Any]) -> None:
    await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)


def _on_signals(leave: asyncio.Event, hurry: asyncio.Event) -> None:
    def heed() -> None:
        (hurry if leave.is_set() else leave).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, heed)
