"""The Ray Data job gives what the plain loop gives, with bad clips and with pools of its own; clips go out in parcels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from polars.testing import assert_frame_equal

from curate import factors, jobs
from curate.detect import read_weights
from curate.plan import Options, Work
from curate.query import open_catalog as open_footage
from curate.resources import Resources
from curate.run import curate
from infra.catalog import open_catalog
from infra.errors import UsageError
from infra.settings import Settings
from infra.store import DirStore

pytest.importorskip("ray", reason="the extra [cloud] (ray) is not installed here")


def works(*lengths_s: int) -> list[Work]:
    """Return clips of these lengths."""
    same = {"first_pts": 0, "time_base_num": 1, "time_base_den": 1}
    return [Work(clip=same | {"clip_id": str(i), "end_pts": length_s}, missing={}) for i, length_s in enumerate(lengths_s)]


class TestParcels:
    """Clips go out together where they are short, so that models get full batches, and no worker has much in work."""

    def test_short_clips_share_one(self) -> None:
        """10,000 clips of 3 s: parcels of a minute, in order, nothing lost."""
        made = jobs.parcels(works(*[3] * 10_000), workers=2)
        assert {len(parcel) for parcel in made} == {20}
        assert [work.clip_id for parcel in made for work in parcel] == [str(i) for i in range(10_000)]

    def test_long_ones_go_alone(self) -> None:
        """A clip of ten minutes, however short its neighbours."""
        assert [len(parcel) for parcel in jobs.parcels(works(*[600] * 300), workers=2)] == [1] * 300

    def test_few_clips_are_for_everybody(self) -> None:
        """Six clips of 3 s and eight workers: one each; a kill costs at most a 128th of a worker's share."""
        assert [len(parcel) for parcel in jobs.parcels(works(*[3] * 6), workers=8)] == [1] * 6
        made = jobs.parcels(works(*[1] * 6400), workers=10)
        assert len(made) == 1280 and jobs.parcels([], workers=1) == []


def test_ray_and_the_loop_give_the_same_rows(tmp_path: Path, add_clip: Callable[..., str], tiny_detector: Path) -> None:
    """Six clips and a bad one: same keys, order and integers, floats within 1e-4, the same failure; a rerun is a no-op.

    By one worker that does all, and by two decoders beside one detector; a device that no worker has is refused.
    """
    stores = [open_catalog(DirStore(tmp_path / name)) for name in ("loop", "ray", "apart")]
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
        sized = dataclasses.replace(wanted, resources=Resources(workers={"decode": (2, 2)}))
        pools = curate(stores[2], sized, Settings(), engine=partial(jobs.run_ray, apart=True), cpus=cpus)
        absent = Resources(device="cuda:7")
        with pytest.raises(UsageError, match="--device cuda:7 is not on the Ray cluster; available: auto, cpu"):
            absent.check(jobs.available(absent))
    assert again.tally.clips == {} and len(again.plan.quarantined) == 1
    for result in (by_ray, pools):
        assert result.tally.clips == loop.tally.clips and result.tally.rows == loop.tally.rows
        assert result.tally.failed == loop.tally.failed and len(loop.tally.failed) == 1
        assert result.tally.cameras == loop.tally.cameras
    views = [open_footage(catalog.store).frames.to_polars() for catalog in stores]
    for view in views[1:]:
        assert_frame_equal(view, views[0], abs_tol=1e-4, rel_tol=0)
    for table, keys in (
        ("detections", ["clip_id", "pts", "det_id"]),
        ("gops", ["clip_id", "gop_index"]),
        ("tags", ["clip_id", "pts"]),
    ):
        rows = [catalog.scan(table).drop("batch_id").sort(keys).collect() for catalog in stores]
        assert rows[0].height > 0
        for row in rows[1:]:
            assert_frame_equal(row, rows[0], abs_tol=1e-4, rel_tol=0)
