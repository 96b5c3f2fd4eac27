"""One precision from the model to its rows: who is timed, in interleaved rounds, and the roofline around them."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.backbone.contenders import DIMS, PROMPT_IDS, Contender, library, make_cases, ours
from benchmarks.backbone.figures import EAGER, OURS, STATIC, Condition, Measured
from benchmarks.backbone.models import PRESETS, WEIGHT_BYTES, random_llama
from benchmarks.backbone.roofline import Roofline, measure, pass_work
from benchmarks.backbone.rounds import Tell, sample
from benchmarks.checkpoint.sizes import Sizes
from splitvla_cloud.backbone import Backbone
from splitvla_cloud.engine.cuda import settle
from splitvla_cloud.precision import NUMERICS, Precision, check_device
from splitvla_shared.errors import ConfigError

_TEXT = 128  # room for a prompt as long as the graphs that `warm_up` captures
_CPU_WARM_UPS, _CUDA_WARM_UPS = 1, 3  # a compiled generate() is warm behind its third call
# Products in 8 bits run at rates of their own, which `roofline.measure` does not measure.
_NO_ROOFLINE = ("int8", "fp8", "int4")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured. n: rounds, and fewer where they would take longer than `seconds`. cases: different frames.
    robots: frames at once; one alone is always measured."""

    preset: str
    device: str
    precisions: tuple[Precision, ...]
    robots: tuple[int, ...]
    n: int
    cases: int
    seed: int
    seconds: float = float("inf")

    def check(self) -> None:
        """Raises ConfigError for what makes no sense."""
        if min(self.n, self.cases, *self.robots) < 1:
            raise ConfigError(f"-n {self.n}, --cases {self.cases} and --robots {self.robots} must be at least 1")
        if not self.seconds > 0:
            raise ConfigError(f"--seconds {self.seconds:g} must be more than 0")
        if unknown := [name for name in self.precisions if name not in WEIGHT_BYTES]:
            raise ConfigError(f"precisions {unknown} are not measured here; any of {', '.join(WEIGHT_BYTES)}")
        for precision in self.precisions:  # before the rates are measured, which takes minutes in bf16 on most CPUs
            check_device(precision, self.device)


@dataclass(frozen=True, slots=True)
class Session:
    """What one precision gave. remarks: sentences on how it went, such as who fell out and why."""

    measured: tuple[Measured, ...]
    roofline: Roofline
    remarks: tuple[str, ...]


def measure_precision(plan: Plan, precision: Precision, tell: Tell) -> Session:
    """All rows of one precision. Raises ConfigError when the model does not fit."""
    sizes, random = PRESETS[plan.preset], np.random.default_rng(plan.seed)
    if plan.device != "cpu":  # before what ours is held against: the rates, and the answers of generate()
        settle()
    before = measure(plan.device, NUMERICS[precision].dtype)
    tell(f"{precision}: model")
    model = random_llama(sizes, precision, plan.device, plan.seed)
    tell(f"{precision}: cases")
    cases = make_cases(model, sizes.action_vocab_size, sizes.patches, plan.cases, random)
    tokens = sizes.patches + _TEXT + DIMS
    backbone = Backbone(model, precision, plan.device, capacity=max(plan.robots), tokens=tokens)
    tell(f"{precision}: warming up")
    backbone.warm_up(sizes.patches, DIMS)
    contenders = _contenders(plan, precision, model, backbone, random)
    warm_ups = _CPU_WARM_UPS if plan.device == "cpu" else _CUDA_WARM_UPS
    rounds = sample(contenders, cases, plan.n, warm_ups, tell, plan.seconds)
    remarks = [f"{precision}: {text}" for text in (*rounds.remarks, *_on_gpu(plan.device, backbone))]
    del model, backbone, contenders
    _free(plan.device)
    roofline = before.best(measure(plan.device, NUMERICS[precision].dtype))
    measured = []
    for condition, (timings, walls) in rounds.samples.items():
        passes = float(np.mean([timing.passes for timing in timings]))
        least_s = None if precision in _NO_ROOFLINE else least(sizes, condition, passes, roofline)
        measured.append(Measured(condition, tuple(timings), tuple(walls), least_s))
    return Session(tuple(measured), roofline, tuple(remarks))


def _on_gpu(device: str, backbone: Backbone) -> list[str]:
    if device == "cpu":
        return []
    peak = torch.cuda.max_memory_allocated(device) / 2**30
    return [f"{backbone.graphs} passes captured as CUDA graphs, {peak:.1f} GiB of memory at the peak."]


def _free(device: str) -> None:
    """Let go of a precision's memory: what torch.compile made for generate() holds its model too."""
    if device != "cpu":
        torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)


def least(sizes: Sizes, condition: Condition, passes: float, roofline: Roofline) -> float:
    """Seconds below which no answer can be: a prefill, and a pass with one row a robot for each further one."""
    layer = WEIGHT_BYTES[condition.precision]
    head = 4.0 if condition.precision == "fp32" else 2.0
    robots = condition.robots
    prefill = pass_work(sizes, robots * (PROMPT_IDS + sizes.patches), robots, layer, head).least_s(roofline)
    return prefill + (passes - 1) * pass_work(sizes, robots, robots, layer, head).least_s(roofline)


def _contenders(
    plan: Plan, precision: Precision, model: Any, backbone: Backbone, random: np.random.Generator
) -> dict[Condition, Contender]:
    vocabulary = PRESETS[plan.preset].vocab_rows
    undrafted = ours(backbone, None, vocabulary, random)
    found = {Condition(precision, EAGER): library(model, plan.device, None)}
    # What transformers would compile on CUDA must be plain layers.
    if NUMERICS[precision].quantization is None and NUMERICS[precision].convert is None:
        found[Condition(precision, STATIC)] = library(model, plan.device, "static")
    found[Condition(precision, OURS)] = undrafted
    for percent in (0, 50, 90, 100):
        found[Condition(precision, OURS, f"{percent} %")] = ours(backbone, percent / 100, vocabulary, random)
    for robots in plan.robots:
        found[Condition(precision, OURS, robots=robots)] = undrafted
        found[Condition(precision, OURS, "100 %", robots)] = ours(backbone, 1.0, vocabulary, random)
    return found
