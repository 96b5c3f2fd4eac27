"""Fixtures: the small checkpoint that the project makes, and the reference data where it is at hand."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# Hypothesis' own deadline of 200 ms an example fails on a machine that is busy, and says nothing of the code.
settings.register_profile("splitvla", deadline=None)
settings.load_profile("splitvla")


def _reference_root() -> Path:
    return Path(os.environ.get("SPLITVLA_REFERENCE_DATA", ROOT.parent / "shared" / "data"))


def _reference(name: str) -> Path:
    path = _reference_root() / name
    if not path.is_dir():
        pytest.skip(f"reference data {name} is absent; set SPLITVLA_REFERENCE_DATA to a folder that holds it")
    return path


@pytest.fixture(scope="session")
def reference_checkpoint() -> Path:
    """openvla-tiny: a small checkpoint in openvla-7b's layout, with golden outputs of the public reference code."""
    return _reference("openvla-tiny")


@pytest.fixture(scope="session")
def bridge_data() -> Path:
    """Real WidowX frames and videos."""
    return _reference("bridge")


@pytest.fixture(scope="session")
def link_traces() -> Path:
    """Recorded LTE, 5G and Wi-Fi links."""
    return _reference("traces")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint that the project makes for itself: random weights, openvla-7b's layout, a small vocabulary."""
    from benchmarks.tiny_checkpoint import write_tiny_checkpoint

    path = tmp_path_factory.mktemp("checkpoint") / "tiny"
    write_tiny_checkpoint(path, seed=0)
    return path


@pytest.fixture(scope="session")
def tiny_bundles(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with edge/ and cloud/, split from the project's own tiny checkpoint."""
    from splitvla_cloud.split import split

    out = tmp_path_factory.mktemp("bundles") / "tiny"
    split(tiny_checkpoint, out)
    return out


@pytest.fixture(scope="session")
def variant_bundles(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint split with all three encoders."""
    from splitvla_cloud.split import split
    from splitvla_cloud.split.encoder_variants import EncoderOptions

    out = tmp_path_factory.mktemp("bundles") / "variants"
    split(tiny_checkpoint, out, encoders=EncoderOptions(("fp32", "fp16", "int8")))
    return out


@pytest.fixture(scope="session")
def trained_bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The benchmarks' trained policy, split."""
    from benchmarks.closed_loop.trained import trained
    from splitvla_cloud.split import split

    out = tmp_path_factory.mktemp("bundles") / "trained"
    split(trained(), out)
    return out


@pytest.fixture(scope="session")
def calibrated_bundles(tiny_bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundles, both calibrated with a recorded clip."""
    from splitvla_edge.calibrate.command import CalibrateRequest, calibrate
    from tests.test_calibration_frames import CLIP

    out = Path(shutil.copytree(tiny_bundles, tmp_path_factory.mktemp("calibrated") / "bundles"))
    request = CalibrateRequest(out / "edge", (CLIP,), out / "cloud", columns=64, most_frames=32, threads=1)
    calibrate(request, lambda stage, done, total: None)
    return out


@pytest.fixture(scope="session")
def reference_bundles(reference_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with edge/ and cloud/, split from the reference checkpoint."""
    from splitvla_cloud.split import split

    out = tmp_path_factory.mktemp("bundles") / "reference"
    split(reference_checkpoint, out)
    return out


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key pairs by openssl: ca.pem signs server.pem (localhost) and robot.pem; other.pem signs only itself.

    locked.key is robot.key with a password; weak.pem signs only itself, with a key of 1024 bits.
    """
    if shutil.which("openssl") is None:
        pytest.skip("the openssl program is absent")
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=60)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    for name in ("ca", "other"):
        openssl("req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for name in ("server", "robot"):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signing)
    openssl(
        "req", "-x509", "-newkey", "rsa:1024", "-nodes", "-keyout", "weak.key", "-out", "weak.pem", "-subj", "/CN=weak"
    )
    openssl("ec", "-in", "robot.key", "-out", "locked.key", "-aes256", "-passout", "pass:secret")
    return folder


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def patient_handshake(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first server of several is in use after a handshake, however long this machine stalls."""
    from splitvla_edge.link import servers

    monkeypatch.setattr(servers, "_OTHERS_S", 5.0)
