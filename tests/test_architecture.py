"""The rule of the house, tested: the floor imports no room, rooms never import each other, commands resolve."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from infra.cli import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("infra", "ingest", "curate", "train", "serve")
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "manager", "base", "misc"}
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
    return found


def test_import_contracts_hold() -> None:
    """import-linter's contracts in pyproject.toml are kept."""
    program = Path(sys.executable).parent / "lint-imports"
    result = subprocess.run([program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-3000:]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_resolves_and_has_an_example(command: object) -> None:
    """Each string of the table names an object; its example begins with the command itself."""
    module, _, attribute = command.target.partition(":")  # type: ignore[attr-defined]
    assert callable(getattr(importlib.import_module(module), attribute))
    assert command.example.startswith(f"camloop {command.name}")  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_named_and_sized_as_agreed(path: Path) -> None:
    """No grab-bag names, no file over 400 lines, every module says what it is for."""
    text = path.read_text()
    assert path.stem not in FORBIDDEN_NAMES
    assert len(text.splitlines()) <= 400
    assert not text.strip() or ast.get_docstring(ast.parse(text)), "no module docstring"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_need_no_scrolling(path: Path) -> None:
    """No function is longer than 60 lines, its docstring included."""
    functions = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef))
    assert {f.name: long for f in functions if (long := (f.end_lineno or 0) - f.lineno + 1) > 60} == {}


def test_only_settings_reads_the_environment() -> None:
    """os.environ is read in infra/settings.py and nowhere else."""
    guilty = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if path != ROOT / "infra" / "settings.py" and re.search(r"os\.environ|os\.getenv", path.read_text())
    ]
    assert guilty == []


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("boto3", {"infra/s3.py"}),
        ("deltalake", {"infra/deltalog.py", "infra/catalog.py"}),
        ("ray", {"curate/jobs.py", "train/jobs.py"}),
        ("av", {f"infra/{name}.py" for name in ("video", "reader", "writer", "picture", "images", "remux")}
               | {f"ingest/{name}.py" for name in ("stream", "packets", "usb", "decoding")}),  # streams of cameras
        ("ultralytics", {"curate/detect.py", "infra/demo/build_models.py"}),
    ],
)
def test_a_library_has_one_importer(library: str, allowed: set[str]) -> None:
    """Some libraries may be imported in one place only, so that they can be replaced there."""
    importers = {
        str(path.relative_to(ROOT)) for path in SOURCES if any(name.split(".")[0] == library for name in _imports(path))
    }
    assert importers <= allowed


def test_light_modules_import_no_heavy_library() -> None:
    """infra L0-L1, ingest and serve import without torch, ray, pyarrow, polars or opencv."""
    heavy_floor = {"catalog", "tables", "views", "losses", "deltalog", "datafiles", "maintain", "torchvision_cpu", "doctor"}
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in SOURCES
        if path.name != "__init__.py"
        and path.relative_to(ROOT).parts[0] in ("infra", "ingest", "serve")
        and "demo" not in path.parts
        and not (path.parent.name == "infra" and path.stem in heavy_floor)
    ]
    program = (
        "import sys, importlib\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "heavy = {'torch', 'ray', 'pyarrow', 'polars', 'cv2', 'deltalake', 'pandas'} & set(sys.modules)\n"
        "sys.exit(f'imported: {sorted(heavy)}' if heavy else 0)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]


def test_few_broad_excepts() -> None:
    """At most three broad excepts in the project, each with a comment beside it."""
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in SOURCES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"except( Exception| BaseException)?( as \w+)?:", line)
    ]
    assert len(found) <= 3, found
