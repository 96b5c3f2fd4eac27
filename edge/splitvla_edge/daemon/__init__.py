"""`splitvla-edge run`: the control process that ticks, the perception process beside it, and what both write down."""
