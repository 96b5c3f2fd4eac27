"""python -m benchmarks.fallback_figure: draw docs/fallback.svg from the machine's table. Deterministic, no library.

Only what moves the machine from one state to another is drawn; that a state may last is left out, and so is what leads
to SAFE_STOP and INIT from everywhere: both are said in a line under the figure.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from pathlib import Path

from splitvla_edge.fallback import TRANSITIONS, Event, State

FIGURE = Path(__file__).resolve().parent.parent / "docs" / "fallback.svg"
_WIDTH, _HEIGHT = 1180, 780
_BOX = (132, 46)
Point = tuple[float, float]
_PLACES = {
    State.INIT: (110, 330),
    State.NOMINAL: (430, 110),
    State.DEGRADED: (750, 110),
    State.COAST: (1050, 290),
    State.WAIT: (590, 330),
    State.HOLD: (590, 560),
    State.LOCAL: (1000, 600),
    State.SAFE_STOP: (110, 600),
}
_COLOURS = {
    State.INIT: "#9ec5fe",
    State.NOMINAL: "#a3cfbb",
    State.DEGRADED: "#d0e8a0",
    State.COAST: "#ffe69c",
    State.WAIT: "#9eeaf9",
    State.HOLD: "#fecba1",
    State.LOCAL: "#e0cffc",
    State.SAFE_STOP: "#f1aeb5",
}


def everywhere() -> dict[Event, State]:
    """Events that lead to one and the same state from every state that moves or holds, and that state."""
    alive = [state for state in State if state not in (State.INIT, State.SAFE_STOP)]
    found = {}
    for event in Event:
        targets = {TRANSITIONS[state, event].to for state in alive}
        if len(targets) == 1:
            found[event] = targets.pop()
    return found


def arrows() -> dict[tuple[State, State], list[Event]]:
    """From and to, and the events that lead there, in the order of the table; without what is said of all states."""
    common = everywhere()
    found: dict[tuple[State, State], list[Event]] = defaultdict(list)
    for (state, event), transition in TRANSITIONS.items():
        if transition.to is not state and event not in common and state is not State.SAFE_STOP:
            found[state, transition.to].append(event)
    return dict(found)


def draw() -> str:
    """The figure as SVG text."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#444"/></marker></defs>',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
    ]
    legend: list[str] = []
    for number, ((begin, end), events) in enumerate(sorted(arrows().items(), key=_by_name), 1):
        parts.append(_arrow(begin, end, number))
        legend.append(f"{number}  {begin.value} to {end.value}: " + "; ".join(event.value for event in events))
    parts += [_state(state) for state in State]
    common = everywhere()
    for target in dict.fromkeys(common.values()):
        names = "; ".join(event.value for event, state in common.items() if state is target)
        legend.append(f"to {target.value} from every state but INIT and SAFE_STOP: {names}")
    parts.append("<desc>" + _escape("\n".join(legend)) + "</desc>")
    return "\n".join([*parts, "</svg>"]) + "\n"


def legend() -> list[str]:
    """The lines under the figure, one for each number."""
    text = draw()
    return text[text.index("<desc>") + 6 : text.index("</desc>")].splitlines()


def _by_name(item: tuple[tuple[State, State], list[Event]]) -> tuple[int, int]:
    order = list(State)
    return order.index(item[0][0]), order.index(item[0][1])


def _state(state: State) -> str:
    x, y = _PLACES[state]
    width, height = _BOX
    return (
        f'<rect x="{x - width // 2}" y="{y - height // 2}" width="{width}" height="{height}" rx="8" '
        f'fill="{_COLOURS[state]}" stroke="#444"/>'
        f'<text x="{x}" y="{y + 5}" text-anchor="middle" font-size="15">{state.value}</text>'
    )


def _arrow(begin: State, end: State, number: int) -> str:
    """A line between the boxes' edges, moved to its right so that the way back does not cover it."""
    (x1, y1), (x2, y2) = _PLACES[begin], _PLACES[end]
    length = math.hypot(x2 - x1, y2 - y1)
    ux, uy = (x2 - x1) / length, (y2 - y1) / length
    shift_x, shift_y = -uy * 9, ux * 9
    from_x, from_y = _edge((x1, y1), (shift_x, shift_y), (ux, uy))
    to_x, to_y = _edge((x2, y2), (shift_x, shift_y), (-ux, -uy))
    text_x, text_y = from_x + (to_x - from_x) * 0.3 + shift_x, from_y + (to_y - from_y) * 0.3 + shift_y + 4
    return (
        f'<line x1="{from_x:.0f}" y1="{from_y:.0f}" x2="{to_x:.0f}" y2="{to_y:.0f}" '
        f'stroke="#444" marker-end="url(#tip)"/>'
        f'<text x="{text_x:.0f}" y="{text_y:.0f}" text-anchor="middle" font-size="12" fill="#06c">{number}</text>'
    )


def _edge(middle: Point, shift: Point, towards: Point) -> Point:
    """Where a ray that begins beside a box's middle leaves the box."""
    reach = min(
        (half - math.copysign(1, direction) * aside) / abs(direction) if direction else math.inf
        for half, aside, direction in zip((_BOX[0] / 2, _BOX[1] / 2), shift, towards, strict=True)
    )
    return middle[0] + shift[0] + towards[0] * reach, middle[1] + shift[1] + towards[1] * reach


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def main() -> int:
    argparse.ArgumentParser(prog="python -m benchmarks.fallback_figure", description=__doc__).parse_args()
    FIGURE.write_text(draw(), encoding="utf-8")
    print(f"{FIGURE.name}:")
    for line in legend():
        print(f"  {line}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
