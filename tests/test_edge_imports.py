"""What importing the robot's side costs: never torch, and for the package itself not even grpc."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import splitvla_edge

PACKAGE = Path(splitvla_edge.__file__).parent
MODULES = sorted(
    ".".join(["splitvla_edge", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path.name != "__main__.py"
)
HEAVY = {"torch", "transformers", "bitsandbytes", "onnx", "accelerate"}


def _loaded_after(code: str) -> set[str]:
    """Top-level names in sys.modules of a fresh interpreter that ran `code`."""
    report = "; import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_no_module_of_the_robots_side_loads_torch() -> None:
    loaded = _loaded_after("import " + ", ".join(MODULES))
    assert "splitvla_edge.policy" in MODULES
    assert not loaded & HEAVY


def test_the_package_alone_stays_light_for_the_control_process() -> None:
    loaded = _loaded_after("import splitvla_edge")
    assert not loaded & (HEAVY | {"onnxruntime", "grpc", "cv2", "PIL", "google"})


def test_the_policy_is_there_when_it_is_asked_for() -> None:
    loaded = _loaded_after("from splitvla_edge import EdgePolicy; assert EdgePolicy.__module__.endswith('policy')")
    assert {"onnxruntime", "grpc"} <= loaded
    assert not loaded & (HEAVY | {"cv2"})


def test_any_other_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Nothing"):
        splitvla_edge.Nothing  # noqa: B018
