"""What a client asks for, whichever protocol it speaks."""

from __future__ import annotations

from dataclasses import dataclass

from splitvla_shared.errors import ObservationError
from splitvla_shared.nouns import Image

# A frame of 3840 x 2160 in base64 (33 MB) fits; whoever sends one should scale it down first.
MAX_MESSAGE_BYTES = 48 << 20


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
            f"unnorm_key {request.unnorm_key!r} is not the one that is served, {served!r}; "
            f"start serve-policy with --unnorm-key, one process a key"
        )
