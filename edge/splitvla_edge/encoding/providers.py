"""Which hardware runs the encoder: what gave the CPU's answer in a real inference, never what a library lists.

ONNX Runtime lists a provider that its build contains, whether or not this machine has the hardware and the libraries;
a session that could not use it runs on the CPU without an error, and a miscompiled kernel answers quietly wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from splitvla_edge.encoding.onnx_errors import ORT_ERRORS, one_line
from splitvla_shared.encoders import FP16, FP32, INT8
from splitvla_shared.errors import ConfigError
from splitvla_shared.nouns import FloatArray, Image

AUTO, CPU = "auto", "cpu"
PROVIDERS: dict[str, str] = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    CPU: "CPUExecutionProvider",
}  # in the order that `auto` tries them
CHOICES = (AUTO, *PROVIDERS)

# Largest difference from the CPU's embedding, as a share of its length. TensorFloat-32, which GPUs multiply float32 in,
# gives 0.001; 8-bit inputs are rounded anew wherever that moves them.
TOLERANCE: dict[str, float] = {FP32: 0.01, FP16: 0.01, INT8: 0.05}

Options = Mapping[str, str]


class Session(Protocol):
    """What we use of onnxruntime.InferenceSession."""

    def run(self, outputs: list[str], inputs: dict[str, Any]) -> list[Any]: ...

    def get_providers(self) -> list[str]: ...

    def get_inputs(self) -> list[Any]: ...

    def get_outputs(self) -> list[Any]: ...


class OpenSession(Protocol):
    def __call__(self, provider: str, options: Options) -> Session:
        """A session whose first provider is meant to be ONNX Runtime's `provider`; any error of ONNX Runtime's."""


@dataclass(frozen=True, slots=True)
class Selection:
    """name: of PROVIDERS. difference: from the CPU's embedding, a share of its length. rejected: name and reason."""

    name: str
    session: Session
    difference: float = 0.0
    rejected: tuple[tuple[str, str], ...] = ()

    def describe(self) -> str:
        """ "cpu (tensorrt: not in this onnxruntime; cuda: no device)"."""
        reasons = "; ".join(f"{name}: {reason}" for name, reason in self.rejected)
        return f"{self.name} ({reasons})" if reasons else self.name


def check_choice(choice: str) -> None:
    """Raises ConfigError on a name that is neither auto nor a provider."""
    if choice not in CHOICES:
        raise ConfigError(f"provider {choice!r} is unknown; one of {', '.join(CHOICES)}")


def select(
    choice: str,
    cpu: Session,
    available: Sequence[str],
    open_session: OpenSession,
    options: Mapping[str, Callable[[], Options]],
    frame: Image,
    tolerance: float,
) -> Selection:
    """The fastest provider that gives the CPU's embedding of `frame`, or the one that was asked for.

    cpu: an open session on the CPU, whose answer is the truth. available: of this build of ONNX Runtime; only what is
    there is tried. options: makers of a provider's options by our name for it; they may raise ConfigError.
    Raises ConfigError when the provider that was asked for does not work, with the reason.
    """
    check_choice(choice)
    rejected: list[tuple[str, str]] = []
    truth: FloatArray | None = None
    for name in PROVIDERS if choice == AUTO else (choice,):
        if name == CPU:
            return Selection(CPU, cpu, 0.0, tuple(rejected))
        try:
            _check_available(name, available)
            truth = infer(cpu, frame) if truth is None else truth
            session = open_session(PROVIDERS[name], options[name]() if name in options else {})
            difference = _check_answer(session, name, frame, truth, tolerance)
        except ORT_ERRORS as error:
            rejected.append((name, one_line(error)))
        except (ConfigError, _NotUsed) as error:
            rejected.append((name, str(error)))
        else:
            return Selection(name, session, difference, tuple(rejected))
    raise ConfigError(f"provider {choice} can't be used: {rejected[0][1]}; choose --provider cpu, or auto")


def infer(session: Session, image: Image, output: str = "patches") -> FloatArray:
    """One inference, unchecked: uint8 (S, S, 3) to float32 (patches, columns of that output)."""
    (batch,) = session.run([output], {"image": np.ascontiguousarray(image)[np.newaxis]})
    found: FloatArray = batch[0]
    return found


class _NotUsed(Exception):  # noqa: N818 - caught above, never seen outside
    """The reason why a provider is passed over."""


def _check_available(name: str, available: Sequence[str]) -> None:
    if PROVIDERS[name] not in available:
        raise _NotUsed("not in this build of onnxruntime")


def _check_answer(session: Session, name: str, frame: Image, truth: FloatArray, tolerance: float) -> float:
    found = session.get_providers()
    if found[:1] != [PROVIDERS[name]]:
        raise _NotUsed(f"onnxruntime fell back to {', '.join(found) or 'nothing'}")
    got = infer(session, frame)
    if got.shape != truth.shape:
        raise _NotUsed(f"its embedding has shape {got.shape}, the CPU's {truth.shape}")
    with np.errstate(all="ignore"):  # a number that is not finite fails the comparison below
        length = float(np.linalg.norm(truth.astype(np.float64)))
        difference = float(np.linalg.norm(got.astype(np.float64) - truth)) / max(length, 1e-30)
    if not difference <= tolerance:
        raise _NotUsed(f"its embedding differs from the CPU's by {difference:.2%}, {tolerance:.0%} is allowed")
    return difference
