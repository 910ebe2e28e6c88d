"""Which privacy holds for an address that a person typed: `camloop run` and `camloop preview` open cameras through this.

A camera is the same device however its address is spelled: another stream, size, rate or password hides no less. What any
`[[camera]]` of that device (or of that name) hides is hidden; an address that belongs to none gets the `[privacy]` of all.
A host name and the number it stands for are two hosts here: nothing is looked up.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from infra.errors import SettingsError
from infra.settings import Settings, read_table
from ingest.config import camera_configs
from ingest.source import Source, open_source

if TYPE_CHECKING:
    from ingest.privacy import PrivacySettings


def open_private(
    url: str,
    settings: Settings,
    *,
    camera_id: str | None = None,
    host_id: str = "host",
    allow: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> Source:
    """Return the pictures of a camera with everything hidden that camloop.toml says of it.

    Args:
        url: as of `source.open_source`, as are the other arguments.
        settings: of this host.
        camera_id: who films; a `[[camera]]` of that id counts as well.
        host_id: the machine.
        allow: networks that an rtsp address may lead to although they are not public.
        options: more, by kind.

    Raises:
        SettingsError: privacy that cannot be done; no camera was opened.
        UsageError, MediaError, DeviceError: as `source.open_source`.
    """
    from ingest.privacy import Privacy
    from ingest.take import taken

    stages = [Privacy(one) for one in privacy_of(url, settings, camera_id)]
    source = open_source(url, camera_id=camera_id, host_id=host_id, allow=allow, options=options)
    return taken(source, *(stage.frames for stage in stages)) if stages else source


def privacy_of(url: str, settings: Settings, camera_id: str | None = None) -> tuple[PrivacySettings, ...]:
    """Return all that must be hidden in the pictures of an address; empty where nothing is.

    Raises:
        SettingsError: a wrong table, with its line.
    """
    from ingest.privacy import PrivacySettings

    cameras = camera_configs(settings) if settings.toml.get("camera") else ()
    same = [camera for camera in cameras if camera.url == url or camera.id == camera_id]
    same = same or [camera for camera in cameras if device(camera.url) == device(url)]
    common = settings.toml.get("privacy", {})
    if not isinstance(common, Mapping):
        raise SettingsError("[privacy] must be a table")
    tables: list[Mapping[str, Any]] = []
    for table in [camera.privacy for camera in same] if same else [common]:
        if table and table not in tables:
            tables.append(table)
    return tuple(read_table(PrivacySettings, table, settings.where("privacy")) for table in tables)


def device(url: str) -> tuple[str, str]:
    """Return what an address leads to: kind and host, number, or path, without what is asked of it there."""
    scheme, found, rest = url.partition("://")
    scheme = scheme.lower()
    if not found or scheme == "file":
        return "file", os.path.realpath(rest if found else url)
    rest = rest.partition("?")[0]
    if scheme in ("rtsp", "rtsps"):
        try:
            return "rtsp", (urlsplit(url).hostname or "").rstrip(".")
        except ValueError:
            return "rtsp", rest
    if scheme == "v4l2":
        return scheme, os.path.realpath(rest)
    return scheme, rest.strip("/").lstrip("0") if scheme == "picam" else rest.strip("/")
