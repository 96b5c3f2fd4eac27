"""Numbers that are compared from run to run, and the tables of many robots."""

from __future__ import annotations

import time
from pathlib import Path

import grpc
import numpy as np
import pytest

from benchmarks.end_to_end import alternatives
from benchmarks.end_to_end.alternatives import Measured
from benchmarks.end_to_end.compare import compare, regressions, render
from benchmarks.end_to_end.fleet import Fleet, run_fleet
from benchmarks.end_to_end.plan import FULL, QUICK
from benchmarks.end_to_end.results import Recorded, Section, Summary, read_run, write_run, write_section
from benchmarks.end_to_end.robot import Job, Told, drive
from benchmarks.end_to_end.scale import scale_section
from benchmarks.end_to_end.soak import Slope, minutes, soak_sections
from benchmarks.end_to_end.stages import Ends, control_ms, framework_ms, section
from benchmarks.end_to_end.ways import Answered, Family
from benchmarks.processes import ProcessLost
from splitvla_shared.codec import encode
from splitvla_shared.errors import ConfigError, Unreachable
from splitvla_shared.nouns import Image, Scheme, StageTimes
from splitvla_shared.wire import inference_pb2 as pb
from tests.fake_server import SPEC, FakeServicer, answer, serving

MIB = 1 << 20


def recorded(value: float, *, spread: float = 0.0, yardstick_ms: float = 10.0) -> Recorded:
    samples = [value - spread, value, value + spread] * 10
    return Recorded("command", yardstick_ms, {"way": Summary.of(samples)})


def test_a_run_that_is_slower_than_its_noise_is_flagged() -> None:
    changes = compare(recorded(100.0), recorded(115.0))
    assert [change.name for change in regressions(changes)] == ["way"]
    assert "SLOWER" in render(changes, recorded(100.0), recorded(115.0))


def test_a_change_within_the_noise_is_none() -> None:
    assert not regressions(compare(recorded(100.0, spread=80.0), recorded(115.0, spread=80.0)))
    assert not regressions(compare(recorded(100.0), recorded(105.0)))


def test_a_slower_machine_is_no_regression() -> None:
    assert not regressions(compare(recorded(100.0), recorded(200.0, yardstick_ms=20.0)))


def test_a_faster_run_is_said_to_be_faster() -> None:
    [change] = compare(recorded(100.0), recorded(50.0))
    assert change.verdict == "faster"


def test_a_metric_that_only_one_run_has_is_left_out() -> None:
    assert compare(Recorded("c", 1.0, {}), recorded(1.0)) == []


def test_a_run_reads_back_as_it_was_written(tmp_path: Path) -> None:
    table = Section("ways", "Title", ("a",), (("b",),), 3, {"way": Summary.of([1.0, 2.0, 3.0])}, packages=("numpy",))
    write_section(table, tmp_path, "command", 0)
    written = write_run([table], tmp_path, "command", 5.0)
    assert read_run(tmp_path) == written == read_run(tmp_path / "results.json")
    assert written.metrics["ways/way"].p50 == 2.0
    assert "Again: `command`" in (tmp_path / "ways.md").read_text(encoding="utf-8")


def test_a_table_is_written_where_a_package_of_its_heading_is_missing() -> None:
    table = Section("ways", "Title", ("a",), (("b",),), 3, packages=("numpy", "no-such-package"))
    assert "numpy" in table.markdown("command", 0)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"format": "other/1"}'])
def test_a_file_that_is_no_run_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    file = tmp_path / "old.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"old\.json") as caught:
        read_run(file)
    assert "\n" not in str(caught.value)


def test_a_quick_plan_takes_fewer_frames_on_a_slow_machine_and_a_full_one_does_not() -> None:
    assert QUICK.fitted(round_s=1.0).frames == QUICK.frames
    assert QUICK.fitted(round_s=100.0).frames < QUICK.frames
    assert FULL.fitted(round_s=100.0) == FULL


class _Way:
    """Answers with the number of its call after `failures` lost ones."""

    def __init__(self, name: str, family: Family, tokens: tuple[int, ...], failures: int = 0) -> None:
        self.name, self.family, self._tokens, self._failures = name, family, tokens, failures

    def act(self, image: Image, instruction: str) -> Answered:
        if self._failures:
            self._failures -= 1
            raise Unreachable("gone for a moment")
        return Answered(self._tokens, (0.5,), total_ms=3.0, robot_ms=1.0, server_ms=1.0, up_bytes=5)

    def close(self) -> None:
        pass


def measured_of(*ways: _Way, monkeypatch: pytest.MonkeyPatch) -> list[Measured]:
    monkeypatch.setattr(alternatives, "_PAUSE_S", 0.0)
    image = np.zeros((2, 2, 3), np.uint8)
    return alternatives.measure(ways, [image], "do it", 3)


