"""What the robot receives on each tick when answers are late or missing. Pure: no clock, no I/O, `now` is an argument.

Rules of this package:
 1. One command a tick, always. Every number in it is finite and inside the limits of the action space.
 2. Within a tick the worst event wins: events are listed worst first, and the first whose guard holds is the tick's.
 3. `table.TRANSITIONS` covers every state and event; nothing else moves the machine.
 4. SAFE_STOP is latched: only an operator reset leaves it, into INIT and a new epoch.
 5. An action is executed at most once, never when older than its maximum age, never from an older epoch, and never
    from a frame captured before the robot had settled after its last HOLD, or after it took no commands.
 6. HOLD never repeats a delta, never moves the gripper's target, and never sends an arm back to where it was before
    somebody may have moved it.
 7. A slow server never costs payload quality; a slow link does; a missing link does not.
 8. `now` is monotonic seconds of this machine, and all captures and deadlines are on that clock.
 9. These stops are requests by software, comparable to a category 2 stop. They are never a safety function.

table: states, events, transitions. messages: what comes in and goes out. settings. account: the replies. latency,
rungs: how long a payload takes, and which one to send. timers, motion: hold time, blend, tail. guards: one for each
event. machine: walks the table. machine.py is not imported here: robots declare their action space in between.
"""

from splitvla_edge.fallback.messages import (
    Asked,
    Chunk,
    Command,
    Hint,
    LocalChunk,
    Miss,
    Outcome,
    Ready,
    Reply,
    TickInputs,
    deadline_s,
)
from splitvla_edge.fallback.settings import FallbackSettings
from splitvla_edge.fallback.table import REMOTE, TRANSITIONS, Event, Mode, State, Transition

__all__ = [
    "REMOTE",
    "TRANSITIONS",
    "Asked",
    "Chunk",
    "Command",
    "Event",
    "FallbackSettings",
    "Hint",
    "LocalChunk",
    "Miss",
    "Mode",
    "Outcome",
    "Ready",
    "Reply",
    "State",
    "TickInputs",
    "Transition",
    "deadline_s",
]
