"""The simulator process: commands in, one step of the world for each, a picture out; the world waits for nobody.

Rules of this file: a command is one control period of the world's time. One that was overtaken by a newer one is not
executed, its period passes as a hold; without any command the world goes on by itself, holding, as a robot whose
driver has a watchdog. An episode begins with its first action: until then the world stands still, so that it is the
same for a seed however long the model took to answer. A picture is drawn after the newest command only.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from splitvla_edge.daemon.datagrams import ChannelClosed, ChannelError
from splitvla_edge.daemon.episodes import Episode, Outcome
from splitvla_edge.robots.action_space import ActionSpace
from splitvla_edge.robots.simulator.memory import FrameMemory
from splitvla_edge.robots.simulator.messages import Act, SimulatorChannel, Status
from splitvla_edge.robots.simulator.world import SimulatorSettings, World
from splitvla_shared.config import load_config
from splitvla_shared.errors import ConfigError, RobotError
from splitvla_shared.nouns import Image

_WATCHDOG_PERIODS = 1.5
_QUALITY = 92  # of the pictures that are kept


@dataclass(frozen=True, slots=True)
class SimulateSettings:
    """What the daemon tells the simulator process. first_episode: where one that was started again goes on."""

    robot: str
    memory: Path
    dt_s: float
    first_episode: int = 0
    pictures: Path | None = None
    simulator: SimulatorSettings = field(default_factory=SimulatorSettings)


class Simulator:
    """The loop. Owned by the simulator process's one thread.

    Mutable state: the world, and the account of the episode that is running.
    """

    def __init__(
        self,
        world: World,
        task: str,
        space: ActionSpace,
        memory: FrameMemory,
        channel: SimulatorChannel,
        settings: SimulateSettings,
        *,
        keep: Callable[[int, Image], None] = lambda tick, image: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """keep: is given the picture after a command, with the command's tick."""
        self._world, self._task, self._memory, self._channel = world, task, memory, channel
        self._settings, self._keep, self._clock = settings, keep, clock
        self._still = space.hold(None, None, space.gripper_start, 0.0)
        self._hold = self._still
        self._gripper = space.gripper
        self._tick = 0
        self._patience_s = settings.simulator.start_s  # for an episode's first action
        self._begin(settings.first_episode)
        if self.finished:  # started again after the last episode: there must be a world to look at
            world.reset(task, settings.simulator.seed)

    @property
    def finished(self) -> bool:
        """Whether the last episode has ended; the world stands still from then on, and no picture is new."""
        return self._episode >= self._settings.simulator.episodes

    def run(self) -> None:
        """Until the control process is gone. Raises RobotError, and ChannelError on bytes that are no message."""
        try:
            self._show()
            while True:
                self._channel.wait(_WATCHDOG_PERIODS * self._settings.dt_s)
                self.turn()
        except ChannelClosed:
            return

    def turn(self) -> None:
        """The commands that are there, or one hold; then a picture and a status."""
        *overtaken, newest = [each for each in self._channel.receive() if isinstance(each, Act)] or [self._nothing()]
        for act in overtaken:
            self._overtaken += act.motion and act.episode == self._episode
            self._advance(self._nothing())
        self._advance(newest)
        self._tick = newest.tick
        if not self.finished:
            self._keep(self._tick, self._show())
            self._end_if_over()
        self._channel.send(Status(self._episode, self._steps, self._world.position))

    def _nothing(self) -> Act:
        return Act(self._tick, self._episode, False, self._hold)

    def _advance(self, act: Act) -> None:
        moving = act.motion and act.episode == self._episode and not self.finished
        if moving and self._gripper is not None:
            hold = list(self._still)
            hold[self._gripper] = act.values[self._gripper]
            self._hold = tuple(hold)
        self._motions += moving
        if self._motions:
            self._world.step(act.values if moving else self._hold)
            self._steps += 1
        else:
            self._waited += 1

    def _begin(self, episode: int) -> None:
        settings = self._settings.simulator
        self._episode = episode
        self._steps = self._motions = self._overtaken = self._waited = 0
        if self.finished:  # the last picture stays: nothing is reset that nobody will use
            self._memory.finish()
        else:
            self._hold = self._still
            self._world.reset(self._task, settings.seed + episode)

    def _end_if_over(self) -> None:
        settings = self._settings.simulator
        done = self._motions > 0 and self._world.success
        over = self._steps >= settings.steps or self._waited * self._settings.dt_s >= self._patience_s
        if not (done or over):
            return
        outcome = Outcome.SUCCESS if done else Outcome.TIMEOUT
        seed = settings.seed + self._episode
        self._patience_s = settings.steps * self._settings.dt_s
        self._channel.send(Episode(self._episode, seed, outcome, self._steps, self._motions, self._overtaken))
        self._begin(settings.episodes if done and settings.until_done else self._episode + 1)
        if not self.finished:
            self._show()

    def _show(self) -> Image:
        captured_at = self._clock()  # the world stands still while it is drawn
        image = self._world.image()
        self._memory.write(image, captured_at)
        return image


def read_settings(stream: TextIO) -> SimulateSettings:
    """What the daemon wrote. Raises ConfigError."""
    try:
        return load_config(SimulateSettings, given=json.loads(stream.read()))
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"the settings on standard input can't be read ({error}); `run` writes them") from error


def picture_keeper(folder: Path | None) -> Callable[[int, Image], None]:
    """Writes pictures as folder/<tick>.jpg; without a folder, nothing. Raises ConfigError."""
    if folder is None:
        return lambda tick, image: None
    import simplejpeg  # only the simulator process needs it

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} can't be made: {error.strerror}; choose another folder") from error

    def keep(tick: int, image: Image) -> None:
        path = folder / f"{tick:06}.jpg"
        try:
            path.write_bytes(simplejpeg.encode_jpeg(image, quality=_QUALITY))
        except OSError as error:
            raise RobotError(f"{path} can't be written: {error.strerror}; free the disk or record nothing") from error

    return keep


def serve(world: World, task: str, space: ActionSpace, settings: SimulateSettings, fd: int) -> None:
    """The `simulate` subcommand with its world opened: until the control process is gone. Raises RobotError."""
    channel = SimulatorChannel.from_fd(fd)
    memory = FrameMemory.open(settings.memory)
    try:
        keep = picture_keeper(settings.pictures)
        Simulator(world, task, space, memory, channel, settings, keep=keep).run()
    except ChannelError as error:
        raise RobotError(f"simulator: {error}") from error
    finally:
        world.close()
        memory.close()
        channel.close()
