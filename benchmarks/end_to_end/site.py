"""Where the parts of a run are: servers that are started here, or somebody's robot and somebody's server."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.end_to_end.ways import Answered, Family, SplitWay, Way
from benchmarks.processes import ModuleProcess, ProcessLost, ServerProcess
from splitvla_edge.encoding.encoder import OnnxEncoder
from splitvla_edge.encoding.probe import probed
from splitvla_edge.link.grpc_link import GrpcLink
from splitvla_edge.link.security import Security
from splitvla_edge.model import EdgeModel, read_edge_model, read_ladder
from splitvla_edge.policy import EdgePolicy
from splitvla_shared.bundle import Bundle, open_bundle
from splitvla_shared.errors import Unreachable
from splitvla_shared.nouns import Image, Scheme
from splitvla_shared.preprocess.image_pipelines import build_pipeline

_LOAD_S = 600.0  # a 7B checkpoint from a slow disk
_CONNECT_S = 20.0


# What is started behind the fields of Baselines.
_SERVES: Mapping[str, tuple[str, ...]] = {
    "rest": ("rest",),
    "websocket": ("websocket",),
    "websocket_split_engine": ("websocket", "--engine", "split"),
}
BASELINES = tuple(_SERVES)


@dataclass(frozen=True, slots=True)
class Baselines:
    """Addresses of the baseline servers, None where there is none. split_engine: this project's engines behind it."""

    rest: str | None = None
    websocket: str | None = None
    websocket_split_engine: str | None = None


@dataclass(frozen=True, slots=True)
class Site:
    """edge_bundle, server: the split. checkpoint, bundles: of the whole model on this machine, None without one.

    threads: of the robot's arithmetic, None for all cores. pids: of the servers that run here, by name, for CPU and
    memory.
    """

    edge_bundle: Path
    server: str
    unnorm_key: str | None = None
    threads: int | None = None
    encoder: str = "fp32"
    provider: str = "auto"
    precision: str = "fp32"
    security: Security | None = None
    baselines: Baselines = Baselines()
    checkpoint: Path | None = None
    bundles: Path | None = None
    pids: Mapping[str, int] = field(default_factory=dict)

    @property
    def promises(self) -> bool:
        """Whether all exact ways owe the same tokens.

        PyTorch encodes in its backbone's precision and the split in float32, so that they agree in fp32 alone; and a
        server elsewhere doesn't say how its baselines were started.
        """
        return self.bundles is not None and self.precision == "fp32"


@contextlib.contextmanager
def start_here(
    checkpoint: Path,
    bundles: Path,
    *,
    unnorm_key: str | None,
    threads: int,
    precision: str,
    whole: bool,
    baselines: Sequence[str] = BASELINES,
) -> Iterator[Site]:
    """Servers on loopback, each with the whole model or its half. Raises Unreachable when one does not start.

    whole: the model on the robot's machine is a way too. baselines: which of BASELINES are started.
    """
    key = ("--unnorm-key", unnorm_key) if unnorm_key else ()
    options = ("--checkpoint", str(checkpoint), "--bundles", str(bundles), *key)
    options += ("--precision", precision, "--threads", str(threads))
    serve = "benchmarks.end_to_end.serve"
    processes: dict[str, ModuleProcess] = {}
    with contextlib.ExitStack() as stack:
        processes["split"] = ServerProcess(bundles / "cloud", "--threads", str(threads), precision=precision)
        stack.enter_context(processes["split"])
        for name in baselines:
            kind, *engine = _SERVES[name]
            processes[name] = stack.enter_context(ModuleProcess(serve, kind, *options, *engine))
        addresses = {name: _ready(process) for name, process in processes.items()}
        yield Site(
            edge_bundle=bundles / "edge",
            server=addresses.pop("split"),
            unnorm_key=unnorm_key,
            threads=threads,
            precision=precision,
            baselines=Baselines(**addresses),
            checkpoint=checkpoint if whole else None,
            bundles=bundles if whole else None,
            pids={name: process.pid for name, process in processes.items()},
        )


