"""The choice of the payload rung: who is to blame for a late answer, and how seldom the rung changes."""

from __future__ import annotations

import itertools

from splitvla_edge.fallback import Chunk, FallbackSettings, Outcome
from splitvla_edge.fallback.account import Lesson
from splitvla_edge.fallback.rungs import RungChooser
from splitvla_shared.nouns import StageTimes

LADDER = (2_000_000, 1_000_000, 500_000, 50_000)
BUDGET_MS = 300.0


class Driver:
    """Feeds a chooser with answers over a simulated link; a call that takes longer than the budget is a miss."""

    def __init__(self, ladder: tuple[int, ...] = LADDER) -> None:
        self.chooser = RungChooser(FallbackSettings())
        self.chooser.use_ladder(ladder)
        self.ladder = ladder
        self.now = 0.0
        self.misses = 0
        self.rungs: list[tuple[float, int]] = []

    def call(
        self, ms_per_mb: float, *, delay_ms: float = 10.0, server_ms: float = 60.0, rung: int | None = None
    ) -> None:
        used = self.chooser.rung if rung is None else rung
        network_ms = delay_ms + ms_per_mb * self.ladder[used] / 1e6
        total_ms = network_ms + server_ms
        self.now += min(total_ms, BUDGET_MS) / 1e3 + 0.02
        if total_ms > BUDGET_MS:
            lesson = Lesson(Outcome.MISSED, used)
            self.misses += 1
        else:
            self.misses = 0
            stages = StageTimes(network_ms=network_ms, prefill_ms=server_ms)
            lesson = Lesson(
                Outcome.MET,
                used,
                Chunk(
                    1, 1, self.now - total_ms / 1e3, self.now, ((0.0,),),
                    stages=stages, wire_bytes=self.ladder[used], rung=used,
                ),
            )  # fmt: skip
        before = self.chooser.rung
        self.chooser.learn(self.now, lesson, BUDGET_MS)
        if self.chooser.rung != before:
            self.rungs.append((self.now, self.chooser.rung))

    def drive(self, seconds: float, ms_per_mb: float, **link: float) -> Driver:
        """After two misses the machine holds, and probes with the smallest payload."""
        until = self.now + seconds
        while self.now < until:
            rung = self.chooser.smallest if self.misses >= 2 else None
            self.call(ms_per_mb, rung=rung, **link)
        return self

    def path(self) -> list[int]:
        return [rung for _, rung in self.rungs]


def test_a_fast_link_keeps_the_best_payload() -> None:
    assert Driver().drive(20.0, ms_per_mb=20.0).path() == []


def test_a_slow_server_never_degrades_the_payload() -> None:
    driver = Driver().drive(5.0, ms_per_mb=4.0)
    for server_ms in (150.0, 250.0, 285.0, 400.0, 60.0, 290.0, 225.0, 100.0):
        driver.drive(5.0, ms_per_mb=4.0, server_ms=server_ms)
    assert driver.path() == []


def test_a_slow_link_degrades_the_payload_at_once_to_what_fits() -> None:
    driver = Driver().drive(5.0, ms_per_mb=20.0).drive(3.0, ms_per_mb=100.0)
    assert driver.path() == [1]
    assert Driver().drive(3.0, ms_per_mb=90.0).path() == [1]


def test_misses_alone_are_no_path_and_leave_quality_alone() -> None:
    driver = Driver().drive(5.0, ms_per_mb=20.0).drive(10.0, ms_per_mb=20.0, delay_ms=5000.0)
    assert driver.path() == []
    assert driver.drive(10.0, ms_per_mb=20.0).path() == []


def test_two_misses_that_an_answer_follows_and_their_size_explains_degrade_to_what_would_have_fitted() -> None:
    driver = Driver().drive(5.0, ms_per_mb=20.0)
    for _ in range(2):
        driver.call(2000.0)
    driver.call(300.0, delay_ms=0.0, rung=3)
    assert driver.path() == [2], "50 kB took 15 ms, so that 500 kB take at most 150 ms"


def test_the_two_misses_may_have_a_hold_and_its_probes_between_them() -> None:
    driver = Driver().drive(5.0, ms_per_mb=20.0)
    for _ in range(2):
        driver.call(2000.0)
        driver.call(300.0, delay_ms=0.0, rung=3)
    assert driver.chooser.rung > 0


