"""
Comparing notes with a peer: what both know of their open hand-overs, so that whatever was lost on one side is found.

Done when a peer is back, every hour, and before anything is sent to it after one of the two was restored from a copy.
Only the sender of a peer does it, between two batches: what is compared is not being changed by a message under way.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

import structlog

from hopper.federation.v1 import peer_service_pb2 as svc
from hopper_common.errors import (
    HopperError,
    InvalidArgument,
    PermissionDenied,
    ServiceUnavailable,
    Unavailable,
)
from hopper_common.rpc.errors import DeadlineExceeded
from hopper_federation.delegation import wire
from hopper_federation.delegation.desk import note_of
from hopper_federation.delegation.desks import Desks, Sitting
from hopper_federation.delegation.model import Note
from hopper_federation.peer_links import PeerLinks
from hopper_federation.store_sql import Federation

if TYPE_CHECKING:  # it is in the type stubs only
    from hopper.federation.v1.peer_service_pb2_grpc import PeerServiceAsyncStub

log = structlog.get_logger(__name__)

PAGE: Final = 200
"""How many notes are compared in one transaction, if this Hopper asks."""

MOST: Final = 1000
"""How many an answer has at most."""

CALL_SECONDS: Final = 30.0
EVERY: Final = 3600.0
NOT_WITHIN: Final = 30.0
"""A peer that comes and goes is not asked each time."""

T = TypeVar("T")


class Unanswered(Exception):
    """A peer did not answer, or with an error. Apart from what is wrong at this Hopper."""

    def __init__(self, problem: HopperError) -> None:
        super().__init__(problem.message)
        self.problem = problem


async def asked(links: PeerLinks, peer: str, make: "Callable[[PeerServiceAsyncStub], Awaitable[T]]") -> T:
    """
    What a peer answers.

    Raises:
        Unanswered: Why it does not.
    """
    try:
        return await links.to(peer).call(make)
    except HopperError as problem:
        raise Unanswered(problem) from problem
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # Somebody else has hung up, because the link changes.
        raise Unanswered(ServiceUnavailable("the link was closed", service="peer")) from error


class Syncer:
    """
    Compares notes with peers, when it is time.

    Args:
        monotonic: Seconds, of a clock that never goes back.
    """

    def __init__(self, desks: Desks, links: PeerLinks, federation: Federation) -> None:
        self._desks = desks
        self._links = links
        self._federation = federation
        self._monotonic = links.clock.monotonic
        self._due: set[str] = set()
        self._needed: set[str] = set()
        self._done: dict[str, float] = {}

    @property
    def incarnation(self) -> int:
        """This Hopper's."""
        return self._federation.incarnation

    def is_due(self, peer: str) -> None:
        """A peer is back: what was agreed meanwhile may have been lost."""
        self._due.add(peer)

    def is_needed(self, peer: str) -> bool:
        """
        Nothing is taken before notes have been compared.

        Returns:
            Whether that is news: false, if they were compared a moment ago, and it did not help.
        """
        self._needed.add(peer)
        done = self._done.get(peer)
        return done is None or self._monotonic() - done >= NOT_WITHIN

    def due_in(self, peer: str) -> float:
        """How long until it is time, in seconds, if nothing happens."""
        since = self._monotonic() - self._done.get(peer, self._monotonic())
        return max(0.0, (NOT_WITHIN if peer in self._due else EVERY) - since)

    async def if_due(self, peer: str) -> None:
        """
        Compare notes, if it is time.

        Raises:
            Unanswered: It had to be done, and could not.
            StorageFull, StorageUnavailable: Likewise.
        """
        must = await self._must(peer)
        if not (must or self._is_time(peer)):
            return
        try:
            await self.sync(peer)
        except Unanswered as error:
            if must or isinstance(error.problem, Unavailable | DeadlineExceeded | PermissionDenied):
                raise
            # It is there, and will not: that is no reason to send it nothing.
            log.warning("a peer does not compare notes", install_id=peer, reason=error.problem.reason)
        self._due.discard(peer)
        self._needed.discard(peer)
        self._done[peer] = self._monotonic()

    async def _must(self, peer: str) -> bool:
        if peer in self._needed:
            return True
        return self._federation.resync and await self._federation.read(lambda store: store.must_sync(peer))

    def _is_time(self, peer: str) -> bool:
        done = self._done.setdefault(peer, self._monotonic() - NOT_WITHIN)
        return self._monotonic() - done >= (NOT_WITHIN if peer in self._due else EVERY)

    async def sync(self, peer: str) -> None:
        """
        Compare notes, now.

        Raises:
            Unanswered: The peer did not.
            StorageFull, StorageUnavailable: This Hopper's database does not take it.
        """
        mine = await self._desks.read(lambda rows: [note_of(each) for each in rows.open_of(peer)])
        after = ""
        for page, up_to in _pages(mine):
            await self._page(
                peer,
                svc.SyncRequest(
                    notes=[wire.note_to_proto(note) for note in page],
                    after=after,
                    up_to=up_to,
                    incarnation=self.incarnation,
                ),
            )
            after = up_to
        await self._federation.write(lambda store: store.note_synced(peer))
        log.info("notes were compared", install_id=peer, hand_overs=len(mine))

    async def _page(self, peer: str, request: svc.SyncRequest) -> None:
        answer = await asked(self._links, peer, lambda stub: stub.Sync(request, timeout=CALL_SECONDS))
        await self._desks.write(lambda sitting: _compare(sitting, peer, answer))


def _pages(notes: Sequence[Note]) -> list[tuple[Sequence[Note], str]]:
    """Each page with the last id in it; the last page goes on to the end, and there is always one."""
    pages = [notes[begin : begin + PAGE] for begin in range(0, len(notes), PAGE)] or [[]]
    ends = [page[-1].delegation for page in pages[:-1]]
    return list(zip(pages, [*ends, ""], strict=True))


def _compare(sitting: Sitting, peer: str, answer: svc.SyncResponse) -> None:
    for proto in answer.notes:
        try:
            note = wire.note_from_proto(proto)
        except InvalidArgument as error:
            log.info(
                "a note cannot be read", install_id=peer, delegation=proto.delegation, problem=error.message
            )
            continue
        sitting.desk.noted(peer, note)
    for delegation in answer.unknown:
        sitting.desk.unknown_there(peer, delegation)


def answered(sitting: Sitting, peer: str, request: svc.SyncRequest) -> svc.SyncResponse:
    """What this Hopper knows of what a peer names, and of what else is open with it within the page."""
    response = svc.SyncResponse()
    named = set()
    for proto in request.notes:
        named.add(proto.delegation)
        try:
            known = sitting.desk.noted(peer, wire.note_from_proto(proto))
        except InvalidArgument as error:
            log.info(
                "a note cannot be read", install_id=peer, delegation=proto.delegation, problem=error.message
            )
            continue
        if known is None:
            response.unknown.append(proto.delegation)
        else:
            response.notes.append(wire.note_to_proto(known))
    others = [
        note
        for note in sitting.desk.notes(peer)
        if note.delegation not in named
        and note.delegation > request.after
        and (not request.up_to or note.delegation <= request.up_to)
    ]
    response.notes.extend(wire.note_to_proto(note) for note in others[: MOST - len(response.notes)])
    if not request.up_to:
        sitting.rows.save_incarnation_of(peer, request.incarnation)
    return response
