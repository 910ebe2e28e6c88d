"""Attacks on releases beyond one changed byte: endless answers, stolen keys, models that are traps (RELIABILITY.md 39-45)."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from tuf.api.metadata import Metadata, MetaFile, TargetFile
from tuf.ngclient import FetcherInterface

from infra import keys
from infra.artefacts import Bundle
from infra.clock import SystemClock
from infra.errors import ArtefactError
from infra.predictor import Predictor
from infra.store import MemoryStore
from serve import golden, repository
from serve.origin import Origin, store_origin
from serve.puller import Puller
from serve.release import release_path
from serve.repository import metadata_key, target_key


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def device(store, publish, make_bundle, tmp_path) -> Puller:
    """Return a device that runs release 1 of the store."""
    publish(store, make_bundle(1.0))
    puller = Puller(tmp_path / "home", SystemClock())
    puller.trust(store.get(metadata_key("1.root.json")))
    assert puller.update(store_origin(store), "stable").kind == "installed"
    return puller


def still_runs(puller: Puller, store: MemoryStore, origin: Origin | None = None) -> str:
    """Do one round; assert that nothing was installed and the old model runs; return why."""
    before = puller.installed()
    outcome = puller.update(origin or store_origin(store), "stable")
    after = Puller(puller.home, SystemClock()).installed()
    assert outcome.kind in ("refused", "unchanged", "rolled-back")
    assert before is not None and after is not None and after.bundle.bundle_id == before.bundle.bundle_id
    return outcome.why


def replaced(origin: Origin, ending: str, answer: bytes | None) -> Origin:
    """Return an origin that gives `answer` without end for what ends so; None breaks off after the first piece."""

    class Hostile(FetcherInterface):
        def _fetch(self, url: str) -> Iterator[bytes]:
            if not url.endswith(ending):
                return origin.fetcher.fetch(url)
            return itertools.repeat(answer) if answer is not None else iter([next(iter(origin.fetcher.fetch(url)))[:50]])

    return dataclasses.replace(origin, fetcher=Hostile())


@pytest.mark.parametrize(
    "ending", ["timestamp.json", ".snapshot.json", ".targets.json", ".stable.json", ".model.onnx", ".root.json"]
)
def test_endless_answers_are_cut_off_by_size(store, device, publish, make_bundle, ending) -> None:
    """Every kind of file, streamed for ever: aborted at its limit, the old model goes on."""
    publish(store, make_bundle(0.5))
    why = still_runs(device, store, replaced(store_origin(store), ending, b"x" * 65_536))
    assert "Downloaded" in why and "exceeding" in why


@pytest.mark.parametrize("ending", ["timestamp.json", ".snapshot.json", ".targets.json", ".stable.json", ".model.onnx"])
def test_truncated_answers_are_refused(store, device, publish, make_bundle, ending) -> None:
    """Every kind of file, broken off: refused, then installed when the line is back."""
    publish(store, make_bundle(0.5))
    still_runs(device, store, replaced(store_origin(store), ending, None))
    assert device.update(store_origin(store), "stable").kind == "installed"


def resign(store: MemoryStore, signers: dict, roles: set[str], evil: bytes) -> None:
    """Do what somebody with the keys of `roles` can: swap the model, and sign whatever names it, as far as the keys reach."""
    timestamp = Metadata.from_bytes(store.get(metadata_key("timestamp.json")))
    snapshot = Metadata.from_bytes(store.get(metadata_key(f"{timestamp.signed.snapshot_meta.version}.snapshot.json")))
    targets = Metadata.from_bytes(store.get(metadata_key(f"{snapshot.signed.meta['targets.json'].version}.targets.json")))
    path = next(path for path in targets.signed.targets if path.endswith("/model.onnx"))
    targets.signed.targets[path] = TargetFile.from_data(path, evil, ["sha256"])
    targets.signed.version += 10
    store.put(target_key(path, keys.sha256_hex(evil)), evil)
    for role, metadata, name in (
        ("targets", targets, f"{targets.signed.version}.targets.json"),
        ("snapshot", snapshot, f"{snapshot.signed.version + 10}.snapshot.json"),
        ("timestamp", timestamp, "timestamp.json"),
    ):
        if role == "snapshot":
            snapshot.signed.version += 10
            snapshot.signed.meta["targets.json"] = MetaFile(targets.signed.version)
        if role == "timestamp":
            timestamp.signed.version += 10
            timestamp.signed.snapshot_meta = MetaFile(snapshot.signed.version)
        if role in roles:
            metadata.sign(signers[role])
        store.put(metadata_key(name), metadata.to_bytes())


@pytest.mark.parametrize(
    "stolen",
    [set(roles) for n in range(3) for roles in itertools.combinations(("targets", "snapshot", "timestamp"), n)],
    ids=lambda roles: "+".join(sorted(roles)) or "none",
)
def test_stolen_keys_reach_as_far_as_tuf_says(store, device, publish, make_bundle, signers, stolen) -> None:
    """Without all three of targets, snapshot and timestamp nobody gets another model onto a device."""
    publish(store, make_bundle(0.5))
    resign(store, signers, stolen, make_bundle(0.9).model)
    still_runs(device, store)


def test_all_online_keys_stolen_still_need_a_whole_bundle(store, device, publish, make_bundle, signers) -> None:
    """With all three keys a swapped model.onnx alone is still not the one that bundle.json names."""
    publish(store, make_bundle(0.5))
    resign(store, signers, {"targets", "snapshot", "timestamp"}, make_bundle(0.9).model)
    assert "model.onnx hashes to" in still_runs(device, store)


def test_a_target_announced_too_large_is_not_fetched(store, device, publish, make_bundle, signers) -> None:
    """A signed length beyond the limit is refused before the first byte."""
    publish(store, make_bundle(0.5))
    opened = repository.Repository(store, signers, SystemClock())
    bundle_id = make_bundle(0.5).bundle_id
    opened.targets[release_path("stable", bundle_id, "model.onnx")].length = 1 << 40
    opened.publish({"notes/again.txt": b"signs the list again"})
    assert "at most" in still_runs(device, store)


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_a_pickle_is_never_opened(make_bundle, tmp_path) -> None:
    """A pickle under the name model.onnx is refused as what it is not; nothing of it runs."""
    bundle = Bundle(spec=make_bundle().spec, model=pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(ArtefactError):
        Predictor(bundle)
    assert not (tmp_path / "sprung").exists()


def test_a_tensor_that_fits_no_memory_fails_its_trial(make_bundle) -> None:
    """A graph that asks for 4 TiB in a frame is an ArtefactError, so the device goes back."""
    value, tensor = helper.make_tensor_value_info, numpy_helper.from_array
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "half"], ["probs"]),
        helper.make_node("Cast", ["frame"], ["unused"], to=TensorProto.FLOAT),
        helper.make_node("Identity", ["count"], ["count_next"]),
    ]
    graph = helper.make_graph(
        nodes,
        "huge",
        [value("frame", TensorProto.UINT8, [1, 16, 32, 3]), value("count", TensorProto.FLOAT, [1])],
        [value("probs", TensorProto.FLOAT, [1, 2]), value("count_next", TensorProto.FLOAT, [1])],
        [
            tensor(np.array([1 << 40], np.int64), "shape"),
            tensor(np.array(0, np.float32), "zero"),
            tensor(np.array([[0.5, 0.5]], np.float32), "half"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    with pytest.raises(ArtefactError):
        golden.run(Predictor(Bundle(spec=make_bundle().spec, model=model)), (), SystemClock())
