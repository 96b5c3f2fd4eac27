"""The local channel: messages come back as they were sent, and other bytes become an error."""

from __future__ import annotations

import math
import socket
import struct
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitvla_edge.daemon.channel import (
    _KINDS,
    Channel,
    Contract,
    Exhausted,
    FrameSeen,
    Message,
    pack,
    unpack,
)
from splitvla_edge.daemon.datagrams import ChannelClosed, ChannelError
from splitvla_edge.fallback import Asked, Chunk, Hint, LocalChunk, Miss, Outcome, Ready
from splitvla_shared.nouns import ServerHints, StageTimes

EXAMPLES: list[Message] = [
    Hint(3, 17, 0.3, 0.1, 0.5, True, 2, 0.125, True),
    Ready(7, 1, "0123456789abcdef", (2_097_152, 1_049_088)),
    FrameSeen(12.5, 9),
    Asked(18, 3, 12.5, 12.8, 2),
    Chunk(
        18,
        3,
        12.5,
        12.7,
        ((0.1, -0.2), (math.inf, 1e-300)),
        1,
        StageTimes(1.0, 2.0, total_ms=9.0),
        282_624,
        2,
        ServerHints(3, 0.75, True),
    ),
    Miss(18, Outcome.MISSED, "frame 18: no answer in 300 ms"),
    Contract("embed_dim: 4096 here, 896 there ü"),
    Exhausted(),
    LocalChunk(5, 12.5, ((0.1, -0.2),), 0.9, 20),
]


def test_there_is_an_example_of_every_message() -> None:
    assert {type(example) for example in EXAMPLES} == set(_KINDS) == set(get_args(Message))


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_a_message_comes_back_as_it_was_sent(message: Message) -> None:
    assert unpack(pack(message)) == message


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_a_message_that_is_cut_or_too_long_is_refused(message: Message) -> None:
    data = pack(message)
    for damaged in [data[:length] for length in range(len(data))] + [data + b"\0"]:
        with pytest.raises(ChannelError):
            unpack(damaged)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_a_channel_error(data: bytes) -> None:
    try:
        message = unpack(data)
    except ChannelError:
        return
    assert unpack(pack(message)) == message or "nan" in repr(message)


@pytest.mark.parametrize(
    "message",
    [
        FrameSeen(math.nan, 1),
        Asked(1, 1, 0.0, math.inf),
        Hint(1, 0, math.nan, 0.1, 0.5, True),
        Chunk(1, 1, 0.0, 0.0, ()),
        Chunk(1, 1, 0.0, 0.0, ((0.0,), (0.0, 1.0))),
        Chunk(-1, 1, 0.0, 0.0, ((0.0,),)),
        Chunk(1, 1, 0.0, 0.0, ((0.0,) * 65,)),
        Ready(7, 1, "f", (1,) * 33),
        LocalChunk(1, math.nan, ((0.0,),), 1.0, 1),
    ],
    ids=repr,
)
def test_what_is_out_of_bounds_is_not_sent(message: Message) -> None:
    with pytest.raises(ChannelError):
        pack(message)


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<BHH16sB", 2, 0, 1, b"0" * 16, 0),
        struct.pack("<BdQ", 3, math.nan, 1),
        struct.pack("<BQBH", 6, 1, 0, 0),
        struct.pack("<BQBH", 6, 1, 99, 0),
        struct.pack("<BH", 7, 2) + b"\xff\xff",
        struct.pack("<BIQdddBBdB", 1, 1, 1, 0.3, 0.5, 0.1, 1, 0, 0.0, 0),
    ],
)
def test_fields_that_make_no_sense_are_refused(data: bytes) -> None:
    with pytest.raises(ChannelError):
        unpack(data)


def test_a_long_text_is_cut_at_a_whole_character() -> None:
    message = unpack(pack(Contract("ü" * 1000)))
    assert isinstance(message, Contract)
    assert message.text == "ü" * 256


def test_a_slow_peer_costs_messages_and_never_time() -> None:
    ours, theirs = Channel.pair()
    with theirs:
        while ours.send(EXAMPLES[4]):
            assert ours.dropped == 0
        assert ours.dropped == 1
        peer = Channel(theirs)
        received = 0
        while messages := peer.receive():
            received += len(messages)
        assert received > 10
        assert ours.send(EXAMPLES[0]), "once it is read there is room again"
        assert peer.wait(1.0)
    ours.close()


def test_what_was_sent_before_the_end_is_received_before_it() -> None:
    ours, theirs = Channel.pair()
    peer = Channel(theirs)
    peer.send(EXAMPLES[2])
    peer.close()
    assert ours.receive() == [EXAMPLES[2]]
    with pytest.raises(ChannelClosed):
        ours.receive()
    with pytest.raises(ChannelClosed):
        ours.send(EXAMPLES[0])
    ours.close()
    with pytest.raises(ChannelClosed):
        ours.wait(0.0)


def test_a_message_longer_than_any_legal_one_is_refused() -> None:
    ours, theirs = Channel.pair()
    with theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        theirs.send(b"\x05" * 150_000)
        with pytest.raises(ChannelError, match="longer"):
            ours.receive()
    ours.close()


def test_a_file_descriptor_that_is_not_the_daemon_s_socket_is_refused() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other, pytest.raises(ChannelError, match="socket"):
        Channel.from_fd(other.fileno())
    with pytest.raises(ChannelError, match="no socket"):
        Channel.from_fd(1 << 20)
