"""Typed look-ups in a checkpoint's JSON files: what is missing or of the wrong type is named with its file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitvla_shared.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Fields:
    """A JSON object and where it was read. A field that is absent or null takes the default, where there is one."""

    where: str
    data: Mapping[str, Any]

    @classmethod
    def read(cls, file: Path) -> Fields:
        """Raises CheckpointError when the file is missing or holds no JSON object."""
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(f"{file}: {error.strerror}; is the download complete?") from error
        except ValueError as error:
            raise CheckpointError(f"{file} is not valid JSON ({error}); download it again") from error
        if not isinstance(data, dict):
            raise CheckpointError(f"{file} holds no JSON object; download it again")
        return cls(str(file), data)

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number of at least zero."""
        value = self._get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self._wrong(name, value, "a whole number")
        return value

    def real(self, name: str, default: float | None = None) -> float:
        value = self._get(name, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            raise self._wrong(name, value, "a number")
        return float(value)

    def text(self, name: str, default: str | None = None) -> str:
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, value, "text")
        return value

    def flag(self, name: str, default: bool | None = None) -> bool:
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def table(self, name: str, default: Mapping[str, Any] | None = None) -> Fields:
        value = self._get(name, default)
        if not isinstance(value, Mapping):
            raise self._wrong(name, value, "an object")
        return Fields(f"{self.where}: {name}", value)

    def items(self, name: str) -> list[Any]:
        """A list of anything; empty where the field is absent."""
        value = self._get(name, [])
        if not isinstance(value, list):
            raise self._wrong(name, value, "a list")
        return value

    def triples(self, name: str, count: int) -> list[tuple[float, float, float]]:
        """`count` lists of three numbers: one a tower, one number a colour channel."""
        value = self._get(name, None)
        rows = value if isinstance(value, list) else []
        ok = len(rows) == count and all(isinstance(row, list) and len(row) == 3 for row in rows)
        if not ok or not all(isinstance(item, (int, float)) and math.isfinite(item) for row in rows for item in row):
            raise self._wrong(name, value, f"{count} lists of 3 numbers")
        return [(float(row[0]), float(row[1]), float(row[2])) for row in rows]

    def _get(self, name: str, default: Any) -> Any:
        value = self.data.get(name)
        return default if value is None else value

    def _wrong(self, name: str, value: Any, expected: str) -> CheckpointError:
        found = "missing" if value is None else f"{value!r:.80}"
        return CheckpointError(f"{self.where}: {name} is {found}, expected {expected}")
