"""S3Store: objects in `s3://bucket/prefix` of AWS or any S3-compatible endpoint. The only importer of boto3.

Credentials come from botocore's own chain, so profiles, instance roles and credential processes renew themselves;
`role_arn` is assumed through STS and renewed before it ends.

**A 412 or a lost answer after a conditional put means look, not failed** (RELIABILITY.md, finding 7): botocore repeats a
put whose answer was lost, and the repetition is refused because of its own success. Every conditional put carries a fresh
token in its metadata; whoever finds it under the key has won. Where no answer came at all, the same look decides.

Checksums: a SHA-256 is sent where the self-test saw that the endpoint refuses a wrong one; automatic CRC trailers are off,
because third-party stores have written them into the object (boto3 #4435). Files above `MULTIPART_BYTES` go in parts and
are resumed (`s3_parts.py`); a wrong clock is corrected by the store's (`s3_clock.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from email.utils import parsedate_to_datetime
from pathlib import Path, PurePosixPath
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, IncompleteReadError, NoCredentialsError

from infra import selftest
from infra.clock import Clock, SystemClock
from infra.errors import ObjectChanged, ObjectExists, ObjectMissing, SettingsError, StoreError, StoreForbidden
from infra.keys import check_key, new_id
from infra.objects import (
    MIN_PART_BYTES,
    Capabilities,
    PresignMethod,
    ResumeLog,
    Stat,
    Unfinished,
    check_range,
    check_readable,
    part_bytes_for,
)
from infra.s3_clock import ServerClock
from infra.s3_errors import MISSING, NO_ANSWER, code_of, explained, status_of
from infra.s3_parts import PART_SIZE, TOKEN, Body, Digests, Parts, b64, digests
from infra.s3_session import open_session
from infra.settings import S3Settings

MULTIPART_BYTES = 8 << 20  # above it a cut would cost too much; below it one put is fewer round trips
_READ_TRIES = 5
_CONFLICT_TRIES = 8


def _b64(hex_digits: str) -> str:
    return b64(bytes.fromhex(hex_digits))


def _sha256_headers(sha256: str) -> dict[str, str]:
    return {"ChecksumAlgorithm": "SHA256", "ChecksumSHA256": _b64(sha256)}  # some servers check only where both are sent


def _modified_ns(answer: Mapping[str, Any]) -> int:
    when = answer.get("LastModified") or parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
    return int(when.timestamp()) * 1_000_000_000


class S3Store:
    """A store in a bucket; safe to share between threads and to send to another process.

    Args:
        url: `s3://bucket` or `s3://bucket/prefix`.
        settings: endpoint, region, credentials, timeouts.
        clock: what requests are signed with until the store says that it is wrong.
    """

    def __init__(self, url: str, settings: S3Settings, clock: Clock | None = None) -> None:
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        self.url = url.rstrip("/")
        self.settings = settings
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        config = Config(
            retries={"mode": "standard", "total_max_attempts": settings.max_attempts},
            connect_timeout=settings.connect_timeout_s, read_timeout=settings.read_timeout_s, max_pool_connections=32,
            s3={"addressing_style": "path" if settings.addressing == "auto" and settings.endpoint_url else settings.addressing},
            signature_version="s3v4",
            request_checksum_calculation="when_required", response_checksum_validation="when_required",
            user_agent="camloop",  # botocore's own takes a millisecond of a Pi's time for each request
        )  # fmt: skip
        try:
            self._session = open_session(settings)
            self._region = settings.region or self._session.get_config_variable("region") or "us-east-1"
            boto = boto3.Session(botocore_session=self._session, region_name=self._region)
            self._s3 = boto.client("s3", endpoint_url=settings.endpoint_url, config=config)
        except (BotoCoreError, ValueError) as error:
            raise SettingsError(f"store {url}: {error}; check the [s3] settings and the credentials") from error
        self._server_clock = ServerClock(clock or SystemClock())
        self._server_clock.attach(self._s3)
        self._found: Capabilities | None = None
        self._checks_sha256: bool | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"S3Store({self.url!r})"

    def __reduce__(self) -> tuple[type[S3Store], tuple[str, S3Settings]]:
        return S3Store, (self.url, self.settings)

    @property
    def clock_offset_s(self) -> float | None:
        """Seconds by which the store's clock is ahead of this machine's, None while no request was refused for its date."""
        return self._server_clock.offset_s()

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + key}

    def _explained(self, key: str) -> AbstractContextManager[None]:
        return explained(self.url, self._s3.meta.endpoint_url, key)

    def _read(self, key: str, sink: Callable[[bytes], object], start: int = 0, stop: int | None = None) -> None:
        """Feed [start, stop) into `sink`; a broken connection goes on where it broke, of the same version."""
        etag: dict[str, str] = {}
        for attempt in range(_READ_TRIES):
            span = {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"} if start or stop is not None else {}
            answer = self._s3.get_object(**self._at(check_readable(key)), **span, **etag)
            etag = {"IfMatch": answer["ETag"]}
            try:
                for piece in answer["Body"].iter_chunks(1 << 20):
                    sink(piece)
                    start += len(piece)
                return
            except (IncompleteReadError, *NO_ANSWER):
                if attempt == _READ_TRIES - 1:
                    raise

    def get(self, key: str) -> bytes:
        data = bytearray()
        with self._explained(key):
            self._read(key, data.extend)
        return bytes(data)

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        check_range(start, stop)
        found = self.head(key)
        if found is None:
            raise ObjectMissing(f"no object {key!r} in {self.url}")
        stop = min(stop, found.n_bytes)
        data = bytearray()
        if start < stop:
            with self._explained(key):
                self._read(key, data.extend, start, stop)
        return bytes(data)

    def put(self, key: str, data: bytes) -> Stat:
        with self._explained(key):
            answer = self._s3.put_object(**self._at(check_key(key)), Body=data, **self._checksum(data))
            return Stat(key, len(data), answer["ETag"], _modified_ns(answer))

    def put_if_absent(self, key: str, data: bytes) -> Stat:
        check_key(key)
        return self._conditional(key, len(data), {"IfNoneMatch": "*"}, lambda: data, self._checksum(data))

    def put_if_match(self, key: str, data: bytes, etag: str) -> Stat:
        check_key(key)
        return self._conditional(key, len(data), {"IfMatch": etag}, lambda: data, self._checksum(data))

    def put_file_if_absent(self, key: str, path: Path, *, sha256: str, resume: ResumeLog | None = None) -> Stat:
        check_key(key)
        if not path.is_file():
            raise StoreError(f"{path}: no such file to store")
        n_bytes = path.stat().st_size
        wanted = MIN_PART_BYTES if resume is None else resume.part_bytes
        note = None if resume is None else resume.load()
        if note is not None and note.key == key:
            wanted = note.part_bytes
        parts = self._parts()
        found = digests(path, part_bytes_for(n_bytes, wanted), md5=note is not None or not parts.checks_sha256)
        if found.sha256 != sha256:
            raise StoreError(f"{path}: its bytes hash to {found.sha256}, not {sha256}; nothing was stored")
        if n_bytes > MULTIPART_BYTES and self.capabilities().multipart_if_absent:
            made = parts.put(key, path, found, resume, part_bytes_for(n_bytes, wanted))
            return dataclasses.replace(made, checked=parts.proof(key, found))
        checksum = _sha256_headers(sha256) if self._checks() else {}
        with Body(path, 0, n_bytes, sha256, None if resume is None else resume.on_bytes) as body:

            def from_start() -> Body:
                body.seek(0)
                return body

            made = self._conditional(key, n_bytes, {"IfNoneMatch": "*"}, from_start, checksum)
        if resume is not None:
            resume.stored(n_bytes)
        return dataclasses.replace(made, checked=_proof(made, found, bool(checksum)))

    def _parts(self) -> Parts:
        return Parts(
            client=self._s3, url=self.url, at=self._at, explained=self._explained, checks_sha256=self._checks(),
            settle=lambda key, n_bytes, token, send: self._settle(key, n_bytes, token, send, ObjectExists),
            mine=self._mine, exists=lambda key: self.head(key) is not None,
        )  # fmt: skip

    def unfinished(self, prefix: str = "") -> Iterator[Unfinished]:
        with self._explained(prefix):
            pages = self._s3.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket, Prefix=self._prefix + prefix)
            for page in pages:
                page["Bucket"]  # a login page of the network has none; it is not to be taken for an empty list
                for found in page.get("Uploads", ()):
                    started_ns = int(found["Initiated"].timestamp()) * 1_000_000_000
                    yield Unfinished(found["Key"].removeprefix(self._prefix), found["UploadId"], started_ns)

    def abandon(self, key: str, upload_id: str) -> None:
        self._parts().abandon(key, upload_id)

    def _checks(self) -> bool:
        """Say whether the endpoint refuses a wrong SHA-256; tried once, with one small put."""
        if self._checks_sha256 is None:
            wrong = _sha256_headers(hashlib.sha256(b"2").hexdigest())
            with selftest.fresh_key(self) as key, self._explained(key):
                try:
                    self._s3.put_object(**self._at(key), Body=b"1", **wrong)
                    self._checks_sha256 = False
                except ClientError as error:
                    if status_of(error) != 400:
                        raise
                    self._checks_sha256 = True
        return self._checks_sha256

    def _checksum(self, data: bytes) -> dict[str, str]:
        return _sha256_headers(hashlib.sha256(data).hexdigest()) if self._checks() else {}

    def _conditional(
        self,
        key: str,
        n_bytes: int,
        condition: Mapping[str, str],
        body: Callable[[], bytes | Body],
        checksum: Mapping[str, str],
    ) -> Stat:
        token = new_id()

        def send() -> Any:
            return self._s3.put_object(**self._at(key), Body=body(), Metadata={TOKEN: token}, **condition, **checksum)

        return self._settle(key, n_bytes, token, send, ObjectChanged if "IfMatch" in condition else ObjectExists)

    def _settle(
        self, key: str, n_bytes: int, token: str, send: Callable[[], Any], lost: type[ObjectExists] | type[ObjectChanged]
    ) -> Stat:
        """Send a conditional put until its outcome is known; look whenever the answer does not settle it."""
        for attempt in range(_CONFLICT_TRIES):
            with self._explained(key):
                try:
                    answer = send()
                    return Stat(key, n_bytes, answer["ETag"], _modified_ns(answer))
                except NO_ANSWER:
                    if mine := self._mine(key, token, n_bytes):
                        return mine
                    raise
                except ClientError as error:
                    if status_of(error) == 409:  # another put of this key is under way; S3 asks to repeat
                        continue
                    refused = status_of(error) == 412 or (lost is ObjectChanged and code_of(error) in MISSING)
                    if not refused:
                        raise
                    repeated = attempt > 0 or error.response["ResponseMetadata"].get("RetryAttempts", 0) > 0
                    if repeated and (mine := self._mine(key, token, n_bytes)):
                        return mine
                    word = "exists" if lost is ObjectExists else "is no longer the version named"
                    raise lost(f"object {key!r} {word} in {self.url}") from error
        raise StoreError(f"store {self.url}: {key!r}: answered 409 conflict {_CONFLICT_TRIES} times; run the command again")

    def _mine(self, key: str, token: str, n_bytes: int) -> Stat | None:
        """Look: the object, if it carries the token of this very put."""
        try:
            with self._explained(key):
                found = self._s3.head_object(**self._at(key))
                is_mine = found.get("Metadata", {}).get(TOKEN) == token and found["ContentLength"] == n_bytes
                return Stat(key, n_bytes, found["ETag"], _modified_ns(found)) if is_mine else None
        except (ObjectMissing, StoreForbidden):  # forbidden: missing, to who may not list
            return None

    def head(self, key: str) -> Stat | None:
        try:
            with self._explained(key):
                found = self._s3.head_object(**self._at(check_readable(key)))
                return Stat(key, found["ContentLength"], found["ETag"], _modified_ns(found))
        except ObjectMissing:
            return None

    def holds_file(self, key: str, path: Path, *, sha256: str) -> bool:
        try:
            with self._explained(key):
                found = self._s3.head_object(**self._at(check_readable(key)), ChecksumMode="ENABLED")
        except ObjectMissing:
            return False
        if found["ContentLength"] != (n_bytes := path.stat().st_size):
            return False
        mine = digests(path, int(found.get("Metadata", {}).get(PART_SIZE, 0)) or max(n_bytes, 1))
        if mine.sha256 != sha256:
            return False
        if (stored := found.get("ChecksumSHA256")) and self._checks():
            return bool(stored == (mine.composite_sha256 if "-" in stored else _b64(sha256)))
        if found["ETag"].strip('"') in (mine.md5, mine.composite_md5):
            return True
        digest = hashlib.sha256()
        with self._explained(key):
            self._read(key, digest.update)
        return digest.hexdigest() == sha256

    def list(self, prefix: str = "") -> Iterator[Stat]:
        with self._explained(prefix):
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix + prefix)
            for page in pages:
                page["Name"]  # as above
                for found in page.get("Contents", ()):
                    key = found["Key"].removeprefix(self._prefix)
                    if key and not key.endswith("/"):  # what consoles write to show a folder
                        yield Stat(key, found["Size"], found["ETag"], _modified_ns(found))

    def delete(self, key: str) -> None:
        with self._explained(key), contextlib.suppress(ObjectMissing):
            self._s3.delete_object(**self._at(check_readable(key)))

    @contextlib.contextmanager
    def local(self, key: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="camloop-") as folder:
            path = Path(folder) / f"object{PurePosixPath(key).suffix}"
            with path.open("wb") as file, self._explained(key):
                self._read(key, file.write)
            yield path

    def presign(
        self, key: str, *, method: PresignMethod, expires_s: int, n_bytes: int | None = None, sha256: str | None = None
    ) -> str:
        at: dict[str, Any] = self._at(check_readable(key) if method == "get" else check_key(key))
        if method == "put":
            at["IfNoneMatch"] = "*"
            at |= {} if n_bytes is None else {"ContentLength": n_bytes}
            at |= {} if sha256 is None else {"ChecksumSHA256": _b64(sha256)}
        with self._explained(key):
            return str(self._s3.generate_presigned_url(f"{method}_object", Params=at, ExpiresIn=expires_s))

    def capabilities(self) -> Capabilities:
        with self._lock:
            if self._found is None:
                checks = self._checks()
                with ThreadPoolExecutor(3) as pool:  # each test is a chain of round trips: on a slow link they go side by side
                    absent = pool.submit(selftest.put_if_absent, self)
                    match, parts = pool.submit(selftest.put_if_match, self), pool.submit(self._completes_if_absent)
                    self._found = Capabilities(
                        checksum_verified=checks, put_if_absent=absent.result(), put_if_match=match.result(),
                        multipart_if_absent=parts.result(), presign=True,
                    )  # fmt: skip
            return self._found

    def _completes_if_absent(self) -> bool:
        with selftest.fresh_key(self) as key, self._explained(key):
            self._s3.put_object(**self._at(key), Body=b"1")
            upload = self._s3.create_multipart_upload(**self._at(key))["UploadId"]
            part = self._s3.upload_part(**self._at(key), UploadId=upload, PartNumber=1, Body=b"2")
            parts = {"Parts": [{"ETag": part["ETag"], "PartNumber": 1}]}
            try:
                self._s3.complete_multipart_upload(**self._at(key), UploadId=upload, MultipartUpload=parts, IfNoneMatch="*")
                return False
            except ClientError as error:
                self._s3.abort_multipart_upload(**self._at(key), UploadId=upload)
                return status_of(error) == 412

    def table_uri(self, prefix: str) -> str:
        return f"s3://{self._bucket}/{self._prefix}{prefix}"

    def delta_options(self) -> dict[str, str]:
        with self._explained("credentials"):
            found = self._session.get_credentials()
            if found is None:
                raise NoCredentialsError
            now = found.get_frozen_credentials()
        options = {
            "AWS_ACCESS_KEY_ID": now.access_key, "AWS_SECRET_ACCESS_KEY": now.secret_key, "AWS_REGION": self._region,
            "AWS_CONDITIONAL_PUT": "etag",
            "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true" if self._s3.meta.config.s3["addressing_style"] == "virtual" else "false",
        }  # fmt: skip
        if now.token:
            options["AWS_SESSION_TOKEN"] = now.token
        if self.settings.endpoint_url:
            options["AWS_ENDPOINT_URL"] = self.settings.endpoint_url
            options["AWS_ALLOW_HTTP"] = "true" if self.settings.endpoint_url.startswith("http://") else "false"
        return options


def _proof(made: Stat, found: Digests, sha256_was_checked: bool) -> str:
    if sha256_was_checked:
        return "sha256"
    return "md5" if made.etag.strip('"') == found.md5 else ""
