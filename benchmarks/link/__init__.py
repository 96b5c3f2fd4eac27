"""A link emulator: one pure model of a link on simulated time, and a TCP proxy on real sockets that the model drives.

    traces      recorded rates and delays, and readers for three formats
    conditions  what a link does at the moment: rate, delay, jitter, loss, bursts, damage, closed or open
    pipe        one direction of a link on simulated time; no clock, no socket, no thread
    proxy       a TCP proxy driven by two pipes, controlled while it runs
    synthetic   traces of the statistics of real links, generated

`python -m benchmarks.link --help` runs the proxy by itself.
"""

from benchmarks.link.conditions import Bursts, Conditions
from benchmarks.link.connection import DOWN, UP, Direction
from benchmarks.link.pipe import Delivery, Pipe
from benchmarks.link.proxy import LinkProxy
from benchmarks.link.traces import Trace

__all__ = ["DOWN", "UP", "Bursts", "Conditions", "Delivery", "Direction", "LinkProxy", "Pipe", "Trace"]
