"""The arithmetic of the backbone's benchmark, its command line, and one small run of it."""

from __future__ import annotations

import functools
import itertools
import signal

import numpy as np
import pytest

from benchmarks.backbone import __main__ as command
from benchmarks.backbone import models, roofline, session
from benchmarks.backbone.__main__ import main
from benchmarks.backbone.contenders import DIMS, Case, Contender, Timing, make_cases, make_draft, ours
from benchmarks.backbone.figures import EAGER, OURS, STATIC, Condition, Measured, differing, quantiles_ms, sentences
from benchmarks.backbone.models import WEIGHT_BYTES, random_llama
from benchmarks.backbone.roofline import Roofline, Work, pass_work
from benchmarks.backbone.rounds import at_most, sample
from benchmarks.backbone.session import Plan, Session, least
from benchmarks.checkpoint.sizes import PRESETS, Sizes
from splitvla_cloud.backbone import Backbone
from splitvla_cloud.precision import Precision, quantization_config
from splitvla_shared.errors import ConfigError, ServerFault

SMALL = Sizes(llm_dim=64, llm_mlp=128, llm_layers=3)


def timing(total_s: float, passes: int = 1, same: bool = True) -> Timing:
    return Timing(total_s / 2, total_s / 2, total_s, passes, same)


def measured(condition: Condition, *totals_s: float, same: bool = True) -> Measured:
    return Measured(condition, tuple(timing(each, same=same) for each in totals_s), totals_s, 0.001)


def test_a_pass_counts_whole_layers_then_keys_values_and_the_asked_rows() -> None:
    layer, head = 4 * 64**2 + 3 * 64 * 128, 64 * 1088
    work = pass_work(SMALL, rows=10, asked=2, layer_bytes=2, head_bytes=4)
    assert work.weight_bytes == 3 * layer * 2 + head * 4
    assert work.flops == 2 * (2 * layer * 10 + 2 * 64**2 * 10 + (layer - 2 * 64**2 + head) * 2)


def test_the_roofline_of_openvla_7b_on_an_h200_is_what_its_weights_take() -> None:
    """6.6e9 weights of layers and head in bf16 at 4.8 TB/s: 2.75 ms a token; the prefill is bound by its products."""
    h200 = Roofline(4.8e12, 989e12)
    step = pass_work(PRESETS["7b"], 1, 1, 2, 2)
    assert step.least_s(h200) == pytest.approx(6.607e9 * 2 / 4.8e12, rel=0.01)
    assert pass_work(PRESETS["7b"], 280, 1, 2, 2).least_s(h200) == pytest.approx(3.56e-3, rel=0.02)


def test_the_larger_of_bytes_and_products_bounds_a_pass() -> None:
    assert Work(10.0, 3.0).least_s(Roofline(2.0, 1.0)) == 5.0
    assert Work(10.0, 30.0).least_s(Roofline(2.0, 1.0)) == 30.0
    assert Roofline(1.0, 4.0).best(Roofline(2.0, 3.0)) == Roofline(2.0, 4.0)


@pytest.mark.parametrize(("device", "times"), [("cpu", 1), ("cuda:0", 20)])
def test_a_gpus_rates_are_not_lowered_by_launching_and_waiting(
    monkeypatch: pytest.MonkeyPatch, device: str, times: int
) -> None:
    """A bound that counts them can be beaten."""
    done, clock = list[str](), itertools.count()
    monkeypatch.setattr(roofline, "synchronise", lambda device: done.append("waited"))
    monkeypatch.setattr("benchmarks.backbone.roofline.time.perf_counter", lambda: float(next(clock)))
    assert roofline._seconds(device, lambda: done.append("worked")) == 1.0 / times
    assert done == ["waited", *["worked"] * times, "waited"]


def test_each_further_pass_adds_one_row_a_robot_to_the_least_time() -> None:
    rates = Roofline(1e9, 1e9)
    one, three = (least(SMALL, Condition("fp32", OURS, robots=4), passes, rates) for passes in (1.0, 3.0))
    assert three - one == pytest.approx(2 * pass_work(SMALL, 4, 4, 4, 4).least_s(rates))


def test_a_draft_is_right_at_the_share_that_is_asked_for() -> None:
    random = np.random.default_rng(0)
    tokens = tuple(range(1081, 1088))
    assert make_draft(tokens, 1.0, 1088, random) == tokens
    assert make_draft(tokens, 0.0, 1088, random) == (*range(1082, 1088), 0)
    right = [
        sum(a == b for a, b in zip(make_draft(tokens, 0.5, 1088, random), tokens, strict=True)) for _ in range(500)
    ]
    assert 3.3 < np.mean(right) < 3.7


