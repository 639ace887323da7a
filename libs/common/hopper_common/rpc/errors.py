"""
The one table between Hopper's errors and gRPC's codes, and the road back.

Outwards, a `HopperError` becomes a `google.rpc.Status`: the code of its kind, an `ErrorInfo` with its
reason and metadata, a `BadRequest` with its violations, a `RetryInfo` where it may be tried again. Inwards,
the same is read into an error of the same kind, so that code behind a port catches `NotFound` and never
sees grpc.

The status travels in HTTP/2 trailers, of which other languages' clients accept 8 KiB: it is kept well below.
"""

import contextlib
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import cast

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from hopper_common import errors
from hopper_common.errors import (
    AlreadyExists,
    FieldViolation,
    HopperError,
    Internal,
    InvalidArgument,
    LostRace,
    NotFound,
    OutOfRange,
    PermissionDenied,
    RequestTooLarge,
    ResourceExhausted,
    ServiceUnavailable,
    Unauthenticated,
    Unavailable,
    WrongState,
)

DOMAIN = "hopper.dev"

MOST_DETAIL_BYTES = 5 * 1024
MOST_MESSAGE_CHARACTERS = 600  # three bytes each at worst, and percent-encoded besides
MOST_METADATA_CHARACTERS = 300
MOST_FIELD_CHARACTERS = 200

_DETAILS_KEY = "grpc-status-details-bin"
_NO_REASON = "UNSPECIFIED"
_REASON = re.compile(r"[A-Z][A-Z0-9_]{0,62}")  # what google.rpc asks of reasons


class DeadlineExceeded(HopperError):
    """The call took longer than it may; it may or may not have been done."""

    reason = "DEADLINE_EXCEEDED"


class MethodNotOffered(HopperError):
    """The server does not offer this method: it is older than the client, or does not host that service."""

    reason = "METHOD_NOT_OFFERED"


# A subclass has the code of its nearest ancestor in this table.
CODES: Mapping[type[HopperError], grpc.StatusCode] = {
    InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    NotFound: grpc.StatusCode.NOT_FOUND,
    AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    WrongState: grpc.StatusCode.FAILED_PRECONDITION,
    LostRace: grpc.StatusCode.ABORTED,
    ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    MethodNotOffered: grpc.StatusCode.UNIMPLEMENTED,
    Internal: grpc.StatusCode.INTERNAL,
}

# What a client makes of a code that comes without our details: from gRPC itself, a proxy, or a foreign
# server.
_KINDS: Mapping[grpc.StatusCode, type[HopperError]] = {
    **{code: kind for kind, code in CODES.items()},
    grpc.StatusCode.UNAVAILABLE: ServiceUnavailable,
    grpc.StatusCode.CANCELLED: ServiceUnavailable,  # by the server: our own cancelling is a CancelledError
    grpc.StatusCode.UNKNOWN: Internal,
    grpc.StatusCode.DATA_LOSS: Internal,
}


def code_of(error: HopperError) -> grpc.StatusCode:
    """The gRPC code of an error."""
    return code_of_kind(type(error))


def code_of_kind(kind: type[HopperError]) -> grpc.StatusCode:
    """The gRPC code of a class of errors."""
    return next((CODES[base] for base in kind.__mro__ if base in CODES), grpc.StatusCode.INTERNAL)


# Outwards.


def to_status(error: HopperError) -> grpc.Status:
    """What `context.abort_with_status` takes. Long texts and lists are cut to fit into trailers."""
    code, _ = code_of(error).value
    status = status_pb2.Status(code=code, message=_cut(error.message, MOST_MESSAGE_CHARACTERS))
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    for key, value in error.metadata.items():
        info.metadata[key] = _cut(value, MOST_METADATA_CHARACTERS)
    status.details.add().Pack(info)
    if error.retry_after is not None:
        delay = Duration()
        delay.FromTimedelta(error.retry_after)
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    if isinstance(error, InvalidArgument) and error.violations:
        room = MOST_DETAIL_BYTES - status.ByteSize()
        status.details.add().Pack(_bad_request(error.violations, room))
    return cast("grpc.Status", rpc_status.to_status(status))


