"""
What the router's four services have in common: one method per RPC, each check, call, convert, return.

Tasks and their followers are in `task_servicer`, decisions and policies in `routing_servicer`, workers in
`work_servicer`, hand-overs in `delegation_servicer`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import Message

from hopper_common.errors import HopperError
from hopper_common.pagination import PageTokens, page_size
from hopper_common.timestamps import duration_field
from hopper_router.engine import Engine
from hopper_router.errors import InstanceNotFound, InstanceNotRunning, ProjectNotFound, RegistryUnknown

Context = grpc.aio.ServicerContext[Any, Any]
T = TypeVar("T")
R = TypeVar("R")
TOKENS: Final = PageTokens()
_FIRST_COPY_TIMEOUT: Final = 1.0


@dataclass(frozen=True, slots=True)
class Page:
    """Where a page of a list begins (before that id; empty: at the newest), and how much it holds."""

    before_id: str
    size: int

    @classmethod
    def of(cls, request: Any) -> Page:
        """The page that a list request asks for."""
        cursor = TOKENS.decode(request.page_token, request)
        return cls(str(cursor.get("before", "")), page_size(request.page_size))

    def cut(self, found: Sequence[T], request: Message, id_of: Callable[[T], str]) -> tuple[Sequence[T], str]:
        """The page of *found*, of which one more than fits was asked for, and the token of the next."""
        if len(found) <= self.size:
            return found, ""
        page = found[: self.size]
        return page, TOKENS.encode({"before": id_of(page[-1])}, request)


def lease_of(request: Any) -> timedelta | None:
    """The lease a request asks for; None: it does not say."""
    return duration_field(request, "lease_duration")


def each(items: Collection[T], one: Callable[[T], R], refused: Callable[[T, HopperError], R]) -> list[R]:
    """One result per item, in order, each on its own: an item that is refused leaves the others alone."""
    results: list[R] = []
    for item in items:
        try:
            results.append(one(item))
        except HopperError as error:
            results.append(refused(item, error))
    return results


async def up_to_date(engine: Engine, call: Callable[[], Awaitable[R]]) -> R:
    """
    Make a call that may be refused because of what the copy of the registry says, or does not say yet.

    Such a refusal is believed only after the registry has been asked, so that what was registered or started a moment
    ago can be used at once. At the very first start calls may come a moment before the copy does; they wait for it.
    """
    try:
        return await call()
    except RegistryUnknown:
        if not await _first_copy(engine):
            raise
        return await call()
    except (ProjectNotFound, InstanceNotFound, InstanceNotRunning) as error:
        registry, instance = engine.registry, error.metadata.get("instance", "")
        if instance and not await registry.refresh_instance(instance):
            raise
        if not instance and not await registry.refresh_project(error.metadata.get("project", "")):
            raise
        return await call()


async def _first_copy(engine: Engine) -> bool:
    """Wait a little for the first copy of the registry; whether it has come."""
    registry = engine.registry
    seen = registry.changed.count
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_FIRST_COPY_TIMEOUT):
            while not registry.current.complete:
                seen = await registry.changed.wait(after=seen)
    return registry.current.complete