def test_a_lost_call_is_made_again_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    [measured] = measured_of(_Way("a", Family.SPLIT, (1,), failures=2), monkeypatch=monkeypatch)
    assert (measured.lost, len(measured.answers)) == (2, 3)


def test_a_server_that_stays_away_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unreachable):
        measured_of(_Way("a", Family.SPLIT, (1,), failures=99), monkeypatch=monkeypatch)


def test_a_way_that_breaks_its_promise_is_named_and_a_lossy_one_only_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = (_Way("r", Family.LOCAL, (1,)), _Way("split", Family.SPLIT, (2,)), _Way("jpeg", Family.JPEG, (3,)))
    measured = measured_of(*ways, monkeypatch=monkeypatch)
    assert alternatives.differing(measured) == ["split"]
    assert "NOT THE SAME: split" in alternatives.section(measured).text


def test_where_nothing_is_promised_no_way_is_wrong_and_the_split_is_the_reference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Outside fp32 PyTorch encodes in the backbone's precision and the split in float32."""
    ways = (_Way("PyTorch", Family.LOCAL, (1,)), _Way("split, f32", Family.SPLIT, (2,)))
    found = alternatives.section(measured_of(*ways, monkeypatch=monkeypatch), promised=False)
    assert "NOT THE SAME" not in found.text
    assert "the reference's (split, f32)" in found.text
    assert [row[-3:] for row in found.rows] == [("0 of 3", "0%", ""), ("3 of 3", "100%", "")]


def test_framework_is_what_is_neither_encoder_nor_wire_nor_backbone() -> None:
    stages = StageTimes(1, 2, 3, 4, 5, 6, 7, 8, 9, total_ms=45)
    assert framework_ms(stages) == 45 - 2 - 4 - 7 - 8
    rows = section(Ends([1.0], [2.0]), {"split": [stages]}).rows
    assert ("split", "of it framework", "24.00", "24.00", "24.00", "24.00", "53.3%") in rows


def test_the_control_tick_that_is_timed_takes_the_action() -> None:
    assert len(control_ms(20)) == 20  # it raises where the machine refuses the actions


def told(answers: int, misses: dict[str, int] | None = None) -> Told:
    return Told((10.0,) * answers, tuple(float(i) for i in range(answers)), misses or {}, cpu_s=1.0, rss_bytes=50 * MIB)


def test_fairness_is_one_when_all_get_the_same_and_a_share_when_one_gets_all() -> None:
    assert Fleet((told(5), told(5)), 10.0, 0.5, MIB, ()).fairness == pytest.approx(1.0)
    assert Fleet((told(5), told(0)), 10.0, 0.5, MIB, ()).fairness == pytest.approx(0.5)
    assert Fleet((told(0), told(0)), 10.0, 0.5, MIB, ()).fairness == 0.0


def test_the_scale_table_counts_answers_and_misses_and_knows_no_remote_memory() -> None:
    fleet = Fleet((told(5), told(3, {"DeadlineMissed": 2})), 2.0, None, None, ())
    [row] = scale_section([fleet], "m", "bf16", 5.0, 1.0, 2).rows
    assert row[:3] == ("2", "10", "4.0")
    assert row[-5:] == ("2 DeadlineMissed", "-", "1.00", "-", "50")


def test_the_scale_table_tells_the_server_s_own_work_from_the_model_s() -> None:
    robot = Told((50.0,) * 4, (0.0, 1.0, 2.0, 3.0), {}, 1.0, 50 * MIB, model_ms=(30.0,) * 4)
    text = scale_section([Fleet((robot,), 4.0, 0.036, MIB, ())], "m", "bf16", 1.0, 1.0, None).text
    assert "With one robot an answer costs the server 36.0 ms of a processor; the model takes 30.0 of them" in text
    assert (
        "costs the server" not in scale_section([Fleet((robot,), 4.0, None, None, ())], "m", "bf16", 1.0, 1.0, 2).text
    )


def test_a_leak_shows_as_a_slope_whose_interval_leaves_zero_out() -> None:
    seconds = [float(s) for s in range(0, 600, 5)]
    slope = Slope.of(seconds, [round(100 * MIB + s / 3600 * 60 * MIB + (s % 10) * 1000) for s in seconds])
    assert slope.mib_per_hour == pytest.approx(60, rel=0.02)
    assert slope.half_width < 5


def soaked(seconds: int, server_rss: int | None = 100 * MIB) -> Fleet:
    memory = tuple((float(t), (server_rss or 0) + t % 2, 50 * MIB + t % 2) for t in range(seconds))
    robot = Told((10.0,) * seconds, tuple(map(float, range(seconds))), {"DeadlineMissed": 1}, 1.0, 50 * MIB, (65.0,))
    return Fleet((robot,), float(seconds), None, server_rss, memory)


