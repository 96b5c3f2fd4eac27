"""One frame's exchange with the server, within its deadline: sent once, or once more where a key frame is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

from splitvla_edge.link.calls import InferCall, Reply
from splitvla_shared.errors import DeadlineMissed, KeyFrameNeeded


class Link(Protocol):
    def infer(self, request: InferCall, deadline_s: float) -> Reply:
        """A checked reply to this request, or a LinkError."""


@dataclasses.dataclass(frozen=True, slots=True)
class Deadline:
    """of_s seconds from started_at, on `clock`."""

    started_at: float
    of_s: float
    clock: Callable[[], float]

    def spent_s(self) -> float:
        return self.clock() - self.started_at


@dataclasses.dataclass(frozen=True, slots=True)
class Exchanged:
    """The reply with an action, and the bytes of all payloads that it took."""

    reply: Reply
    wire_bytes: int


def exchange(
    link: Link, call: InferCall, deadline: Deadline, on_key_frame_needed: Callable[[str], object]
) -> Exchanged:
    """Send `call`; where the server lacks what it is a difference from, send the frame again as it stands.

    on_key_frame_needed: is told the address of a server that lacks it. Raises the LinkError of the call, and
    KeyFrameNeeded when less time is left than the refusal took: the next frame is a key frame then.
    """
    sent_at = deadline.spent_s()
    reply = _send(link, call, deadline)
    if not reply.key_frame_needed:
        return Exchanged(reply, call.wire_bytes)
    on_key_frame_needed(reply.server)
    took_s, left_s = deadline.spent_s() - sent_at, deadline.of_s - deadline.spent_s()
    if call.key_frame is None or not left_s > took_s:
        raise KeyFrameNeeded(
            f"frame {call.sequence}: {reply.server} does not hold the frame that this one is a difference from; "
            f"with {max(left_s, 0) * 1e3:.0f} of {deadline.of_s * 1e3:.0f} ms left the next one is sent whole instead"
        )
    whole = call.key_frame()
    again = _send(link, whole, deadline)
    if again.key_frame_needed:
        raise KeyFrameNeeded(f"frame {whole.sequence}: {again.server} asks for a key frame in answer to one")
    return Exchanged(again, call.wire_bytes + whole.wire_bytes)


def _send(link: Link, call: InferCall, deadline: Deadline) -> Reply:
    spent_s = deadline.spent_s()
    remaining_s = deadline.of_s - spent_s
    if not remaining_s > 0:
        raise DeadlineMissed(
            f"frame {call.sequence}: not sent, encoding took {spent_s * 1e3:.0f} ms "
            f"of a deadline of {deadline.of_s * 1e3:.0f} ms"
        )
    try:
        return link.infer(call, remaining_s)
    except DeadlineMissed as error:
        if error.by_server:
            raise
        raise DeadlineMissed(f"{call.miss(deadline.of_s)}, sent after {spent_s * 1e3:.0f} ms") from error
