"""Configuration: one TOML file a side and `--set key=value`, read into frozen dataclasses.

Rules: a key that no dataclass has is an error with a suggestion; a value of the wrong type is an error that names the
key; nothing is read from the environment.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

if sys.version_info >= (3, 11):
    import tomllib
else:  # the Jetson's Python 3.10 has no tomllib
    import tomli as tomllib

from splitvla_shared.errors import ConfigError

T = TypeVar("T")


def load_config(
    kind: type[T],
    path: Path | None = None,
    overrides: Sequence[str] = (),
    given: Mapping[str, Any] | None = None,
) -> T:
    """Build `kind` (a frozen dataclass, nested ones as tables).

    From its defaults, a TOML file, `key.sub=value` texts (values as in TOML) and `given` dotted keys with their values
    (None = not given); the later wins.
    """
    data: dict[str, Any] = _read_toml(path) if path else {}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise ConfigError(f"--set {override!r}: expected key=value")
        _insert(data, key.strip(), _parse_value(text.strip()))
    for key, value in (given or {}).items():
        if value is not None:
            _insert(data, key, value)
    return _build(kind, data, "")


def describe_config(config: Any, prefix: str = "") -> Iterator[str]:
    """The effective configuration, a line `key = value` each, in the order of the dataclasses."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from describe_config(value, f"{prefix}{field.name}.")
        else:
            shown = str(value) if isinstance(value, Path) else value
            yield f"{prefix}{field.name} = {shown!r}"


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"configuration {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"configuration {path} is not valid TOML: {error}") from error
    return data


def _parse_value(text: str) -> Any:
    """A TOML value where it is one, otherwise the text itself, so that `--set robot=arm` needs no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        return text


def _insert(data: dict[str, Any], dotted: str, value: Any) -> None:
    *tables, last = dotted.split(".")
    for key in tables:
        child = data.setdefault(key, {})
        if not isinstance(child, dict):
            raise ConfigError(f"setting {dotted}: {key} is a value, not a table")
        data = child
    data[last] = value


def _build(kind: type[T], data: Mapping[str, Any], prefix: str) -> T:
    hints = typing.get_type_hints(kind)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"known: {', '.join(fields)}"
            raise ConfigError(f"unknown setting {prefix}{key}; {hint}")
        hint_type = fields[key]
        if dataclasses.is_dataclass(hint_type):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{prefix}{key} is a table of settings, not {value!r}")
            values[key] = _build(typing.cast(type, hint_type), value, f"{prefix}{key}.")
        else:
            values[key] = _convert(value, hint_type, f"{prefix}{key}")
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"setting {prefix}{field.name} is missing; it has no default")
    return kind(**values)


def _convert(value: Any, hint: Any, key: str) -> Any:
    accepted = typing.get_args(hint) or (hint,)
    if typing.get_origin(hint) is tuple:
        return _convert_list(value, accepted, key)
    if float in accepted and type(value) in (int, float):
        return _finite(value, key)
    if typing.get_origin(hint) is typing.Literal:
        if value in accepted:
            return value
        raise ConfigError(f"{key} is {value!r}; one of {', '.join(map(str, accepted))}")
    if Path in accepted and isinstance(value, str | Path):
        return Path(value)
    if any(type(value) is kind for kind in accepted):  # exactly: `true` is an int to Python, but no number here
        return value
    names = " or ".join(getattr(kind, "__name__", str(kind)) for kind in accepted)
    raise ConfigError(f"{key} is {value!r}, expected {names}")


def _finite(value: int | float, key: str) -> float:
    # Every comparison with nan is false, so that no range check of a dataclass would notice one.
    if abs(value) <= sys.float_info.max:
        return float(value)
    raise ConfigError(f"{key} is {value!r:.40}, expected a finite number")


def _convert_list(value: Any, hints: tuple[Any, ...], key: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{key} is {value!r}, expected a list")
    if hints[-1] is Ellipsis:
        hints = hints[:1] * len(value)
    if len(value) != len(hints):
        raise ConfigError(f"{key} has {len(value)} entries, expected {len(hints)}")
    return tuple(_convert(item, hint, key) for item, hint in zip(value, hints, strict=True))