def test_a_row_gives_percentiles_and_the_throughput_of_all_robots() -> None:
    condition = Condition("fp32", OURS, "100 %", 2)
    row = Measured(condition, (timing(0.1), timing(0.1), timing(0.3), timing(0.3, same=False)), (0.1, 0.3), 0.05).row()
    assert row == [
        *("fp32", "ours", "100 %", "2", "1.0", "100 / 150 / 150", "100 / 150 / 150", "200 / 300 / 300"),
        *("10", "50", "3 of 4"),
    ]
    assert quantiles_ms([0.001, 0.002, 0.003]) == "2 / 2.8 / 2.98"


def test_the_bars_are_ratios_of_medians() -> None:
    found = [
        measured(Condition("fp32", EAGER), 0.3, 0.4, 0.5),
        measured(Condition("fp32", OURS), 0.2),
        measured(Condition("fp32", OURS, "100 %"), 0.1),
        measured(Condition("fp32", OURS, robots=8), 0.3),
        measured(Condition("fp32", OURS, "100 %", 8), 0.25),
    ]
    assert sentences(found) == [
        "fp32: at the median 2.00 times as fast as HF generate() without a draft, 4.00 times with accepted drafts; "
        "8 robots take 1.50 times the latency of one, and 2.50 times where every draft is accepted."
    ]
    assert "robots" not in sentences(found[:3])[0]


def test_only_in_fp32_is_a_differing_answer_an_error() -> None:
    found = [measured(Condition(precision, OURS), 0.1, 0.1, same=False) for precision in ("fp32", "bf16")]
    assert differing(found) == 2


def test_rounds_are_interleaved_and_warm_ups_are_not_counted() -> None:
    order: list[int] = []

    def contender(number: int) -> Contender:
        def answer(cases: object) -> list[Timing]:
            order.append(number)
            return [timing(float(len(order)))]

        return answer

    conditions = [Condition("fp32", OURS), Condition("fp32", EAGER)]
    case = Case((1,), np.zeros((1, 1), np.float32), ())
    rounds = sample({each: contender(index) for index, each in enumerate(conditions)}, [case], 2, 1, lambda text: None)
    found = rounds.samples
    assert order == [0, 1, 0, 1, 0, 1]
    assert rounds.remarks == []
    assert [each.total_s for each in found[conditions[0]][0]] == [3.0, 5.0]
    assert len(found[conditions[1]][1]) == 2


CASE = Case((1,), np.zeros((1, 1), np.float32), ())


def quick(cases: object) -> list[Timing]:
    return [timing(0.1)]


def test_who_fails_is_out_and_the_others_go_on() -> None:
    """A compiler that is missing, or the memory for the largest batch, must not cost the run what it has measured."""
    calls: list[int] = []

    def at_once(cases: object) -> list[Timing]:
        raise RuntimeError("no C compiler\nfound")

    def later(cases: object) -> list[Timing]:
        calls.append(len(calls))
        if len(calls) == 3:
            raise ServerFault("out of memory")
        return [timing(0.1)]

    who = {
        Condition("bf16", STATIC): at_once,
        Condition("bf16", OURS, robots=16): later,
        Condition("bf16", OURS): quick,
    }
    rounds = sample(who, [CASE], 4, 1, lambda text: None)
    assert {condition: len(walls) for condition, (_, walls) in rounds.samples.items()} == {
        Condition("bf16", OURS, robots=16): 1,
        Condition("bf16", OURS): 4,
    }
    assert rounds.remarks == [
        "HF generate(), static cache, draft none, 1 robots is out: RuntimeError: no C compiler",
        "ours, draft none, 16 robots is out: ServerFault: out of memory",
    ]
    assert sentences([measured(Condition("bf16", EAGER), 0.3)]) == [], "with nobody to compare with"


def test_rounds_end_when_their_time_is_up_but_there_is_one() -> None:
    for seconds, turns in ((0.5, 1), (2.5, 3)):
        ticks = iter(range(9))
        clock = functools.partial(next, ticks)
        rounds = sample({Condition("fp32", OURS): quick}, [CASE], 9, 0, lambda text: None, seconds, clock)
        assert len(rounds.samples[Condition("fp32", OURS)][1]) == turns
        assert rounds.remarks == [f"{turns} of 9 rounds in {seconds:g} s."]


def test_what_does_not_get_warm_is_interrupted() -> None:
    with pytest.raises(TimeoutError, match=r"not warm after 0\.01 s"), at_most(0.01):
        signal.pause()
    with at_most(60.0):
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0.0
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0.0, "no alarm is left behind"


