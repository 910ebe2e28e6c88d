"""A host's place in a fleet, as it is kept beside its key: `fleet.json`. Reading it loads no network and no cryptography."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from infra import durable
from infra.errors import ArtefactError

FLEET_NAME: Final = "fleet.json"  # beside the host's key: what the broker called it, and its window


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """What a host keeps about its place in the fleet."""

    url: str
    host_id: str
    cameras: tuple[str, ...]
    window_s: float | None = None

    def save(self, folder: Path) -> None:
        """Keep it beside the host's key."""
        durable.write(folder / FLEET_NAME, json.dumps(asdict(self), sort_keys=True).encode())


def read_enrolled(folder: Path) -> Enrolled | None:
    """Return what was kept in `folder`, None when this host was never enrolled.

    Raises:
        ArtefactError: the file is damaged.
    """
    try:
        document = json.loads((folder / FLEET_NAME).read_bytes())
        return Enrolled(**{**document, "cameras": tuple(document["cameras"])})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise ArtefactError(
            f"{folder / FLEET_NAME} is damaged; enrol this host again: camloop agent join URL --code CODE"
        ) from error
