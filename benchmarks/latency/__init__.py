"""The latency benchmark: how fast, how many bytes, and whether the split is the right choice at all.

    python -m benchmarks.latency                                   # everything here, on a small model
    python -m benchmarks.latency --server HOST:PORT --bundle DIR   # this robot against that server

Rules of this package:
 - What is compared runs on the same machine, in the same run, on the same weights and frames, round by round.
 - Two machines' clocks are never subtracted: a server reports durations, and what is left of a round trip is `network`.
 - Where the split loses, the report says so.
"""
