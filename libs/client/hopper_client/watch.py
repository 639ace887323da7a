"""
Watches that survive a lost connection.

`Watch` keeps the books, without input or output: where to resume, and what the caller has seen. Its rules:

- A snapshot is held back until its end has come, and then handed out whole, `snapshot_complete` last. One
  that is cut in the middle is dropped, because it may not be resumed; the next begins from nothing.
- After that, changes are handed out as they come. A lost connection resumes after the last of them, and what
  comes twice is dropped: no gap, no repeat.
- When the server no longer keeps the changes since then (RESUME_TOO_OLD), there is another snapshot. Its
  `count` messages come right before its `snapshot_complete`: whoever mirrors resources replaces what he has
  by these.

`resumed` and `resumed_blocking` drive it over a stub's method. A watch that begins and cannot reach a Hopper
says so after a few tries. One that has, or was given, a position waits for Hopper to come back for as long
as it takes.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from typing import Any, Generic, TypeVar, cast

from google.protobuf.message import Message

from hopper_client.errors import will_pass
from hopper_client.policy import MOST_RETRIES, Backoff
from hopper_common.errors import HopperError, ResumeTooOld

Req = TypeVar("Req", bound=Message)
Resp = TypeVar("Resp", bound=Message)


class Watch(Generic[Req, Resp]):
    """
    The books of one watch.

    Args:
        request: What to watch; its `after_<version field>`, when set, is where to begin.
        version_field: Where responses carry their position: `version` or `generation`.
    """

    def __init__(self, request: Req, version_field: str, response_type: type[Resp]) -> None:
        self._request = type(request)()
        self._request.CopyFrom(request)
        self._version_field = version_field
        self._after_field = f"after_{version_field}"
        self._position: int = getattr(request, self._after_field)
        self._held: list[Resp] = []
        self._in_snapshot = False
        self._backoff = Backoff()

    def request(self) -> Req:
        """What to send now. A snapshot that was not complete is forgotten."""
        self._held = []
        self._in_snapshot = self._position == 0
        request = type(self._request)()
        request.CopyFrom(self._request)
        setattr(request, self._after_field, self._position)
        return request

    def receive(self, response: Resp) -> Sequence[Resp]:
        """Take in what came, and return what the caller may see now."""
        self._backoff.reset()
        version: int = getattr(response, self._version_field)
        if self._in_snapshot:
            return self._receive_snapshot(response, version)
        if version <= self._position:
            return ()
        self._position = version
        return (response,)

    def _receive_snapshot(self, response: Resp, version: int) -> Sequence[Resp]:
        self._held.append(response)
        if not response.HasField(cast("Any", "snapshot_complete")):
            return ()
        whole, self._held = self._held, []
        self._in_snapshot = False
        self._position = version
        return whole

    def pause_after(self, error: HopperError | None) -> float:
        """
        The stream has ended: seconds to wait before the next.

        Args:
            error: How it ended; None: without one, as no watch should.

        Raises:
            HopperError: The one given, where waiting does not help.
        """
        if isinstance(error, ResumeTooOld) and self._position:
            self._position = 0
            return 0.0
        if error is not None and not self._is_worth_waiting(error):
            raise error
        told = error.retry_after.total_seconds() if error and error.retry_after else 0.0
        return self._backoff.next(at_least=told)

    def _is_worth_waiting(self, error: HopperError) -> bool:
        return will_pass(error) and (self._position > 0 or self._backoff.count < MOST_RETRIES)


async def resumed(call: Callable[[Req], Any], watch: Watch[Req, Resp]) -> AsyncGenerator[Resp, None]:
    """
    Follow a watch over a method of an async stub, for ever.

    Raises:
        HopperError: Such that waiting does not help.
    """
    while True:
        stream = call(watch.request())
        ended: HopperError | None = None
        try:
            async for response in stream:
                for visible in watch.receive(response):
                    yield visible
        except HopperError as error:
            ended = error
        finally:
            stream.cancel()
        await asyncio.sleep(watch.pause_after(ended))


def resumed_blocking(call: Callable[[Req], Any], watch: Watch[Req, Resp]) -> Generator[Resp, None, None]:
    """The same over a method of a blocking stub; closing the generator ends the call."""
    while True:
        stream = call(watch.request())
        ended: HopperError | None = None
        try:
            for response in stream:
                yield from watch.receive(response)
        except HopperError as error:
            ended = error
        finally:
            stream.cancel()
        time.sleep(watch.pause_after(ended))
