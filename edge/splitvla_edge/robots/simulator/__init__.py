"""A simulated robot for the daemon: the world lives in a process of its own, and goes on while the model thinks.

messages.py is what control and simulator say to each other, memory.py is how pictures reach perception, process.py is
the simulator's loop, robot.py is the daemon's end of it. Which worlds there are stands in the table of robots.
"""
