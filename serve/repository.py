"""A TUF repository as objects of a Store: who signed what, in which order, until when.

    releases/metadata/<n>.root.json  <n>.targets.json  <n>.snapshot.json  timestamp.json
    releases/targets/<folder>/<sha256>.<name>

Publishing writes targets first, then `<n>.targets.json` and `<n>.snapshot.json` under names that nobody has, and replaces
`timestamp.json` last, only if it is still the one that was read: that is the commit point. A crash before it leaves
objects that nobody names; of two releases at once one is told to come again. Before anything is extended, what lies in the
store is verified with our own root, so that nobody who can write to the bucket gets his files signed by us.

Four ed25519 keys, one per role, are made on first use as PKCS #8 files of mode 0600 in one folder. Root and targets are
the ones to guard; whoever loses root's must visit every device, so the folder needs a backup.

Expiry (RELIABILITY.md 3.3 has 7 d for snapshot and 1 d for timestamp, which needs a service that renews them): as long as
a person renews them (`camloop release --renew`, once a week from cron), timestamp lives 8 days, snapshot 30, targets 180,
root 365. That is how long somebody can withhold a newer release from a device before it notices. A device whose metadata
expired keeps its model, installs nothing and says so.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from infra import durable, keys
from infra.clock import Clock
from infra.errors import ArtefactError, ObjectChanged, ObjectExists, Refused, SettingsError
from infra.store import Store

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner
    from tuf.api.metadata import Metadata, Root, TargetFile

PREFIX = "releases/"
Role = Literal["root", "targets", "snapshot", "timestamp"]
_SAME_TIME = "another release was made at the same time; run the command again"
ROLES: tuple[Role, ...] = ("root", "targets", "snapshot", "timestamp")
LIFETIME_DAYS: Mapping[Role, int] = {"root": 365, "targets": 180, "snapshot": 30, "timestamp": 8}
DEFAULT_KEYS = Path("~/.config/camloop/keys")


def metadata_key(name: str) -> str:
    """Return the object key of a metadata file."""
    return f"{PREFIX}metadata/{name}"


def target_key(path: str, sha256: str) -> str:
    """Return the object key of a target: its hash stands before its name (TUF's consistent snapshots)."""
    folder, _, name = path.rpartition("/")
    return f"{PREFIX}targets/{folder}/{sha256}.{name}"


@contextmanager
def _private() -> Iterator[None]:
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def make_keys(folder: Path) -> None:
    """Make one ed25519 key per role in `folder` (mode 0700, files 0600); keys that are there stay."""
    from securesystemslib.signer import CryptoSigner

    with _private():
        durable.make_dirs(folder)
        for role in ROLES:
            if not (folder / f"{role}.pem").exists():
                durable.create(folder / f"{role}.pem", CryptoSigner.generate_ed25519().private_bytes)


def read_keys(folder: Path) -> dict[Role, CryptoSigner]:
    """Read the keys of all roles.

    Raises:
        SettingsError: a key is missing, is no key, or others than its owner may read it.
    """
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from securesystemslib.signer import CryptoSigner

    signers: dict[Role, CryptoSigner] = {}
    for role in ROLES:
        path = folder / f"{role}.pem"
        try:
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                raise SettingsError(f"signing key {path} can be read by others: chmod 600 {path}")
            private: Any = load_pem_private_key(path.read_bytes(), None)
            signers[role] = CryptoSigner(private)
        except FileNotFoundError as error:
            raise SettingsError(
                f"signing key {path} is missing: restore the folder from its backup, or name it with --keys"
            ) from error
        except (ValueError, TypeError) as error:
            raise SettingsError(f"{path} is no signing key (ed25519, PKCS #8, without password): {error}") from error
    return signers


class Repository:
    """The releases of one store, open for signing.

    Args:
        store: where `releases/` lies.
        signers: one per role.
        clock: for expiry.

    Raises:
        Refused: what lies in the store was not signed by these keys, or its signatures do not hold.
    """

    def __init__(self, store: Store, signers: Mapping[Role, CryptoSigner], clock: Clock) -> None:
        self._store = store
        self._signers = signers
        self._clock = clock
        if not exists(store):
            self._create()
        self._load()

    @property
    def root_sha256(self) -> str:
        """The SHA-256 of `1.root.json`: what a device that has never seen this repository is told to trust."""
        return keys.sha256_hex(self._store.get(metadata_key("1.root.json")))

    @property
    def targets(self) -> Mapping[str, TargetFile]:
        """The signed targets by path."""
        return self._targets.signed.targets

    @property
    def next_version(self) -> int:
        """The version that the next `publish` gives to targets: grows with every release, whatever the channel."""
        return self._next("targets", self._targets.signed.version)

    def read(self, path: str) -> bytes:
        """Return the bytes of a signed target.

        Raises:
            ArtefactError: the object is not what was signed.
        """
        from tuf.api.exceptions import LengthOrHashMismatchError

        target = self.targets[path]
        data = self._store.get(target_key(path, target.hashes["sha256"]))
        try:
            target.verify_length_and_hashes(data)
        except LengthOrHashMismatchError as error:
            raise ArtefactError(f"released file {path}: {error}") from error
        return data

    def publish(
        self, files: Mapping[str, bytes], custom: Mapping[str, Mapping[str, Any]] | None = None, *, version: int | None = None
    ) -> int:
        """Sign and write targets; what was signed before stays. Returns the version of targets.

        Args:
            files: bytes by target path.
            custom: remarks that are signed with a target, by its path.
            version: the `next_version` that the files name; None where they name none.

        Raises:
            ObjectChanged: somebody else published at the same time; nothing of this call counts, run it again.
        """
        from tuf.api.metadata import TargetFile

        if version is None:
            version = self.next_version
        elif version != self.next_version:
            raise ObjectChanged(f"version {version} of the releases: {_SAME_TIME}")
        for path, data in files.items():
            target = TargetFile.from_data(path, data, ["sha256"])
            if custom and path in custom:
                target.unrecognized_fields["custom"] = dict(custom[path])
            try:
                self._store.put_if_absent(target_key(path, target.hashes["sha256"]), data)
            except ObjectExists:
                self._store.put(target_key(path, target.hashes["sha256"]), data)  # same hash: whole it is, or becomes
            self._targets.signed.targets[path] = target
        self._targets.signed.version = version
        self._commit(("targets", "snapshot"))
        return version

    def renew(self) -> None:
        """Sign snapshot and timestamp afresh, and targets and root where less than half of their life is left."""
        roles: list[Role] = ["snapshot"]
        if self._half_over("targets", self._targets.signed.expires):
            self._targets.signed.version = self._next("targets", self._targets.signed.version)
            roles.append("targets")
        if self._half_over("root", self._root.signed.expires):
            self._root.signed.version += 1
            self._put_versioned("root", self._root)
        self._commit(tuple(roles))

    def _expires(self, role: Role) -> datetime:
        now = datetime.fromtimestamp(self._clock.now_ns() // 1_000_000_000, UTC)
        return now + timedelta(days=LIFETIME_DAYS[role])

    def _half_over(self, role: Role, expires: datetime) -> bool:
        return self._expires(role) - expires > timedelta(days=LIFETIME_DAYS[role]) / 2

    def _create(self) -> None:
        from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

        root = Root(consistent_snapshot=True)
        for role in ROLES:
            root.add_key(self._signers[role].public_key, role)
        self._root = Metadata(root)
        self._targets = Metadata(Targets())
        self._snapshot = Metadata(Snapshot())
        self._timestamp = Metadata(Timestamp(snapshot_meta=MetaFile(1)))
        self._timestamp_etag: str | None = None
        self._targets.signed.version = self._next("targets", 0)
        try:
            self._put_versioned("root", self._root)
        except ObjectExists:
            self._check_root(self._read("1.root.json"))  # an earlier beginning that was cut off: ours, or refused
        self._commit(("targets", "snapshot"))

    def _load(self) -> None:
        self._timestamp_etag = self._head("timestamp.json")
        versions = [int(name.split(".")[0]) for name in self._names() if name.endswith(".root.json")]
        self._root = self._read(f"{max(versions)}.root.json")
        self._check_root(self._root)
        self._timestamp = self._read_signed("timestamp", "timestamp.json")
        self._snapshot = self._read_signed("snapshot", f"{self._timestamp.signed.snapshot_meta.version}.snapshot.json")
        self._targets = self._read_signed("targets", f"{self._snapshot.signed.meta['targets.json'].version}.targets.json")

    def _check_root(self, root: Metadata[Root]) -> None:
        from tuf.api.exceptions import UnsignedMetadataError

        ours = self._signers["root"].public_key.keyid
        try:
            if root.signed.roles["root"].keyids != [ours]:
                raise UnsignedMetadataError(f"its root key is not {ours[:12]}")
            root.signed.verify_delegate("root", root.signed_bytes, root.signatures)
        except UnsignedMetadataError as error:
            raise Refused(
                f"the releases in {self._store.url} were not signed with these keys ({error}): name the right ones with --keys"
            ) from error

    def _read(self, name: str) -> Metadata[Any]:
        from tuf.api.exceptions import RepositoryError
        from tuf.api.metadata import Metadata

        try:
            return Metadata.from_bytes(self._store.get(metadata_key(name)))
        except RepositoryError as error:
            raise Refused(f"{metadata_key(name)} in {self._store.url} is no TUF metadata: {error}") from error

    def _read_signed(self, role: Role, name: str) -> Metadata[Any]:
        from tuf.api.exceptions import UnsignedMetadataError

        metadata = self._read(name)
        try:
            self._root.signed.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
        except UnsignedMetadataError as error:
            raise Refused(f"{metadata_key(name)} in {self._store.url} was changed by somebody else: {error}") from error
        return metadata

    def _commit(self, roles: tuple[Role, ...]) -> None:
        """Write new versions of targets (if named) and snapshot, then swing timestamp over to them."""
        if "targets" in roles:
            data = self._put_versioned("targets", self._targets)
            self._snapshot.signed.meta["targets.json"] = _meta_file(self._targets.signed.version, data)
        self._snapshot.signed.version = self._next("snapshot", self._snapshot.signed.version if self._timestamp_etag else 0)
        data = self._put_versioned("snapshot", self._snapshot)
        self._timestamp.signed.snapshot_meta = _meta_file(self._snapshot.signed.version, data)
        if self._timestamp_etag:
            self._timestamp.signed.version += 1
        data = self._sign("timestamp", self._timestamp)
        key = metadata_key("timestamp.json")
        try:
            if self._timestamp_etag is None:
                written = self._store.put_if_absent(key, data)
            else:
                written = self._store.put_if_match(key, data, self._timestamp_etag)
        except (ObjectChanged, ObjectExists) as error:
            raise ObjectChanged(f"{key}: {_SAME_TIME}") from error
        self._timestamp_etag = written.etag

    def _sign(self, role: Role, metadata: Metadata[Any]) -> bytes:
        metadata.signed.expires = self._expires(role)
        metadata.sign(self._signers[role])
        return metadata.to_bytes()

    def _put_versioned(self, role: Role, metadata: Metadata[Any]) -> bytes:
        data = self._sign(role, metadata)
        key = metadata_key(f"{metadata.signed.version}.{role}.json")
        try:
            self._store.put_if_absent(key, data)
        except ObjectExists as error:
            if role == "root" and metadata.signed.version == 1:
                raise  # an earlier beginning: `_create` looks whose
            raise ObjectChanged(f"{key}: {_SAME_TIME}") from error
        return data

    def _names(self) -> list[str]:
        return [entry.key.rpartition("/")[2] for entry in self._store.list(metadata_key(""))]

    def _next(self, role: Role, version: int) -> int:
        """Return the first version that nobody has written, a cut-off release included."""
        found = [int(name.split(".")[0]) for name in self._names() if name.endswith(f".{role}.json") and name[0].isdigit()]
        return max([version, *found]) + 1

    def _head(self, name: str) -> str:
        found = self._store.head(metadata_key(name))
        if found is None:
            raise Refused(f"{metadata_key(name)} is gone from {self._store.url}; restore it from a backup")
        return found.etag


def exists(store: Store) -> bool:
    """Say whether the store has releases."""
    return store.head(metadata_key("timestamp.json")) is not None


def _meta_file(version: int, data: bytes) -> Any:
    from tuf.api.metadata import MetaFile

    return MetaFile(version, len(data), {"sha256": keys.sha256_hex(data)})
