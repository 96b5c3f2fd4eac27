"""The baselines over real sockets, the command line's errors, and that every way gives the reference's tokens."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from benchmarks.end_to_end import alternatives
from benchmarks.end_to_end.pictures import as_jpeg, from_jpeg
from benchmarks.end_to_end.plan import Watch
from benchmarks.end_to_end.rest import RestWay
from benchmarks.end_to_end.serve import rest_server
from benchmarks.end_to_end.site import open_ways, start_here
from benchmarks.end_to_end.ways import Answered, Family, Way
from benchmarks.end_to_end.websocket import WebsocketWay, serve_websocket
from benchmarks.end_to_end.whole import Acted
from benchmarks.frames import INSTRUCTION, read_frames
from benchmarks.latency import build_parser, main, open_site
from benchmarks.processes import ServerProcess, free_port
from splitvla_shared.errors import BundleError, ObservationError, ServerFault, Unreachable
from splitvla_shared.nouns import Image
from splitvla_shared.wire.inference_pb2_grpc import InferenceServicer
from tests.fake_server import FakeServicer, serving


class _Whole:
    """Its answer is the picture's shape and mean."""

    def act(self, image: Image, instruction: str) -> Acted:
        if instruction == "fail":
            raise ValueError("as asked")
        return Acted((*image.shape, round(image.mean())), np.array([image.mean(), 0.1]), 1.0, 2.0)


@pytest.fixture(scope="module")
def rest() -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = rest_server(_Whole())
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listener.close()


@pytest.fixture(scope="module")
def websocket() -> str:
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=serve_websocket, args=(_Whole(), listener), daemon=True).start()
    return f"127.0.0.1:{listener.getsockname()[1]}"


IMAGE = np.full((16, 24, 3), 77, np.uint8)


def answer(way: Way, instruction: str = "do it") -> Answered:
    try:
        return way.act(IMAGE, instruction)
    finally:
        way.close()


def test_rest_carries_the_picture_and_brings_tokens_and_action_back(rest: str) -> None:
    found = answer(RestWay("rest", rest, lambda image: image, Family.RAW))
    assert found.tokens == (16, 24, 3, 77)
    assert found.action == (77.0, 0.1)
    assert found.up_bytes > IMAGE.nbytes * 4 / 3
    assert found.total_ms >= found.robot_ms + found.server_ms


def test_rest_keeps_a_robot_s_connection_for_longer_than_a_round_of_all_ways() -> None:
    """Else each call over a link of 60 ms would pay for a connection of its own."""
    assert rest_server(_Whole()).config.timeout_keep_alive >= 60


def test_rest_takes_a_jpeg(rest: str) -> None:
    found = answer(RestWay("rest", rest, as_jpeg, Family.JPEG))
    assert found.tokens[:3] == (16, 24, 3)
    assert found.up_bytes < IMAGE.nbytes


def test_rest_answers_error_as_deploy_py_does_and_the_client_says_so(rest: str) -> None:
    with pytest.raises(ServerFault, match="error"):
        answer(RestWay("rest", rest, lambda image: image, Family.RAW), "fail")


@pytest.mark.parametrize("prepare", [lambda image: image, as_jpeg], ids=["raw", "jpeg"])
def test_the_websocket_carries_the_picture_and_brings_tokens_and_action_back(websocket: str, prepare: object) -> None:
    found = answer(WebsocketWay("{client}", websocket, prepare, Family.RAW))  # type: ignore[arg-type]
    assert found.tokens[:3] == (16, 24, 3)
    assert found.action[0] == pytest.approx(77.0, abs=1.0)
    assert found.server_ms > 0


def test_the_websocket_says_an_error_as_a_text_and_stays_open(websocket: str) -> None:
    way = WebsocketWay("{client}", websocket, lambda image: image, Family.RAW)
    with pytest.raises(ServerFault, match="as asked"):
        way.act(IMAGE, "fail")
    assert way.act(IMAGE, "do it").tokens[3] == 77


def test_bytes_that_are_no_jpeg_are_refused() -> None:
    with pytest.raises(ObservationError, match="no JPEG"):
        from_jpeg(b"not a picture")


def test_a_baseline_that_is_not_there_is_named_with_the_remedy() -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(Unreachable, match=r"serve rest"):
        RestWay("rest", address, lambda image: image, Family.RAW)
    with pytest.raises(Unreachable, match=r"serve websocket"):
        WebsocketWay("{client}", address, lambda image: image, Family.RAW)


