"""The parts of the latency benchmark; benchmarks/latency.py is its command line.

    site, ways            who is measured: servers that are started here, or somebody's; and each way to an action
    serve, rest,
    websocket, whole      the alternatives: OpenVLA's REST server, openpi's websocket, the model whole
    stages, alternatives  a frame's way by stage, and the same frame every way
    links, regions        the same over other links, computed; link_tables also through real sockets
    robot, fleet          many robots against one server, processes of their own
    scale, soak           their tables
    run, plan, results    the order of it all, how much of it, and what is kept
    compare               is it slower than an earlier run?

Rules of this package:
 - What is compared runs on the same machine, in the same run, on the same weights and frames, round by round.
 - Two machines' clocks are never subtracted: a server reports durations, and what is left of a round trip is `network`.
 - Where the split loses, the report says so.
"""
