"""What AWS IAM would say to an S3 request, for tests: ministack checks signatures but keeps no policies.

A proxy stands before the server and judges each request by a policy document, by the rules of the AWS manuals that our
templates use: Allow and Deny with `*` in resources, the conditions of `CONDITIONS`; deny is the default and wins. As on AWS,
who may not list is told 403 of an object that is not there, and a put with If-Match needs the right to read as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from botocore.exceptions import ClientError

from tests.faults.proxy import Proxy, proxy
from tests.ministack_server import Ministack

CONDITIONS = {
    ("StringLike", "s3:prefix"), ("StringLikeIfExists", "s3:prefix"), ("Null", "s3:if-none-match"),
    ("Bool", "s3:ObjectCreationOperation"),
}  # fmt: skip


def matches(pattern: str, text: str) -> bool:
    """Say whether `text` is like an IAM pattern, where only `*` and `?` stand for others."""
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*").replace(r"\?", "."), text) is not None


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _holds(conditions: Mapping[str, Mapping[str, Any]], context: Mapping[str, str]) -> bool:
    for operator, wanted in conditions.items():
        for key, value in wanted.items():
            assert (operator, key) in CONDITIONS, f"this test does not know {operator} of {key}"
            if operator == "Null":
                fine = (key not in context) == (value == "true")
            elif operator == "Bool":
                fine = context.get(key) == value
            elif operator == "StringLikeIfExists" and key not in context:
                fine = True
            else:
                fine = key in context and any(matches(pattern, context[key]) for pattern in _listed(value))
            if not fine:
                return False
    return True


def allowed(policy: Mapping[str, Any], action: str, resource: str, context: Mapping[str, str]) -> bool:
    """Say whether a policy allows an action on a resource."""
    effects = {
        statement["Effect"]
        for statement in policy["Statement"]
        if any(matches(pattern, action) for pattern in _listed(statement["Action"]))
        and any(matches(pattern, resource) for pattern in _listed(statement["Resource"]))
        and _holds(statement.get("Condition", {}), context)
    }
    return effects == {"Allow"}


def asked(head: bytes) -> tuple[list[str], str, str, dict[str, str]]:
    """Return what a request asks for: its actions, the bucket, the key, and the context of conditions."""
    line, *headers = head.decode().split("\r\n")
    method, target, _ = line.split(" ")
    url = urlsplit(target)
    query = parse_qs(url.query, keep_blank_values=True)
    names = {header.split(":", 1)[0].lower() for header in headers if header}
    bucket, _, key = unquote(url.path).removeprefix("/").partition("/")
    if not key and method == "GET" and "uploads" in query:
        return ["s3:ListBucketMultipartUploads"], bucket, "", {}
    if not key:
        action = "s3:ListBucket" if method in ("GET", "HEAD") else "s3:CreateBucket"
        return [action], bucket, "", {"s3:prefix": query["prefix"][0]} if "prefix" in query else {}
    if method in ("GET", "HEAD"):
        return ["s3:ListMultipartUploadParts" if "uploadId" in query else "s3:GetObject"], bucket, key, {}
    if method == "DELETE":
        return ["s3:AbortMultipartUpload" if "uploadId" in query else "s3:DeleteObject"], bucket, key, {}
    makes_it = not (query.keys() & {"uploads", "partNumber"})
    context = {"s3:ObjectCreationOperation": str(makes_it).lower()}
    if "if-none-match" in names:
        context["s3:if-none-match"] = "*"
    return ["s3:PutObject", *(["s3:GetObject"] if "if-match" in names else [])], bucket, key, context


@contextmanager
def judged(server: Ministack, policy: Mapping[str, Any]) -> Iterator[tuple[Proxy, list[str]]]:
    """Run a proxy that lets through what `policy` allows; yield it and the list of what it refused."""
    client, refusals = server.client(), list[str]()

    def refuse(head: bytes) -> tuple[int, str] | None:
        actions, bucket, key, context = asked(head)
        resource = f"arn:aws:s3:::{bucket}/{key}" if key else f"arn:aws:s3:::{bucket}"
        denied = [action for action in actions if not allowed(policy, action, resource, context)]
        may_list = allowed(policy, "s3:ListBucket", f"arn:aws:s3:::{bucket}", {})
        if not denied and "s3:GetObject" in actions and not may_list and not _exists(client.head_object, bucket, key):
            return 403, "AccessDenied"  # not counted: nothing was wanted that the policy forbids
        if denied:
            refusals.extend(f"{action} {resource}" for action in denied)
            return 403, "AccessDenied"
        return None

    with proxy(server.port) as between:
        between.refuse = refuse
        yield between, refusals


def _exists(head_object: Callable[..., Any], bucket: str, key: str) -> bool:
    try:
        head_object(Bucket=bucket, Key=key)
    except ClientError:
        return False
    return True
