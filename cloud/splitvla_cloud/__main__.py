"""splitvla-cloud: the GPU host's commands. The only place on this side that reads configuration and constructs."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from splitvla_cloud.worker import GPU_THREAD
from splitvla_shared import __version__
from splitvla_shared.command_line import run_command
from splitvla_shared.config import describe_config, load_config
from splitvla_shared.encoders import parse_encoders
from splitvla_shared.image_pipelines import parse_image_pipeline
from splitvla_shared.operator_lines import Printer

_LOG_LINES = 512  # more than the log has in one of its windows
PRECISIONS = ("fp32", "bf16", "int8", "nf4", "fp8", "int4")
_BASE_STATISTICS = "scale the adapter's actions by the checkpoint's statistics, not by those of its training run"
_FRAMES = "camera frames as the camera gives them: a folder of images; they go through the bundle's image pipeline"
_CAMERA_TRANSFORM = "how the robot turns its frames: none or rotate180 (none)"
# Options of `serve` that are settings of the same name.
_SERVE_OPTIONS = (
    *("bundle", "precision", "engine", "decode", "max_batch", "listen", "device", "threads"),
    *("tls_cert", "tls_key", "tls_client_ca"),
    *("bind_wait_s", "drain_s", "insecure_lab"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0, or the error's own after one line on standard error."""
    return run_command(build_parser(), argv)


def run() -> None:
    """The process: `main`, and its end at once where the GPU's thread still loads or hangs.

    The interpreter would wait until the threads beside it have read the whole checkpoint, and then stop that one in the
    middle of torch, which aborts the process.
    """
    code = main()
    if any(thread.name == GPU_THREAD for thread in threading.enumerate()):
        os._exit(code)
    sys.exit(code)


