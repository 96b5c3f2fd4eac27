"""One precision from the model to its rows: who is timed, in interleaved rounds, and the roofline around them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.backbone.contenders import DIMS, PROMPT_IDS, Case, Contender, Timing, library, make_cases, ours
from benchmarks.backbone.figures import EAGER, OURS, STATIC, Condition, Measured
from benchmarks.backbone.models import PRESETS, WEIGHT_BYTES, random_llama
from benchmarks.backbone.roofline import Roofline, measure, pass_work
from benchmarks.checkpoint.sizes import Sizes
from splitvla_cloud.backbone import Backbone
from splitvla_cloud.precision import NUMERICS, Precision, check_device
from splitvla_shared.errors import ConfigError

_TEXT = 128  # room for a prompt as long as the graphs that `warm_up` captures
_CPU_WARM_UPS, _CUDA_WARM_UPS = 1, 3  # a compiled generate() is warm behind its third call
# Products in 8 bits run at rates of their own, which `roofline.measure` does not measure.
_NO_ROOFLINE = ("int8", "fp8", "int4")

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured. n: rounds. cases: different frames. robots: frames at once; one alone is always measured."""

    preset: str
    device: str
    precisions: tuple[Precision, ...]
    robots: tuple[int, ...]
    n: int
    cases: int
    seed: int

    def check(self) -> None:
        """Raises ConfigError for what makes no sense."""
        if min(self.n, self.cases, *self.robots) < 1:
            raise ConfigError(f"-n {self.n}, --cases {self.cases} and --robots {self.robots} must be at least 1")
        if unknown := [name for name in self.precisions if name not in WEIGHT_BYTES]:
            raise ConfigError(f"precisions {unknown} are not measured here; any of {', '.join(WEIGHT_BYTES)}")
        for precision in self.precisions:  # before the rates are measured, which takes minutes in bf16 on most CPUs
            check_device(precision, self.device)


def measure_precision(plan: Plan, precision: Precision, tell: Tell) -> tuple[list[Measured], Roofline]:
    """All rows of one precision. Raises ConfigError when the model does not fit."""
    sizes, random = PRESETS[plan.preset], np.random.default_rng(plan.seed)
    before = measure(plan.device, NUMERICS[precision].dtype)
    tell(f"{precision}: model")
    model = random_llama(sizes, precision, plan.device, plan.seed)
    cases = make_cases(model, sizes.action_vocab_size, sizes.patches, plan.cases, random)
    tokens = sizes.patches + _TEXT + DIMS
    backbone = Backbone(model, precision, plan.device, capacity=max(plan.robots), tokens=tokens)
    backbone.warm_up(sizes.patches, DIMS)
    contenders = _contenders(plan, precision, model, backbone, random)
    samples = sample(contenders, cases, plan.n, _CPU_WARM_UPS if plan.device == "cpu" else _CUDA_WARM_UPS, tell)
    del model, backbone, contenders
    gc.collect()
    torch.cuda.empty_cache()
    roofline = before.best(measure(plan.device, NUMERICS[precision].dtype))
    measured = []
    for condition, (timings, walls) in samples.items():
        passes = float(np.mean([timing.passes for timing in timings]))
        least_s = None if precision in _NO_ROOFLINE else least(sizes, condition, passes, roofline)
        measured.append(Measured(condition, tuple(timings), tuple(walls), least_s))
    return measured, roofline


def sample(
    contenders: Mapping[Condition, Contender], cases: Sequence[Case], n: int, warm_ups: int, tell: Tell
) -> dict[Condition, tuple[list[Timing], list[float]]]:
    """`n` rounds of everyone in turn, so that what disturbs the machine disturbs all alike: answers, and walls."""
    found: dict[Condition, tuple[list[Timing], list[float]]] = {condition: ([], []) for condition in contenders}
    for turn in range(warm_ups + n):
        tell(f"round {turn + 1} of {warm_ups + n}")
        for condition, contender in contenders.items():
            shown = [cases[(turn + robot) % len(cases)] for robot in range(condition.robots)]
            began = time.perf_counter()
            timings = contender(shown)
            wall = time.perf_counter() - began
            if turn >= warm_ups:
                found[condition][0].extend(timings)
                found[condition][1].append(wall)
    return found


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
