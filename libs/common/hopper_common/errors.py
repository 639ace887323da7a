"""
Everything that can go wrong, in Hopper's words and without grpc.

The hierarchy says what the caller can do about it, and becomes the gRPC code; the *reason* says what
happened, and is a name from the catalogue `hopper.common.v1.ErrorReason` without its prefix. A service
derives its errors from one of the kinds below:

    class TaskNotFound(NotFound):
        "No task of that name."
        reason = "TASK_NOT_FOUND"

    raise TaskNotFound(task="instances/root/tasks/01j...")

The first line of the docstring, as a message (lower case, no final period), is what people read unless the
raiser says better. Facts go in the metadata, under the keys of the catalogue, so that programs never parse a
message.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import MappingProxyType
from typing import ClassVar, NamedTuple


class HopperError(Exception):
    """
    The call could not be done.

    Args:
        message: For people. Default: the first line of the class's docstring.
        metadata: For programs, under the keys the catalogue gives for the reason.

    Attributes:
        reason: Name in the catalogue, without prefix. The bare kinds that have none cannot be raised.
        retry_after: When set, the same call may succeed after that long.
    """

    reason: ClassVar[str]
    retry_after: timedelta | None = None

    def __init__(self, message: str = "", /, **metadata: str) -> None:
        if not hasattr(self, "reason"):
            raise TypeError(f"{type(self).__name__} is a kind of error: raise a subclass that has a reason")
        self.message = message or self.default_message()
        self.metadata: Mapping[str, str] = MappingProxyType(metadata)
        super().__init__(self.message)

    @classmethod
    def default_message(cls) -> str:
        """The first line of the nearest docstring, lower case and without its period."""
        docstring = next(base.__doc__ for base in cls.__mro__ if base.__doc__)
        line = docstring.strip().splitlines()[0].removesuffix(".")
        return line[:1].lower() + line[1:]


class FieldViolation(NamedTuple):
    """One field that breaks its limits: its path in the request, and what is wrong with it."""

    field: str
    description: str


# The kinds. Whose fault it was, and so what to do: the caller's request ...


class InvalidArgument(HopperError):
    """
    The request breaks its limits.

    Args:
        violations: One entry per field at fault, sent as `google.rpc.BadRequest`.
    """

    reason = "INVALID_REQUEST"

    def __init__(
        self, message: str = "", /, *, violations: Sequence[FieldViolation] = (), **metadata: str
    ) -> None:
        super().__init__(message or _summary(violations), **metadata)
        self.violations = tuple(violations)


def _summary(violations: Sequence[FieldViolation]) -> str:
    return "; ".join(f"{violation.field}: {violation.description}" for violation in violations)


class PolicyInvalid(InvalidArgument):
    """The policy does not load."""

    reason = "POLICY_INVALID"

    @classmethod
    def of(cls, violations: Sequence[FieldViolation]) -> "PolicyInvalid":
        """With every error of it."""
        return cls(
            f"the policy has {len(violations)} error(s); the first: {violations[0].description}",
            violations=violations,
            errors=str(len(violations)),
        )


class OutOfRange(HopperError):
    """The position asked for is not there."""


class Unauthenticated(HopperError):
    """The caller has not proved who it is."""

    reason = "UNAUTHENTICATED"


class PermissionDenied(HopperError):
    """The caller may not do this."""

    reason = "PERMISSION_DENIED"


class CredentialsExpired(Unauthenticated):
    """The key or token has run out: get another."""

    reason = "CREDENTIALS_EXPIRED"


class CredentialsRevoked(Unauthenticated):
    """The key was revoked, or whom it belonged to was removed or disabled."""

    reason = "CREDENTIALS_REVOKED"


class BadSan(Unauthenticated):
    """The certificate does not name exactly one SPIFFE id."""

    reason = "BAD_SAN"


class LeafExpired(Unauthenticated):
    """The certificate is no longer, or not yet, valid."""

    reason = "LEAF_EXPIRED"


class TlsTooOld(Unauthenticated):
    """The connection is not TLS 1.3."""

    reason = "TLS_TOO_OLD"


class IssuerMismatch(PermissionDenied):
    """The certificate was not issued by the root of the trust domain it names."""

    reason = "ISSUER_MISMATCH"


class PathDenied(PermissionDenied):
    """A certificate of that path may not call here."""

    reason = "PATH_DENIED"


# ... the state of the world ...


class NotFound(HopperError):
    """No such resource."""


class AlreadyExists(HopperError):
    """A resource of that name exists."""


class WrongState(HopperError):
    """The resource's state does not allow this (FAILED_PRECONDITION: the same call will fail again)."""


