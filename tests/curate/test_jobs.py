"""The Ray Data job gives what the plain loop gives, and survives bad clips and a killed driver."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from polars.testing import assert_frame_equal

from curate import factors, jobs
from curate.detect import read_weights
from curate.plan import Options
from curate.query import open_catalog as open_footage
from curate.run import curate
from infra.catalog import open_catalog
from infra.settings import Settings
from infra.store import DirStore

pytest.importorskip("ray", reason="the extra [cloud] (ray) is not installed here")


def test_ray_and_the_loop_give_the_same_rows(tmp_path: Path, add_clip: Callable[..., str], tiny_detector: Path) -> None:
    """Six clips and a bad one: same keys, order and integers, floats within 1e-4, the same failure; a rerun is a no-op."""
    stores = [open_catalog(DirStore(tmp_path / name)) for name in ("loop", "ray")]
    for catalog in stores:
        for i in range(6):
            add_clip(catalog, f"c{i}", [(37 * i + 3 * frame) % 256 for frame in range(20 + 5 * i)])
        add_clip(catalog, "bad", b"no video at all" * 30)
    wanted = Options(
        steps=("scan", "detect", "tag"), detector=read_weights(tiny_detector), sheet=factors.parse(factors.DEFAULT), every_s=0.3
    )
    loop = curate(stores[0], wanted, Settings())
    with jobs.cluster(None) as cpus:
        assert cpus == jobs.LOCAL_CPUS
        by_ray = curate(stores[1], wanted, Settings(), engine=jobs.run_ray, cpus=cpus)
        again = curate(stores[1], wanted, Settings(), engine=jobs.run_ray, cpus=cpus)
    assert again.tally.clips == {} and len(again.plan.quarantined) == 1
    assert by_ray.tally.clips == loop.tally.clips and by_ray.tally.rows == loop.tally.rows
    assert by_ray.tally.failed == loop.tally.failed and len(loop.tally.failed) == 1
    views = [open_footage(catalog.store).frames.to_polars() for catalog in stores]
    assert_frame_equal(*views, abs_tol=1e-4, rel_tol=0)
    for table, keys in (
        ("detections", ["clip_id", "pts", "det_id"]),
        ("gops", ["clip_id", "gop_index"]),
        ("tags", ["clip_id", "pts"]),
    ):
        rows = [catalog.scan(table).drop("batch_id").sort(keys).collect() for catalog in stores]
        assert rows[0].height > 0
        assert_frame_equal(*rows, abs_tol=1e-4, rel_tol=0)
