"""
Asks each trusted peer what it would take, and how much of it: soon after anything has changed, and each minute.

Whatever it says is a claim: it decides where work may be offered, and never what may leave.
"""

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Final

import structlog

from hopper.federation.v1 import peer_service_pb2 as svc
from hopper.registry.v1.project_pb2 import WorkingHours
from hopper_common.database import Signal
from hopper_common.errors import HopperError, InvalidArgument, UnknownField
from hopper_common.rpc.limits import check_limits
from hopper_common.time_zones import ZoneUnknown, zone_of
from hopper_federation.delegation.credits import Credits
from hopper_federation.peer_links import CALL_SECONDS, PeerLinks
from hopper_federation.trust import Level
from hopper_federation.trust_snapshot import TrustSnapshot, TrustSnapshots

log = structlog.get_logger(__name__)

FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0

_MOST_CAPABILITIES: Final = 200
_MOST_BYTES: Final = 100
_MOST_VELOCITY: Final = 1e9


@dataclass(frozen=True, slots=True)
class Advertised:
    """
    What a peer says of itself, as far as it is fit to be believed.

    Attributes:
        working_hours: None: always.
        velocity: Tasks a day; 0: unknown.
    """

    capabilities: tuple[str, ...] = ()
    working_hours: WorkingHours | None = None
    velocity: float = 0.0


class Inquirer:
    """
    Runs beside the server.

    Args:
        first_pause: Seconds after an answer that says something new; doubled while nothing new comes.

    Attributes:
        known: What each peer has said, by install id.
        changed: Fires when one says something else.
    """

    def __init__(
        self,
        links: PeerLinks,
        snapshots: TrustSnapshots,
        credit: Credits,
        *,
        first_pause: float = FIRST_PAUSE,
    ) -> None:
        self.known: dict[str, Advertised] = {}
        self.changed = Signal()
        self._links = links
        self._snapshots = snapshots
        self._credit = credit
        self._first_pause = first_pause
        self._trust = Signal()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._wakes: dict[str, asyncio.Event] = {}
        self._unreached: set[str] = set()
        snapshots.on_change(self._on_trust)
        links.statuses.on_heard(self._on_heard)

    async def run(self) -> None:
        """Ask for ever, each peer in a task of its own."""
        async with asyncio.TaskGroup() as group:
            while True:
                seen = self._trust.count
                self._follow(group)
                await self._trust.wait(after=seen)

    def _follow(self, group: asyncio.TaskGroup) -> None:
        peers = self._snapshots.current.peers.values()
        wanted = {peer.install_id for peer in peers if peer.may(Level.TRUSTED) and peer.addresses}
        for install_id in self._tasks.keys() - wanted:
            self._tasks.pop(install_id).cancel()
            self._wakes.pop(install_id)
            self.known.pop(install_id, None)
            self._credit.told(install_id, 0)
        for install_id in wanted - self._tasks.keys():
            self._wakes[install_id] = asyncio.Event()
            self._tasks[install_id] = group.create_task(self._keep(install_id))

    async def _keep(self, install_id: str) -> None:
        pause, wake = self._first_pause, self._wakes[install_id]
        while True:
            wake.clear()
            news = await self._ask(install_id)
            pause = self._first_pause if news else min(2 * pause, LONGEST_PAUSE)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await wake.wait()
                pause = self._first_pause

    async def _ask(self, install_id: str) -> bool:
        """Returns whether it says something that it did not say before."""
        request = svc.GetCapabilitiesRequest()
        try:
            answer = await self._links.to(install_id).call(
                lambda stub: stub.GetCapabilities(request, timeout=CALL_SECONDS)
            )
        except HopperError as error:
            self._unreached.add(install_id)
            log.debug("a peer does not say what it takes", install_id=install_id, reason=error.reason)
            return False
        self._unreached.discard(install_id)
        self._credit.told(install_id, answer.free_slots)
        self._links.statuses.would_take(install_id, answer.free_slots)
        said = advertised(answer)
        if said == self.known.get(install_id):
            return False
        self.known[install_id] = said
        self.changed.fire()
        return True

    def _on_trust(self, _: TrustSnapshot) -> None:
        self._trust.fire()
        for wake in self._wakes.values():
            wake.set()

    def _on_heard(self, install_id: str) -> None:
        if install_id in self._unreached and install_id in self._wakes:
            self._unreached.discard(install_id)
            self._wakes[install_id].set()


def advertised(answer: svc.GetCapabilitiesResponse) -> Advertised:
    """What an answer says, without what is no capability and no time to work."""
    words = dict.fromkeys(each for each in answer.capabilities if _is_capability(each))
    hours = answer.working_hours if answer.HasField("working_hours") else None
    velocity = answer.velocity_per_day
    return Advertised(
        capabilities=tuple(sorted(words)[:_MOST_CAPABILITIES]),
        working_hours=hours if hours is not None and _are_hours(hours) else None,
        velocity=velocity if 0 <= velocity <= _MOST_VELOCITY else 0.0,
    )


def _is_capability(word: str) -> bool:
    return bool(word) and word.isprintable() and " " not in word and len(word.encode()) <= _MOST_BYTES


def _are_hours(hours: WorkingHours) -> bool:
    try:
        check_limits(hours)
        zone_of(hours.time_zone)
    except (InvalidArgument, UnknownField, ZoneUnknown):
        return False
    return all(stretch.from_minute < stretch.to_minute for stretch in hours.stretches)
