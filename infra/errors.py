"""Every error that camloop raises on purpose, sorted by who can mend it.

CamloopError                      a message with the value, the legal values and what to do
 +- UsageError        exit 2      the person at the keyboard: a wrong argument, an empty folder
 |   +- SettingsError             camloop.toml, cameras.toml or the environment
 |   +- QueryError                a where-expression or a sample that cannot be read
 +- MissingExtra      exit 2      an extra of the distribution is not installed
 +- StoreError        exit 1      the object store or the network to it
 |   +- ObjectMissing             no object under that key (deleted, expired, never written)
 |   +- StoreForbidden            the credentials lack the right; also S3's answer about a missing key to who may not list
 |   +- ObjectExists              put_if_absent found an object already there: look, do not retry
 |   +- ObjectChanged             put_if_match met another version
 |   +- StoreBusy                 the store asks to come later, and may say when
 |   +- StoreIncapable            the store cannot do what the command needs (failed self-test)
 +- MediaError        exit 1      the clip itself: truncated, not a video, over a limit
 +- CatalogError      exit 1      the tables: torn log, schema mismatch, unknown outcome
 +- ArtefactError     exit 1      Selection, Report, Bundle: wrong hash, wrong version, not verified
 |   +- Refused                   a release or an installation that must not happen
 +- DeviceError       exit 1      camera, disk or clock of the host
 +- JobError          exit 1      a job whose failures passed the stated share
 +- GateFailed        exit 1      a gate that did not pass (a result, not a fault)

The command line prints the message on one line and exits with `exit_code`; a traceback is shown with --debug only.
"""

from __future__ import annotations


class CamloopError(Exception):
    """Root of all errors that camloop raises on purpose.

    `exit_code` is what the command line returns: 2 for wrong use, 1 for a failed job or gate.
    """

    exit_code = 1


class UsageError(CamloopError):
    """The command was called wrongly; nothing was done."""

    exit_code = 2


class SettingsError(UsageError):
    """camloop.toml, cameras.toml or the environment holds a value that cannot be used."""


class QueryError(UsageError):
    """A where-expression, a sample or a split cannot be understood or met."""


class MissingExtra(CamloopError):
    """A library of an optional extra is missing; the message names the extra to install."""

    exit_code = 2


class StoreError(CamloopError):
    """The object store did not do what was asked."""


class ObjectMissing(StoreError):
    """No object lies under the key."""


class StoreForbidden(StoreError):
    """The credentials may not do this. S3 says the same of a missing object to whoever may not list the bucket."""


class ObjectExists(StoreError):
    """`put_if_absent` found an object under the key."""


class ObjectChanged(StoreError):
    """`put_if_match` found another version than the one named."""


class StoreBusy(StoreError):
    """The store answered 429 or 503; `retry_after_s` is what it asked for, 0 if it did not say."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QuotaSpent(StoreBusy):
    """One camera has sent what it may for now: it comes again after `retry_after_s`; others are not meant."""


class StoreIncapable(StoreError):
    """The store's self-test showed that it cannot do what this command needs."""


class MediaError(CamloopError):
    """A clip cannot be read: truncated, not a video, or over a limit."""


class CatalogError(CamloopError):
    """The tables cannot be read or written safely."""


class ArtefactError(CamloopError):
    """A Selection, Report or Bundle is not what its hash or version says."""


class Refused(ArtefactError):
    """A release or an installation that must not happen; the message says why."""


class DeviceError(CamloopError):
    """Camera, disk or clock of the host failed."""


class JobError(CamloopError):
    """A job ended with more failures than the share it was allowed."""


class GateFailed(CamloopError):
    """A model did not pass its gate. A result, not a fault."""
