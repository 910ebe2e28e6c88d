"""The light install: what a camera host gets by `pip install camloop`, alone in a virtual environment.

Fast: an environment that holds exactly the base dependencies (and theirs) of this checkout, linked from the running one.
Slow (`make test-all`, needs a package index): the same after a real `pip install .`, onto numpy 1.24, which must stay.
"""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from packaging.requirements import Requirement

from infra import keys, video
from infra.artefacts import Bundle, BundleSpec, StateSpec

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "ray", "pyarrow", "polars", "cv2", "torchvision", "deltalake", "onnx", "ultralytics", "open_clip", "faiss")
LIGHT = (
    "records", "errors", "settings", "keys", "clock", "durable", "log", "cli", "console", "store", "s3", "video", "predictor",
    "artefacts", "where",
)  # fmt: skip
WEB = ("serve.fleet_web",)  # the broker's web server: extra [web], never on a camera host
OLD_NUMPY = "1.24.4"

WRAPPER = f"""
import importlib.util, json, pathlib, pkgutil, sys
if sys.argv[1] == "import":
    import importlib, infra, ingest, serve
    names = ["infra." + name for name in {LIGHT!r}]
    for room in (ingest, serve):
        names += [found.name for found in pkgutil.walk_packages(room.__path__, room.__name__ + ".")
                  if found.name not in {WEB!r}]
    for name in names:
        importlib.import_module(name)
    code = 0
else:
    from infra.cli import main
    code = main(sys.argv[1:])
import numpy
status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
heavy = {HEAVY!r}
print(json.dumps({{
    "code": code, "peak_mib": int(status["VmHWM"].split()[0]) // 1024, "numpy": numpy.__version__,
    "imported": [name for name in heavy if name in sys.modules],
    "importable": [name for name in heavy if importlib.util.find_spec(name) is not None],
}}), file=sys.stderr)
"""


def base_distributions() -> dict[str, set[Path]]:
    """Return the base dependencies of camloop and all of theirs: name -> top-level entries in site-packages."""
    found: dict[str, set[Path]] = {}
    waiting = [(Requirement(text), frozenset({""})) for text in distribution("camloop").requires or []]
    seen = set()
    while waiting:
        requirement, extras = waiting.pop()
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        wanted = (requirement.name.lower(), frozenset({"", *requirement.extras}))
        if wanted in seen:
            continue
        seen.add(wanted)
        try:
            installed = distribution(requirement.name)
        except PackageNotFoundError:
            continue  # a marker of another platform
        root = Path(str(installed.locate_file("")))
        found[requirement.name] = {root / file.parts[0] for file in installed.files or [] if file.parts[0] not in ("..", "/")}
        waiting += [(Requirement(text), wanted[1]) for text in installed.requires or []]
    return found


def disk_mib(paths: set[Path]) -> float:
    """Return the size of files and folders, links followed once."""
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    return sum(file.stat().st_size for file in files) / (1 << 20)