def _ready(process: ModuleProcess) -> str:
    try:
        return process.wait_ready(_LOAD_S)
    except ProcessLost as error:
        last = process.output.strip().splitlines() or ["it said nothing"]
        raise Unreachable(f"a server did not start: {last[-1][:200]}") from error


@contextlib.contextmanager
def open_ways(site: Site, via: Callable[[str], str] = lambda address: address) -> Iterator[list[Way]]:
    """Every way of this site, the reference's first. via: the address to use for a server's, a link's near end."""
    with contextlib.ExitStack() as stack:
        bundle = open_bundle(site.edge_bundle, "edge")
        model = read_edge_model(bundle, site.unnorm_key)
        ways: list[Way] = []
        for way in (*_local_ways(site), *_picture_ways(site, model, via)):
            stack.callback(way.close)
            ways.append(way)
        yield [*ways, *_split_ways(site, bundle, model, via(site.server), stack)]


class LocalWay:
    """The whole model in this process."""

    family = Family.LOCAL

    def __init__(self, name: str, act: Callable[[Image, str], Answered]) -> None:
        self.name, self.act = name, act

    def close(self) -> None:
        pass


def _split_ways(
    site: Site, bundle: Bundle, model: EdgeModel, server: str, stack: contextlib.ExitStack
) -> Iterator[Way]:
    """A policy for each rung, on one encoder: none may have for a draft what another was answered to the same frame."""
    tables, rungs = read_ladder(bundle, Scheme.F32)
    onnx = OnnxEncoder(bundle, site.threads, variant=site.encoder, provider=site.provider, tables=tables)
    encoder = probed(onnx, bundle, site.encoder)
    for rung in rungs:
        link = GrpcLink(server, security=site.security)
        policy = stack.enter_context(EdgePolicy(model, encoder, link, tables=tables, rungs=rungs))
        policy.handshake(_CONNECT_S)
        yield SplitWay(policy, rung)


def _local_ways(site: Site) -> Iterator[Way]:
    if site.checkpoint is None or site.bundles is None:
        return
    # The robot of a split holds no torch: it is imported only where the whole model is to run here.
    from benchmarks.end_to_end.whole import EngineSettings, Whole, open_whole

    def answer(whole: Whole) -> Callable[[Image, str], Answered]:
        def act(image: Image, instruction: str) -> Answered:
            acted = whole.act(image, instruction)
            total_ms = acted.encode_ms + acted.backbone_ms
            return Answered(acted.tokens, tuple(acted.action.tolist()), total_ms, robot_ms=total_ms)

        return act

    for name, engine in (("on the robot, PyTorch", "eager"), ("on the robot, our engines", "split")):
        settings = EngineSettings(
            engine,  # type: ignore[arg-type]
            site.checkpoint,
            site.bundles,
            site.unnorm_key,
            site.precision,
            threads=site.threads or 1,
        )
        yield LocalWay(name, answer(open_whole(settings)))


def _picture_ways(site: Site, model: EdgeModel, via: Callable[[str], str]) -> Iterator[Way]:
    baselines = site.baselines
    square = build_pipeline(model.image_pipeline, "none", model.spec, model.fill)
    if baselines.rest is None and baselines.websocket is None and baselines.websocket_split_engine is None:
        return
    from benchmarks.end_to_end.pictures import as_jpeg
    from benchmarks.end_to_end.rest import RestWay
    from benchmarks.end_to_end.websocket import WebsocketWay

    def jpeg(image: Image) -> bytes:
        return as_jpeg(square(image))

    if baselines.rest is not None:
        rest = via(baselines.rest)
        yield RestWay("REST /act, whole frame", rest, lambda image: image, Family.RAW)
        yield RestWay("REST /act, square", rest, square, Family.RAW)
        yield RestWay("REST /act, JPEG", rest, jpeg, Family.JPEG)
    if baselines.websocket is not None:
        yield WebsocketWay("{client}, raw square", via(baselines.websocket), square, Family.RAW)
    if baselines.websocket_split_engine is not None:
        name = "{client}, JPEG, our engines"
        yield WebsocketWay(name, via(baselines.websocket_split_engine), jpeg, Family.JPEG)
