"""The promises of the house: sizes, first lines, what an install brings, what CI runs."""

from __future__ import annotations

import ast
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"torch", "transformers", "bitsandbytes", "accelerate", "onnx", "torchvision", "timm"}
SOURCES = sorted(
    path
    for folder in ("shared", "edge", "cloud", "benchmarks", "tests")
    for path in (ROOT / folder).rglob("*.py")
    if "wire" not in path.parent.name
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_is_and_stays_readable(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400, "split it: no module is longer than 400 lines"
    assert ast.get_docstring(ast.parse(text)), "the first line of a file is its definition"
    assert path.stem not in {"utils", "helpers", "common", "misc"}


def _closure(extra: str) -> set[str]:
    """Names of all distributions that `pip install splitvla[extra]` brings, walked through installed metadata."""
    seen: set[str] = set()
    todo = [("splitvla", extra)]
    while todo:
        name, wanted = todo.pop()
        for text in metadata.requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker and not requirement.marker.evaluate({"extra": wanted}):
                continue
            key = requirement.name.lower().replace("_", "-")
            if key not in seen:
                seen.add(key)
                todo.append((key, ""))
    return seen


def test_the_edge_extra_brings_neither_torch_nor_transformers() -> None:
    closure = _closure("edge")
    assert {"onnxruntime", "grpcio", "numpy"} <= closure
    assert not closure & HEAVY


def test_the_cloud_extra_brings_no_vision_library_of_gigabytes() -> None:
    closure = _closure("cloud")
    assert "torch" in closure
    assert not closure & {"torchvision", "timm"}


def test_ci_runs_the_readme_s_test_command() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
