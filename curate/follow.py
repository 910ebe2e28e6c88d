"""`camloop curate --follow`: clips that arrive are registered and curated as they come, until somebody stops it.

    what lies under clips/ without a row -> registered, as `camloop ingest` does -> curated -> a rest -> again

A pass with nothing to do writes nothing. Two of these beside each other do no harm: a clip is registered once, its rows are
live once, and the worst that happens is that both decode it.
"""

from __future__ import annotations

from curate import arrivals, cameras
from curate.register import Outcome, Registrar
from infra import runs
from infra.catalog import Catalog
from infra.clock import Clock

REST_S = 30.0


def register_arrived(catalog: Catalog, *, clock: Clock) -> Outcome | None:
    """Register what lies under clips/ and has no row; None where nothing new does.

    Raises:
        StoreError: the store cannot be reached.
        UsageError: a clip without a sidecar, whose camera nobody names.
    """
    held = catalog.scan("clips", ["key"]).collect()["key"].to_list()
    found = arrivals.in_clips(catalog.store, held)
    if not found.arrivals:
        return None
    found = arrivals.assign_cameras(found, camera=None, registry=None, folders_are_classes=False)
    known = cameras.in_force(catalog)
    rows = cameras.wanted_rows((arrival.camera_id for arrival in found.arrivals), known, None, None, clock.now_ns())
    with runs.recorded(catalog, "ingest", {"follow": True}, trigger="follow", clock=clock) as run:
        outcome = Registrar(catalog, known, rows, clock=clock).run(found.arrivals)
        run.outputs |= {"n_registered": len(outcome.registered), "n_failed": len(outcome.failed)}
    return outcome