@pytest.fixture(scope="module")
def linked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of an environment with the base dependencies and this checkout, nothing else."""
    folder = tmp_path_factory.mktemp("light") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python3*/site-packages")
    entries = set().union(*base_distributions().values())
    for entry in entries:
        (site / entry.name).symlink_to(entry)
    (site / "camloop.pth").write_text(str(ROOT))
    print(f"\nlight install: {disk_mib(entries):.0f} MiB on disk in {len(entries)} entries")
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of an environment after `pip install .` onto the numpy that Debian's picamera2 is built for."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    for what in (f"numpy=={OLD_NUMPY}", str(ROOT)):
        done = subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", what], capture_output=True, text=True, check=False
        )
        if done.returncode != 0 and ("No matching distribution" in done.stderr or "Connection" in done.stderr):
            pytest.skip(f"no package index can be reached: {done.stderr.strip().splitlines()[-1]}")
        assert done.returncode == 0, done.stderr
    (site,) = folder.glob("lib/python3*/site-packages")
    print(f"\npip install camloop: {disk_mib({site}):.0f} MiB on disk, pip and setuptools included")
    return python


def tiny_bundle() -> Bundle:
    """Return a real model of 16 x 32 pixels: P(bright) = mean / 255, with one state."""
    value, tensor = helper.make_tensor_value_info, numpy_helper.from_array
    nodes = [
        helper.make_node("Cast", ["frame"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "scale"], ["bright"]),
        helper.make_node("Sub", ["one", "bright"], ["dark"]),
        helper.make_node("Concat", ["dark", "bright"], ["flat"], axis=0),
        helper.make_node("Unsqueeze", ["flat", "axis"], ["probs"]),
        helper.make_node("Add", ["count", "one"], ["count_next"]),
    ]
    graph = helper.make_graph(
        nodes,
        "brightness",
        [value("frame", TensorProto.UINT8, [1, 16, 32, 3]), value("count", TensorProto.FLOAT, [1])],
        [value("probs", TensorProto.FLOAT, [1, 2]), value("count_next", TensorProto.FLOAT, [1])],
        [
            tensor(np.array([v], t), n)
            for n, v, t in (("scale", 1 / 255, np.float32), ("one", 1, np.float32), ("axis", 0, np.int64))
        ],
    )
    spec = BundleSpec(
        model_name="brightness", labels=("dark", "bright"), width_px=32, height_px=16, period_s=0.1,
        states=(StateSpec(name="count", shape=(1,)),), uncertain_below=0.7,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return Bundle(spec=spec, model=model.SerializeToString())


def work_as_a_camera_host(python: Path, folder: Path) -> dict[str, dict]:
    """Import everything, record, upload, release, pull and run with that Python; return what each process said of itself."""
    clip = folder / "door.mp4"
    with video.Writer(clip, 320, 240, Fraction(1, 1000)) as writer:
        for number in range(60):
            writer.add(np.full((240, 320, 3), 20 if number < 30 else 160, np.uint8), number * 100)
    bundle = tiny_bundle()
    bundle.write(folder / "store" / keys.bundle_prefix(bundle.bundle_id))
    steps = {
        "import": ["import"],
        "record": ["record", str(clip), "--spool", "spool"],
        "upload": ["upload", "spool", "--store", "store"],
        "release": ["release", bundle.bundle_id, "--force", "no gate in this test", "--keys", "keys", "--store", "store"],
        "run": ["run", str(clip), "--from", "store", "--home", "home", "--json"],
    }
    said = {}
    for name, argv in steps.items():
        command = [str(python), "-c", WRAPPER, *argv]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, f"{name}: {done.stderr}"
        said[name] = {**json.loads(done.stderr.splitlines()[-1]), "stdout": done.stdout}
    return said


def check(said: dict[str, dict], folder: Path) -> None:
    """Assert that everything worked, with nothing heavy imported or importable; print the peaks."""
    for name, process in said.items():
        assert process["code"] == 0, name
        assert process["imported"] == [] and process["importable"] == [], name
    assert len(list((folder / "store" / "clips").rglob("*.mp4"))) == 1
    document = json.loads(said["run"]["stdout"])
    assert document["n_predictions"] == 60 and document["forced"] and document["n_sent"] >= 1
    assert {line["label"] for line in document["lines"]} == {"dark", "bright"}
    print("peak memory: " + ", ".join(f"{name} {process['peak_mib']} MiB" for name, process in said.items()))


def test_base_dependencies_alone_carry_a_camera_host(linked: Path, tmp_path: Path) -> None:
    """Recorder, uploader, release, puller and run work with the base dependencies and nothing else."""
    check(work_as_a_camera_host(linked, tmp_path), tmp_path)


def test_nothing_heavy_is_a_base_dependency() -> None:
    """No heavy distribution is reached from the base requirements, however indirectly; numpy has no upper bound."""
    names = {name.lower().replace("-", "_") for name in base_distributions()}
    assert not names & {*HEAVY, "opencv_python", "opencv_python_headless", "open_clip_torch", "faiss_cpu"}
    (numpy,) = [Requirement(text) for text in distribution("camloop").requires or [] if Requirement(text).name == "numpy"]
    assert str(numpy.specifier) == ">=1.24" and OLD_NUMPY in numpy.specifier


@pytest.mark.slow
def test_pip_install_leaves_an_old_numpy_and_works(installed: Path, tmp_path: Path) -> None:
    """After a real installation numpy is still 1.24 and the same commands run."""
    said = work_as_a_camera_host(installed, tmp_path)
    check(said, tmp_path)
    assert {process["numpy"] for process in said.values()} == {OLD_NUMPY}
