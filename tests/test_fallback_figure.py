"""The figure in docs/ is drawn from the machine's table, and is current."""

from __future__ import annotations

from benchmarks.fallback_figure import FIGURE, arrows, draw, everywhere, legend
from splitvla_edge.fallback import Event, State


def test_the_figure_is_current() -> None:
    assert FIGURE.read_text(encoding="utf-8") == draw(), "run python -m benchmarks.fallback_figure"


def test_every_state_stands_in_the_figure_and_every_arrow_in_the_legend() -> None:
    text = draw()
    assert all(f">{state.value}</text>" in text for state in State)
    assert len(legend()) == len(arrows()) + len(set(everywhere().values()))


def test_what_stops_the_robot_does_so_from_everywhere() -> None:
    assert everywhere()[Event.ESTOP] is State.SAFE_STOP
    assert everywhere()[Event.CAMERA_STALE] is State.HOLD
