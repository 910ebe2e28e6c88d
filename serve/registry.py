"""The fleet's registry, one document in the store: which hosts there are, their cameras, keys, quotas, and who is revoked.

    code = registry.invite("barn-pi-1", ["cam-a", "cam-b"])   # the operator; the code is shown once, its hash is kept
    host = registry.accept(code, public_key)                   # the device, once, before the code expires
    registry.revoke("barn-pi-1")                               # from the next look of the broker on, within `FRESH_S`

One document, replaced by put-if-match, so that no two hosts can ever hold one camera, whoever writes at the same time.
A camera that was given to a host stays reserved for it after a revocation, until the host is removed or invited anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from infra import keys
from infra.clock import Clock
from infra.errors import ArtefactError, ObjectChanged, ObjectExists, ObjectMissing, StoreError, StoreForbidden, UsageError
from infra.identity import is_public_key
from infra.objects import Store, require
from infra.selftest import fresh_key

KEY: Final = "fleet/registry.json"
VERSION: Final = 1
FRESH_S: Final = 30.0  # a broker reads the registry again after this; with an address of ten minutes a revocation is complete
CODE_LIFETIME_S: Final = 24 * 3600.0
CLIPS_A_DAY: Final = 20_000  # a camera: one clip every 4.3 s
BYTES_A_DAY: Final = 100_000_000_000  # a camera: 9.3 Mbit/s without a break
_CODE_LETTERS: Final = "23456789ABCDEFGHJKMNPQRSTVWXYZ"  # none that is taken for another over the phone
_CODE_LENGTH: Final = 16  # 78 bits
_TRIES: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One camera host. `code_sha256` is set while an invitation is open; `former_keys` still prove old ledger pages.

    `used_code_sha256` is that of the code that `public_key` came with: the device whose answer was lost may ask once more.

    `former_cameras` were its own once: its old pages speak of them, but it may write nothing of theirs any more.
    """

    host_id: str
    cameras: tuple[str, ...]
    public_key: str | None = None
    former_keys: tuple[str, ...] = ()
    former_cameras: tuple[str, ...] = ()
    code_sha256: str | None = None
    used_code_sha256: str | None = None
    code_expires_ns: int = 0
    enrolled_ns: int | None = None
    revoked_ns: int | None = None
    clips_a_day: int = CLIPS_A_DAY
    bytes_a_day: int = BYTES_A_DAY

    @property
    def state(self) -> str:
        """One word: invited, enrolled or revoked."""
        if self.revoked_ns is not None:
            return "revoked"
        return "enrolled" if self.public_key is not None else "invited"


def _read(data: bytes) -> dict[str, Host]:
    try:
        document = json.loads(data)
        if document["version"] != VERSION:
            raise ArtefactError(f"{KEY}: version {document['version']!r}; this camloop reads {VERSION}")
        hosts = {}
        for host_id, row in document["hosts"].items():
            lists = {name: tuple(row[name]) for name in ("cameras", "former_keys", "former_cameras")}
            hosts[host_id] = Host(host_id=host_id, **(row | lists))
        return hosts
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtefactError(f"{KEY} is no registry of a fleet: {type(error).__name__}: {error}") from error


def _write(hosts: Mapping[str, Host]) -> bytes:
    rows = {}
    for host_id, host in sorted(hosts.items()):
        rows[host_id] = dataclasses.asdict(host)
        del rows[host_id]["host_id"]
    return json.dumps({"version": VERSION, "hosts": rows}, indent=1, sort_keys=True).encode()


