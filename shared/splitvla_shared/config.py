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


def load_config(kind: type[T], path: Path | None = None, overrides: Sequence[str] = ()) -> T:
    """Build `kind` (a frozen dataclass, nested ones as tables) from its defaults, a TOML file and `key.sub=value`."""
    data: dict[str, Any] = _read_toml(path) if path else {}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise ConfigError(f"--set {override!r}: expected key=value")
        _insert(data, key.strip().split("."), _parse_value(text.strip()), override)
    return _build(kind, data, "")


def describe_config(config: Any, prefix: str = "") -> Iterator[str]:
    """The effective configuration, a line `key = value` each, in the order of the dataclasses."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from describe_config(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name} = {value!r}"


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


def _insert(data: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        child = data.setdefault(key, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override!r}: {key} is a value, not a table")
        data = child
    data[keys[-1]] = value


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
    return kind(**values)


def _convert(value: Any, hint: Any, key: str) -> Any:
    accepted = typing.get_args(hint) or (hint,)
    if float in accepted and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, list) and typing.get_origin(hint) is tuple:
        return tuple(_convert(item, typing.get_args(hint)[0], key) for item in value)
    if typing.get_origin(hint) is typing.Literal:
        if value in accepted:
            return value
        raise ConfigError(f"{key} is {value!r}; one of {', '.join(map(str, accepted))}")
    if Path in accepted and isinstance(value, str):
        return Path(value)
    if any(type(value) is kind for kind in accepted):  # exactly: `true` is an int to Python, but no number here
        return value
    names = " or ".join(getattr(kind, "__name__", str(kind)) for kind in accepted)
    raise ConfigError(f"{key} is {value!r}, expected {names}")