def test_a_robot_is_measured_without_torch() -> None:
    check = "import sys, benchmarks.latency; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--sections", "speed"], 2, "--sections speed"),
        (["--server", "127.0.0.1:1"], 2, "belong together"),
        (["--server", "nonsense", "--bundle", "x"], 2, "nonsense"),
        (["--server", "127.0.0.1:1", "--bundle", "/nowhere"], 3, "/nowhere is not a bundle"),
        (["--compare", "/nowhere.json"], 2, "/nowhere.json"),
        (["--soak", "-1"], 2, "--soak"),
        (["--soak", "0.01"], 2, "--soak"),
        (["--threads", "0"], 2, "--threads"),
        (["--deadline-ms", "0"], 2, "--deadline-ms"),
        (["--what-if", "x=1"], 2, "--what-if"),
    ],
)
def test_bad_input_is_one_clear_line(
    arguments: list[str], code: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--out", str(tmp_path)]) == code
    [line] = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert says in line


@pytest.mark.parametrize(("options", "threads"), [([], None), (["--threads", "3"], 3)])
def test_a_robot_encodes_on_the_threads_that_run_and_act_would_give_it(
    tiny_bundles: Path, options: list[str], threads: int | None
) -> None:
    with serving(FakeServicer()) as address:
        there = ["--server", address, "--bundle", str(tiny_bundles / "edge"), *options]
        with open_site(build_parser().parse_args(there), Watch()) as site:
            assert site.threads == threads


def test_a_server_that_refuses_this_robot_is_one_clear_line(
    tiny_bundles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Refusing(InferenceServicer):
        def Describe(self, request: object, context: grpc.ServicerContext) -> None:  # noqa: N802
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "robot 'arm3' may not use namespace 'lab'")

    with serving(Refusing()) as address:
        bundle = ["--bundle", str(tiny_bundles / "edge"), "--unnorm-key", "widowx_tiny"]
        code = main(["--server", address, *bundle, "--out", str(tmp_path)])
    [line] = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert code == ServerFault.exit_code
    assert address in line
    assert "PERMISSION_DENIED: robot 'arm3' may not use namespace 'lab'" in line


def test_a_server_half_is_no_robot_s_half(
    tiny_bundles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = ["--server", f"127.0.0.1:{free_port()}"]
    assert main([*server, "--bundle", str(tiny_bundles / "cloud"), "--out", str(tmp_path)]) == BundleError.exit_code
    [line] = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert "edge" in line


def test_the_benchmark_runs_by_its_path_from_any_folder(tmp_path: Path) -> None:
    script = Path(__file__).resolve().parent.parent / "benchmarks" / "latency.py"
    done = subprocess.run(
        [sys.executable, str(script), "--sections", "speed"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "--sections speed: unknown" in done.stderr


def test_a_robot_and_its_real_server_are_measured_by_stage_rung_and_session(tiny_bundles: Path, tmp_path: Path) -> None:
    """No link is emulated on top of the real one, and nothing is said of the other machine's memory."""
    arguments = ["--bundle", str(tiny_bundles / "edge"), "--unnorm-key", "widowx_tiny", "--out", str(tmp_path)]
    with ServerProcess(tiny_bundles / "cloud", "--threads", "1") as server:
        assert main(["--server", server.wait_ready(), *arguments, "--sections", "stages,alternatives"]) == 0
    tables = {path.stem for path in tmp_path.glob("*.md")}
    assert tables == {"stages", "alternatives", "verdict"}
    assert "split, int4" in (tmp_path / "alternatives.md").read_text(encoding="utf-8")


def test_every_exact_way_gives_the_reference_s_tokens(tiny_checkpoint: Path, tiny_bundles: Path) -> None:
    """Four real servers: OpenVLA's REST, openpi's websocket with both engines, and ours."""
    frames = read_frames()[::20]
    with (
        start_here(
            tiny_checkpoint, tiny_bundles, unnorm_key="widowx_tiny", threads=1, precision="fp32", whole=True
        ) as site,
        open_ways(site) as ways,
    ):
        measured = alternatives.measure(ways, frames, INSTRUCTION, 2)
    exact = [way.name for way in measured if way.family.exact]
    assert len(exact) == 6
    assert {"split, f32", "REST /act, square", "on the robot, PyTorch"} <= set(exact)
    assert alternatives.differing(measured) == []


def test_robots_on_one_server_are_measured_without_every_way_first(tiny_bundles: Path, tmp_path: Path) -> None:
    arguments = ["--bundle", str(tiny_bundles / "edge"), "--unnorm-key", "widowx_tiny", "--out", str(tmp_path)]
    with ServerProcess(tiny_bundles / "cloud", "--threads", "1") as server:
        assert main(["--server", server.wait_ready(), *arguments, "--sections", "scale"]) == 0
    assert {path.stem for path in tmp_path.glob("*.md")} == {"scale"}
