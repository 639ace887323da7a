"""The table of errors, there and back."""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from datetime import timedelta
from types import ModuleType

import grpc
import grpc.aio
import pytest

import hopper_common
from hopper.common.v1.error_reason_pb2 import ErrorReason
from hopper_common import errors
from hopper_common.errors import (
    FieldViolation,
    HopperError,
    Internal,
    InvalidArgument,
    NotFound,
    RateLimited,
    RequestTooLarge,
    ServiceUnavailable,
    ShuttingDown,
)
from hopper_common.rpc.errors import CODES, DeadlineExceeded, code_of_kind, from_rpc_error, to_status
from tests.common.rpc_toy import PROTOS

SERVICES = ("hopper_registry", "hopper_router", "hopper_memory")


class SomethingNotFound(NotFound):
    """No such thing."""

    reason = "TASK_NOT_FOUND"


def sent(error: HopperError) -> grpc.aio.AioRpcError:
    """What a client's call raises when a server aborts with *error*."""
    status = to_status(error)
    return grpc.aio.AioRpcError(
        status.code, grpc.aio.Metadata(), grpc.aio.Metadata(*status.trailing_metadata), details=status.details
    )


def plain(code: grpc.StatusCode, details: str = "") -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details)


def _modules() -> Iterator[ModuleType]:
    yield importlib.import_module("hopper_common.rpc.errors")
    for name in (hopper_common.__name__, *SERVICES):
        try:
            package = importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        for found in pkgutil.iter_modules(package.__path__, f"{name}."):
            if found.name.endswith(".errors"):
                yield importlib.import_module(found.name)


def _with_reason() -> list[type[HopperError]]:
    list(_modules())
    found, todo = [], [HopperError]
    while todo:
        kind = todo.pop()
        todo.extend(kind.__subclasses__())
        if "reason" in vars(kind) and kind.__module__.startswith("hopper_"):
            found.append(kind)
    return sorted(found, key=lambda kind: kind.__qualname__)


def documented_codes() -> dict[str, str]:
    """Reason to code, as the comments of the catalogue have it."""
    source = (PROTOS / "hopper/common/v1/error_reason.proto").read_text()
    entries = re.findall(
        r"  // ([A-Z_]+)[.,](?:[^\n]*\n  //)*[^\n]*\n  ERROR_REASON_([A-Z_]+) = \d+;", source
    )
    return {reason: code for code, reason in entries}


def test_the_catalogue_documents_a_code_for_every_reason() -> None:
    codes = documented_codes()
    reasons = {name.removeprefix("ERROR_REASON_") for name, _ in ErrorReason.items()}
    assert set(codes) == reasons - {"UNSPECIFIED"}
    assert set(codes.values()) <= {code.name for code in grpc.StatusCode}


@pytest.mark.parametrize("kind", _with_reason(), ids=lambda kind: kind.__qualname__)
def test_every_error_is_in_the_catalogue_with_its_code(kind: type[HopperError]) -> None:
    assert documented_codes().get(kind.reason) == code_of_kind(kind).name


def test_every_kind_has_its_own_code() -> None:
    assert len(set(CODES.values())) == len(CODES)


def test_an_error_comes_back_as_its_kind_with_everything_it_carried() -> None:
    error = SomethingNotFound("no task of that name", task="instances/a/tasks/b")
    error.retry_after = timedelta(milliseconds=1500)
    back = from_rpc_error(sent(error))
    assert isinstance(back, NotFound)
    assert (back.reason, back.message) == ("TASK_NOT_FOUND", "no task of that name")
    assert back.metadata == {"task": "instances/a/tasks/b"}
    assert back.retry_after == timedelta(milliseconds=1500)


def test_shared_errors_come_back_as_their_very_class() -> None:
    back = from_rpc_error(sent(RateLimited(rate_class="WORK")))
    assert type(back) is RateLimited
    assert back.retry_after == RateLimited.retry_after
    assert type(from_rpc_error(sent(ShuttingDown(service="router")))) is ShuttingDown


