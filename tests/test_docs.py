"""The documents are executed: README blocks run as written, tables.md names every column, every command is described."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from infra.cli import COMMANDS
from infra.tables import SCHEMAS, WRITTEN_ALONE

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TABLES = (ROOT / "infra" / "docs" / "tables.md").read_text(encoding="utf-8")
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def readme_sections() -> dict[str, list[tuple[str, str]]]:
    """Return the executable blocks (console, python) of the README by the heading they stand under."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for part in re.split(r"^#+ ", README, flags=re.MULTILINE)[1:]:
        heading, _, body = part.partition("\n")
        blocks = [(kind, text) for kind, text in _BLOCK.findall(body) if kind in ("console", "python")]
        if blocks:
            sections[heading.strip()] = blocks
    return sections


def commands_of(block: str) -> list[str]:
    """Return the lines after `$ `, with backslash continuations joined."""
    joined = block.replace("\\\n", " ")
    return [line[2:].strip() for line in joined.splitlines() if line.startswith("$ ")]


@pytest.mark.parametrize("heading", sorted(readme_sections()))
def test_readme_blocks_run_as_written(heading: str, tmp_path: Path) -> None:
    """Every console and python block of a section runs, in order, in one empty folder."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    for kind, block in readme_sections()[heading]:
        programs = commands_of(block) if kind == "console" else [f"{sys.executable} -c '{block}'"]
        assert programs, f"no command in a block of {heading!r}: {block}"
        for program in programs:
            argv: list[str] | str = [sys.executable, "-c", block] if kind == "python" else program
            where = {"cwd": tmp_path, "env": environment, "shell": kind == "console"}
            result = subprocess.run(argv, **where, capture_output=True, text=True, timeout=600, check=False)
            expected = re.search(r"# exit (\d)", program)
            wanted = int(expected.group(1)) if expected else 0
            assert result.returncode == wanted, f"{program}\n{result.stdout[-2000:]}\n{result.stderr[-3000:]}"


@pytest.mark.parametrize("table", sorted(SCHEMAS))
def test_every_column_is_described(table: str) -> None:
    """tables.md has a paragraph per table that names each of its columns."""
    paragraph = re.search(rf"^\*\*{table}\*\*.*?(?=^\*\*|^## |\Z)", TABLES, re.MULTILINE | re.DOTALL)
    assert paragraph, f"{table} is not in tables.md"
    common = ("batch_id", "schema_version")
    missing = [name for name in SCHEMAS[table].names if name not in common and f"`{name}`" not in paragraph[0]]
    assert missing == []


def test_tables_page_says_which_are_written_alone() -> None:
    """The list on the page is the one in the code."""
    line = re.search(r"visible by their own commit: `([^`]+)`", TABLES)
    assert line and set(line[1].split()) == set(WRITTEN_ALONE)


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_every_command_is_in_the_readme_and_has_help(command: str) -> None:
    """README names each command; `--help` shows its example."""
    assert f"camloop {command}" in README
    result = subprocess.run(
        [sys.executable, "-m", "infra.cli", command, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "example:" in result.stdout


def test_no_address_of_a_registry_and_no_path_of_this_machine() -> None:
    """Nothing that git tracks names a package registry's host or a home folder."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    tracked = listed.stdout.split("\0")
    guilty = []
    for name in tracked:
        path = ROOT / name
        if not path.is_file() or path.suffix in {".onnx", ".pt", ".safetensors", ".png", ".jpg"} or path == Path(__file__):
            continue
        content = path.read_text(encoding="utf-8", errors="replace")
        if re.search(r"index-url|find-links|pypi\.org/simple|/ro{2}t/|/home/\w+/work", content):
            guilty.append(name)
    assert guilty == []
