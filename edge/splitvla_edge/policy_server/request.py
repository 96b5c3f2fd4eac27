"""What a client asks for, whichever protocol it speaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from splitvla_shared.errors import ObservationError
from splitvla_shared.nouns import Image

# A frame of 3840 x 2160 in base64 (33 MB) fits; whoever sends one should scale it down first.
MAX_MESSAGE_BYTES = 48 << 20
# What an error repeats of a client's value: as much as a dtype's name or a shape has.
_SHOWN_CHARS, _SHOWN_ITEMS = 64, 8


@dataclass(frozen=True, slots=True)
class ActionRequest:
    """images: uint8 RGB (height, width, 3), one a camera. unnorm_key: the statistics that the client counts on."""

    images: tuple[Image, ...]
    instruction: str
    unnorm_key: str | None = None


def check_key(request: ActionRequest, served: str) -> None:
    """Raises ObservationError when the client wants actions in the units of another dataset."""
    if request.unnorm_key not in (None, served):
        raise ObservationError(
            f"unnorm_key {shown(request.unnorm_key)} is not the one that is served, {served!r}; "
            f"start serve-policy with --unnorm-key, one process a key"
        )


def shown(value: Any) -> str:
    """A client's value in an error: a short one itself, of a long one its kind and length."""
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, str | bytes) and len(value) <= _SHOWN_CHARS:
        return repr(value)
    if isinstance(value, list) and len(value) <= _SHOWN_ITEMS and all(isinstance(n, bool | int | float) for n in value):
        return repr(value)
    length = f" of {len(value)}" if isinstance(value, str | bytes | list | dict) else ""
    return f"a {type(value).__name__}{length}"