# What others make by themselves, with arguments of their own, is never sent.
_SENDERS = ("hopper_common.", "hopper_registry.", "hopper_router.", "hopper_memory.", "hopper_federation.")
_SENT = [kind for kind in _with_reason() if kind.__module__.startswith(_SENDERS)]


@pytest.mark.parametrize("kind", _SENT, ids=lambda kind: kind.__qualname__)
def test_whatever_is_answered_can_be_read(kind: type[HopperError]) -> None:
    error = kind("said so", place="here")
    back = from_rpc_error(sent(error))
    assert (back.reason, back.message, back.metadata) == (kind.reason, "said so", {"place": "here"})


def test_an_error_that_is_not_to_be_retried_comes_back_without_a_delay() -> None:
    assert from_rpc_error(sent(SomethingNotFound())).retry_after is None


def test_violations_come_back() -> None:
    violations = (FieldViolation("tasks[3].title", "is required"), FieldViolation("name", "must be an id"))
    back = from_rpc_error(sent(InvalidArgument(violations=violations)))
    assert isinstance(back, InvalidArgument)
    assert back.violations == violations
    assert back.message == "tasks[3].title: is required; name: must be an id"


def test_metadata_may_have_any_key() -> None:
    error = SomethingNotFound(**{"message": "m", "violations": "v", "self": "s"})
    assert from_rpc_error(sent(error)).metadata == {"message": "m", "violations": "v", "self": "s"}


def test_a_status_stays_below_what_clients_accept_as_trailers() -> None:
    violations = [FieldViolation("é" * 5000, "é" * 5000)] * 500
    status = to_status(InvalidArgument("é" * 5000, violations=violations, method="é" * 5000))
    ((_, details),) = status.trailing_metadata
    assert len(details) + 3 * len(status.details.encode()) < 16 * 1024
    assert len(details) < 8 * 1024
    back = from_rpc_error(sent(InvalidArgument("é" * 5000, violations=violations)))
    assert isinstance(back, InvalidArgument)
    assert back.violations


@pytest.mark.parametrize(
    ("raised", "kind", "reason"),
    [
        (plain(grpc.StatusCode.UNAVAILABLE, "connection refused"), ServiceUnavailable, "SERVICE_UNAVAILABLE"),
        (plain(grpc.StatusCode.CANCELLED), ServiceUnavailable, "SERVICE_UNAVAILABLE"),
        (plain(grpc.StatusCode.DEADLINE_EXCEEDED), DeadlineExceeded, "DEADLINE_EXCEEDED"),
        (plain(grpc.StatusCode.NOT_FOUND), NotFound, "UNSPECIFIED"),
        (plain(grpc.StatusCode.UNKNOWN), Internal, "INTERNAL"),
        (
            plain(grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER: Received message larger than max (20 vs. 16)"),
            RequestTooLarge,
            "REQUEST_TOO_LARGE",
        ),
        (plain(grpc.StatusCode.RESOURCE_EXHAUSTED), errors.ResourceExhausted, "UNSPECIFIED"),
        (grpc.RpcError("bare"), Internal, "INTERNAL"),
    ],
)
def test_what_comes_without_our_details_is_still_one_of_ours(
    raised: grpc.RpcError, kind: type[HopperError], reason: str
) -> None:
    back = from_rpc_error(raised)
    assert isinstance(back, kind)
    assert back.reason == reason


def test_broken_details_do_not_hide_the_code() -> None:
    trailers = grpc.aio.Metadata(("grpc-status-details-bin", b"\xff\xff"))
    raised = grpc.aio.AioRpcError(grpc.StatusCode.ABORTED, grpc.aio.Metadata(), trailers, details="lost")
    back = from_rpc_error(raised)
    assert isinstance(back, errors.LostRace)
    assert back.message == "lost"
