"""Addresses of a bucket that let a stranger put one object, or one part of one, and nothing else; the broker gives them out.

Length, SHA-256 and `If-None-Match: *` are under the signature, so other bytes, another length or a second writer are refused by
the store itself. The checksum's algorithm is named and signed too: servers that check only where both headers are sent would
take other bytes otherwise (seen with ministack). Where the endpoint checks no SHA-256 at all, registration does.
Creating, listing, completing and aborting an object of parts are done here, with the operator's key: a host never holds an
address for these.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator
from typing import Any

from botocore.exceptions import ClientError

from infra.errors import ObjectExists, ObjectMissing
from infra.objects import Store
from infra.protocol import Address, Look, Part
from infra.s3 import S3Store
from infra.s3_errors import explained, status_of

_MISSING_UPLOAD = "NoSuchUpload"


class S3Receiver:
    """Receives into a bucket through addresses that it signs.

    Args:
        store: the bucket and prefix, with the operator's credentials.
    """

    def __init__(self, store: S3Store) -> None:
        self.store: Store = store
        self._at = store._at
        self._s3: Any = store._s3
        self._checks = store.capabilities().checksum_verified

    def put_address(self, key: str, *, n_bytes: int, sha256: str, expires_s: int) -> Address:
        return self._signed("put_object", key, n_bytes, sha256, expires_s, {"IfNoneMatch": "*"})

    def part_address(self, key: str, upload: str, number: int, *, n_bytes: int, sha256: str, expires_s: int) -> Address:
        return self._signed("upload_part", key, n_bytes, sha256, expires_s, {"UploadId": upload, "PartNumber": number})

    def _signed(self, call: str, key: str, n_bytes: int, sha256: str, expires_s: int, more: dict[str, Any]) -> Address:
        checksum = base64.b64encode(bytes.fromhex(sha256)).decode()
        checked = {"ContentLength": n_bytes, "ChecksumAlgorithm": "SHA256", "ChecksumSHA256": checksum}
        headers = {
            "Content-Length": str(n_bytes), "x-amz-checksum-sha256": checksum, "x-amz-sdk-checksum-algorithm": "SHA256",
        }  # fmt: skip
        if "IfNoneMatch" in more:
            headers["If-None-Match"] = "*"
        with self._explained(key):
            params = {**self._at(key), **more, **checked}
            return Address(str(self._s3.generate_presigned_url(call, Params=params, ExpiresIn=expires_s)), headers)

    def create(self, key: str, *, n_bytes: int, sha256: str) -> str:
        with self._explained(key):
            at = self._at(key)
            begun = self._s3.list_multipart_uploads(Bucket=at["Bucket"], Prefix=at["Key"]).get("Uploads", ())
            mine = sorted((row["Initiated"], str(row["UploadId"])) for row in begun if row["Key"] == at["Key"])
            if mine:
                return mine[-1][1]
            kind = {"ChecksumAlgorithm": "SHA256"} if self._checks else {}
            return str(self._s3.create_multipart_upload(**at, **kind)["UploadId"])

    def parts(self, key: str, upload: str) -> list[Part]:
        found: list[Part] = []
        with self._explained(key):
            for page in self._s3.get_paginator("list_parts").paginate(**self._at(key), UploadId=upload):
                for part in page.get("Parts", ()):
                    checksum = part.get("ChecksumSHA256")
                    sha256 = base64.b64decode(checksum).hex() if checksum else None
                    found.append(Part(part["PartNumber"], part["Size"], part["ETag"].strip('"'), sha256))
        return found

    def complete(self, key: str, upload: str, parts: list[Part], *, sha256: str) -> None:
        made = []
        for part in parts:
            checksum = {"ChecksumSHA256": base64.b64encode(bytes.fromhex(part.sha256)).decode()} if part.sha256 else {}
            made.append({"PartNumber": part.number, "ETag": f'"{part.etag}"', **checksum})
        with self._explained(key):
            try:
                self._s3.complete_multipart_upload(
                    **self._at(key), UploadId=upload, MultipartUpload={"Parts": made}, IfNoneMatch="*"
                )
            except ClientError as error:
                if status_of(error) != 412:
                    raise
                raise ObjectExists(f"object {key!r} exists in {self.store.url}") from error

    def abort(self, key: str, upload: str) -> None:
        with contextlib.suppress(ObjectMissing), self._explained(key):
            self._s3.abort_multipart_upload(**self._at(key), UploadId=upload)

    def look(self, key: str) -> Look | None:
        try:
            with self._explained(key):
                found = self._s3.head_object(**self._at(key), ChecksumMode="ENABLED")
        except ObjectMissing:
            return None
        checksum = found.get("ChecksumSHA256") if self._checks else None
        return Look(found["ContentLength"], checksum, found["ETag"].strip('"'))

    @contextlib.contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        with explained(self.store.url, self._s3.meta.endpoint_url, key):
            try:
                yield
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") != _MISSING_UPLOAD:
                    raise
                raise ObjectMissing(f"no such upload of {key!r}; create it again") from error
