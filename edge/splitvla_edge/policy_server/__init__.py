"""The policy server: a robot's own program asks on localhost for an action, in the protocol that it already speaks.

Rules of this package:
 1. A request ends in an action of the model for that very request, in time, or in its protocol's own error. No old
    action, no action of zeros (a gripper would open), none after the deadline.
 2. A client's bytes become an ActionRequest or an error; only the decoders here touch them, and they know no pickle, no
    objects, and no dtype but those of a table. Sizes are bounded before anything is allocated.
 3. One thread owns the policy. A request whose client has gone, or whose deadline has passed, is not computed; time
    counts from its own arrival, also where its client sends ahead.
 4. No server, however dead or wrong, ends this process once it has agreed with one.

openvla, openpi, numpy_msgpack: the messages of the two protocols (pure). request: what both ask for. ladder: which
payload to send (pure). complaints: what the operator reads. worker: the thread. desk: from bytes to an action. turns:
what one websocket has sent. app: the routes. port: uvicorn, and what it leaves open. options, command.
"""
