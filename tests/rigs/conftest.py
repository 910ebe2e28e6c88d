"""Rigs: the real picamera2 on virtual cameras, and a Pi's Debian under qemu. Unpacked and built in temporary folders."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
RIGS = ROOT.parent / "shared" / "rigs"
PICAMERA2 = "picamera2==0.3.38"  # what the rig's libcamera was tried with
Rig = Callable[..., dict[str, Any]]
Arm = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def rigs() -> Path:
    """Return the folder of the rigs."""
    if not RIGS.is_dir():
        pytest.skip("rigs are absent: ../shared/rigs is not beside this checkout")
    return RIGS


@pytest.fixture(scope="session")
def checkout_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of what pip needs of this checkout, so that building leaves nothing in it."""
    copy = tmp_path_factory.mktemp("checkout") / "camloop"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for room in ("infra", "ingest", "curate", "train", "serve"):
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def _installed(command: list[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        pytest.skip(f"{what}: {lines[-1] if lines else 'no message'}")


@pytest.fixture(scope="session")
def virtual_cameras(rigs: Path, checkout_copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """Return a caller of programs of this folder, in an environment with picamera2, virtual cameras and our light install.

    A program prints its result as one JSON document on its last line; that is what the caller returns. `config` names
    another list of virtual cameras.
    """
    archives = list(rigs.glob("picamera2-virtual/*.tar.xz"))
    if not archives:
        pytest.skip("the rig picamera2-virtual is absent")
    if sys.version_info[:2] != (3, 11) or sys.platform != "linux":
        pytest.skip("the rig picamera2-virtual is built for Python 3.11 on Linux")
    folder = tmp_path_factory.mktemp("picam")
    subprocess.run(["tar", "xJf", str(archives[0]), "-C", str(folder)], check=True)
    use, python = folder / "picamera2-virtual" / "use.sh", folder / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    needs = "picamera2 cannot be built here (apt install gcc python3-dev libcap-dev, and a package index)"
    _installed([str(python), "-m", "pip", "install", "--quiet", PICAMERA2, str(checkout_copy)], needs)
    _installed([str(use), str(python), "-c", "import picamera2"], "picamera2 does not start (apt install libyuv0 libyaml-0-2)")

    def call(
        program: str, *arguments: object, timeout_s: float = 120.0, config: Path | None = None, cwd: Path = folder
    ) -> dict[str, Any]:
        command = [str(use), str(python), str(ROOT / "tests" / "rigs" / program), *map(str, arguments)]
        if config is not None:
            command = ["env", f"LIBCAMERA_VIRTUAL_CONFIG_FILE={config}", *command]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s, cwd=cwd)
        assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-1000:]
        document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return document

    return call


@pytest.fixture(scope="session")
def arm64_root(rigs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the root of an arm64 Debian; built in minutes, or kept between runs in the folder CAMLOOP_ARM64_ROOT."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("the arm64 rig needs root and Debian's apt")
    kept = os.environ.get("CAMLOOP_ARM64_ROOT")
    root = Path(kept) if kept else tmp_path_factory.mktemp("arm64") / "root"
    _installed([str(rigs / "arm64" / "enter"), str(root), "/bin/true"], "the arm64 system cannot be built here")
    return root


@pytest.fixture(scope="session")
def arm64(rigs: Path, arm64_root: Path) -> Arm:
    """Return a caller of commands in the arm64 system; `cwd` is a folder as the system sees it."""

    def call(*command: str, cwd: str = "/", timeout_s: float = 600.0, check: bool = True) -> subprocess.CompletedProcess[str]:
        inside = ["/bin/sh", "-c", 'cd "$0" && exec "$@"', cwd, *command]
        done = subprocess.run(
            [str(rigs / "arm64" / "enter"), str(arm64_root), *inside],
            capture_output=True, text=True, check=False, timeout=timeout_s,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command}: {done.stderr[-3000:]}"
        return done

    return call


@pytest.fixture(scope="session")
def wheel(checkout_copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(checkout_copy)]
    _installed(command, "no wheel can be built here (setuptools from a package index)")
    (made,) = folder.glob("camloop-*.whl")
    return made
