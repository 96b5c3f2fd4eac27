"""splitvla-edge: the robot's commands. The only place on this side that reads configuration and constructs."""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from splitvla_edge.policy_options import add_policy_options, read_policy_options
from splitvla_edge.policy_server.options import add_options as add_policy_server_options
from splitvla_shared import __version__
from splitvla_shared.command_line import run_command
from splitvla_shared.config import describe_config, load_config
from splitvla_shared.errors import ConfigError

if TYPE_CHECKING:
    from splitvla_edge.daemon.run import RunSettings

# Options of `run` and the setting that each of them is.
_RUN_OPTIONS = {
    "bundle": "bundle",
    "server": "server",
    "robot": "robot",
    "instruction": "instruction",
    "unnorm_key": "unnorm_key",
    "scheme": "scheme",
    "control_hz": "control_hz",
    "duration_s": "duration_s",
    "run_dir": "run_dir",
    "accept_clipped": "accept_clipped",
    "threads": "threads",
    "encoder": "encoder",
    "provider": "provider",
    "hedge_ms": "hedge_ms",
    "mode": "mode",
    "local_policy": "local.policy",
    "record_distill": "recording.folder",
    "image_pipeline": "image_pipeline",
    "camera_transform": "camera_transform",
    "action_transform": "action_transform",
    "frames": "replay.frames",
    "fps": "replay.fps",
    "loop": "replay.loop",
    "commands": "replay.commands",
    "device": "camera.device",
    "episodes": "simulator.episodes",
    "seed": "simulator.seed",
    "tls_ca": "tls_ca",
    "tls_cert": "tls_cert",
    "tls_key": "tls_key",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0, or the error's own after one line on standard error."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # its C core narrates lost connections on standard error
    return run_command(build_parser(), argv)


def build_parser() -> argparse.ArgumentParser:
    """Every command and option of this side."""
    parser = argparse.ArgumentParser(prog="splitvla-edge", description="SplitVLA on the robot")
    parser.add_argument("--version", action="version", version=f"splitvla {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_act(commands.add_parser("act", help="ask for one action and print it"))
    _add_run(commands.add_parser("run", help="run the daemon: camera and robot, one safe command every tick"))
    serve = commands.add_parser(
        "serve-policy", help="answer the robot's own program in its protocol: OpenVLA's, openpi's"
    )
    add_policy_server_options(serve)
    serve.set_defaults(command=_serve_policy)
    _add_doctor(commands.add_parser("doctor", help="check camera, encoder, link, server and model before a run"))
    _add_calibrate(commands.add_parser("calibrate", help="learn from your frames to send them in far fewer bytes"))
    watch = commands.add_parser("watch", help="show a run live, from its folder")
    watch.add_argument("run_dir", type=Path, help="the folder that `run` writes: runs/<time>, or its --run-dir")
    watch.set_defaults(command=_watch)
    log = commands.add_parser("replay-log", help="run the machine again on a black box, and compare its commands")
    log.add_argument("file", type=Path, help="black-box-N.bin in the folder of a run that ended in SAFE_STOP")
    log.set_defaults(command=_replay_log)
    for name, command in (("perceive", _perceive), ("simulate", _simulate)):
        process = commands.add_parser(name)  # the daemon's own other processes; not listed in the help
        process.add_argument("--fd", type=int, required=True)
        process.set_defaults(command=command)
    return parser


def _add_act(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", type=Path, required=True, help="the edge half that `split` made")
    parser.add_argument("--server", required=True, metavar="HOST:PORT")
    parser.add_argument("--image", type=Path, required=True, help="a camera frame: PNG, JPEG, ...")
    parser.add_argument("--instruction", required=True, help="the task, in words")
    add_policy_options(parser)
    parser.add_argument("--deadline-s", type=float, default=10.0, metavar="S", help="for the answer (10)")
    parser.add_argument("--connect-timeout-s", type=float, default=5.0, metavar="S", help="for the connection (5)")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output, nothing else")
    parser.set_defaults(command=_act)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", help="the edge half that `split` made")
    parser.add_argument("--server", metavar="HOST:PORT", help="or several, with commas between: the first is preferred")
    parser.add_argument("--hedge-ms", type=float, metavar="MS", help="ask a second server after this long (never)")
    parser.add_argument(
        "--robot", metavar="NAME", help="replay, camera, metaworld:TASK, or MODULE:NAME for your own: docs/robots.md"
    )
    parser.add_argument(
        "--mode", metavar="NAME", help="normal; shadow: decide and log only; forced-local: no server (normal)"
    )
    parser.add_argument("--local-policy", metavar="FILE", help="an ONNX policy for when the server is away (none)")
    parser.add_argument("--record-distill", metavar="DIR", help="record answers to distil a local policy from (none)")
    parser.add_argument("--instruction", help="the task, in words; one for the whole run")
    add_policy_options(parser)
    parser.add_argument("--control-hz", type=float, metavar="HZ", help="ticks a second (5)")
    parser.add_argument("--duration-s", type=float, metavar="S", help="end after this long")
    parser.add_argument("--run-dir", metavar="DIR", help="where the step log goes (runs/<time>)")
    parser.add_argument("--accept-clipped", action="store_true", default=None, help="act on clipped action tokens too")
    parser.add_argument("--frames", metavar="PATH", help="replay: a folder of images or a video")
    parser.add_argument("--fps", type=float, help="replay: frames a second (a video's own, or 5)")
    parser.add_argument("--loop", action="store_true", default=None, help="replay: start over at the end")
    parser.add_argument("--commands", metavar="FILE", help="replay: where the commands are recorded")
    parser.add_argument("--device", help="camera: /dev/video0, an index, or a stream address")
    parser.add_argument("--episodes", type=int, metavar="N", help="simulated robot: end after so many (1)")
    parser.add_argument("--seed", type=int, metavar="N", help="simulated robot: of the first episode (0)")
    parser.add_argument("--view", action="store_true", help="show the run live in this terminal")
    _add_config(parser)
    parser.set_defaults(command=_run)


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.description = "Examine what `run` would use with these settings. Nothing is commanded, nothing moves."
    parser.add_argument("--bundle", help="the edge half that `split` made")
    parser.add_argument("--server", metavar="HOST:PORT", help="or several, with commas between: the first is examined")
    parser.add_argument("--robot", metavar="NAME", help="as `run` is told: its camera, and its own state (none)")
    parser.add_argument("--device", help="of the camera: /dev/video0, an index, or a stream address (no camera)")
    add_policy_options(parser)
    parser.add_argument("--control-hz", type=float, metavar="HZ", help="ticks a second (5)")
    parser.add_argument("--budget-s", type=float, metavar="S", help="what an action may take (as long as `run` allows)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    _add_config(parser)
    parser.set_defaults(command=_doctor)


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="TOML", help="settings file; options given here win over it")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one setting; may be repeated")


def _add_calibrate(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Learn a transform code from camera frames, without gradients, and write it into the bundle under a new "
        "fingerprint; docs/codec.md says how to read the table. The edge and the cloud half must both get it: name "
        "--cloud-bundle where it is on this machine, otherwise carry the file over that is written."
    )
    parser.add_argument("--bundle", type=Path, required=True, help="the edge half that `split` made")
    parser.add_argument(
        "--frames",
        type=Path,
        nargs="+",
        required=True,
        metavar="PATH",
        help="folders of images, videos, or run folders",
    )
    parser.add_argument("--cloud-bundle", type=Path, metavar="DIR", help="the cloud half, where it is on this machine")
    parser.add_argument("--parcel", type=Path, metavar="FILE", help="to carry to the cloud half (beside the bundle)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--weighted", action="store_true", default=None, help="by what the backbone reacts to (where `split` wrote it)"
    )
    which.add_argument("--plain", dest="weighted", action="store_false", default=None, help="by energy alone")
    parser.add_argument("--columns", type=int, default=512, metavar="N", help="most coefficients of a patch (512)")
    parser.add_argument("--max-frames", type=int, default=240, metavar="N", help="most frames to embed (240)")
    parser.add_argument("--hz", type=float, default=5.0, help="frames a second that the robot will send (5)")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the table; needs matplotlib")
    parser.add_argument("--image-pipeline", metavar="NAME", help="hf, eval or eval-crop (the bundle's own)")
    parser.add_argument("--camera-transform", default="none", metavar="NAME", help="none or rotate180 (none)")
    parser.add_argument("--threads", type=int, metavar="N", help="of the encoder (all cores)")
    parser.add_argument("--provider", default="auto", metavar="NAME", help="auto, tensorrt, cuda or cpu (auto)")
    parser.set_defaults(command=_calibrate)


def _calibrate(arguments: argparse.Namespace) -> int:
    from splitvla_edge.calibrate.command import CalibrateRequest, calibrate
    from splitvla_edge.calibrate.report import StageBars, print_costs

    request = CalibrateRequest(
        bundle=arguments.bundle,
        frames=tuple(arguments.frames),
        cloud_bundle=arguments.cloud_bundle,
        parcel=arguments.parcel,
        weighted=arguments.weighted,
        columns=arguments.columns,
        most_frames=arguments.max_frames,
        hz=arguments.hz,
        plot=arguments.plot,
        image_pipeline=arguments.image_pipeline,
        camera_transform=arguments.camera_transform,
        threads=arguments.threads,
        provider=arguments.provider,
    )
    with StageBars(sys.stderr) as progress:
        found = calibrate(request, progress)
    print_costs(found.costs, sys.stdout)
    basis = "weighted by what the backbone reacts to" if found.weighted else "by energy alone"
    print(f"learned from {found.learned} frames, measured on {found.held_out} others; {basis}")
    print(f"{request.bundle} is now model {found.spec.fingerprint[:16]}; restart what uses it")
    if found.parcel is not None:
        print(f"the cloud bundle must get it too: carry over {found.parcel}, and run there")
        print(f"  splitvla-cloud adopt-codec --bundle CLOUD_BUNDLE {found.parcel.name}")
    return 0


def _act(arguments: argparse.Namespace) -> int:
    from splitvla_edge.act import ActRequest, act_once, render_json, render_text

    result = act_once(
        ActRequest(
            bundle=arguments.bundle,
            server=arguments.server,
            image=arguments.image,
            instruction=arguments.instruction,
            options=read_policy_options(arguments),
            deadline_s=arguments.deadline_s,
            connect_timeout_s=arguments.connect_timeout_s,
        )
    )
    print(render_json(result) if arguments.json else render_text(result))
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from splitvla_edge.doctor import doctor
    from splitvla_edge.doctor_checks import DoctorSettings

    run = _run_settings(arguments)
    if arguments.device is not None and run.robot == "replay":
        run = dataclasses.replace(run, robot="camera")
    return doctor(DoctorSettings(run, arguments.budget_s), sys.stdout, "json" if arguments.json else "table")


def _run_settings(arguments: argparse.Namespace) -> RunSettings:
    """Those of `run`, from whichever of its options this command has. Raises ConfigError."""
    from splitvla_edge.daemon.run import RunSettings

    given = {setting: getattr(arguments, option, None) for option, setting in _RUN_OPTIONS.items()}
    return load_config(RunSettings, arguments.config, arguments.set, given)


def _run(arguments: argparse.Namespace) -> int:
    from splitvla_edge.daemon.run import run, run_folder

    settings = _run_settings(arguments)
    for line in describe_config(settings):
        print(f"  {line}")
    if not arguments.view:
        return run(settings)
    with run_folder(settings.run_dir) as run_dir:
        # Drawing costs milliseconds: it happens in a process of its own, and never in the one that ticks.
        viewer = subprocess.Popen([sys.executable, "-m", "splitvla_edge", "watch", str(run_dir)])
        try:
            return run(dataclasses.replace(settings, run_dir=run_dir))
        finally:
            viewer.terminate()
            viewer.send_signal(signal.SIGCONT)  # Ctrl-Z, which ends the run, may have stopped it
            viewer.wait()


def _serve_policy(arguments: argparse.Namespace) -> int:
    from splitvla_edge.policy_server.command import serve_policy
    from splitvla_edge.policy_server.options import read_settings

    return serve_policy(read_settings(arguments))


def _watch(arguments: argparse.Namespace) -> int:
    from splitvla_edge.daemon.watch import wait_for_run, watch

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # either gives the operator's cursor back
    wait_for_run(arguments.run_dir)
    watch(arguments.run_dir)
    return 0


def _replay_log(arguments: argparse.Namespace) -> int:
    from splitvla_edge.daemon.black_box import print_replay

    return print_replay(arguments.file, sys.stdout)


def _perceive(arguments: argparse.Namespace) -> int:
    from splitvla_edge.daemon.perception_process import perceive

    return perceive(sys.stdin, arguments.fd)


def _simulate(arguments: argparse.Namespace) -> int:
    from splitvla_edge.robots import find_world
    from splitvla_edge.robots.simulator.process import read_settings, serve

    settings = read_settings(sys.stdin)
    found = find_world(settings.robot)
    if found is None:
        raise ConfigError(f"robot {settings.robot!r} is not a simulated one")
    kind, task = found
    space = kind.action_space(settings.dt_s, settings.simulator.max_speed_m_s)
    serve(kind.open(), task, space, settings, arguments.fd)
    return 0


if __name__ == "__main__":
    sys.exit(main())
