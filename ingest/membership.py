"""A host's place in a fleet, for whoever uploads: the `[fleet]` table, the key, the broker where there is one.

    [fleet]
    identity = "/var/lib/camloop/identity"    # a folder of mode 0700: host.pem, and fleet.json once the host has joined

A host that has joined (`camloop agent join URL --code CODE`) uploads through its broker, under the name that the broker
gave it, and signs its ledger. One that has not uploads to `store` with credentials of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.clock import Clock
from infra.objects import Destination
from infra.settings import Settings, read_table
from ingest.enrolled import Enrolled, read_enrolled
from ingest.ledger import Sign


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetConfig:
    """The `[fleet]` table: the folder of the host's key."""

    identity: Path = Path("camloop-identity")


def fleet_config(settings: Settings) -> FleetConfig:
    """Return what `[fleet]` says.

    Raises:
        SettingsError: an unknown key or a wrong value, with its line.
    """
    table: Mapping[str, Any] = settings.toml.get("fleet", {})
    return read_table(FleetConfig, table, settings.where("fleet"))


def membership(settings: Settings) -> Enrolled | None:
    """Return this host's place in a fleet, None where it never joined one.

    Raises:
        SettingsError: `[fleet]` is wrong.
        ArtefactError: what was kept of it is damaged.
    """
    return read_enrolled(fleet_config(settings).identity)


def as_member(settings: Settings) -> Settings:
    """Return the settings under the name and the address that the fleet gave this host; unchanged where there is none."""
    enrolled = membership(settings)
    if enrolled is None:
        return settings
    return dataclasses.replace(settings, host_id=enrolled.host_id, store_url=enrolled.url)


def join(settings: Settings, url: str, code: str) -> Enrolled:
    """Enrol this host with a broker: a key is made where there is none, the one-time code becomes a name.

    Raises:
        StoreForbidden: the code is not good.
        StoreError: the broker cannot be reached.
        DeviceError: the key cannot be made or used.
    """
    from infra.identity import open_identity
    from ingest.broker_wire import enroll

    folder = fleet_config(settings).identity
    return enroll(url, folder, open_identity(folder, settings.host_id), code)


def destination(settings: Settings, clock: Clock) -> Destination | None:
    """Return the broker of this host as a store, None where it never joined a fleet.

    Raises:
        DeviceError: the host's key is gone or cannot be used.
    """
    enrolled = membership(settings)
    if enrolled is None:
        return None
    from infra.identity import open_identity
    from ingest.broker_store import open_broker_store
    from ingest.pace import Pace

    identity = open_identity(fleet_config(settings).identity, enrolled.host_id)
    pace = Pace(clock.mono_ns() / 1e9, window_s=enrolled.window_s)
    return open_broker_store(enrolled.url, identity, clock, pace=pace)


def signer(settings: Settings) -> Sign | None:
    """Return what signs this host's ledger, None where it has no key; the key is read when it is first used."""
    folder = fleet_config(settings).identity
    if not (folder / "host.pem").exists():
        return None

    def sign(document: Mapping[str, Any]) -> str:
        from infra.identity import open_identity

        return open_identity(folder, settings.host_id).sign(document)

    return sign
