"""What is to be evaluated: who acts, what is done, in which world; checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from splitvla_edge.robots.metaworld.adapter import check_machine
from splitvla_edge.robots.metaworld.tasks import BALLS, find_task
from splitvla_shared.errors import ConfigError

LOCKSTEP, REAL = "lockstep", "real"
DAEMON, PLAIN = "daemon", "plain"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One condition. See the options of benchmarks.success, which are these fields.

    checkpoint None: the trained one. bundles None: split anew. unnorm_key None: the only one. delay_ms: added to every
    round trip. trace: rate of the uplink. client: the edge daemon with its fallback ladder, or the plain client (real).
    sets: `--set` texts for the daemon. out: folder for what comes out, or None.
    """

    tasks: tuple[str, ...]
    episodes: int
    seed: int
    steps: int
    checkpoint: Path | None = None
    bundles: Path | None = None
    unnorm_key: str | None = None
    unsplit: bool = False
    precision: str = "fp32"
    scheme: str = "bf16"
    encoder: str = "fp32"
    threads: int = 1
    black_image: bool = False
    wrong_colour: bool = False
    clock: str = LOCKSTEP
    client: str = DAEMON
    control_hz: float = 5.0
    delay_ms: float = 0.0
    trace: str | None = None
    sets: tuple[str, ...] = ()
    same_tokens: bool = False
    name: str | None = None
    out: Path | None = None

    def check(self) -> None:
        """Raises ConfigError for what can't go together, or can't be had on this machine."""
        for task in self.tasks:
            find_task(task)
        if self.episodes < 1 or self.steps < 1 or self.delay_ms < 0:
            raise ConfigError(
                f"--episodes {self.episodes}, --steps {self.steps} must be at least 1, --delay-ms {self.delay_ms} 0"
            )
        if self.clock == LOCKSTEP and (self.delay_ms or self.trace or self.sets or self.client != DAEMON):
            raise ConfigError(
                "--delay-ms, --trace, --client and --set need --clock real: in lockstep the world waits for answers"
            )
        if self.client == PLAIN and self.sets:
            raise ConfigError("--set is for the daemon; the plain client has no settings")
        if self.clock == REAL and (self.unsplit or self.black_image or self.same_tokens):
            raise ConfigError("--unsplit, --black-image and --same-tokens need --clock lockstep")
        if self.same_tokens and (self.unsplit or self.black_image):
            raise ConfigError("--same-tokens compares the product with the unsplit model; leave the other option out")
        if self.wrong_colour and any(find_task(task).ball is None for task in self.tasks):
            raise ConfigError("--wrong-colour is about balls; use --tasks reach-red reach-green reach-blue")
        check_machine()

    def instruction(self, task: str) -> str:
        """What the policy is told; with wrong_colour, the next ball's colour in the place of this one's."""
        found = find_task(task)
        if not self.wrong_colour or found.ball is None:
            return found.instruction
        colours = list(BALLS)
        return found.instruction.replace(found.ball, colours[(colours.index(found.ball) + 1) % len(colours)])

    @property
    def condition(self) -> str:
        """In a few words, for table and plot."""
        if self.name:
            return self.name
        parts = ["unsplit" if self.unsplit else f"split, {self.scheme}", self.precision]
        parts += [f"encoder {self.encoder}"] if self.encoder != "fp32" else []
        parts += [LOCKSTEP] if self.clock == LOCKSTEP else [f"{self.control_hz:g} Hz"]
        parts += ["plain client"] if self.client == PLAIN else []
        parts += [f"+{self.delay_ms:g} ms"] if self.delay_ms else []
        parts += [Path(self.trace).stem] if self.trace else []
        parts += ["black image"] if self.black_image else []
        parts += ["wrong colour"] if self.wrong_colour else []
        return ", ".join(parts)
