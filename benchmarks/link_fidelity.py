"""How true the link emulator is on real sockets: what a round trip or a transfer took, less what the model says."""

from __future__ import annotations

import argparse
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks import report
from benchmarks.link import Conditions, LinkProxy

_PAUSE_S = 0.01


@dataclass(frozen=True, slots=True)
class Case:
    """A message of `size` bytes up, one byte back, over a link whose model says it takes expected_ms."""

    name: str
    size: int
    up: Conditions
    down: Conditions
    expected_ms: float


CASES = (
    Case("no limit, 1 B", 1, Conditions(), Conditions(), 0.0),
    Case("no limit, 557 kB", 557_060, Conditions(), Conditions(), 0.0),
    Case("20 ms each way, 1 B", 1, Conditions(delay_ms=20.0), Conditions(delay_ms=20.0), 40.0),
    Case("20 ms each way, 100 Mbit/s, 557 kB", 557_060, Conditions(100.0, 20.0), Conditions(delay_ms=20.0), 84.6),
    Case("10 Mbit/s, 70 kB", 70_000, Conditions(10.0), Conditions(), 56.0),
)


@contextlib.contextmanager
def _sink(size: int) -> Iterator[tuple[str, int]]:
    """A server that answers each `size` bytes with one."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(ConnectionResetError):  # the proxy ends before the client does
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            got = 0
            while data := connection.recv(1 << 20):
                got += len(data)
                if got == size:
                    got = 0
                    connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()
        thread.join(5.0)


def errors_ms(case: Case, n: int) -> list[float]:
    """Measured less expected, ms, of n round trips."""
    message, errors = bytes(case.size), []
    with (
        _sink(case.size) as address,
        LinkProxy(address, up=case.up, down=case.down) as proxy,
        socket.create_connection(("127.0.0.1", proxy.port), 10.0) as client,
    ):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(n + 1):
            started = time.perf_counter()
            client.sendall(message)
            client.recv(1)
            errors.append((time.perf_counter() - started) * 1e3 - case.expected_ms)
            time.sleep(_PAUSE_S)
    return errors[1:]


def measure(n: int) -> str:
    """The Markdown table."""
    rows = []
    for case in CASES:
        p5, p50, p95, top = np.percentile(errors_ms(case, n), (5, 50, 95, 100))
        rows.append((case.name, f"{case.expected_ms:.1f}", f"{p5:+.2f}", f"{p50:+.2f}", f"{p95:+.2f}", f"{top:+.2f}"))
    title = "The link emulator on real sockets: measured less modelled round trip"
    head = report.heading(title, f"python -m benchmarks.link_fidelity --n {n}", packages=("numpy",), seed=0, n=n)
    return head + "\n" + report.table(("link", "model ms", "error p5 ms", "p50", "p95", "max"), rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=200)
    print(measure(parser.parse_args().n))
