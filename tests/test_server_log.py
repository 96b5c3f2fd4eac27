"""The server's log: how much of it there is, and that nobody waits for who reads it."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from splitvla_cloud.__main__ import main
from splitvla_cloud.log import SeldomHandler
from splitvla_shared.wire.inference_pb2_grpc import InferenceStub
from tests.cloud_fakes import WAIT_S, fake_bundle, request

_PROGRAM = """
import sys
from splitvla_cloud import __main__, server
from splitvla_cloud.prompt import Prompt
from tests.cloud_fakes import SPEC, FakeBackbone
from splitvla_shared.bundle import Bundle
server.open_bundle = lambda path, half: Bundle(path, half, SPEC)
server.serve.__defaults__ = (lambda *_: FakeBackbone(), *server.serve.__defaults__[1:])
__main__.run()
"""


def test_of_one_kind_of_line_there_are_few_and_how_many_were_left_out_is_told() -> None:
    now, lines = [100.0], list[str]()
    handler = SeldomHandler(lines.append, lambda: now[0])
    logger = logging.Logger("test")
    logger.addHandler(handler)

    def refuse(session: int, times: int) -> None:
        for number in range(times):
            logger.info("frame %d is refused", number, extra={"session": session})

    refuse(1, 50)
    assert lines == [f"frame {number} is refused" for number in range(10)]
    refuse(2, 1)
    assert lines[10:] == ["frame 0 is refused"], "one robot's refusals hid another's"
    now[0] += 10
    refuse(1, 11)
    assert lines[11] == "40 more lines like those above were left out in 10 s"
    handler.close()
    assert lines[22:] == ["1 more lines like those above were left out in 0 s"]


def test_peers_that_take_a_session_a_call_do_not_fill_the_log_and_hide_no_error() -> None:
    lines: list[str] = []
    logger = logging.Logger("test")
    logger.addHandler(SeldomHandler(lines.append, lambda: 0.0))
    for session in range(10_000):
        logger.info("refused", extra={"session": session})
    assert len(lines) == 200
    logger.info("SIGTERM: leaving")
    logger.error("the GPU is gone")
    assert lines[200:] == ["SIGTERM: leaving", "the GPU is gone"]


def test_an_exception_s_lines_are_one() -> None:
    lines: list[str] = []
    logger = logging.Logger("test")
    logger.addHandler(SeldomHandler(lines.append))
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        logger.exception("a pass failed")
    assert len(lines) == 1
    assert lines[0].startswith("a pass failed\nTraceback")


def test_a_line_that_cannot_be_written_ends_nothing_and_says_so() -> None:
    lines: list[str] = []
    logger = logging.Logger("test")
    logger.addHandler(SeldomHandler(lines.append))
    logger.warning("%d robots", "many")
    assert lines[0].startswith("WARNING '%d robots' can't be written: TypeError")


def test_strangers_whose_handshake_fails_fill_no_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC's C core has a line on standard error for each, whatever logging is told."""
    monkeypatch.setenv("GRPC_VERBOSITY", "restored afterwards")
    monkeypatch.delenv("GRPC_VERBOSITY")
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.NullHandler()])
    assert main(["serve", "--bundle", str(tmp_path)]) == 3
    assert os.environ["GRPC_VERBOSITY"] == "ERROR"


@contextlib.contextmanager
def full_pipe() -> Iterator[int]:
    """The end to write to of a pipe that nobody reads, as that of a stopped terminal."""
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, False)
        room = fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
        assert os.write(writer, b"x" * room) == room
        os.set_blocking(writer, True)
        yield writer
    finally:
        os.close(reader)
        os.close(writer)


@contextlib.contextmanager
def full_disk() -> Iterator[int]:
    with Path("/dev/full").open("w") as file:
        yield file.fileno()


@pytest.mark.parametrize("nobody_reads", [full_pipe, full_disk])
def test_an_operator_who_can_not_be_told_anything_costs_no_answer_and_no_leave(
    tmp_path: Path, nobody_reads: Any
) -> None:
    bundle = fake_bundle(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-c", _PROGRAM, "serve", "--bundle", str(bundle.path), "--listen", address]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with (
        nobody_reads() as output,
        subprocess.Popen([*command, "--drain-s", "0"], stdout=output, stderr=output, env=buffered) as process,
        grpc.insecure_channel(address) as channel,
    ):
        try:
            stub: Any = InferenceStub(channel)  # type: ignore[no-untyped-call]
            for sequence in (1, 2):
                with pytest.raises(grpc.RpcError, match="INVALID_ARGUMENT"):  # which is logged
                    stub.Infer(request(sequence, action_dims=0), timeout=3 * WAIT_S, wait_for_ready=True)
                assert stub.Infer(request(sequence), timeout=WAIT_S).sequence == sequence
            process.send_signal(signal.SIGTERM)
            assert process.wait(WAIT_S) == 0
        finally:
            process.kill()