class Registry:
    """The registry as one process sees it; safe between threads.

    Args:
        store: where it lies; must honour put-if-absent and put-if-match.
        clock: for expiry.
        fresh_s: how long what was read may be used, in seconds.
    """

    def __init__(self, store: Store, clock: Clock, *, fresh_s: float = FRESH_S) -> None:
        self._store = store
        self._clock = clock
        self._fresh_ns = round(fresh_s * 1e9)
        self._lock = threading.Lock()
        self._hosts: Mapping[str, Host] = {}
        self._read_ns: int | None = None

    def hosts(self) -> Mapping[str, Host]:
        """Return all hosts by id, at most `fresh_s` old.

        Raises:
            StoreError: it is older than that and cannot be read.
        """
        with self._lock:
            now_ns = self._clock.mono_ns()
            if self._read_ns is None or now_ns - self._read_ns >= self._fresh_ns:
                self._hosts = self._current()[0]
                self._read_ns = now_ns
            return self._hosts

    def _current(self) -> tuple[dict[str, Host], str | None]:
        for _ in range(_TRIES):
            before = self._store.head(KEY)
            if before is None:
                return {}, None
            try:
                data = self._store.get(KEY)
            except ObjectMissing:
                continue
            after = self._store.head(KEY)
            if after is not None and after.etag == before.etag:
                return _read(data), before.etag
        raise StoreError(f"{KEY} in {self._store.url} changes without end; run it again")

    def _change(self, change: Callable[[dict[str, Host]], Host]) -> Host:
        """Replace the document by a changed one; repeat from what is there now when somebody else was faster."""
        for attempt in range(_TRIES):
            hosts, etag = self._current()
            made = change(hosts)
            hosts[made.host_id] = made
            try:
                if etag is None:
                    self._store.put_if_absent(KEY, _write(hosts))
                else:
                    self._replace(_write(hosts), etag)
            except (ObjectChanged, ObjectExists):
                self._clock.sleep_s(0.01 * secrets.randbelow(1 << min(attempt, 6)))
                continue
            except StoreForbidden as error:
                raise StoreForbidden(f"{error}; the registry is the operator's: use the store's own credentials") from error
            with self._lock:
                self._hosts, self._read_ns = hosts, self._clock.mono_ns()
            return made
        raise StoreError(f"{KEY} in {self._store.url} was changed by others {_TRIES} times meanwhile; run it again")

    def _replace(self, data: bytes, etag: str) -> None:
        try:
            self._store.put_if_match(KEY, data, etag)
        except ObjectChanged:
            now = self._store.head(KEY)
            if now is None or now.etag != etag or etag == _unquoted(etag):
                raise
            self._store.put_if_match(KEY, data, _unquoted(etag))

    def invite(
        self,
        host_id: str,
        cameras: Sequence[str],
        *,
        lifetime_s: float = CODE_LIFETIME_S,
        clips_a_day: int = CLIPS_A_DAY,
        bytes_a_day: int = BYTES_A_DAY,
    ) -> str:
        """Reserve a host and its cameras, and return a one-time code for it; a host that exists gets a new code.

        Until the code is used, a host that is enrolled goes on under its old key; a revoked one stays revoked.

        Raises:
            UsageError: a name that cannot stand in a key, no camera, a quota that is not positive, or a camera of another host.
        """
        keys.check_name(host_id, "host")
        if not cameras:
            raise UsageError(f"host {host_id}: no camera; name at least one with --cameras a,b")
        if clips_a_day < 1 or bytes_a_day < 1 or lifetime_s <= 0:
            raise UsageError(f"{clips_a_day} clips, {bytes_a_day} bytes a day, code for {lifetime_s} s: all must be positive")
        wanted = tuple(dict.fromkeys(keys.check_name(camera, "camera") for camera in cameras))
        code = "".join(secrets.choice(_CODE_LETTERS) for _ in range(_CODE_LENGTH))

        def change(hosts: dict[str, Host]) -> Host:
            for other in hosts.values():
                if other.host_id != host_id and (taken := set(other.cameras) & set(wanted)):
                    raise UsageError(f"camera {', '.join(sorted(taken))} belongs to host {other.host_id}; name another")
            before = hosts.get(host_id, Host(host_id=host_id, cameras=wanted))
            former = dict.fromkeys((*before.former_cameras, *(name for name in before.cameras if name not in wanted)))
            return dataclasses.replace(
                before, cameras=wanted, former_cameras=tuple(former), clips_a_day=clips_a_day, bytes_a_day=bytes_a_day,
                code_sha256=_hash(code), code_expires_ns=self._clock.now_ns() + round(lifetime_s * 1e9),
            )  # fmt: skip

        self._change(change)
        return "-".join(code[start : start + 4] for start in range(0, _CODE_LENGTH, 4))

    def accept(self, code: str, public_key: str) -> Host:
        """Enrol the host that a code was made for; the code is used up, an older key of the host is worth nothing from now on.

        The same code with the same key again changes nothing and is answered alike: the first answer may have been lost.

        Raises:
            UsageError: no such code, used, expired, or a key that is none. The message does not say which.
        """
        if not is_public_key(public_key):
            raise UsageError("not an Ed25519 public key of 64 hex digits")
        hashed = _hash(code)

        def change(hosts: dict[str, Host]) -> Host:
            now_ns = self._clock.now_ns()
            for host in hosts.values():
                if host.public_key == public_key and host.used_code_sha256 == hashed and host.revoked_ns is None:
                    return host
                if host.code_sha256 is not None and secrets.compare_digest(host.code_sha256, hashed):
                    if host.code_expires_ns <= now_ns:
                        break
                    former = (*host.former_keys, host.public_key) if host.public_key else host.former_keys
                    return dataclasses.replace(
                        host, public_key=public_key, former_keys=former, code_sha256=None, code_expires_ns=0,
                        used_code_sha256=hashed, enrolled_ns=now_ns, revoked_ns=None,
                    )  # fmt: skip
            raise UsageError("this code is not known, was used or has expired; ask for another: camloop fleet enroll HOST")

        return self._change(change)

    def revoke(self, host_id: str) -> Host:
        """Take every right from a host; done twice it is a no-op. Addresses given out before die within ten minutes.

        Raises:
            UsageError: there is no such host; the message names near ones.
        """

        def change(hosts: dict[str, Host]) -> Host:
            host = hosts.get(host_id)
            if host is None:
                raise UsageError(f"no host {host_id[:80]!r} in this fleet; known: {_some(hosts)}")
            revoked_ns = host.revoked_ns if host.revoked_ns is not None else self._clock.now_ns()
            return dataclasses.replace(host, revoked_ns=revoked_ns, code_sha256=None, code_expires_ns=0)

        return self._change(change)


def require_conditions(store: Store) -> None:
    """Refuse a store on which two writers of the registry could overwrite each other unseen.

    radosgw 16 compares an If-Match only without its quotes, and fails the store's own self-test: it is tried again so.

    Raises:
        StoreIncapable: the store ignores or refuses conditions.
    """
    require(store, "put_if_absent")
    if store.capabilities().put_if_match:
        return
    with fresh_key(store) as key:
        first = store.put(key, b"1")
        with contextlib.suppress(ObjectChanged):
            store.put_if_match(key, b"2", _unquoted(first.etag))
            try:
                store.put_if_match(key, b"3", _unquoted(first.etag))
            except ObjectChanged:
                return
    require(store, "put_if_match")


def _unquoted(etag: str) -> str:
    return etag.strip('"')


def _hash(code: str) -> str:
    plain = "".join(letter for letter in code.upper() if letter.isalnum())
    return hashlib.sha256(f"camloop enrolment {plain}".encode(errors="replace")).hexdigest()


def _some(hosts: Mapping[str, Any]) -> str:
    names = sorted(hosts)
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "") if names else "none"
