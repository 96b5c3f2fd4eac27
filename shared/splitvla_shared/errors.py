"""Every error that SplitVLA raises on purpose, and the one table between errors and gRPC statuses.

SplitVLAError
├── ConfigError            a setting is unknown or makes no sense
├── CheckpointError        the source checkpoint is not one that `split` can read
├── BundleError            a bundle is missing, incomplete or damaged
├── ObservationError       an image, state or instruction that no model could take
├── CodecError             bytes that are not the tensor they claim to be
├── RobotError             the camera or the robot failed
└── LinkError              a call that gave no action
    ├── Unreachable        no connection, or the server is going away
    ├── DeadlineMissed     no answer within the deadline
    ├── Overloaded         the server shed the request
    ├── Superseded         a newer frame of the same session took its place
    ├── SpecMismatch       the two machines do not hold the same model
    ├── RequestRejected    the server calls the request malformed
    ├── EarlyStop          the model ended its answer before the action was complete
    ├── KeyFrameNeeded     the payload is a difference from a frame that the server does not hold
    └── ServerFault        the server failed, or answered something that is not an action

Rules of this file: a message names the thing, the value and the remedy; the table below is read by the link
(status to error) and by the service (error to status), so that the two can never drift apart.
"""

from __future__ import annotations


class SplitVLAError(Exception):
    """Root of the tree. `exit_code` is what a command line ends with when this error reaches it."""

    exit_code = 1


class ConfigError(SplitVLAError):
    exit_code = 2


class CheckpointError(SplitVLAError):
    exit_code = 3


class BundleError(SplitVLAError):
    exit_code = 3


class ObservationError(SplitVLAError):
    exit_code = 2


class CodecError(SplitVLAError):
    exit_code = 5


class RobotError(SplitVLAError):
    exit_code = 6


class LinkError(SplitVLAError):
    """retry_after_s: how long the server asks to be left alone, 0 where it asks for nothing.

    by_server: the server refused the call in its own words; False where this side gave up, or nobody can tell.
    """

    exit_code = 4
    retry_after_s = 0.0
    by_server = False


class Unreachable(LinkError):  # noqa: N818 - the names are the outcomes that the field speaks of
    pass


class DeadlineMissed(LinkError):  # noqa: N818
    pass


class Overloaded(LinkError):  # noqa: N818
    pass


class Superseded(LinkError):  # noqa: N818
    pass


class SpecMismatch(LinkError):  # noqa: N818
    exit_code = 3


class RequestRejected(LinkError):  # noqa: N818
    pass


class EarlyStop(LinkError):  # noqa: N818
    pass


class KeyFrameNeeded(LinkError):  # noqa: N818
    """Travels as a field of the reply, not as a status: the call itself went well."""


class ServerFault(LinkError):  # noqa: N818
    pass


# gRPC status name -> the error it means, in both directions. Statuses that are not listed mean ServerFault.
STATUS_TO_ERROR: dict[str, type[LinkError]] = {
    "UNAVAILABLE": Unreachable,
    "DEADLINE_EXCEEDED": DeadlineMissed,
    "RESOURCE_EXHAUSTED": Overloaded,
    "ABORTED": Superseded,
    "FAILED_PRECONDITION": SpecMismatch,
    "INVALID_ARGUMENT": RequestRejected,
    "OUT_OF_RANGE": EarlyStop,
    "INTERNAL": ServerFault,
}

# Errors outside the LinkError branch that the service meets while it reads a request: all mean "malformed".
_MALFORMED = (CodecError, ObservationError)


def error_for_status(status: str) -> type[LinkError]:
    """The error class for a gRPC status name such as "UNAVAILABLE"."""
    return STATUS_TO_ERROR.get(status, ServerFault)


def status_for_error(error: SplitVLAError) -> str:
    """The gRPC status name that carries `error` to the edge."""
    if isinstance(error, _MALFORMED):
        return "INVALID_ARGUMENT"
    for status, kind in STATUS_TO_ERROR.items():
        if isinstance(error, kind):
            return status
    return "INTERNAL"