def test_a_soak_compares_its_first_quarter_with_its_last() -> None:
    verdict, _ = soak_sections(soaked(40), "m")
    assert verdict.metrics["first quarter"].n == verdict.metrics["last quarter"].n == 10


def test_a_soak_is_told_minute_by_minute_with_its_misses() -> None:
    found = minutes(soaked(90))
    assert [(each.number, each.latency.n if each.latency else 0, each.missed) for each in found] == [
        (1, 60, 0),
        (2, 30, 1),
    ]
    _, table = soak_sections(soaked(90), "m")
    assert table.rows[1] == ("2", "30", "10.0", "10.0", "10.0", "1", "100.0", "50.0")


def test_what_comes_after_the_end_of_a_soak_is_the_last_minute_s() -> None:
    robot = Told((10.0, 10.0), (3.0, 60.4), {"DeadlineMissed": 1}, 1.0, 50 * MIB, (60.9,))
    [minute] = minutes(Fleet((robot,), 60.0, None, None, ()))
    assert minute.latency is not None
    assert (minute.latency.n, minute.missed) == (2, 1)


def test_a_soak_of_a_remote_server_claims_nothing_of_its_memory() -> None:
    verdict, table = soak_sections(soaked(90, server_rss=None), "m")
    assert ("server memory slope, MiB an hour", "-") in verdict.rows
    assert "its own machine's to tell" in verdict.text
    assert table.rows[0][-2] == "-"


def test_memory_that_wanders_is_given_a_wider_interval_than_memory_that_flickers() -> None:
    seconds = [float(s) for s in range(600)]
    wandering = Slope.of(seconds, [100 * MIB + (s // 100 % 2) * MIB for s in range(600)])
    flickering = Slope.of(seconds, [100 * MIB + (s % 2) * MIB for s in range(600)])
    assert wandering.half_width > 5 * flickering.half_width


def test_a_robot_s_job_reads_back_as_it_was_written(tmp_path: Path) -> None:
    job = Job("h:1", "f", "do it", 7, 3, (4, 8), ("a", "b"), offset_s=1.5)
    job.write(tmp_path / "job.json")
    assert Job.read(tmp_path / "job.json") == job


def test_robots_start_together_and_tell_what_they_saw(tmp_path: Path) -> None:
    """Two real processes against a server that refuses every third frame."""

    def infer(request: pb.InferRequest, context: grpc.ServicerContext) -> pb.InferReply:
        if request.sequence % 3 == 0:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "as asked")
        return answer(request)

    payload = encode(np.zeros((SPEC.patches, SPEC.embed_dim), np.float32), Scheme.BF16)
    (tmp_path / "payload").write_bytes(payload.data)
    shape, files = (SPEC.patches, SPEC.embed_dim), (str(tmp_path / "payload"),)
    with serving(FakeServicer(infer)) as address:
        job = Job(address, SPEC.fingerprint, "do it", 7, int(Scheme.BF16), shape, files, control_hz=20.0)
        fleet = run_fleet(job, None, 2, 1.0, tmp_path, lambda share: None)
    assert [len(robot.latencies_ms) > 0 for robot in fleet.robots] == [True, True]
    assert fleet.misses["Overloaded"] == sum(len(robot.missed_at_s) for robot in fleet.robots) > 0
    assert max(robot.at_s[-1] for robot in fleet.robots) < 1.0 + job.deadline_s


def test_a_robot_of_the_fleet_sends_its_last_answer_as_the_draft_unless_it_was_no_action(tmp_path: Path) -> None:
    """As EdgePolicy does: a token outside the action bins would have every later frame refused."""

    def infer(request: pb.InferRequest, context: grpc.ServicerContext) -> pb.InferReply:
        reply = answer(request)
        if len(servicer.requests) == 2:
            reply.tokens.ids[0] = 5
        return reply

    (tmp_path / "payload").write_bytes(encode(np.zeros((SPEC.patches, SPEC.embed_dim), np.float32), Scheme.BF16).data)
    shape, files = (SPEC.patches, SPEC.embed_dim), (str(tmp_path / "payload"),)
    servicer = FakeServicer(infer)
    with serving(servicer) as address:
        job = Job(address, SPEC.fingerprint, "do it", 7, int(Scheme.BF16), shape, files, control_hz=20.0, seconds=1.0)
        drive(job, time.monotonic)
    drafts = [tuple(request.draft_tokens) for request in servicer.requests[:4]]
    assert drafts == [(), tuple(range(31900, 31907)), (), tuple(range(31900, 31907))]


def test_a_robot_that_can_t_connect_is_said_in_one_line(tmp_path: Path) -> None:
    job = Job("127.0.0.1:1", "f", "do it", 7, 3, (4, 8), (str(tmp_path / "absent"),))
    with pytest.raises(ProcessLost, match=r"a robot process failed: .*absent"):
        run_fleet(job, None, 1, 1.0, tmp_path, lambda share: None)
