"""A robot of the user's own: `--robot MODULE:NAME` names a RobotKind in a Python module of his (docs/robots.md)."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from splitvla_edge.robots.kinds import RobotKind
from splitvla_shared.errors import ConfigError


def is_own(name: str) -> bool:
    """Does this name a module and something in it? What is there is not looked at."""
    module, colon, attribute = name.partition(":")
    return bool(colon) and attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))


def own_kind(name: str) -> RobotKind:
    """The RobotKind called NAME in MODULE, from the working directory or installed. Raises ConfigError."""
    module_name, _, attribute = name.partition(":")
    module = _imported(name, module_name)
    kind = getattr(module, attribute, None)
    if isinstance(kind, RobotKind):
        return kind
    kinds = [f"{module_name}:{key}" for key, value in vars(module).items() if isinstance(value, RobotKind)]
    there = f"{attribute} there is a {type(kind).__name__}" if kind is not None else f"there is no {attribute} in it"
    remedy = f"did you mean {' or '.join(kinds)}?" if kinds else f"write {attribute} = RobotKind(camera=..., robot=...)"
    raise ConfigError(f"robot {name!r}: {module_name} has no robot of that name ({there}); {remedy}")


def _imported(name: str, module_name: str) -> object:
    # As in the other processes of the daemon, which `python -m` starts: the working directory comes first.
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(f"robot {name!r}: importing {module_name} failed: {error}; install it here") from error
        raise ConfigError(
            f"robot {name!r}: there is no module {module_name}, neither in {here} nor installed; "
            "start where the file is, or install it"
        ) from error
    except Exception as error:  # whatever a user's module does while it is imported
        raise ConfigError(f"robot {name!r}: importing {module_name} failed: {type(error).__name__}: {error}") from error
