"""What the README says can be typed: every command parses, every make verb exists, every figure was measured."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [
    line
    for language, text in BLOCKS
    if not language
    for line in text.replace("\\\n", " ").splitlines()
    if line.startswith("splitvla-")
]


BENCHMARKS = [
    line
    for language, text in BLOCKS
    if not language
    for line in text.replace("\\\n", " ").splitlines()
    if line.startswith("python benchmarks/")
]


@pytest.mark.parametrize("line", BENCHMARKS)
def test_a_benchmark_of_the_readme_is_there_and_takes_these_options(line: str) -> None:
    _, script, *arguments = shlex.split(line, comments=True)
    assert (ROOT / script).is_file()
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    assert callable(module.build_parser().parse_args(arguments).command)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_readme_parses(line: str) -> None:
    program, *arguments = shlex.split(line)
    package = importlib.import_module(f"{program.replace('-', '_')}.__main__")
    parsed = package.build_parser().parse_args(arguments)
    assert callable(parsed.command)


def test_the_readme_shows_every_command_that_a_user_needs() -> None:
    shown = {tuple(line.split()[:2]) for line in COMMANDS}
    for verb in (
        ("splitvla-cloud", "split"),
        ("splitvla-cloud", "serve"),
        ("splitvla-edge", "act"),
        ("splitvla-edge", "run"),
    ):
        assert verb in shown


def test_the_python_of_the_readme_uses_what_there_is() -> None:
    for text in (text for language, text in BLOCKS if language == "python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                for name in node.names:
                    assert hasattr(module, name.name), f"{node.module} has no {name.name}"


def test_every_verb_of_the_readme_is_in_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    verbs = set(re.findall(r"^make (\w+)", README, flags=re.MULTILINE))
    assert {"demo", "test"} <= verbs
    for verb in verbs:
        assert re.search(rf"^{verb}:.*## ", makefile, flags=re.MULTILINE), f"make {verb} is not in the Makefile"


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_says_in_a_sentence_that_python_is_too_old_before_anything_is_installed(tmp_path: Path) -> None:
    """`false` plays an old Python: what it is asked first is whether it is new enough."""
    for name in ("Makefile", "pyproject.toml", "constraints-cpu.txt"):
        shutil.copy(ROOT / name, tmp_path)
    done = subprocess.run(["make", "-C", tmp_path, "demo", "PYTHON=false"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "false is too old for demo, test and bench: they need Python 3.11" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_every_figure_of_the_readme_s_table_stands_in_the_results() -> None:
    """A row of the README's measured table is a row of RESULTS.md, letter by letter."""
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    marked = re.search(r"<!-- from RESULTS.md -->\n(.*?)\n\n", README, flags=re.DOTALL)
    assert marked, "README's table is marked <!-- from RESULTS.md -->"
    rows = marked.group(1).splitlines()
    assert len(rows) > 2
    for row in rows:
        assert row in results, row


def test_every_link_of_the_documents_leads_to_a_file() -> None:
    for document in [ROOT / "README.md", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_no_row_stands_twice_in_a_table_of_the_results() -> None:
    """Two branches that both add rows are merged line by line, and then a table may hold some twice."""
    twice, seen = [], set[str]()
    for line in (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8").splitlines():
        if not line.startswith("| "):
            seen = set()
        elif line in seen:
            twice.append(line)
        else:
            seen.add(line)
    assert not twice


def test_every_file_that_the_documents_name_is_there() -> None:
    """A page may leave out the folders that its context gives."""
    not_ours = {"deploy.py", "finetune.py", "modeling_prismatic.py", "my_arm.py"}
    tracked = [
        f"/{path.relative_to(ROOT)}"
        for top in ("shared", "edge", "cloud", "benchmarks", "tests")
        for path in (ROOT / top).rglob("*.py")
    ]
    for document in [ROOT / "README.md", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md")]:
        for name in re.findall(r"`(?:shared:)?([\w/]+\.py)`", document.read_text(encoding="utf-8")):
            there = name in not_ours or any(path.endswith(f"/{name}") for path in tracked)
            assert there, f"{document.name} names {name}"
