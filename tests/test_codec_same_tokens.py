"""A real backbone behind the codec says exactly what it says of the payloads decoded here, along a chain of frames."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.processes import ServerProcess
from splitvla_edge.calibrate.learn import learn, sealed
from splitvla_edge.embedder import Encoder
from splitvla_edge.encoding.encoder import OnnxEncoder
from splitvla_edge.link.grpc_link import GrpcLink
from splitvla_edge.model import read_edge_model
from splitvla_edge.policy import EdgePolicy
from splitvla_shared.bundle import Side, open_bundle, write_manifest
from splitvla_shared.codec.bundled import CODEC_FILE, read_tables
from splitvla_shared.codec.model import Reference
from splitvla_shared.codec.tables import CodecTables
from splitvla_shared.codec.transform import Binding, TransformCodec
from splitvla_shared.nouns import FloatArray, Image, Observation, Scheme
from splitvla_shared.rungs import Rung

FRAMES = 5
EXACT, FINE = Rung("f32", Scheme.F32, 0), Rung("fine", Scheme.KLT, 0, codec_rung=0)


def picture(moved: int) -> Image:
    """Stripes and a square that wanders; uint8 (224, 224, 3)."""
    image = np.zeros((224, 224, 3), np.uint8)
    image[:, :, 0] = np.arange(224)
    image[::9, :, 1] = 180
    image[20 + 6 * moved : 70 + 6 * moved, 40 + 9 * moved : 100 + 9 * moved] = (200, 30, 90)
    return image


@pytest.fixture(scope="module")
def calibrated(tiny_bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both halves with the same tables, learned from pictures of another place in the square's way."""
    out = tmp_path_factory.mktemp("calibrated") / "tiny"
    shutil.copytree(tiny_bundles, out)
    encoder = OnnxEncoder(open_bundle(out / "edge", "edge"), 1)
    tables, data = sealed(learn([[encoder.embed(picture(6 + index)) for index in range(8)]]))
    sides: tuple[Side, Side] = ("edge", "cloud")
    for side in sides:
        bundle = open_bundle(out / side, side)
        (bundle.path / CODEC_FILE).write_bytes(data)
        spec = dataclasses.replace(bundle.spec, codec_sha256=tables.sha256).sealed()
        write_manifest(bundle.path, side, spec, bundle.extra)
    return out


@pytest.fixture(scope="module")
def server(calibrated: Path) -> Iterator[str]:
    with ServerProcess(calibrated / "cloud", precision="fp32") as process:
        yield process.wait_ready()


@dataclasses.dataclass(frozen=True, slots=True)
class InNumpy:
    """The bundle's encoder with its projection done here."""

    encoder: OnnxEncoder
    tables: CodecTables

    def embed(self, image: Image) -> FloatArray:
        return self.encoder.embed(image)

    def coefficients(self, image: Image) -> FloatArray:
        patches = self.embed(image) - self.tables.mean.mean(axis=0, dtype=np.float64).astype(np.float32)
        return np.asarray(patches @ self.tables.analysis)


class Given:
    """An encoder that gives what it was told. Mutable: `patches`."""

    def __init__(self) -> None:
        self.patches = np.zeros((1, 1), np.float32)

    def embed(self, image: Image) -> FloatArray:
        return self.patches

    coefficients = embed


def test_a_chain_of_frames_has_the_tokens_of_the_payloads_decoded_here(calibrated: Path, server: str) -> None:
    bundle = open_bundle(calibrated / "edge", "edge")
    tables = read_tables(bundle)
    assert tables is not None
    robot_s, here, codec = InNumpy(OnnxEncoder(bundle, 1), tables), Given(), TransformCodec(tables)

    def policy(encoder: Encoder) -> EdgePolicy:
        model = read_edge_model(bundle, "widowx_tiny")
        return EdgePolicy(model, encoder, GrpcLink(server), tables=tables, rungs=(EXACT, FINE))

    reference: Reference | None = None
    sizes = []
    with policy(robot_s) as over_the_wire, policy(here) as plain:
        over_the_wire.handshake(10.0)
        plain.handshake(10.0)
        for index in range(FRAMES):
            seen = Observation(index, (picture(index),), "lift the pot", 0.0)
            got = over_the_wire.act(seen, deadline_s=20.0, rung=FINE)
            coefficients = robot_s.coefficients(picture(index))
            reference = codec.encode(coefficients, 0, Binding(0, index), reference).reference
            here.patches = codec.reconstruct(reference)
            assert got.tokens == plain.act(seen, deadline_s=20.0, rung=EXACT).tokens
            sizes.append(got.wire_bytes)
    assert max(sizes[1:]) < sizes[0], "differences are smaller than the key frame"
