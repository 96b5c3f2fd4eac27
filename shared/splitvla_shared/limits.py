"""Bounds that both machines hold to; see docs/wire.md for why each has its value."""

from __future__ import annotations

from splitvla_shared.errors import ObservationError
from splitvla_shared.spec import ModelSpec

MAX_INSTRUCTION_CHARS = 512
MAX_ROBOT_NAME_CHARS = 64
MAX_STATE_DIMS = 64
_VARINT_BYTES = 5  # a 32-bit number in protobuf, at most
# Everything of a request that is neither payload nor draft: instruction in UTF-8, state, names, checksums, framing.
_MESSAGE_SLACK_BYTES = 16 * 1024


def check_instruction(instruction: str) -> str:
    """The instruction itself. Raises ObservationError when it is empty, too long or holds control characters."""
    if not isinstance(instruction, str):
        raise ObservationError(f"the instruction is {type(instruction).__name__}; expected text")
    if not instruction.strip():
        raise ObservationError("the instruction is empty; say what the robot should do")
    if len(instruction) > MAX_INSTRUCTION_CHARS:
        raise ObservationError(
            f"the instruction has {len(instruction)} characters, at most {MAX_INSTRUCTION_CHARS}; shorten it"
        )
    if any(ord(char) < 32 or ord(char) == 127 for char in instruction):
        raise ObservationError("the instruction holds control characters; write it on one line of plain text")
    if any(0xD800 <= ord(char) <= 0xDFFF for char in instruction):  # what Python makes of bytes that are not UTF-8
        raise ObservationError("the instruction is not valid UTF-8; check the terminal's encoding")
    return instruction


def max_message_bytes(spec: ModelSpec) -> int:
    """The largest request that is legal for this model: every camera as float32, drafts, plus the small fields."""
    payload = spec.max_cameras * spec.patches * spec.embed_dim * 4
    drafts = spec.max_action_dims * spec.chunk_length * _VARINT_BYTES
    return payload + drafts + _MESSAGE_SLACK_BYTES
