"""Closed-loop evaluation: a policy acts in the simulated world, and what counts is whether the task gets done.

    evaluation      what is to be evaluated, checked before anything is loaded
    runner          runs it: processes up, episodes one after the other, counts
    actors          who acts: the split policy over gRPC, the unsplit reference, and the ones that are made blind
    rollout         the lockstep clock: observe, act, step, and the world waits for every action
    real_clock      the real clock: the edge daemon or a plain client drives the world, which waits for nobody
    plain           the plain client: ask, wait, execute what comes, whatever its age
    sweep           many conditions on the real clock: delays, traces, precisions, with and without the daemon
    sweep_report    their table and their picture
    results         successes with their intervals, as a table, as a plot, and on disk
    frame_account   how often tokens repeat from step to step, and how large a frame's JPEG is
    filmstrip       one episode as a picture, with the source of every action drawn on its frame
    trained         where the trained policy is, and its two halves

Lockstep is no mode of the daemon: its control loop gives one command a tick by the clock, which is its point. It is a
loop around the same `EdgePolicy.act`, deterministic to the token, so that exactness can be tested over whole episodes.
"""
