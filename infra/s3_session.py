"""Credentials for a store: botocore's own chain, and a role assumed through STS that renews itself before it ends."""

from __future__ import annotations

from botocore.credentials import AssumeRoleCredentialFetcher, DeferredRefreshableCredentials
from botocore.exceptions import NoCredentialsError
from botocore.session import Session

from infra.settings import S3Settings


def open_session(settings: S3Settings) -> Session:
    """Return a session with the credentials of the settings, else of botocore's own chain; `role_arn` is assumed."""
    session = Session(profile=settings.profile)
    if settings.region:
        session.set_config_variable("region", settings.region)
    if settings.access_key_id and settings.secret_access_key:
        session.set_credentials(settings.access_key_id, settings.secret_access_key, settings.session_token)
    if settings.role_arn is None:
        return session
    source = session.get_credentials()
    if source is None:
        raise NoCredentialsError
    named = {"endpoint_url": settings.endpoint_url, "region_name": settings.region or "us-east-1"}
    fetcher = AssumeRoleCredentialFetcher(
        client_creator=lambda service, **keys: session.create_client(service, **(named | keys)),
        source_credentials=source, role_arn=settings.role_arn, extra_args={"RoleSessionName": "camloop"},
    )  # fmt: skip
    assumed = Session(profile=settings.profile)
    assumed._credentials = DeferredRefreshableCredentials(fetcher.fetch_credentials, "assume-role")
    return assumed
