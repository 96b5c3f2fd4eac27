"""Bounds that both machines hold to; see docs/wire.md for why each has its value."""

from __future__ import annotations

from splitvla_shared.errors import ObservationError
from splitvla_shared.spec import ModelSpec

MAX_INSTRUCTION_CHARS = 512
MAX_ROBOT_NAME_CHARS = 64
MAX_STATE_DIMS = 64
# Everything of a request that is not payload: instruction in UTF-8, state, drafts, framing.
_MESSAGE_SLACK_BYTES = 16 * 1024


def check_instruction(instruction: str) -> str:
    """The instruction itself. Raises ObservationError when it is empty, too long or holds control characters."""
    if not instruction.strip():
        raise ObservationError("the instruction is empty; say what the robot should do")
    if len(instruction) > MAX_INSTRUCTION_CHARS:
        raise ObservationError(
            f"the instruction has {len(instruction)} characters, at most {MAX_INSTRUCTION_CHARS}; shorten it"
        )
    if any(ord(char) < 32 or ord(char) == 127 for char in instruction):
        raise ObservationError("the instruction holds control characters; write it on one line of plain text")
    return instruction


def max_message_bytes(spec: ModelSpec) -> int:
    """The largest request that is legal for this model: every camera as float32, plus the small fields."""
    return spec.max_cameras * spec.patches * spec.embed_dim * 4 + _MESSAGE_SLACK_BYTES
