"""When the two machines agree on the model, and how patiently the robot asks: for whoever owns an EdgePolicy."""

from __future__ import annotations

from collections.abc import Callable

from splitvla_shared.errors import ConfigError, LinkError, SpecMismatch, SplitVLAError

# A handshake that began before the link came back only costs time; every fourth has what a slow link needs.
_PATIENCE_S = (0.3, 0.3, 0.3, 1.0)
_REFUSED_PAUSE_S = (0.25, 2.0)  # first and last: a server of another model stays one for a while
UNREACHABLE_PAUSE_S = 0.1  # attempts and calls without a connection fail at once: they must not spin


class Handshakes:
    """Mutable state: whether a model is agreed, and ever was; attempts since, and the pause before the next one."""

    def __init__(self) -> None:
        self.agreed = False
        self.pause_s = 0.0
        self._ever = False
        self._attempts, self._refused_pause_s = 0, _REFUSED_PAUSE_S[0]

    def seek(self, handshake: Callable[[float], object]) -> SplitVLAError | None:
        """Ask once. Returns None when a model is agreed, otherwise the reason, and the next attempt is to come after
        `pause_s`.

        Raises SpecMismatch or ConfigError at the first answer ever: a bundle or setting that no retry can mend.
        """
        patience_s = _PATIENCE_S[self._attempts % len(_PATIENCE_S)]
        self._attempts += 1
        try:
            handshake(patience_s)
        except (SpecMismatch, ConfigError) as error:
            if not self._ever:
                raise
            self.pause_s = self._refused_pause_s
            self._refused_pause_s = min(self._refused_pause_s * 2, _REFUSED_PAUSE_S[1])
            return error
        except LinkError as error:
            self.pause_s = UNREACHABLE_PAUSE_S
            return error
        self.agreed = self._ever = True
        self._attempts, self._refused_pause_s = 0, _REFUSED_PAUSE_S[0]
        return None

    def heed(self, error: SplitVLAError) -> None:
        """A call failed: after SpecMismatch the server may have been restarted, and is to be asked again."""
        self.agreed = not isinstance(error, SpecMismatch)
