"""gRPC channel options of both sides, kept together because they only work as a pair.

A client that pings every second is thrown out by a server with default settings (`too_many_pings`). Dead peers are
found by `http2.ping_timeout_ms`; `keepalive_timeout_ms` does not bound it. Reconnect back-off is short because a robot
that stands still is waiting for it. Liveness of the transport is never the safety authority: deadlines and the age of
the action are. Compression stays off: grpcio inflates a bomb before it rejects it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

Option = tuple[str, int]

_COMMON: tuple[Option, ...] = (
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)

_CLIENT: tuple[Option, ...] = (
    ("grpc.keepalive_time_ms", 1000),
    ("grpc.keepalive_timeout_ms", 500),
    ("grpc.http2.ping_timeout_ms", 500),
    # Its replies are small. Bandwidth probes are pings too, and on a busy machine they came so close behind the
    # keepalive's that the server threw the robot out.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 250),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),  # a fresh channel must be a fresh connection, and not share the dead one
    ("grpc.enable_http_proxy", 0),  # a proxy that is set for downloads must not get between a robot and its server
    ("grpc.enable_retries", 0),  # late work is never retried: a newer observation is always better
)

_SERVER: tuple[Option, ...] = (
    ("grpc.http2.min_ping_interval_without_data_ms", 250),
    ("grpc.http2.max_ping_strikes", 2),
    ("grpc.keepalive_time_ms", 2000),
    ("grpc.keepalive_timeout_ms", 1000),
    ("grpc.http2.ping_timeout_ms", 1000),
    ("grpc.server_handshake_timeout_ms", 3000),
    ("grpc.max_concurrent_streams", 8),
    ("grpc.so_reuseport", 0),  # two servers on one port would share robots at random
)

# Trailing metadata of a call that was refused. That the server itself did: gRPC ends calls with the same statuses where
# nobody answered. And whole milliseconds after which the next one is welcome.
_REFUSED = ("splitvla-refused", "1")
RETRY_AFTER_KEY = "retry-after-ms"
_WHOLE = re.compile(r"[0-9]{1,9}")
_RETRY_AFTER_S = 2.0  # a robot stands still meanwhile: no server may ask for more

_REPLY_BYTES = 128 * 1024  # above the largest legal chunk, 256 steps of 64 float32


def client_options() -> list[Option]:
    return [*_COMMON, *_CLIENT, ("grpc.max_receive_message_length", _REPLY_BYTES), ("grpc.max_send_message_length", -1)]


def write_refusal(retry_after_s: float) -> tuple[tuple[str, str], ...]:
    """Trailing metadata of a call that the server refuses."""
    return (_REFUSED, *write_retry_after(retry_after_s))


def is_refusal(metadata: Iterable[tuple[str, str | bytes]] | None) -> bool:
    """Whether the server itself ended the call."""
    return any((key, value) == _REFUSED for key, value in metadata or ())


def write_retry_after(seconds: float) -> tuple[tuple[str, str], ...]:
    """As trailing metadata; empty for 0."""
    return ((RETRY_AFTER_KEY, str(math.ceil(1000 * min(seconds, _RETRY_AFTER_S)))),) if seconds > 0 else ()


def read_retry_after(metadata: Iterable[tuple[str, str | bytes]] | None) -> float:
    """Seconds, at most two; 0 where there is no such entry, or one that is no whole number."""
    for key, value in metadata or ():
        if key == RETRY_AFTER_KEY and isinstance(value, str) and _WHOLE.fullmatch(value):
            return min(int(value) / 1000, _RETRY_AFTER_S)
    return 0.0


def server_options(max_request_bytes: int) -> list[Option]:
    return [
        *_COMMON,
        *_SERVER,
        ("grpc.max_receive_message_length", max_request_bytes),
        ("grpc.max_send_message_length", _REPLY_BYTES),
    ]
