"""
A channel that is dialled anew when what it was dialled with has changed.

A gRPC channel keeps its certificate for life: after a leaf has run out it goes on until the connection is lost, and
then never connects again. So calls go through a channel that looks, at each call, whether there is another leaf; dials
anew if so; and lets the calls under way finish on the old one.
"""

import asyncio
import contextlib
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

import grpc
import grpc.aio

DRAIN_SECONDS: Final = 120.0
"""How long calls may go on over the old connection: the longest poll, twice over. Streams are then to be resumed."""


class _Dialled:
    """One channel, and how many calls are under way on it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def count(self, call: Any) -> None:
        self._calls += 1
        self._idle.clear()
        call.add_done_callback(self._end)

    def _end(self, _: object) -> None:
        self._calls -= 1
        if not self._calls:
            self._idle.set()

    async def drain(self) -> None:
        """Close it when its calls have ended, or have had their time. Cancelled: at once."""
        # gRPC's own grace cannot be cut short.
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), DRAIN_SECONDS)
        finally:
            await self.channel.close()


class FollowingChannel(grpc.aio.Channel):
    """
    A channel over channels.

    Args:
        dial: Opens one.
        generation: Cheap to ask, at each call: whether to look at all.
        shown: What a channel is dialled with; another answer than before means another channel.
    """

    def __init__(
        self, dial: Callable[[], grpc.aio.Channel], generation: Callable[[], int], shown: Callable[[], object]
    ) -> None:
        self._dial = dial
        self._generation = generation
        self._shown = shown
        self._looked = generation()
        self._dialled = _Dialled(dial())
        self._dialled_with = shown()
        self._draining: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def current(self) -> grpc.aio.Channel:
        """The channel for calls that begin now."""
        return self.dialled.channel

    @property
    def dialled(self) -> _Dialled:
        """The same, with its calls."""
        if self._generation() != self._looked and not self._closed:
            self._look()
        return self._dialled

    def _look(self) -> None:
        self._looked = self._generation()
        shown = self._shown()
        if shown == self._dialled_with:
            return
        old, self._dialled, self._dialled_with = self._dialled, _Dialled(self._dial()), shown
        task = asyncio.get_running_loop().create_task(old.drain())
        self._draining.add(task)
        task.add_done_callback(self._draining.discard)

    async def close(self, grace: float | None = None) -> None:
        self._closed = True
        draining = list(self._draining)
        for task in draining:
            task.cancel()
        await asyncio.gather(*draining, return_exceptions=True)
        await self._dialled.channel.close(grace)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self.close()

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self.current.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self.current.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self.current.channel_ready()

    def unary_unary(self, *args: Any, **named: Any) -> Any:
        return _Method(self, lambda channel: channel.unary_unary(*args, **named))

    def unary_stream(self, *args: Any, **named: Any) -> Any:
        return _Method(self, lambda channel: channel.unary_stream(*args, **named))

    def stream_unary(self, *args: Any, **named: Any) -> Any:
        return _Method(self, lambda channel: channel.stream_unary(*args, **named))

    def stream_stream(self, *args: Any, **named: Any) -> Any:
        return _Method(self, lambda channel: channel.stream_stream(*args, **named))


class _Method:
    """A method of whichever channel is current."""

    def __init__(self, channel: FollowingChannel, make: Callable[[grpc.aio.Channel], Any]) -> None:
        self._following = channel
        self._make = make
        self._dialled: _Dialled | None = None
        self._made: Callable[..., Any] = make

    def __call__(self, *args: Any, **named: Any) -> Any:
        dialled = self._following.dialled
        if dialled is not self._dialled:
            self._dialled, self._made = dialled, self._make(dialled.channel)
        call = self._made(*args, **named)
        dialled.count(call)
        return call
