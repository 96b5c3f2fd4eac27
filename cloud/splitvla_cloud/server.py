"""The cloud process: load, bind, answer, drain.

Rules of this file: health answers come from the event loop and never wait for the model; SERVING is said only while the
backbone is warm, the port is bound, no pass hangs, and nobody asked us to leave.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from splitvla_cloud.engine.interface import Engine
from splitvla_cloud.health import Health
from splitvla_cloud.prompt import Prompt
from splitvla_cloud.service import InferenceService, read_request
from splitvla_cloud.settings import ServerSettings, credentials, port_is_taken
from splitvla_cloud.worker import GpuWorker
from splitvla_shared.addresses import is_loopback, join_address, split_address
from splitvla_shared.bundle import Bundle, open_bundle
from splitvla_shared.codec.bundled import read_tables
from splitvla_shared.errors import ConfigError, ServerFault
from splitvla_shared.limits import max_message_bytes
from splitvla_shared.transport import server_options
from splitvla_shared.wire import inference_pb2 as pb

__all__ = ["CloudServer", "LoadBackbone", "ServerSettings", "load_backbone", "serve"]

logger = logging.getLogger("splitvla.cloud")

LoadBackbone = Callable[[Bundle, ServerSettings], Engine]
Say = Callable[[str], object]
_print = partial(print, flush=True)

_SERVICE = pb.DESCRIPTOR.services_by_name["Inference"].full_name
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
# Health watches and Describe count too, so this lies far above what the queue admits; each connection has 8 streams.
_MAX_RPCS = 256
_BIND_EVERY_S = 0.1
_STOP_GRACE_S = 2.0
_LOOK_S = 1.0  # how often to look whether gRPC still listens
_LOOKS_PER_HANG = 4  # how often within hang_s the watch looks at the running pass


def load_backbone(bundle: Bundle, settings: ServerSettings) -> Engine:
    """Load, warm and probe the real engine. torch is imported here, on the GPU thread, and nowhere else.

    Raises BundleError, ConfigError, and ServerFault when it does not answer the golden probe as the split model does.
    """
    import torch

    from splitvla_cloud.backbone import Backbone as LlamaBackbone
    from splitvla_cloud.golden import INSTRUCTION, check_backbone
    from splitvla_cloud.precision import parse_precision
    from splitvla_cloud.vllm_backbone import VllmBackbone

    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if not torch.cuda.is_available():
        if settings.device.startswith("cuda"):  # not the settings' fault: a driver may come up after us
            raise ServerFault(f"device is {settings.device}, torch sees no CUDA GPU; is its driver up (nvidia-smi)?")
        if settings.device == "auto":
            logger.warning("torch sees no CUDA GPU, so the CPU serves; say device = cuda where that must not be")
    precision = parse_precision(settings.precision)
    load = VllmBackbone.load if settings.engine == "vllm" else LlamaBackbone.load
    backbone = load(bundle, precision, settings.device, settings.decode, capacity=settings.max_batch)
    backbone.warm_up(bundle.spec.patches, bundle.spec.chunk_length * bundle.spec.max_action_dims)
    check_backbone(backbone, Prompt.load(bundle.path, bundle.spec).ids(INSTRUCTION), bundle.spec, bundle.path)
    return backbone


def serve(settings: ServerSettings, load: LoadBackbone = load_backbone, say: Say = _print) -> int:
    """Serve until SIGTERM or SIGINT; a second signal stops at once. Returns the exit code.

    say: gets what is served and where, line by line.

    Raises ConfigError or BundleError when it can't start, ServerFault when the GPU thread ended.
    """
    if settings.bundle is None:
        raise ConfigError("bundle is not set; give --bundle DIR, the cloud half that `splitvla-cloud split` made")
    host, port = split_address(settings.listen)
    credentials(settings)  # what is wrong with the settings is said before gigabytes are read
    if port and not settings.bind_wait_s and port_is_taken(host, port):
        raise _port_in_use(settings)
    bundle = open_bundle(settings.bundle, "cloud")
    return asyncio.run(_serve(CloudServer(bundle, settings, load, say)))


class CloudServer:
    """gRPC server, health and GPU worker of one process. Owned by the event loop that calls `start`."""

    def __init__(self, bundle: Bundle, settings: ServerSettings, load: LoadBackbone, say: Say = _print) -> None:
        self._bundle = bundle
        self._say = say
        # "auto" is what this bundle says, whoever constructs the server.
        self._settings = settings = settings.resolved(bundle)
        prompt = Prompt.load(bundle.path, bundle.spec)
        self._worker = GpuWorker(lambda: load(bundle, settings), settings.queue_limit)
        self._service = InferenceService(bundle.spec, prompt, self._worker, settings.numerics, read_tables(bundle))
        self._health = Health(("", _SERVICE))
        self._server: grpc.aio.Server | None = None
        self._watching: asyncio.Task[None] | None = None
        self._listening: asyncio.Task[None] | None = None
        self.port = 0

    @property
    def ended(self) -> Future[None]:
        """Resolves when the GPU thread is gone, or holds the fault that ended it; before `stop` both are faults."""
        return self._worker.ended

    async def start(self) -> None:
        """Load, bind, and say SERVING. Raises what loading or binding raises."""
        started = time.monotonic()
        self._worker.start()
        if wait_s := self._settings.bind_wait_s:  # a restart: the old process serves while this one loads
            backbone = await asyncio.wrap_future(self._worker.ready)
            if port_is_taken(*split_address(self._settings.listen)):
                self._say(f"loaded; waiting for {self._settings.listen}, which another process holds")
            await self._listen(wait_s)
        else:
            await self._listen(0.0)
            backbone = await asyncio.wrap_future(self._worker.ready)
        self._health.set(health_pb2.HealthCheckResponse.SERVING)
        self._watching = asyncio.ensure_future(self._watch())
        spec, seconds = self._bundle.spec, time.monotonic() - started
        self._say(f"serving {spec.name} {spec.fingerprint[:16]}: {backbone.describe()}, up in {seconds:.1f} s")
        host, _ = split_address(self._settings.listen)
        self._say(f"ready on {join_address(host, self.port)}")

    async def last(self) -> None:
        """Never returns. Raises ServerFault when the GPU thread has ended, ConfigError when the port is lost."""
        assert self._listening is not None, "after `start`"
        await _first(self._listening, asyncio.wrap_future(self.ended))
        self.ended.result()
        raise ServerFault("the GPU thread ended; its traceback is in the log")

    async def drain(self) -> None:
        """Leave politely: NOT_SERVING at once, and `draining` in every reply for as long as robots need to move."""
        self._service.draining = True
        self._health.set(health_pb2.HealthCheckResponse.NOT_SERVING)
        logger.info("%s", self._service.answered)
        if sessions := self._worker.load().sessions:
            logger.info("draining: %d sessions have %g s to leave", sessions, self._settings.drain_s)
            await asyncio.sleep(self._settings.drain_s)

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, give running ones `grace_s`, then let go of port and GPU thread."""
        for task in (self._watching, self._listening):
            if task is not None:
                task.cancel()
        self._health.set(health_pb2.HealthCheckResponse.NOT_SERVING)
        if self._server is not None:
            await self._server.stop(grace_s)
        self._service.close()
        await asyncio.to_thread(self._worker.close)

    async def _watch(self) -> None:
        """Say NOT_SERVING while a pass takes longer than `hang_s`: robots and supervisors should go elsewhere."""
        limit_s, hangs = self._settings.hang_s, False
        while not self._service.draining:
            await asyncio.sleep(limit_s / _LOOKS_PER_HANG)
            running_s = self._worker.hung_s()
            if hangs == (running_s > limit_s) or self._service.draining:
                continue
            hangs = not hangs
            if hangs:
                logger.error("a pass has run for %.1f s (hang_s = %g): not serving until it ends", running_s, limit_s)
            else:
                logger.warning("the pass that hung has ended: serving again")
            status = health_pb2.HealthCheckResponse
            self._health.set(status.NOT_SERVING if hangs else status.SERVING)

    async def _listen(self, wait_s: float) -> None:
        """Listen, and anew wherever gRPC's own loop ends, as a call whose path is not UTF-8 makes it do (grpcio 1.85).

        Nothing else would tell: the process would live on without a port.
        """
        self._server = await self._bind(wait_s)
        self._listening = asyncio.ensure_future(self._keep_listening(self._server))

    async def _keep_listening(self, server: grpc.aio.Server) -> None:
        """Never returns; raises what binding raises."""
        while True:
            looked = asyncio.gather(server.wait_for_termination(_LOOK_S), return_exceptions=True)
            died: Any = (await looked)[0]
            if isinstance(died, Exception):
                logger.error("gRPC stopped listening (%s: %s): listening anew", type(died).__name__, died)
                self._server = await self._bind(_STOP_GRACE_S)
                await server.stop(_STOP_GRACE_S)
                server = self._server

    async def _bind(self, wait_s: float) -> grpc.aio.Server:
        """Bind and start, trying for so long where the port is held. Raises ConfigError."""
        settings = self._settings
        host, port = split_address(settings.listen)
        port = self.port or port
        secrets = credentials(settings)
        if secrets is None and not is_loopback(host):
            logger.warning("INSECURE: %s has no TLS; whoever reaches it can move the robot", settings.listen)
        give_up = time.monotonic() + wait_s
        while port and port_is_taken(host, port):
            if time.monotonic() >= give_up:
                raise _port_in_use(settings)
            await asyncio.sleep(_BIND_EVERY_S)
        server = self._build()
        address = join_address(host, port)
        try:
            if secrets is None:
                self.port = server.add_insecure_port(address)
            else:
                self.port = server.add_secure_port(address, secrets)
        except RuntimeError as error:
            raise ConfigError(f"can't listen on {address}: {error}; check the address and the TLS files") from error
        await server.start()
        return server

    def _build(self) -> grpc.aio.Server:
        server = grpc.aio.server(
            options=server_options(max_message_bytes(self._bundle.spec)),
            compression=grpc.Compression.NoCompression,
            maximum_concurrent_rpcs=_MAX_RPCS,
        )
        # As the generated code does, but for `read_request`.
        describe = (self._service.Describe, pb.DescribeRequest.FromString, pb.DescribeReply.SerializeToString)
        infer = (self._service.Infer, read_request, pb.InferReply.SerializeToString)
        methods = {"Describe": describe, "Infer": infer}
        handlers = {name: grpc.unary_unary_rpc_method_handler(*parts) for name, parts in methods.items()}
        server.add_registered_method_handlers(_SERVICE, handlers)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((_SERVICE, _HEALTH, reflection.SERVICE_NAME), server)
        return server


async def _serve(server: CloudServer) -> int:
    """Start, wait for a signal, drain and stop; whatever happens, the port and the GPU thread are let go."""
    leave, hurry = asyncio.Event(), asyncio.Event()
    _on_signals(leave, hurry)
    grace_s = 0.0
    try:
        started = asyncio.ensure_future(server.start())
        if await _first(started, leave.wait()):
            await _first(server.last(), leave.wait())
            if await _first(server.drain(), hurry.wait()):
                grace_s = _STOP_GRACE_S
    finally:
        await server.stop(grace_s)
    logger.info("stopped")
    return 0


async def _first(work: Any, event: Any) -> bool:
    """True when `work` is done first, and raises what it raised; False when the event came, and `work` is cancelled."""
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(event)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            tasks[0].result()
            return True
        return False
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _on_signals(leave: asyncio.Event, hurry: asyncio.Event) -> None:
    def heed(name: str) -> None:
        logger.info("%s: %s", name, "stopping now" if leave.is_set() else "leaving")
        (hurry if leave.is_set() else leave).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, heed, number.name)


def _port_in_use(settings: ServerSettings) -> ConfigError:
    return ConfigError(f"{settings.listen} is in use by another process; stop it, choose a port, or use bind_wait_s")
