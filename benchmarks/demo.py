"""make demo: the trained policy does a task in the simulator, over the wire, though the server is killed in the middle.

Everything is real: two server processes (the second is loaded and waits for the first one's port), the edge daemon with
its control, perception and simulator processes, gRPC over loopback, and a policy that was trained for this world. Where
there is no GL library, no Meta-World or no trained policy, real WidowX frames are played instead, through random
weights: then the actions mean nothing, and the timing, the bytes and the fallbacks are what there is to see.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.outage import run_show
from benchmarks.processes import ProcessLost
from benchmarks.shows import choose_show, recorded
from splitvla_edge.daemon.run import new_run_dir
from splitvla_shared.errors import SplitVLAError


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", type=Path)
    parser.add_argument("--checkpoint", type=Path, help="another policy for the simulated world")
    parser.add_argument("--recorded", action="store_true", help="recorded frames, though the simulator is there")
    arguments = parser.parse_args(argv)
    try:
        show = recorded() if arguments.recorded else choose_show(arguments.checkpoint)
        return run_show(show, arguments.run_dir or new_run_dir())
    except SplitVLAError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return error.exit_code
    except ProcessLost as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
