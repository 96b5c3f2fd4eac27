"""The `perceive` subcommand: waits for its turn, opens policy and camera, and perceives until control is gone.

It is told two things on standard input: its settings, a line of JSON, and later that its turn has come, with the number
of the first frame. What it has done before that line costs the robot no time when another such process has died.
"""

from __future__ import annotations

import contextlib
import json
from typing import TextIO

from splitvla_edge.daemon.channel import Channel
from splitvla_edge.daemon.perception import STANDBY_LOADED, Perception, PerceptionSettings
from splitvla_edge.fallback import Mode, Ready
from splitvla_edge.link.security import Security
from splitvla_edge.local.recording import recording
from splitvla_edge.local.runner import open_runner
from splitvla_edge.policy import EdgePolicy
from splitvla_edge.robots import open_camera
from splitvla_shared.config import load_config
from splitvla_shared.errors import ConfigError
from splitvla_shared.operator_lines import say


def perceive(stream: TextIO, fd: int) -> int:
    """Settings and turn from `stream`, the daemon's socket as file descriptor `fd`.

    Returns 0 when the control process is gone. Raises BundleError, ConfigError, ObservationError or SpecMismatch,
    which no restart can mend.
    """
    with contextlib.ExitStack() as stack:
        channel = Channel.from_fd(fd)
        stack.callback(channel.close)
        settings = read_settings(stream)
        loaded = stack.enter_context(_open_policy(settings)) if settings.standby == STANDBY_LOADED else None
        first_frame = wait_for_turn(stream)
        if first_frame is None:
            return 0
        camera = open_camera(settings, first_frame, settings.camera_memory)
        stack.callback(camera.close)
        policy = loaded or stack.enter_context(_open_policy(settings))
        spec, dims = policy.model.spec, policy.model.statistics.dims
        ladder = tuple(rung.wire_bytes for rung in policy.rungs)  # of a frame: this process has one camera
        ready = Ready(dims, spec.chunk_length, spec.fingerprint[:16], ladder)
        forced = settings.mode == Mode.FORCED_LOCAL.value
        local = open_runner(settings.local, settings.instruction, policy, needed=forced)
        loop = Perception(policy, ready, camera, channel, settings.instruction, local=local, server_needed=not forced)
        with recording(settings.recording, policy):
            loop.run()
    return 0


def read_settings(stream: TextIO) -> PerceptionSettings:
    """The line that `PerceptionSettings.to_json` wrote. Raises ConfigError."""
    try:
        given = json.loads(stream.readline())
        return load_config(PerceptionSettings, given=given)
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"the settings on standard input can't be read ({error}); `run` writes them") from error


def wait_for_turn(stream: TextIO) -> int | None:
    """The number of the first frame, when this process is to work; None when the control process is gone."""
    line = stream.readline()
    if not line:
        return None
    try:
        return int(line)
    except ValueError as error:
        raise ConfigError(f"standard input gives no frame's number ({error}); `run` writes it") from error


def _open_policy(settings: PerceptionSettings) -> EdgePolicy:
    policy = EdgePolicy.open(
        settings.bundle,
        settings.server,
        unnorm_key=settings.unnorm_key,
        robot=settings.robot,
        scheme=settings.scheme,
        image_pipeline=settings.image_pipeline,
        camera_transform=settings.camera_transform,
        action_transform=settings.action_transform,
        security=Security.from_files(settings.tls_ca, settings.tls_cert, settings.tls_key),
        threads=settings.threads,
        encoder=settings.encoder,
        provider=settings.provider,
        hedge_ms=settings.hedge_ms,
    )
    if policy.selection is not None:
        say(f"encoder {settings.encoder} on {policy.selection.describe()}")
    return policy
