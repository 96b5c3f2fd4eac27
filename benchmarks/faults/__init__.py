"""Faults done to real processes, and what the robot was told meanwhile. `python -m benchmarks.faults --help`.

catalogue   the faults: a table of what is done, what undoes it, and what is expected of the robot
rig         server, link, camera, daemon and robot, each real or as close as a machine without a robot comes
driver      the robot: takes commands from a pipe, and stops by its own watchdog
cameras     a network camera that can go black, freeze, and be unplugged
camera_clock, wall_clock   clocks that can be stepped under the daemon
scripted    a server that lies on demand
measure     from what the driver and the step log saw to figures; pure
"""
