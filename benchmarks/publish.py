"""Puts the tables and pictures of a run into RESULTS.md, docs/ and README.md, each at its place.

    python -m benchmarks.publish runs/bench-20260101-120000 runs/closed-loop-20260101-123000

A table NAME.md of the run takes the place of what stands between `<!-- results: NAME -->` and `<!-- /results -->`; one
that has no place yet gets it behind the one that comes before it in BLOCKS. The rows of README's table are looked up in
RESULTS.md again by their first two cells. The words around the tables are for a person to write.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from splitvla_shared.command_line import run_command
from splitvla_shared.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
# In the order in which they stand; the first of each row has its place in RESULTS.md from the beginning.
BLOCKS: tuple[tuple[str, ...], ...] = (
    ("verdict",),
    (
        "alternatives",
        "stages",
        "policy",
        "policy-links",
        "links",
        "control",
        "traces",
        "sockets",
        "scale",
        "soak",
        "soak-minutes",
    ),
    ("closed-loop",),
)
PICTURES = ("alternatives", "regions", "scale", "soak", "closed-loop")
# Of the payload ladder's rows only these: the others stay in the run's folder.
_ONLY_ROWS = {"stages": ("| split, bf16 |", "The other rungs are in the run's folder.")}
_END = "<!-- /results -->"
_OUT = re.compile(r" --out [^ `]+")
_README_TABLE = re.compile(r"(<!-- from RESULTS\.md -->\n)(.*?)(\n\n)", flags=re.DOTALL)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.publish",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder that a benchmark wrote")
    parser.add_argument("--root", type=Path, default=ROOT, metavar="DIR", help="of the checkout (this one)")
    parser.set_defaults(command=lambda arguments: _publish(arguments.runs, arguments.root))
    return run_command(parser, argv)


def _publish(runs: Sequence[Path], root: Path) -> int:
    results, readme = root / "benchmarks" / "RESULTS.md", root / "README.md"
    text = results.read_text(encoding="utf-8")
    for run in runs:
        names = [name for row in BLOCKS for name in row if (run / f"{name}.md").exists()]
        if not names:
            raise ConfigError(f"{run} holds no table of {', '.join(name for row in BLOCKS for name in row)}")
        for name in names:
            text = placed(text, name, shown(name, (run / f"{name}.md").read_text(encoding="utf-8")))
        pictures = [name for name in PICTURES if (run / f"{name}.png").exists()]
        for name in pictures:
            shutil.copyfile(run / f"{name}.png", root / "docs" / f"{name}.png")
        print(f"{run}: tables {', '.join(names)}; pictures {', '.join(pictures) or 'none'}")
    results.write_text(text, encoding="utf-8")
    readme.write_text(refreshed(readme.read_text(encoding="utf-8"), text), encoding="utf-8")
    return 0


def placed(text: str, name: str, table: str) -> str:
    """The results with `table` as block `name`. Raises ConfigError when there is no place for it."""
    begin = f"<!-- results: {name} -->"
    block = f"{begin}\n\n{table.strip()}\n\n{_END}"
    if begin in text:
        before, _, rest = text.partition(begin)
        if _END not in rest:
            raise ConfigError(f"RESULTS.md: {begin} has no {_END}")
        return before + block + rest.partition(_END)[2]
    row = next(row for row in BLOCKS if name in row)
    for earlier in reversed(row[: row.index(name)]):
        before, found, rest = text.partition(f"<!-- results: {earlier} -->")
        if found:
            inside, _, after = rest.partition(_END)
            return before + found + inside + _END + "\n\n" + block + after
    raise ConfigError(f"RESULTS.md has no place for {name}: write {begin} and {_END} where it shall stand")


def shown(name: str, table: str) -> str:
    """Without the rows that are left out, and without the folder that the run went to: it is nobody else's."""
    table = _OUT.sub("", table)
    if name not in _ONLY_ROWS:
        return table
    wanted, remark = _ONLY_ROWS[name]
    lines = table.splitlines()
    first = next((at for at, line in enumerate(lines) if line.startswith("| --- |")), len(lines))
    if not any(line.startswith(wanted) for line in lines):
        return table
    kept = [line for at, line in enumerate(lines) if at <= first or not line.startswith("|") or line.startswith(wanted)]
    return "\n".join(kept) + f" {remark}"


def refreshed(readme: str, results: str) -> str:
    """README with each row of its marked table as it stands in the results now. Raises ConfigError on a lost row."""
    known = {_key(line): line for line in results.splitlines() if line.startswith("| ")}

    def replace(found: re.Match[str]) -> str:
        rows = found.group(2).splitlines()
        if lost := [row for row in rows if _key(row) not in known]:
            raise ConfigError(f"README.md: RESULTS.md has no row any more that begins like {lost[0]!r}")
        return found.group(1) + "\n".join(known[_key(row)] for row in rows) + found.group(3)

    return _README_TABLE.sub(replace, readme)


def _key(row: str) -> tuple[int, str, str]:
    cells = row.split("|")
    return len(cells), cells[1].strip(), cells[2].strip()


if __name__ == "__main__":
    sys.exit(main())
