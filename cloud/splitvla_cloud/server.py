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
from splitvla_cloud.listener import Listener, port_in_use
from splitvla_cloud.prompt import Prompt
from splitvla_cloud.service import InferenceService, read_request
from splitvla_cloud.settings import ServerSettings, credentials, port_is_taken
from splitvla_cloud.worker import GpuWorker
from splitvla_shared.addresses import split_address
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
_STOP_GRACE_S = 2.0
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

    Raises ConfigError or BundleError when it can't start, ServerFault when the GPU thread ended or the port is lost.
    """
    if settings.bundle is None:
        raise ConfigError("bundle is not set; give --bundle DIR, the cloud half that `splitvla-cloud split` made")
    host, port = split_address(settings.listen)
    credentials(settings)  # what is wrong with the settings is said before gigabytes are read
    if port and not settings.bind_wait_s and port_is_taken(host, port):
        raise port_in_use(settings.listen)
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
        self._listener = Listener(self._build, settings.listen, credentials(settings))
        self._watching: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """What is bound, also where the settings say 0."""
        return self._listener.port

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
            await self._listener.open(wait_s)
        else:
            await self._listener.open()
            backbone = await _unless(asyncio.wrap_future(self._worker.ready), self._listener.lost())
        self._health.set(health_pb2.HealthCheckResponse.SERVING)
        self._watching = asyncio.ensure_future(self._watch())
        spec, seconds = self._bundle.spec, time.monotonic() - started
        self._say(f"serving {spec.name} {spec.fingerprint[:16]}: {backbone.describe()}, up in {seconds:.1f} s")
        self._say(f"ready on {self._listener.address}")

    async def last(self) -> None:
        """Never returns. Raises ServerFault when the GPU thread has ended, or the port is lost."""
        await _unless(asyncio.wrap_future(self.ended), self._listener.lost())
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
        if self._watching is not None:
            self._watching.cancel()
        self._health.set(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._listener.close(grace_s)
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

    def _build(self) -> grpc.aio.Server:
        server = grpc.aio.server(
            options=server_options(max_message_bytes(self._bundle.spec)),
            compression=grpc.Compression.NoCompression,
            maximum_concurrent_rpcs=_MAX_RPCS,
        )
        # As the generated code does, but for what reads the requests.
        describe = (self._service.Describe, lambda data: pb.DescribeRequest(), pb.DescribeReply.SerializeToString)
        infer = (self._service.Infer, read_request, pb.InferReply.SerializeToString)
        methods = {"Describe": describe, "Infer": infer}
        handlers = {name: grpc.unary_unary_rpc_method_handler(*parts) for name, parts in methods.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
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


async def _unless(work: Any, lost: Any) -> Any:
    """What `work` gives or raises, unless `lost`, which never returns, raises before it."""
    watched = asyncio.ensure_future(lost)
    if not await _first(work, watched):
        watched.result()
    return work.result()


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
