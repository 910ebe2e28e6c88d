"""Where a device gets releases from: a store, a folder or USB stick, or a web server. TUF asks; this answers with bytes.

A place is untrusted: what it gives is verified by the caller, and read in pieces, so that an endless answer is cut off.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from infra.errors import SettingsError, StoreError, StoreForbidden
from infra.settings import Settings
from infra.store import DirStore, Store, open_store
from serve.repository import PREFIX

if TYPE_CHECKING:
    from tuf.ngclient import FetcherInterface

PIECE_BYTES = 1 << 20
TIMEOUT_S = 30  # to connect, and between two pieces of an answer


@dataclass(frozen=True, slots=True)
class Origin:
    """An opened place: what fetches, below which address, and whether it is a folder of this machine."""

    name: str
    fetcher: FetcherInterface
    base_url: str
    is_local: bool


def open_origin(place: str, settings: Settings | None = None) -> Origin:
    """Open the place named by `--from`.

    Args:
        place: a store (folder, file://, s3://), a folder that holds a copy of `releases/` (a USB stick), or
            http(s)://host/.../releases.
        settings: for S3.

    Raises:
        SettingsError: a folder that does not exist, or a URL of another kind.
    """
    if place.startswith(("http://", "https://")):
        return Origin(place, _web_fetcher(), place.rstrip("/") + "/", False)
    if "://" not in place or place.startswith("file://"):
        folder = Path(place.removeprefix("file://")).expanduser()
        if not folder.is_dir():
            raise SettingsError(f"--from {place}: no such folder; name a store, a copy of its releases folder, or a URL")
        prefix = "" if (folder / "metadata").is_dir() else PREFIX
        return Origin(place, _store_fetcher(DirStore(folder)), prefix, True)
    return Origin(place, _store_fetcher(open_store(place, settings)), PREFIX, False)


def store_origin(store: Store) -> Origin:
    """Return a store that is open already as a place to pull from."""
    return Origin(store.url, _store_fetcher(store), PREFIX, isinstance(store, DirStore))


def _web_fetcher() -> FetcherInterface:
    from tuf.api.exceptions import DownloadError
    from tuf.ngclient import FetcherInterface, Urllib3Fetcher
    from urllib3.exceptions import HTTPError

    inner = Urllib3Fetcher(socket_timeout=TIMEOUT_S, app_user_agent="camloop")

    class WebFetcher(FetcherInterface):
        """TUF's own HTTP client; an answer that breaks off in the middle is a DownloadError too."""

        def _fetch(self, url: str) -> Iterator[bytes]:
            try:
                yield from inner.fetch(url)
            except HTTPError as error:
                raise DownloadError(f"{url}: {error}") from error

    return WebFetcher()


def _store_fetcher(store: Store) -> FetcherInterface:
    from tuf.api.exceptions import DownloadError, DownloadHTTPError
    from tuf.ngclient import FetcherInterface

    class StoreFetcher(FetcherInterface):
        """Answers TUF's requests from a Store; an absent object is HTTP's 404."""

        def _fetch(self, url: str) -> Iterator[bytes]:
            try:
                found = store.head(url)
            except StoreForbidden as error:  # S3's word for a missing object to who may not list
                raise DownloadHTTPError(f"{store.url}: {error}", 403) from error
            except StoreError as error:
                raise DownloadError(f"{store.url}: {error}") from error
            if found is None:
                raise DownloadHTTPError(f"no object {url} in {store.url}", 404)
            return self._pieces(url, found.n_bytes)

        def _pieces(self, url: str, n_bytes: int) -> Iterator[bytes]:
            for start in range(0, n_bytes, PIECE_BYTES):
                try:
                    yield store.get_range(url, start, min(start + PIECE_BYTES, n_bytes))
                except StoreError as error:
                    raise DownloadError(f"{store.url}: {error}") from error

    return StoreFetcher()