@pytest.mark.parametrize("precision", ["bf16", "int8", "nf4", "fp8", "int4"])
def test_random_models_weigh_what_the_roofline_says_and_answer(
    precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "check_device", lambda precision, device: None)  # torch has their product on a CPU too
    model = random_llama(SMALL, precision, "cpu", seed=0)
    weights = 3 * (4 * 64**2 + 3 * 64 * 128)
    layers = model.model.layers
    scales = [each for name, each in layers.named_buffers() if name.endswith("group_scales")]
    scales += [each.quant_state.absmax[None] for each in layers.parameters() if hasattr(each, "quant_state")]
    stored = sum(each.nbytes for each in [*layers.parameters(), *scales] if each.ndim > 1)
    assert stored / weights == pytest.approx(WEIGHT_BYTES[precision], rel=0.04)
    random = np.random.default_rng(0)
    cases = make_cases(model, 1024, patches=8, count=2, random=random)
    timings = ours(Backbone(model, precision, "cpu", capacity=2, tokens=64), 0.0, 1088, random)(cases)
    assert [1 < each.passes <= DIMS for each in timings] == [True, True]


def test_nf4_is_what_serve_makes_of_it() -> None:
    """bitsandbytes alone would quantise the scales too: other bytes, and another kernel."""
    served = quantization_config("nf4")
    layers = random_llama(SMALL, "nf4", "cpu", seed=0).model.layers
    states = [each.quant_state for each in layers.parameters() if hasattr(each, "quant_state")]
    assert len(states) == 3 * 7
    assert {(each.nested, each.quant_type) for each in states} == {
        (served.bnb_4bit_use_double_quant, served.bnb_4bit_quant_type)
    }


def test_on_a_gpu_all_that_is_compared_is_computed_as_ours_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or in an image that switches TF32 on, the first precision's rates and generate()'s answers would be in it."""
    done = list[str]()
    monkeypatch.setattr(session, "settle", lambda: done.append("settled"))

    def measure(device: str, dtype: object) -> Roofline:
        done.append("measured")
        raise ServerFault("enough")

    monkeypatch.setattr(session, "measure", measure)
    for device in ("cuda:0", "cpu"):
        with pytest.raises(ServerFault, match="enough"):
            session.measure_precision(Plan("tiny", device, ("fp32",), (1,), 1, 1, 0), "fp32", lambda text: None)
    assert done == ["settled", "measured", "measured"]


def test_a_small_run_prints_the_table_and_finds_transformers_tokens(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "measure", lambda device, dtype: Roofline(1e10, 1e11))
    assert main(["--device", "cpu", "-n", "1", "--cases", "1", "--robots", "2"]) == 0
    printed = capsys.readouterr().out
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| fp32")]
    assert [(row[1], row[2], row[3], row[4]) for row in rows] == [
        ("HF generate()", "none", "1", "7.0"),
        ("HF generate(), static cache", "none", "1", "7.0"),
        ("ours", "none", "1", "7.0"),
        ("ours", "0 %", "1", "7.0"),
        ("ours", "50 %", "1", rows[4][4]),
        ("ours", "90 %", "1", rows[5][4]),
        ("ours", "100 %", "1", "1.0"),
        ("ours", "none", "2", "7.0"),
        ("ours", "100 %", "2", "1.0"),
    ]
    assert [row[10] for row in rows] == ["1 of 1 |"] * 7 + ["2 of 2 |"] * 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-n", "0"], "-n 0"),
        (["--robots", "1,many"], "'1,many'"),
        (["--robots", "0"], "(0, 1)"),
        (["--seconds", "0"], "--seconds 0"),
        (["--precisions", "fp64"], "fp64"),
        (["--precisions", ","], "names none"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--device", "cpu", "--precisions", "fp8"], "fp8 needs a CUDA GPU"),
    ],
)
def test_a_wrong_option_is_named_on_one_line(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(options) == 2
    error = capsys.readouterr().err
    assert error.startswith("backbone: error: ")
    assert said in error
    assert error.count("\n") == 1


def test_a_precision_that_fails_does_not_keep_the_next_one_from_its_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def some(plan: Plan, precision: Precision, tell: object) -> Session:
        if precision == "fp32":
            raise RuntimeError("CUDA error: an illegal memory access")
        if precision == "bf16":
            raise ConfigError("does not fit")
        return Session((measured(Condition(precision, OURS), 0.1),), Roofline(1e9, 1e9), ("nf4: 20 passes captured.",))

    monkeypatch.setattr(command, "measure_precision", some)
    assert main(["--device", "cpu", "--precisions", "fp32,bf16,nf4"]) == 2
    out, error = capsys.readouterr()
    assert "| nf4 | ours |" in out
    assert "- nf4: 20 passes captured." in out
    assert "illegal memory access" in error
    assert "backbone: error: bf16: does not fit" in error