def test_a_size_that_comes_through_again_is_no_longer_suspected() -> None:
    driver = Driver().drive(5.0, ms_per_mb=20.0)
    for _ in range(2):
        driver.call(2000.0)
        driver.call(4.0, delay_ms=2.0, rung=3)
        driver.call(20.0)
    assert driver.path() == []


def test_one_miss_degrades_nothing() -> None:
    driver = Driver().drive(5.0, ms_per_mb=20.0)
    driver.call(2000.0)
    driver.call(2000.0, rung=3)
    assert driver.path() == []


def test_misses_that_their_size_cannot_explain_degrade_nothing() -> None:
    driver = Driver().drive(5.0, ms_per_mb=20.0)
    for _ in range(2):
        driver.call(20.0, server_ms=1000.0)
    driver.call(4.0, delay_ms=2.0, rung=3)
    assert driver.path() == []


def test_missed_probes_degrade_nothing() -> None:
    driver = Driver().drive(5.0, ms_per_mb=20.0)
    for _ in range(3):
        driver.call(20.0, delay_ms=5000.0, rung=3)
    driver.call(1500.0, rung=3)
    assert driver.path() == []


def test_the_payload_is_upgraded_after_the_better_one_has_looked_good_for_two_seconds() -> None:
    driver = Driver().drive(3.0, ms_per_mb=110.0)
    assert driver.path() == [1]
    began = driver.now
    driver.drive(15.0, ms_per_mb=20.0)
    assert driver.path() == [1, 0]
    assert driver.rungs[-1][0] - began >= 2.0


def test_a_smaller_payload_that_saves_nothing_is_given_up_again() -> None:
    driver = Driver().drive(30.0, ms_per_mb=0.5, delay_ms=190.0)
    assert driver.path() == [1, 0], "tried once, and then it is known that the delay is not transmission"


def test_a_link_that_flaps_every_three_seconds_changes_the_rung_at_most_six_times_in_four_minutes() -> None:
    driver = Driver()
    for _ in range(40):
        driver.drive(3.0, ms_per_mb=20.0).drive(3.0, ms_per_mb=100.0)
    assert 1 <= driver.chooser.changes <= 6
    assert driver.path()[0] == 1


def test_an_upgrade_that_fails_makes_the_next_wait_a_minute_and_then_three_times_longer() -> None:
    driver = Driver()
    waits = []
    for _ in range(4):
        driver.drive(3.0, ms_per_mb=110.0)
        while driver.chooser.rung == 0:
            driver.call(110.0)
        began = driver.now
        while driver.chooser.rung != 0:
            driver.call(5.0)
        waits.append(driver.now - began)
    assert 2.0 <= waits[0] < 12.0
    assert 60.0 <= waits[1] < 70.0
    assert all(175.0 <= wait < 185.0 for wait in waits[2:])


def test_an_upgrade_that_lasts_a_minute_is_forgiven_an_earlier_failure() -> None:
    driver = Driver()
    for _ in range(2):
        driver.drive(3.0, ms_per_mb=110.0)
        while driver.chooser.rung != 0:
            driver.call(5.0)
    driver.drive(62.0, ms_per_mb=5.0).drive(3.0, ms_per_mb=110.0)
    began = driver.now
    while driver.chooser.rung != 0:
        driver.call(5.0)
    assert driver.now - began < 30.0


def test_the_rung_changes_at_most_once_a_second() -> None:
    driver = Driver()
    for ms_per_mb in (20.0, 400.0, 2000.0, 20.0, 4000.0) * 6:
        driver.drive(1.3, ms_per_mb=ms_per_mb)
    times = [at for at, _ in driver.rungs]
    assert times
    assert all(later - earlier >= 1.0 for earlier, later in itertools.pairwise(times))


def test_a_policy_with_one_payload_has_nothing_to_choose() -> None:
    driver = Driver((2_000_000,)).drive(5.0, ms_per_mb=110.0)
    assert (driver.chooser.rung, driver.chooser.smallest) == (0, 0)


def test_a_shorter_ladder_takes_the_rung_along() -> None:
    driver = Driver().drive(3.0, ms_per_mb=400.0)
    driver.chooser.use_ladder((1000,))
    assert driver.chooser.rung == 0
    assert driver.chooser.expected_ms(5) is None
