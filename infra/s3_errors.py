"""What botocore says, in camloop's words: one line with the store, the value and the remedy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError, NoCredentialsError  # noqa: A004
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from infra.errors import ObjectMissing, StoreBusy, StoreError, StoreForbidden
from infra.log import mask

NO_ANSWER = (ConnectionError, HTTPClientError, HTTPError)
MISSING = frozenset({"404", "NoSuchKey", "NotFound"})
FORBIDDEN = frozenset({"403", "AccessDenied"})
BUSY = frozenset({429, 503})
_REMEDIES: Mapping[str, str] = {
    "NoSuchBucket": "make the bucket or correct --store",
    "AccessDenied": "check the key's or role's rights on this prefix",
    "InvalidAccessKeyId": "check AWS_ACCESS_KEY_ID or AWS_PROFILE",
    "SignatureDoesNotMatch": "check AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "fetch fresh credentials",
    "InvalidToken": "fetch fresh credentials",
    "RequestTimeTooSkewed": "set this machine's clock (NTP)",
    "403": "check the credentials and their rights on this prefix",
}


def code_of(error: ClientError) -> str:
    """Return the S3 error code, such as NoSuchKey."""
    return str(error.response.get("Error", {}).get("Code", "unknown"))


def status_of(error: ClientError) -> int:
    """Return the HTTP status of a refusal."""
    return int(error.response["ResponseMetadata"]["HTTPStatusCode"])


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a Retry-After header, None where there is none (a date in it is not used: clocks differ)."""
    with contextlib.suppress(ValueError):
        return max(0.0, float(headers.get("retry-after", "")))
    return None


@contextlib.contextmanager
def explained(url: str, endpoint: str, key: str) -> Iterator[None]:
    """Turn botocore's errors inside the `with` into camloop's.

    Raises:
        ObjectMissing: there is no such key.
        StoreForbidden: the credentials lack the right, or the key is missing and they may not list.
        StoreBusy: 429 or 503; it may say how long to wait.
        StoreError: anything else, with the cause kept.
    """
    try:
        yield
    except ClientError as error:
        code = code_of(error)
        if code in MISSING:
            raise ObjectMissing(f"no object {key!r} in {url}") from error
        detail = mask(str(error.response.get("Error", {}).get("Message", "")))
        remedy = _REMEDIES.get(code, "see the store's own log")
        message = f"store {url}: {key!r}: {code} {detail}; {remedy}"
        if status_of(error) in BUSY:
            raise StoreBusy(message, retry_after_s(error.response["ResponseMetadata"].get("HTTPHeaders", {})) or 0.0) from error
        raise (StoreForbidden if code in FORBIDDEN else StoreError)(message) from error
    except NoCredentialsError as error:
        raise StoreError(
            f"store {url}: no credentials found; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error
    except NO_ANSWER as error:
        raise StoreError(
            f"store {url} cannot be reached at {endpoint}: {mask(str(error))[:200]}; "
            "check the network and the address (CAMLOOP_S3_ENDPOINT or s3.endpoint_url in camloop.toml)"
        ) from error
    except (KeyError, ResponseParserError) as error:  # KeyError: a field that every S3 answer of this kind has
        raise StoreError(
            f"store {url}: {key!r}: what answered at {endpoint} is no S3 server ({mask(str(error))[:200]}); "
            "perhaps a network's login page or a proxy answers in its place"
        ) from error
    except BotoCoreError as error:
        raise StoreError(f"store {url}: {mask(str(error))[:200]}; check the [s3] settings and the credentials") from error