def build_parser() -> argparse.ArgumentParser:
    """Every command and option of this side."""
    parser = argparse.ArgumentParser(prog="splitvla-cloud", description="SplitVLA on the GPU host")
    parser.add_argument("--version", action="version", version=f"splitvla {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    split = commands.add_parser("split", help="turn an OpenVLA checkpoint into an edge and a cloud bundle")
    split.add_argument("checkpoint", type=Path, help="folder of a Hugging Face OpenVLA checkpoint (safetensors)")
    split.add_argument("--out", type=Path, required=True, help="folder to make; holds edge/ and cloud/ afterwards")
    split.add_argument(
        "--adapter",
        type=Path,
        metavar="DIR",
        help="PEFT LoRA adapter to merge into the weights; its run's dataset_statistics.json lies in it or above it",
    )
    split.add_argument("--base-statistics", action="store_true", help=_BASE_STATISTICS)
    split.add_argument(
        "--precision",
        choices=("int8", "nf4"),
        help="store the backbone quantised, so that `serve` starts in seconds; minutes of CPU time for a 7B model",
    )
    split.add_argument("--image-pipeline", default="hf", metavar="NAME", help="the robot's: hf, eval or eval-crop")
    split.add_argument("--encoder", default="fp32", metavar="NAMES", help="any of fp32,fp16,int8; fp32 always (fp32)")
    split.add_argument("--calibration", type=Path, metavar="DIR", help="camera frames to fit reduced encoders to")
    split.add_argument("--allow-poor-encoder", action="store_true", help="write reduced encoders below the floor too")
    split.set_defaults(command=_split)

    _add_verify(commands.add_parser("verify", help="hold the bundles against the checkpoint, stage by stage"))

    adopt = commands.add_parser("adopt-codec", help="put what `splitvla-edge calibrate` learned into a cloud bundle")
    adopt.add_argument("parcel", type=Path, help="the file that `calibrate` wrote on the robot's side")
    adopt.add_argument("--bundle", type=Path, required=True, help="the cloud half that `split` made")
    adopt.set_defaults(command=_adopt_codec)

    reaction = commands.add_parser(
        "measure-sensitivity", help="what the model's answers make of an error, for `splitvla-edge calibrate` to heed"
    )
    reaction.add_argument("--bundles", type=Path, required=True, help="the folder with both halves")
    reaction.add_argument("--frames", type=Path, required=True, metavar="DIR", help=_FRAMES)
    reaction.add_argument("--camera-transform", default="none", metavar="NAME", help=_CAMERA_TRANSFORM)
    reaction.add_argument("--instruction", action="append", required=True, metavar="TEXT", help="may be repeated")
    reaction.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the backbone (fp32)")
    reaction.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (auto)")
    reaction.set_defaults(command=_measure_sensitivity)

    measure = commands.add_parser("measure-codec", help="how many action tokens each rung of a calibrated model keeps")
    measure.add_argument("--bundles", type=Path, required=True, help="the folder with both calibrated halves")
    measure.add_argument("--frames", type=Path, required=True, metavar="DIR", help=_FRAMES)
    measure.add_argument("--camera-transform", default="none", metavar="NAME", help=_CAMERA_TRANSFORM)
    measure.add_argument("--instruction", action="append", metavar="TEXT", help="may be repeated (two common ones)")
    measure.add_argument("--precision", choices=PRECISIONS, help="of the backbone (fp32, or as it is stored)")
    measure.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (auto)")
    measure.set_defaults(command=_measure_codec)

    serve = commands.add_parser("serve", help="serve the backbone of a cloud bundle over gRPC")
    serve.add_argument("--bundle", help="the cloud half that `split` made")
    serve.add_argument(
        "--precision", choices=PRECISIONS, help="of the backbone's weights (as split stored it, or bf16)"
    )
    serve.add_argument("--engine", choices=("torch", "vllm"), help="what computes: ours, or vLLM (torch)")
    serve.add_argument(
        "--decode",
        choices=("greedy", "action-only"),
        help="pick from the whole vocabulary as the reference does, or from the action tokens alone (greedy)",
    )
    serve.add_argument("--max-batch", type=int, metavar="N", help="robots served at once (8)")
    serve.add_argument("--listen", metavar="HOST:PORT", help="address to serve on (127.0.0.1:50051); port 0 picks one")
    serve.add_argument("--device", help="auto, cpu, cuda or cuda:N (auto)")
    serve.add_argument("--threads", type=int, metavar="N", help="of the CPU's arithmetic (torch's own choice)")
    serve.add_argument(
        "--tls-cert", metavar="PEM", help="the server's certificate; needs --tls-key and --tls-client-ca"
    )
    serve.add_argument("--tls-key", metavar="PEM", help="the server's private key")
    serve.add_argument("--tls-client-ca", metavar="PEM", help="the authority whose clients may connect")
    serve.add_argument("--bind-wait-s", type=float, metavar="S", help="load, then wait this long for a port in use (0)")
    serve.add_argument("--drain-s", type=float, metavar="S", help="time that robots have to leave after SIGTERM (2)")
    serve.add_argument("--insecure-lab", action="store_true", default=None, help="serve a network without TLS")
    serve.add_argument("--config", type=Path, metavar="TOML", help="settings file; options given here win over it")
    serve.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one setting; may be repeated")
    serve.set_defaults(command=_serve)
    return parser


def _add_verify(verify: argparse.ArgumentParser) -> None:
    verify.description = (
        "Compare the bundles with the unsplit checkpoint: files, pixels, towers, embeddings, prompt, tokens, actions, "
        "and black against white. Prints one table and ends with 0, or with 3 and the first stage that differs. One "
        "model is in memory at a time: for openvla-7b 30 GB with fp32, 16 GB with the other precisions."
    )
    verify.add_argument("checkpoint", type=Path, help="the folder that was split")
    verify.add_argument("--bundles", type=Path, required=True, help="the folder with edge/ and cloud/")
    verify.add_argument("--adapter", type=Path, metavar="DIR", help="the PEFT LoRA adapter that was merged by `split`")
    verify.add_argument("--base-statistics", action="store_true", help=_BASE_STATISTICS)
    verify.add_argument("--precision", choices=PRECISIONS, help="of the bundle's backbone (fp32, or as it is stored)")
    verify.add_argument(
        "--precisions",
        metavar="LIST",
        help="report token agreement too, e.g. fp32,bf16,int8,nf4; takes the memory of fp32",
    )
    verify.add_argument(
        "--frames", type=Path, metavar="DIR", help="up to 32 images to compare besides the built-in ones"
    )
    verify.add_argument("--unnorm-key", metavar="KEY", help="the dataset whose actions are compared (all)")
    verify.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (auto)")
    verify.set_defaults(command=_verify)


def _split(arguments: argparse.Namespace) -> int:
    from splitvla_cloud.progress import TerminalProgress
    from splitvla_cloud.split import STATISTICS, split
    from splitvla_cloud.split.encoder_parity import DEFAULT_FLOOR, NO_FLOOR
    from splitvla_cloud.split.encoder_variants import EncoderOptions

    image_pipeline = parse_image_pipeline(arguments.image_pipeline)
    floor = NO_FLOOR if arguments.allow_poor_encoder else DEFAULT_FLOOR
    encoders = EncoderOptions(parse_encoders(arguments.encoder), arguments.calibration, floor)
    with TerminalProgress(sys.stderr) as progress:
        spec = split(
            arguments.checkpoint,
            arguments.out,
            adapter=arguments.adapter,
            base_statistics=arguments.base_statistics,
            precision=arguments.precision,
            image_pipeline=image_pipeline,
            encoders=encoders,
            progress=progress,
        )
    print(f"{spec.name}: {spec.patches} patches of {spec.embed_dim}, fingerprint {spec.fingerprint[:16]}")
    print(f"edge bundle  {arguments.out / 'edge'}\ncloud bundle {arguments.out / 'cloud'}")
    statistics = json.loads((arguments.out / "edge" / STATISTICS).read_text(encoding="utf-8"))
    print(f"unnorm keys  {', '.join(sorted(statistics))}")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from splitvla_cloud.precision import parse_precisions
    from splitvla_cloud.progress import TerminalProgress
    from splitvla_cloud.verify import VerifyRequest, render_rows, verify

    request = VerifyRequest(
        arguments.checkpoint,
        arguments.bundles,
        adapter=arguments.adapter,
        base_statistics=arguments.base_statistics,
        precision=arguments.precision,
        precisions=parse_precisions(arguments.precisions or ""),
        frames=arguments.frames,
        unnorm_key=arguments.unnorm_key,
        device=arguments.device,
    )
    with TerminalProgress(sys.stderr) as progress:
        found = verify(request, progress)
    print(render_rows(found.rows))
    if found.agreement:
        print(f"\n{found.agreement}")
    found.check()
    return 0


def _adopt_codec(arguments: argparse.Namespace) -> int:
    from splitvla_shared.codec.installed import Parcel, install

    spec = install(arguments.bundle, Parcel.read(arguments.parcel))
    print(f"{arguments.bundle} is now model {spec.fingerprint[:16]}; restart the server that serves it")
    return 0


def _measure_sensitivity(arguments: argparse.Namespace) -> int:
    from splitvla_cloud.answer_sensitivity import SensitivityRequest, measure_sensitivity
    from splitvla_cloud.progress import TerminalProgress

    request = SensitivityRequest(
        arguments.bundles,
        arguments.frames,
        tuple(arguments.instruction),
        arguments.precision,
        arguments.device,
        arguments.camera_transform,
    )
    with TerminalProgress(sys.stderr) as progress:
        measure_sensitivity(request, progress)
    print(f"{request.bundles / 'edge'} now says what the answers react to; run `splitvla-edge calibrate` on it")
    return 0


def _measure_codec(arguments: argparse.Namespace) -> int:
    from splitvla_cloud.codec_agreement import INSTRUCTIONS, AgreementRequest, measure_agreement
    from splitvla_cloud.progress import TerminalProgress

    request = AgreementRequest(
        arguments.bundles,
        arguments.frames,
        tuple(arguments.instruction or INSTRUCTIONS),
        arguments.precision,
        arguments.device,
        arguments.camera_transform,
    )
    with TerminalProgress(sys.stderr) as progress:
        costs = measure_agreement(request, progress)
    for cost in costs:
        print(f"{cost.name:<12}{cost.key_bytes:>12,} B{'' if cost.agreement is None else f'{cost.agreement:>9.2%}'}")
    print(f"{request.bundles / 'edge'} now says so; copy it to the robot again")
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # its C core has a line for every handshake that fails
    from splitvla_cloud.log import SeldomHandler
    from splitvla_cloud.server import ServerSettings, serve

    settings = load_config(
        ServerSettings, arguments.config, arguments.set, {name: getattr(arguments, name) for name in _SERVE_OPTIONS}
    )
    with contextlib.ExitStack() as stack:
        # A terminal that hangs or is gone costs no robot its answer: lines are printed on threads of their own.
        told, ready = Printer(sys.stderr, prefix="", lines=_LOG_LINES), Printer(sys.stdout, prefix="")
        stack.callback(told.close)
        stack.callback(ready.close)
        form = "%(asctime)s %(levelname)s %(message)s"
        log = SeldomHandler(told.say)
        stack.callback(log.close)
        logging.basicConfig(level=logging.INFO, format=form, handlers=[log])
        for line in describe_config(settings):
            ready.say(f"  {line}")
        return serve(settings, say=ready.say)


if __name__ == "__main__":
    run()
