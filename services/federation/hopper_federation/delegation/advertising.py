"""
What this Hopper tells a peer that it would take: what its own projects can do, as far as its policy for that peer
lets it in, and how much of it.

What others can do is told only where work of that peer may go on to them. All of it is a hint: each offer is decided by
itself.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from sqlalchemy import func, select

from hopper.federation.v1 import peer_service_pb2 as svc
from hopper.registry.v1.project_pb2 import Executor, Project
from hopper_common.border.grants import Crossing, Direction, Grant, Usage, decide
from hopper_common.clock import Clock
from hopper_common.errors import PolicyInvalid
from hopper_common.identity.errors import SignatureInvalid
from hopper_federation.delegation.model import Role
from hopper_federation.delegation.own_registry import OwnRegistry
from hopper_federation.delegation.tables import DELEGATIONS
from hopper_federation.store_sql import Federation, SqlStore
from hopper_federation.trust import Level, reaches
from hopper_federation.trust_admin import TrustAdmin

AHEAD: Final = 2
"""How many tasks may be here for each slot: the next is there when one ends."""

WAITING: Final = 10
"""How many may wait where nobody is there now, but somebody will come."""

MOST_OF_A_PEER: Final = 100

FRESH_SECONDS: Final = 0.2
"""How old an answer about slots may be, in seconds: messages come by the hundred a second."""


@dataclass(frozen=True, slots=True)
class _Standing:
    """How a peer stands here: its level and the policy that holds."""

    level: Level
    grant: Grant | None


class Advertiser:
    """Answers peers. What it knows of the registry is what that said last."""

    def __init__(
        self, registry: OwnRegistry, federation: Federation, trust: TrustAdmin, clock: Clock
    ) -> None:
        self._registry = registry
        self._federation = federation
        self._trust = trust
        self._clock = clock
        self._slots: dict[str, tuple[int, float]] = {}

    async def to(self, install_id: str) -> svc.GetCapabilitiesResponse:
        """What a peer is told."""
        standings, mine, of_all = await self._federation.read(lambda store: self._look(store, install_id))
        asker = standings.get(install_id)
        if asker is None or asker.grant is None or not reaches(asker.level, Level.TRUSTED):
            return svc.GetCapabilitiesResponse()
        offered = [
            (project, names)
            for project in self._registry.projects.values()
            if (names := self._covered(project, install_id, standings))
        ]
        projects = [project for project, _ in offered]
        answer = svc.GetCapabilitiesResponse(
            capabilities=sorted({name for _, names in offered for name in names}),
            free_slots=max(0, min(sum(map(_room, projects)) - of_all, MOST_OF_A_PEER - mine)),
            open=mine,
            velocity_per_day=sum(project.velocity_per_day for project in projects),
        )
        if projects and all(project.HasField("working_hours") for project in projects):
            _unite(projects, answer)
        return answer

    async def free_slots(self, install_id: str) -> int:
        """How many more tasks of a peer would be taken now, or a moment ago."""
        now = self._clock.monotonic()
        slots, at = self._slots.get(install_id, (0, -math.inf))
        if now >= at + FRESH_SECONDS:
            slots = (await self.to(install_id)).free_slots
            self._slots[install_id] = slots, now
        return slots

    def _look(self, store: SqlStore, install_id: str) -> tuple[dict[str, _Standing], int, int]:
        """How every peer stands, and how many tasks of that one, and of all, are open here."""
        standings = {peer.install_id: _Standing(peer.level, None) for peer in store.peers(blocked=False)}
        for peer in store.peers(blocked=False):
            try:
                standings[peer.install_id] = _Standing(peer.level, self._trust.policy(store, peer))
            except (SignatureInvalid, PolicyInvalid):
                continue  # the audit log has it: `policy_keeping`
        query = (
            select(DELEGATIONS.c.peer, func.count())
            .where(DELEGATIONS.c.role == Role.IN, DELEGATIONS.c.open)
            .group_by(DELEGATIONS.c.peer)
        )
        counts = {peer: int(count) for peer, count in store.conn.execute(query)}
        return standings, counts.get(install_id, 0), sum(counts.values())

    def _covered(self, project: Project, asker: str, standings: dict[str, _Standing]) -> list[str]:
        """Which of a project's capabilities the asker may use."""
        if not _works(project) or project.border.peer == asker:
            return []
        third = project.border.peer
        return [
            name
            for name in project.capabilities
            if self._allowed(standings[asker], Direction.IN, name, "")
            and (not third or self._may_go_on(standings.get(third), name, asker))
        ]

    def _may_go_on(self, third: _Standing | None, name: str, asker: str) -> bool:
        return third is not None and self._allowed(third, Direction.OUT, name, asker)

    def _allowed(self, of: _Standing, direction: Direction, name: str, origin: str) -> bool:
        crossing = Crossing(direction, capabilities=(name,), origin=origin)
        return decide(of.grant, of.level, crossing, Usage(), self._clock.now()).allowed


def _works(project: Project) -> bool:
    """Whether anybody does what comes there."""
    present = project.presence.live_workers > 0 or not project.executor.requires_live_worker
    return project.state == Project.STATE_ACTIVE and present


def _room(project: Project) -> int:
    """How many tasks may be there at once."""
    room = AHEAD * project.presence.slots or (0 if project.executor.type == Executor.TYPE_PEER else WAITING)
    return min(room, project.capacity.max_open) if project.capacity.max_open else room


def _unite(projects: Iterable[Project], answer: svc.GetCapabilitiesResponse) -> None:
    """When any of them works, where all keep the same clock; else nothing is said."""
    hours = [project.working_hours for project in projects]
    zones = {each.time_zone for each in hours}
    if len(zones) != 1:
        return
    stretches = sorted(
        {(at.weekday, at.from_minute, at.to_minute) for each in hours for at in each.stretches}
    )
    answer.working_hours.time_zone = zones.pop()
    for weekday, from_minute, to_minute in _merged(stretches):
        answer.working_hours.stretches.add(weekday=weekday, from_minute=from_minute, to_minute=to_minute)


def _merged(stretches: Iterable[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    current: tuple[int, int, int] | None = None
    for weekday, begin, end in stretches:
        if current is not None and current[0] == weekday and begin <= current[2]:
            current = (weekday, current[1], max(current[2], end))
            continue
        if current is not None:
            yield current
        current = (weekday, begin, end)
    if current is not None:
        yield current
