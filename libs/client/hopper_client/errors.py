"""
What a caller of the SDK can meet: Hopper's own errors, as every service raises them, and the few that are
made on this side of the wire. grpc's errors never get through.
"""

from collections.abc import Sequence
from types import MappingProxyType

import grpc

from hopper.router.v1.task_pb2 import ItemError
from hopper_client.policy import is_passing, method_name
from hopper_common.errors import (
    HopperError,
    Internal,
    InvalidArgument,
    LostRace,
    NotFound,
    ServiceUnavailable,
    Unavailable,
    WrongState,
)
from hopper_common.rpc.errors import CODES, DeadlineExceeded, from_rpc_error

_WRITE_FAILED = "Internal error from Core"


class Unreachable(Unavailable):
    """No Hopper answers there."""

    reason = "SERVICE_UNAVAILABLE"


class TaskNotFound(NotFound):
    """No task of that name."""

    reason = "TASK_NOT_FOUND"


class ArtifactNotFound(NotFound):
    """There is no such file beside the task."""

    reason = "ARTIFACT_NOT_FOUND"


class ArtifactDamaged(InvalidArgument):
    """The file that came is not what it should be: its SHA-256 is another."""

    reason = "ARTIFACT_INVALID"


class AmbiguousTask(InvalidArgument):
    """Several tasks end like that."""

    reason = "INVALID_REQUEST"

    def __init__(self, text: str, candidates: Sequence[str]) -> None:
        listed = ", ".join(candidates)
        super().__init__(f"several tasks end in {text!r}: {listed}; write more of the id", candidates=listed)
        self.candidates = tuple(candidates)


def translate(error: grpc.RpcError, *, method: str, address: str, seconds: float | None) -> HopperError:
    """
    Read a failed call into the error its caller gets.

    Args:
        method: `/package.Service/Method`.
        address: Whom it was sent to.
        seconds: The deadline of the call, None if it had none.
    """
    made = from_rpc_error(error)
    if made.message == _WRITE_FAILED:  # on a stream that had ended, before its status was heard
        return Unreachable(_why_unreachable("", address), address=address)
    # Errors of a Hopper tell facts; these two kinds, without any, are grpc's own words.
    if type(made) is DeadlineExceeded and not made.metadata:
        within = "in time" if seconds is None else f"within {seconds:g} s"
        return DeadlineExceeded(
            f"no answer from {address} to {method_name(method)} {within}; it may or may not have been done",
            method=method,
            address=address,
        )
    if type(made) is ServiceUnavailable and not made.metadata:
        return Unreachable(_why_unreachable(made.message, address), address=address)
    return made


def _why_unreachable(text: str, address: str) -> str:
    if "failed to connect" in text or "Connection refused" in text or "No such file" in text:
        return f"no Hopper answers at {address}; start one with `hopper up`"
    return f"the connection to the Hopper at {address} broke; see whether it runs with `hopper doctor`"


def from_item(error: ItemError) -> HopperError:
    """
    Read why one item of a batch was refused, as the error that a call for it alone would have raised.

    Use: `raise from_item(result.error)`.
    """
    kind = next((kind for kind, code in CODES.items() if code.value[0] == error.code), Internal)
    named: type[HopperError] = type(
        kind.__name__, (kind,), {"reason": error.reason or "UNSPECIFIED", "__doc__": kind.__doc__}
    )
    made = named(error.message)
    made.metadata = MappingProxyType(dict(error.metadata))
    return made


def is_lost(error: HopperError) -> bool:
    """Whether a claim's call failed because the claim is no longer held, or the task is over."""
    return isinstance(error, LostRace | NotFound | WrongState)


def will_pass(error: HopperError) -> bool:
    """Whether a program that runs for days should wait and try again, rather than give up."""
    return is_passing(error) or isinstance(error, DeadlineExceeded)
