"""One action for one image file, and how it is shown: to a person as text, to a program as JSON."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

from splitvla_edge.encoding.providers import Selection
from splitvla_edge.policy import EdgePolicy
from splitvla_edge.policy_options import PolicyOptions
from splitvla_shared.encoders import FP32
from splitvla_shared.errors import ConfigError
from splitvla_shared.limits import check_instruction
from splitvla_shared.nouns import ActionChunk, Observation
from splitvla_shared.preprocess.images import load_image


@dataclass(frozen=True, slots=True)
class ActRequest:
    """What the command line asks for. options: what the policy is opened with."""

    bundle: Path
    server: str
    image: Path
    instruction: str
    options: PolicyOptions = field(default_factory=PolicyOptions)
    deadline_s: float = 10.0
    connect_timeout_s: float = 5.0


@dataclass(frozen=True, slots=True)
class ActResult:
    """rung: name of what the frame was sent with."""

    chunk: ActionChunk
    rung: str
    unnorm_key: str
    encoder: str = FP32
    provider: Selection | None = None


def act_once(request: ActRequest) -> ActResult:
    """Read the image, connect, ask once. What costs nothing to check is checked before the model is loaded.

    Raises any error of the tree in splitvla_shared.errors.
    """
    for name in ("deadline_s", "connect_timeout_s"):
        if not 0 < getattr(request, name) < 3600:
            raise ConfigError(f"{name} is {getattr(request, name)}; expected more than 0 and less than 3600 seconds")
    instruction = check_instruction(request.instruction)
    image = load_image(request.image)
    captured_at = time.monotonic()
    with EdgePolicy.connect(
        request.bundle, request.server, connect_timeout_s=request.connect_timeout_s, **request.options
    ) as policy:
        chunk = policy.act(Observation(0, (image,), instruction, captured_at), deadline_s=request.deadline_s)
        encoder = request.options.get("encoder", FP32)
        return ActResult(chunk, policy.sent_as, policy.model.statistics.key, encoder, policy.selection)


def render_json(result: ActResult) -> str:
    """One JSON object on one line; floats in full precision, so that they read back as the same float64.

    "action" is a list of numbers, what the robot gets: un-normalised and through the action transform. "clipped" are
    the dimensions of the model's action whose token lay outside the action bins. For a model whose chunk is longer than
    one action, "action" is a list of such lists and "clipped" indexes "tokens".
    """
    chunk = result.chunk
    actions = chunk.actions.tolist()
    return json.dumps(
        {
            "tokens": list(chunk.tokens),
            "action": actions[0] if len(actions) == 1 else actions,
            "clipped": list(chunk.clipped),
            "timings_ms": dataclasses.asdict(chunk.stages),
            "wire_bytes": chunk.wire_bytes,
            "scheme": result.rung,
            "unnorm_key": result.unnorm_key,
        },
        allow_nan=False,
    )


def render_text(result: ActResult) -> str:
    """A line a dimension (token, action with 6 decimals, clipped or not), then where the time went."""
    chunk = result.chunk
    lines = [f"action for {result.unnorm_key}", f"  {'dim':>3}  {'token':>6}  {'action':>12}"]
    dims = chunk.actions.shape[1]
    for index, value in enumerate(chunk.actions.ravel()):
        token = str(chunk.tokens[index]) if chunk.tokens else "-"
        mark = "  clipped: no action token" if index in chunk.clipped else ""
        lines.append(f"  {index % dims:>3}  {token:>6}  {value:>12.6f}{mark}")
    lines.append("time")
    for name, value in dataclasses.asdict(chunk.stages).items():
        lines.append(f"  {name.removesuffix('_ms'):<16}{value:>10.1f} ms")
    if result.provider:
        lines.append(f"encoder {result.encoder} on {result.provider.describe()}")
    lines.append(f"sent {chunk.wire_bytes:,} B as {result.rung}")
    return "\n".join(lines)