class LostRace(HopperError):
    """Somebody else was first (ABORTED: read again, then retry)."""


# ... or Hopper's own trouble.


class ResourceExhausted(HopperError):
    """There is no room for more."""


class Unavailable(HopperError):
    """It cannot be done now; nothing was done."""


class Internal(HopperError):
    """A defect of Hopper."""

    reason = "INTERNAL"


# The errors that any service may meet.


class MalformedRequest(InvalidArgument):
    """The bytes are not a message of that type."""

    reason = "MALFORMED_REQUEST"


class UnknownField(InvalidArgument):
    """The request has fields this server does not know: upgrade the server, or leave them out."""

    reason = "UNKNOWN_FIELD"


class RequestTooLarge(ResourceExhausted):
    """The request is larger than its method allows."""

    reason = "REQUEST_TOO_LARGE"


class PageTokenInvalid(InvalidArgument):
    """The page token was not made by a call with these parameters: list again without a token."""

    reason = "PAGE_TOKEN_INVALID"


class EtagMismatch(LostRace):
    """Somebody changed the resource since it was read: read it again."""

    reason = "ETAG_MISMATCH"


class IdempotencyConflict(AlreadyExists):
    """The request_id was used for a request with other content: take a new one for a new request."""

    reason = "IDEMPOTENCY_CONFLICT"


class ResumeTooOld(OutOfRange):
    """The changes since that version are no longer kept: watch again from 0 to get a snapshot."""

    reason = "RESUME_TOO_OLD"


class RateLimited(ResourceExhausted):
    """Too many calls of this rate class."""

    reason = "RATE_LIMITED"
    retry_after = timedelta(seconds=1)


class Overloaded(ResourceExhausted):
    """More is waiting than the service can take."""

    reason = "OVERLOADED"
    retry_after = timedelta(seconds=1)


class ShuttingDown(Unavailable):
    """The service is going down; nothing was done."""

    reason = "SHUTTING_DOWN"
    retry_after = timedelta(seconds=1)


class ServiceUnavailable(Unavailable):
    """Another service of this Hopper, needed for this answer, does not answer."""

    reason = "SERVICE_UNAVAILABLE"
    retry_after = timedelta(seconds=1)


class TrustStoreStale(Unavailable):
    """Whom to let in is not known fresh enough, so nobody is."""

    reason = "TRUST_STORE_STALE"
    retry_after = timedelta(seconds=1)


class StorageFull(ResourceExhausted):
    """No room on the disk; nothing was done."""

    reason = "STORAGE_FULL"
    retry_after = timedelta(seconds=5)


class StorageUnavailable(Unavailable):
    """The database does not answer; nothing was done."""

    reason = "STORAGE_UNAVAILABLE"
    retry_after = timedelta(seconds=1)


# Hand-overs: within a Hopper the router says so, between Hoppers the federation service.


class DelegationNotFound(NotFound):
    """There is no such delegation."""

    reason = "DELEGATION_NOT_FOUND"


class DelegationWrongState(WrongState):
    """The delegation's state does not allow this."""

    reason = "DELEGATION_WRONG_STATE"


# Why a database is not opened. They stop a service before it serves, and name the file and the remedy.


class DatabaseLocked(StorageUnavailable):
    """Another process has the database open."""


class DatabaseCorrupt(StorageUnavailable):
    """The database file is damaged."""


class DatabaseNewer(StorageUnavailable):
    """The database was written by a newer Hopper."""


class DatabaseUnsupported(StorageUnavailable):
    """A database of this kind cannot be opened here."""
