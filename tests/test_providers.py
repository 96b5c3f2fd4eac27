"""Which hardware runs the encoder: tried for real, compared with the CPU, and never taken at its word."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from splitvla_edge.encoding.encoder import OnnxEncoder
from splitvla_edge.encoding.engine_cache import EngineKey, engine_folder, user_cache_root
from splitvla_edge.encoding.machine_names import accelerator_name
from splitvla_edge.encoding.providers import PROVIDERS, Options, Selection, Session, infer, select
from splitvla_shared.bundle import open_bundle
from splitvla_shared.errors import ConfigError

TENSORRT, CUDA, CPU = PROVIDERS["tensorrt"], PROVIDERS["cuda"], PROVIDERS["cpu"]
FRAME = np.arange(1, 4 * 4 * 3 + 1, dtype=np.uint8).reshape(4, 4, 3)
TOLERANCE = 0.01


class FakeSession:
    """Embeds an image as itself, off by `error` of its length; says that it runs on `providers`."""

    def __init__(self, *providers: str, error: float = 0.0, shape: tuple[int, ...] = (1, 8, 6)) -> None:
        self.providers, self.error, self.shape = list(providers), error, shape
        self.runs = 0

    def run(self, outputs: list[str], inputs: dict[str, Any]) -> list[Any]:
        self.runs += 1
        answer = inputs["image"].astype(np.float32).reshape(-1)
        return [np.resize(answer * (1 + self.error), self.shape)]

    def get_providers(self) -> list[str]:
        return self.providers

    def get_inputs(self) -> list[Any]:
        return []

    def get_outputs(self) -> list[Any]:
        return []


class FakeFactory:
    """Opens what a test prepared for a provider, or raises it; keeps what it was asked for, with the options."""

    def __init__(self, sessions: Mapping[str, FakeSession | Exception]) -> None:
        self.sessions = sessions
        self.asked: list[tuple[str, dict[str, str]]] = []

    def __call__(self, provider: str, options: Options) -> Session:
        self.asked.append((provider, dict(options)))
        found = self.sessions[provider]
        if isinstance(found, Exception):
            raise found
        return found


def _select(
    choice: str, factory: FakeFactory, *, available: tuple[str, ...] = (TENSORRT, CUDA, CPU), **options: Any
) -> Selection:
    return select(choice, FakeSession(CPU), available, factory, options, FRAME, TOLERANCE)


def test_auto_takes_tensorrt_when_it_gives_the_cpus_answer() -> None:
    best = FakeSession(TENSORRT, CUDA, CPU, error=0.001)
    found = _select("auto", FakeFactory({TENSORRT: best}), tensorrt=lambda: {"cache": "here"})
    assert (found.name, found.session, found.rejected) == ("tensorrt", best, ())
    assert found.difference == pytest.approx(0.001, rel=1e-3)
    assert best.runs == 1


def test_options_reach_the_provider_they_are_for() -> None:
    factory = FakeFactory({TENSORRT: ort_errors.Fail("no"), CUDA: FakeSession(CUDA, CPU)})
    _select("auto", factory, tensorrt=lambda: {"cache": "here"})
    assert factory.asked == [(TENSORRT, {"cache": "here"}), (CUDA, {})]


def test_a_provider_that_does_not_open_is_passed_over_with_its_reason() -> None:
    factory = FakeFactory({TENSORRT: ort_errors.EPFail("libnvinfer.so.10\nnot found"), CUDA: FakeSession(CUDA, CPU)})
    found = _select("auto", factory)
    assert (found.name, found.rejected) == ("cuda", (("tensorrt", "libnvinfer.so.10 not found"),))
    assert found.describe() == "cuda (tensorrt: libnvinfer.so.10 not found)"


def test_a_listed_provider_that_fell_back_silently_is_not_believed() -> None:
    """The session opens and answers rightly, but on the CPU."""
    factory = FakeFactory({TENSORRT: FakeSession(CUDA, CPU), CUDA: FakeSession(CPU)})
    found = _select("auto", factory)
    assert found.name == "cpu"
    assert dict(found.rejected) == {
        "tensorrt": f"onnxruntime fell back to {CUDA}, {CPU}",
        "cuda": f"onnxruntime fell back to {CPU}",
    }


@pytest.mark.parametrize(
    ("session", "reason"),
    [
        (FakeSession(CUDA, CPU, error=0.02), r"differs from the CPU's by 2\.00%, 1% is allowed"),
        (FakeSession(CUDA, CPU, error=float("nan")), "differs from the CPU's by nan%"),
        (FakeSession(CUDA, CPU, error=float("inf")), "differs from the CPU's by"),
        (FakeSession(CUDA, CPU, shape=(1, 8, 3)), r"shape \(8, 3\), the CPU's \(8, 6\)"),
    ],
)
def test_another_answer_than_the_cpus_is_refused(session: FakeSession, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"provider cuda can't be used: .*{reason}.*--provider cpu"):
        _select("cuda", FakeFactory({CUDA: session}))
    assert _select("auto", FakeFactory({TENSORRT: ort_errors.Fail("x"), CUDA: session})).name == "cpu"


def test_an_inference_that_fails_is_a_reason_too() -> None:
    class Broken(FakeSession):
        def run(self, outputs: list[str], inputs: dict[str, Any]) -> list[Any]:
            raise ort_errors.RuntimeException("CUDA error 700: an illegal memory access")

    found = _select("auto", FakeFactory({TENSORRT: Broken(TENSORRT), CUDA: Broken(CUDA)}))
    assert (found.name, found.rejected[1]) == ("cpu", ("cuda", "CUDA error 700: an illegal memory access"))


def test_what_the_build_does_not_contain_is_not_opened() -> None:
    factory = FakeFactory({})
    found = _select("auto", factory, available=(CPU,))
    assert (found.name, factory.asked) == ("cpu", [])
    assert found.describe() == (
        "cpu (tensorrt: not in this build of onnxruntime; cuda: not in this build of onnxruntime)"
    )


def test_an_engine_cache_that_can_not_be_trusted_costs_only_tensorrt() -> None:
    def untrusted() -> Options:
        raise ConfigError("engine cache /x belongs to user 7; remove it")

    factory = FakeFactory({CUDA: FakeSession(CUDA, CPU)})
    found = _select("auto", factory, tensorrt=untrusted)
    assert (found.name, found.rejected) == ("cuda", (("tensorrt", "engine cache /x belongs to user 7; remove it"),))


def test_the_cpu_asked_for_needs_no_comparison() -> None:
    factory = FakeFactory({})
    found = _select("cpu", factory)
    assert (found.name, found.rejected, factory.asked) == ("cpu", (), [])


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="provider 'gpu' is unknown; one of auto, tensorrt, cuda, cpu"):
        _select("gpu", FakeFactory({}))


def test_the_cpu_of_this_machine_runs_for_real(tiny_bundles: Path) -> None:
    bundle = open_bundle(tiny_bundles / "edge", "edge")
    auto, cpu = (OnnxEncoder(bundle, threads=1, provider=name) for name in ("auto", "cpu"))
    image = np.full((bundle.spec.image_size,) * 2 + (3,), 77, np.uint8)
    np.testing.assert_array_equal(cpu.embed(image), infer(cpu.selection.session, image))
    assert cpu.selection.name == "cpu"
    assert auto.selection.name in PROVIDERS
    assert np.linalg.norm(auto.embed(image) - cpu.embed(image)) <= TOLERANCE * np.linalg.norm(cpu.embed(image))


# --- engine cache -----------------------------------------------------------------------------------------------------

KEY = EngineKey("ab" * 32, "1.32.0", {"trt_engine_cache_enable": "True"}, "NVIDIA Orin")


def test_engines_lie_in_folders_that_only_their_owner_may_enter(tmp_path: Path) -> None:
    folder = engine_folder(tmp_path / "cache", KEY)
    assert folder == tmp_path / "cache" / "splitvla" / "tensorrt" / KEY.digest()
    for each in (folder, folder.parent, folder.parent.parent):
        assert stat.S_IMODE(each.stat().st_mode) == 0o700
    assert engine_folder(tmp_path / "cache", KEY) == folder


@pytest.mark.parametrize(
    "other",
    [
        EngineKey("cd" * 32, KEY.onnxruntime_version, KEY.options, KEY.device),
        EngineKey(KEY.encoder_sha256, "1.33.0", KEY.options, KEY.device),
        EngineKey(KEY.encoder_sha256, KEY.onnxruntime_version, {"trt_fp16_enable": "True"}, KEY.device),
        EngineKey(KEY.encoder_sha256, KEY.onnxruntime_version, KEY.options, "NVIDIA Thor"),
    ],
)
def test_an_engine_is_never_used_for_anything_else(other: EngineKey) -> None:
    assert other.digest() != KEY.digest()


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    folder = engine_folder(tmp_path, KEY)
    folder.chmod(mode)
    with pytest.raises(ConfigError, match="is writable by others; remove it"):
        engine_folder(tmp_path, KEY)


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine_folder(tmp_path, KEY)
    owner = tmp_path.stat().st_uid
    monkeypatch.setattr("splitvla_edge.encoding.engine_cache.os.geteuid", lambda: owner + 1)
    with pytest.raises(ConfigError, match=f"splitvla belongs to user {owner}"):
        engine_folder(tmp_path, KEY)


def test_a_link_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    folder = engine_folder(tmp_path, KEY)
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="is not a folder of its own"):
        engine_folder(tmp_path, KEY)


def test_a_cache_that_can_not_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="set XDG_CACHE_HOME"):
        engine_folder(tmp_path / "file", KEY)


def test_the_cache_follows_the_xdg_specification(tmp_path: Path) -> None:
    assert user_cache_root({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path
    assert user_cache_root({}) == user_cache_root({"XDG_CACHE_HOME": "relative"}) == Path.home() / ".cache"


@pytest.mark.parametrize(
    ("file", "content", "name"),
    [
        (
            "proc/driver/nvidia/gpus/0000:01:00.0/information",
            "Model: \t\t NVIDIA RTX A2000\nIRQ: 5\n",
            "NVIDIA RTX A2000",
        ),
        ("proc/device-tree/model", "NVIDIA Jetson AGX Orin\0", "NVIDIA Jetson AGX Orin"),
    ],
)
def test_the_accelerators_name_is_read_from_the_system(tmp_path: Path, file: str, content: str, name: str) -> None:
    assert accelerator_name(tmp_path)  # without any, the architecture
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(content)
    assert accelerator_name(tmp_path) == name