def _bad_request(violations: Iterable[FieldViolation], room: int) -> error_details_pb2.BadRequest:
    request = error_details_pb2.BadRequest()
    for violation in violations:
        entry = request.field_violations.add()
        entry.field = _cut(violation.field, MOST_FIELD_CHARACTERS)
        entry.description = _cut(violation.description, MOST_METADATA_CHARACTERS)
        if request.ByteSize() > room:
            request.field_violations.pop()
            break
    return request


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


# Inwards.


def from_rpc_error(error: grpc.RpcError) -> HopperError:
    """
    Read what a call raised, of `grpc.aio` or of blocking `grpc`, into an error of the same kind.

    Returns:
        An error whose class is the kind of the code (`NotFound`, ...), or the very class of
        `hopper_common.errors` where the reason has one there (`ShuttingDown`, ...). It carries the reason,
        message, metadata, violations and retry delay that were sent. Where Hopper's details are missing
        (gRPC itself answered, or a proxy), the reason is that of the kind, or `UNSPECIFIED`. Raise it
        `from` the original.
    """
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return Internal(str(error))
    code = error.code() or grpc.StatusCode.UNKNOWN
    status = _status_in(error.trailing_metadata())
    info = error_details_pb2.ErrorInfo()
    if not (_unpack(status, info) and info.domain == DOMAIN and _REASON.fullmatch(info.reason)):
        return _without_details(code, error.details() or "")
    return _with_details(_kind(code, info.reason), status, info)


def _status_in(trailers: Iterable[tuple[str, str | bytes]] | None) -> status_pb2.Status:
    for key, value in trailers or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            # Broken details are no details: the code and the text are still worth having.
            with contextlib.suppress(DecodeError):
                return status_pb2.Status.FromString(value)
    return status_pb2.Status()


def _unpack(status: status_pb2.Status, into: Message) -> bool:
    with contextlib.suppress(DecodeError):
        return any(detail.Unpack(into) for detail in status.details)
    return False


def _without_details(code: grpc.StatusCode, text: str) -> HopperError:
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in text:
        return RequestTooLarge(text)  # gRPC's own limit, of either side
    kind = _KINDS.get(code, Internal)
    return (kind if hasattr(kind, "reason") else _with_reason(kind, _NO_REASON))(text)


def _with_details(
    kind: type[HopperError], status: status_pb2.Status, info: error_details_pb2.ErrorInfo
) -> HopperError:
    made = kind(status.message)
    made.metadata = MappingProxyType(dict(info.metadata))
    retry = error_details_pb2.RetryInfo()
    made.retry_after = retry.retry_delay.ToTimedelta() if _unpack(status, retry) else None
    request = error_details_pb2.BadRequest()
    if isinstance(made, InvalidArgument) and _unpack(status, request):
        made.violations = tuple(FieldViolation(at.field, at.description) for at in request.field_violations)
    return made


def _kind(code: grpc.StatusCode, reason: str) -> type[HopperError]:
    shared = _SHARED.get(reason)
    if shared is not None and code_of_kind(shared) is code:
        return shared
    kind = next((kind for kind, of in CODES.items() if of is code), Internal)
    return _with_reason(kind, reason)


def _with_reason(kind: type[HopperError], reason: str) -> type[HopperError]:
    """A class of that kind for a reason whose own class lives in a service, out of our reach."""
    return type(kind.__name__, (kind,), {"reason": reason, "__doc__": kind.__doc__})


def _named_here(kind: type[HopperError]) -> Iterable[tuple[str, type[HopperError]]]:
    for child in kind.__subclasses__():
        if "reason" in vars(child) and child.__module__ in (errors.__name__, __name__):
            yield child.reason, child
        yield from _named_here(child)


_SHARED: Mapping[str, type[HopperError]] = dict(_named_here(HopperError))
