"""The contract between the machines: committed stubs and Python enums are what proto/inference.proto says."""

from __future__ import annotations

import enum
import subprocess
import sys
from pathlib import Path

import pytest

from splitvla_shared.nouns import Scheme
from splitvla_shared.spec import Resize
from splitvla_shared.wire import inference_pb2 as pb

ROOT = Path(__file__).resolve().parent.parent
STUBS = ROOT / "shared" / "splitvla_shared" / "wire"
GENERATED = ("inference_pb2.py", "inference_pb2.pyi", "inference_pb2_grpc.py")


@pytest.fixture(scope="module")
def regenerated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed")
    out = tmp_path_factory.mktemp("stubs")
    outputs = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", "splitvla_shared/wire=proto", *outputs]
    done = subprocess.run(
        [*command, "proto/inference.proto"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return out / "splitvla_shared" / "wire"


@pytest.mark.parametrize("name", GENERATED)
def test_the_committed_stub_is_what_the_generator_writes(regenerated: Path, name: str) -> None:
    """On failure: `make proto`, with the pinned grpcio-tools."""
    assert (STUBS / name).read_text(encoding="utf-8") == (regenerated / name).read_text(encoding="utf-8")


def test_nothing_else_lies_among_the_stubs() -> None:
    assert {path.name for path in STUBS.iterdir() if path.is_file()} == {*GENERATED, "__init__.py"}


@pytest.mark.parametrize(("ours", "theirs"), [(Scheme, "Scheme"), (Resize, "Resize")])
def test_an_enum_has_the_proto_s_names_and_numbers(ours: type[enum.IntEnum], theirs: str) -> None:
    values = {value.name: value.number for value in pb.DESCRIPTOR.enum_types_by_name[theirs].values if value.number}
    assert {member.name: int(member) for member in ours} == values


def test_zstd_schemes_are_the_raw_ones_plus_sixteen() -> None:
    """So that a person who reads a dump can tell one from the other."""
    raw = [scheme for scheme in Scheme if scheme < 16]
    assert [Scheme[f"{scheme.name}_ZSTD"] for scheme in raw] == [scheme + 16 for scheme in raw]
