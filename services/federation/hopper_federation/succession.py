"""
Which process is this Hopper's federation service, where several share a PostgreSQL database.

    every process ─► asks for the role ─► one has it: opens everything, speaks with peers, and answers
                                       └► the others stand by, and say so to whoever calls
    it dies, hangs, or is cut off from the database ─► within seconds another has the role, and opens everything

So what is known of peers in memory (who was heard, what they would take, what is under way) is known in one place, and
what is written down is all that the next one needs: the same as after a restart. On a file there is one process, and it
has the role.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any, Final

import grpc.aio
import structlog
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from hopper_common.database import Database
from hopper_common.errors import HopperError, ServiceUnavailable
from hopper_common.host import Running
from hopper_common.identity.store import Identity
from hopper_common.metrics import Measure
from hopper_common.rpc.server import Registered
from hopper_common.startup import StartupError
from hopper_federation.store_sql import Federation

log = structlog.get_logger(__name__)

ROLE: Final = "federation"
AGAIN_AFTER: Final = 1.0
TAKING_OVER_SECONDS: Final = 5.0
"""How long a call waits while it is not known who has the role: the role is somewhere else, or here again, by then."""


@dataclass(frozen=True, slots=True)
class Offered:
    """
    A service that is offered.

    Attributes:
        add: The generated `add_XServicer_to_server`.
    """

    descriptor: ServiceDescriptor
    add: Callable[[Any, grpc.aio.Server], None]


class OtherIdentity(StartupError):
    """Another process, of another Hopper or of a copy of this one, works on this database."""

    exit_code = 5


async def check_identity(federation: Federation, identity: Identity) -> None:
    """
    Check that who stands by is the same Hopper as the process that has the role.

    Raises:
        OtherIdentity: It is not.
    """
    stored = await federation.read(lambda store: store.incarnation())
    if stored is not None and stored.identity != identity.incarnation:
        raise OtherIdentity(
            "another process is the federation service on this database, and has another identity: give both the "
            "same HOPPER_IDENTITY_DIR, or each a database of its own (HOPPER_FEDERATION_DATABASE)"
        )


class Succession:
    """
    Opens the service when this process has the role, and closes it when it has lost it.

    Args:
        open_whole: Opens all of the service, anew each time.
        offered: What it offers.
    """

    def __init__(
        self,
        db: Database,
        open_whole: Callable[[], AbstractAsyncContextManager[Running]],
        offered: Sequence[Offered],
    ) -> None:
        self._db = db
        self._open_whole = open_whole
        self._offered = offered
        self._now: Running | None = None
        self._settled = asyncio.Event()  # it is known who has the role, for the first time
        self._started = asyncio.Event()
        self._known = asyncio.Event()  # it is known who has the role, now
        self._leading: asyncio.Task[None] | None = None

    @property
    def fronts(self) -> list[Registered]:
        """What is offered by this process, whoever has the role."""
        return [
            Registered.of(each.descriptor, _Front(self, each.descriptor), each.add) for each in self._offered
        ]

    @property
    def stands_by(self) -> bool:
        """Whether the service is open in another process, and not in this one."""
        return self._now is None

    def measures(self) -> Iterator[Measure]:
        """What the open service measures; a process that stands by measures nothing."""
        for measure in () if self._now is None else self._now.measures:
            yield from measure()

    async def servicer(self, service: str) -> Any:
        """
        Who answers. While the role is on its way, that is waited for: a process that was cut off from the database for
        a moment has it again in the next.

        Raises:
            ServiceUnavailable: Another process does, or it is not known yet who will.
        """
        if self._now is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TAKING_OVER_SECONDS):
                    await self._known.wait()
        if self._now is None:
            raise ServiceUnavailable(
                "another process of this Hopper is its federation service now: ask that one"
                if self._known.is_set()
                else "this Hopper's federation service is being taken over: try again in a moment",
                service=ROLE,
            )
        return next(each.servicer for each in self._now.registered if each.full_name == service)

    async def begin(self) -> None:
        """
        Open the service if nobody else has the role; else stand by.

        Raises:
            Exception: What is wrong with opening it.
        """
        self._leading = asyncio.create_task(self._db.lead(ROLE, self._serve, waiting=self._stand_by))
        settling = asyncio.create_task(self._settled.wait())
        await asyncio.wait([self._leading, settling], return_when=asyncio.FIRST_COMPLETED)
        settling.cancel()
        if self._leading.done():
            self._leading.result()

    async def run(self) -> None:
        """Let what runs beside the service run, while it is open."""
        self._started.set()
        try:
            if self._leading is not None:
                await asyncio.shield(self._leading)
        finally:
            await self.close()

    async def close(self) -> None:
        """Give the role up, after everything is closed."""
        if self._leading is not None:
            self._leading.cancel()
            await asyncio.gather(self._leading, return_exceptions=True)

    def _stand_by(self) -> None:
        self._known.set()
        if not self._settled.is_set():
            log.warning("another process of this Hopper is its federation service: this one stands by")
            self._settled.set()

    async def _serve(self) -> None:
        self._known.clear()
        async with AsyncExitStack() as stack:
            running = await self._opened(stack)
            self._now = running
            self._settled.set()
            self._known.set()
            try:
                await self._started.wait()
                async with asyncio.TaskGroup() as group:
                    for task in running.tasks:
                        group.create_task(_awaited(task))
                    await asyncio.Event().wait()  # the role is kept though every task may have ended
            except ExceptionGroup as failures:
                raise failures.exceptions[0] from None
            finally:
                self._now = None
                self._known.clear()

    async def _opened(self, stack: AsyncExitStack) -> Running:
        """Who takes over may find the port still held, by one that hangs: then it is tried again."""
        while True:
            try:
                return await stack.enter_async_context(self._open_whole())
            except (HopperError, StartupError) as error:
                if not self._settled.is_set():
                    raise
                log.error(
                    "the federation service is taken over, and cannot be opened yet", problem=str(error)
                )
                await asyncio.sleep(AGAIN_AFTER)


async def _awaited(task: Callable[[], Any]) -> None:
    await task()


class _Front:
    """A servicer that has the one of the open service answer."""

    def __init__(self, succession: Succession, service: ServiceDescriptor) -> None:
        for method in service.methods:
            setattr(self, method.name, _forwarding(succession, service.full_name, method))


def _forwarding(succession: Succession, service: str, method: MethodDescriptor) -> Callable[..., Any]:
    async def answer(request: Any, context: Any) -> Any:
        return await getattr(await succession.servicer(service), method.name)(request, context)

    async def stream(request: Any, context: Any) -> AsyncGenerator[Any]:
        servicer = await succession.servicer(service)
        async with aclosing(getattr(servicer, method.name)(request, context)) as answers:
            async for each in answers:
                yield each

    return stream if method.server_streaming else answer
