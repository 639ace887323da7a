"""
How a call is made, decided from its method and its request alone: no grpc, no clock, no input or output.

- Every unary call has a deadline, and it covers all attempts together.
- A mutation that can carry a `request_id` carries one. It is made once per call, so that every attempt sends
  the same, and the server answers a repeat with the first answer.
- A call is tried again only when that cannot do a thing twice: reads, calls with a `request_id`, and the few
  that are safe by their nature. Only for errors that pass by themselves: the server was unreachable
  (UNAVAILABLE), or it said when to come back (RetryInfo).

The async and the blocking interceptors both follow this module, so that they cannot differ.
"""

import random
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from hopper_common.errors import HopperError, Unavailable

M = TypeVar("M", bound=Message)

DEFAULT_TIMEOUT = 10.0
MOST_RETRIES = 4
FIRST_BACKOFF = 0.05
LONGEST_BACKOFF = 5.0
# What a long poll is given beyond its wait, for the way there and back.
POLL_MARGIN = 5.0

_READ = re.compile(
    r"(Get|List|Search|Suggest|Validate|Explain|Replay|Check|Verify|WhoAmI|ReportSage)(?![a-z])"
)
# Mutations without a request_id of which a second makes no difference: the first of them counts, or the last.
_REPEATABLE = frozenset({"RenewClaims", "ReportProgress", "Heartbeat", "RecordEpisodes"})


def method_name(method: str) -> str:
    """`SubmitTask` of `/hopper.router.v1.TaskService/SubmitTask`."""
    return method.rpartition("/")[2]


def has_request_id(request: Message) -> bool:
    """Whether requests of this type can carry a `request_id`."""
    return "request_id" in request.DESCRIPTOR.fields_by_name


def with_request_id(request: M) -> M:
    """
    The request itself if it carries a `request_id` or cannot; else a copy that carries a fresh one.

    A copy, because the caller may send the same object again and mean a second request.
    """
    if not has_request_id(request) or cast("Any", request).request_id:
        return request
    copy = type(request)()
    copy.CopyFrom(request)
    cast("Any", copy).request_id = str(uuid.uuid4())
    return copy


def may_retry(method: str, request: Message) -> bool:
    """Whether a second attempt of this call cannot do a thing twice."""
    name = method_name(method)
    if _READ.match(name) or name in _REPEATABLE:
        return True
    return has_request_id(request) and bool(cast("Any", request).request_id)


def deadline_of(request: Message, default: float) -> float:
    """Seconds for all attempts together: the default, and for a long poll at least its wait and a margin."""
    wait = getattr(request, "wait", None)
    if not isinstance(wait, Duration):
        return default
    return max(default, wait.ToTimedelta().total_seconds() + POLL_MARGIN if wait.ToNanoseconds() else 0.0)


def is_passing(error: HopperError) -> bool:
    """Whether the same call may succeed a little later, with nothing done in between."""
    return isinstance(error, Unavailable) or error.retry_after is not None


@dataclass(slots=True)
class Backoff:
    """
    Growing pauses: each twice the one before, up to a longest, with up to half of each left to chance so that
    clients that failed together do not come back together.

    Attributes:
        jitter: Gives numbers from 0 to 1.
    """

    first: float = FIRST_BACKOFF
    longest: float = LONGEST_BACKOFF
    jitter: Callable[[], float] = random.random
    count: int = 0

    def next(self, at_least: float = 0.0) -> float:
        """Seconds to wait now."""
        grown = min(self.longest, self.first * 2.0 ** min(self.count, 32))
        self.count += 1
        return max(grown * (1.0 + self.jitter()) / 2.0, at_least)

    def reset(self) -> None:
        """It went well: the next pause is the first again."""
        self.count = 0


class Attempts(Generic[M]):
    """
    One call, from its first attempt to its last.

    Args:
        timeout: What the caller asked for, in seconds; None: what the policy says.
        default: The client's default deadline, in seconds.
        now: Monotonic seconds.

    Attributes:
        request: What every attempt sends.
    """

    def __init__(self, method: str, request: M, *, timeout: float | None, default: float, now: float) -> None:
        self.request = with_request_id(request)
        self.seconds = deadline_of(request, default) if timeout is None else timeout
        self._deadline = now + self.seconds
        self._may_retry = may_retry(method, self.request)
        self._backoff = Backoff()

    def remaining(self, now: float) -> float:
        """Seconds the next attempt has."""
        return max(0.0, self._deadline - now)

    def pause_after(self, error: HopperError, now: float) -> float | None:
        """Seconds to wait before the next attempt; None: there is none, and the error is the answer."""
        if not self._may_retry or not is_passing(error) or self._backoff.count >= MOST_RETRIES:
            return None
        told = error.retry_after.total_seconds() if error.retry_after else 0.0
        pause = self._backoff.next(at_least=told)
        return pause if now + pause < self._deadline else None
