"""
What is done to Hoppers and to the ways between them while tasks cross: several faults at once, each at a place of its
own. Each is undone when it returns, and all that it takes comes from chance.
"""

import asyncio
import contextlib
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

from hopper.federation.v1.peer_admin_service_pb2 import GetPeerRequest
from hopper_common.timestamps import from_proto
from hopper_testing.processes import HopperProcess, NotStarted
from hopper_testing.proxy import ChaosProxy
from tests.faults.federation.stage import LEASE_SECONDS, Link, Member, Stage, until
from tests.faults.federation.working import LEASE
from tests.faults.stepping import SteppedProcess

RECLAIM_SECONDS: Final = LEASE_SECONDS + 30.0
"""After which a task whose lease nobody renews is taken back."""

_LONG: Final = (RECLAIM_SECONDS + 2, RECLAIM_SECONDS + 10)
_BALLAST: Final = "ballast"
_AROUND_COMMIT: Final = ("transaction.begun", "unit.after", "commit.before", "commit.sent", "commit.after")
_DIES_WITHIN: Final = 10.0
_SMALLEST_STEP: Final = 10.0
_LARGEST_STEP: Final = 7_200.0
_DRIFT: Final = (0.005, 0.2)
"""Seconds a second."""
_SEEN_WITHIN: Final = 5.0
_OFFSET_WITHIN: Final = 5.0


class Nemesis:
    """
    Strikes until it is told to stop.

    Args:
        long: Whether faults may last longer than a lease and its grace.

    Attributes:
        struck: What was done, and how often.
    """

    def __init__(self, stage: Stage, chance: random.Random, *, long: bool, at_once: int = 2) -> None:
        self.struck: Counter[str] = Counter()
        self._stage = stage
        self._chance = chance
        self._long = long
        self._at_once = at_once
        self._busy: set[str] = set()
        self._end = asyncio.Event()

    async def run(self, seconds: float) -> None:
        """Strike for so long; when it returns all is undone."""
        asyncio.get_running_loop().call_later(seconds, self._end.set)
        async with asyncio.TaskGroup() as group:
            for _ in range(self._at_once):
                group.create_task(self._strike_again_and_again())

    async def _strike_again_and_again(self) -> None:
        while not self._end.is_set():
            await self._pause(0.2, 1.5)
            place = self._choose()
            if place is None or self._end.is_set():
                continue
            self._busy.add(place.name)
            try:
                if isinstance(place, Link):
                    await self._strike_link(place)
                else:
                    await self._strike_member(place)
            finally:
                self._busy.discard(place.name)

    def _choose(self) -> Member | Link | None:
        places: list[Member | Link] = [*self._stage.members, *self._stage.links]
        free = [each for each in places if each.name not in self._busy]
        return self._chance.choice(free) if free else None

    async def _pause(self, least: float, most: float) -> None:
        """Some time, cut short by the end."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._end.wait(), self._chance.uniform(least, most))

    async def _lasts(self) -> None:
        """As long as a fault does: mostly seconds, now and then beyond a lease and its grace."""
        if self._long and self._chance.random() < 0.12:
            self.struck["of them longer than a lease and its grace"] += 1
            await self._pause(*_LONG)
        else:
            await self._pause(0.5, 9)

    # Hoppers.

    async def _strike_member(self, member: Member) -> None:
        faults: list[tuple[Callable[[Member], Awaitable[str]], int]] = [
            *((self._kill, 3), (self._kill_at_commit, 4), (self._freeze, 2)),
            *((self._kill_worker, 1), (self._freeze_worker, 1)),
            *((self._set_clock, 2), (self._set_clock_while_down, 3), (self._drift, 1)),
        ]
        if member.small_disk:
            faults.append((self._fill_disk, 3))
        if member.database:
            faults.append((self._restart_database, 3))
        deeds, weights = zip(*faults, strict=True)
        deed: Callable[[Member], Awaitable[str]] = self._chance.choices(deeds, weights=weights)[0]
        self.struck[await deed(member)] += 1

    async def _kill(self, member: Member) -> str:
        member.kills += 1
        await asyncio.to_thread(member.process.kill)
        if self._chance.random() < 0.3:
            await self._lasts()
        await asyncio.to_thread(member.process.start)
        return "Hopper killed with -9"

    async def _kill_at_commit(self, member: Member) -> str:
        """SIGKILL where a crash leaves most behind; or a transaction that is lost there, and SIGKILL later."""
        place = self._chance.choice(_AROUND_COMMIT)
        service = self._chance.choice(("federation", "federation", "router"))
        # Inside of a unit nothing else can go wrong: an error there is the unit's own.
        lost = place != "unit.after" and self._chance.random() < 0.2
        action = "drop" if lost else "kill"
        failpoint = f"{service}:{place}={action}@{self._chance.choice((2, 5, 15, 40, 100))}"
        member.kills += 1
        await asyncio.to_thread(member.process.kill)
        member.process.environment["HOPPER_FAILPOINTS"] = failpoint
        try:
            died = await asyncio.to_thread(_starts_and_dies, member.process)
        finally:
            del member.process.environment["HOPPER_FAILPOINTS"]
        member.kills += 1
        await asyncio.to_thread(member.process.start)
        return f"killed at {place} of {service}" if died else "Hopper killed with -9, twice"

    async def _freeze(self, member: Member) -> str:
        member.process.signal(signal.SIGSTOP)
        try:
            await self._lasts()
        finally:
            member.process.signal(signal.SIGCONT)
        return "Hopper frozen (SIGSTOP)"

    async def _kill_worker(self, member: Member) -> str:
        await asyncio.to_thread(member.kill_worker)
        await self._pause(0.1, 2)
        member.start_worker()
        return "worker killed with -9"

    async def _freeze_worker(self, member: Member) -> str:
        """It wakes after its claims are lost, and goes on where it was."""
        member.signal_worker(signal.SIGSTOP)
        try:
            await self._pause(1, 2 * LEASE.total_seconds())
        finally:
            member.signal_worker(signal.SIGCONT)
        return "worker frozen (SIGSTOP)"

    async def _set_clock(self, member: Member) -> str:
        step = self._step()
        member.process.step(step)
        await self._lasts()
        member.process.step(0.0)
        return f"clock set {_direction(step)}, and set right again"

    async def _set_clock_while_down(self, member: Member) -> str:
        """It takes over the time that is wrong; and then goes on when that is set right, or is started once more."""
        step = self._step()
        await self._start_anew(member, step)
        try:
            if await self._seen_by_a_peer(member, step):
                self.struck["of them seen by a peer in its status"] += 1
            await self._lasts()
        finally:
            member.process.step(0.0)
        if self._chance.random() < 0.5:
            await self._start_anew(member, 0.0)
        return f"clock set {_direction(step)} while it was down"

    async def _start_anew(self, member: Member, ahead: float) -> None:
        member.kills += 1
        await asyncio.to_thread(member.process.kill)
        member.process.step(ahead)
        await asyncio.to_thread(member.process.start)

    async def _drift(self, member: Member) -> str:
        rate = self._chance.choice((-1, 1)) * self._chance.uniform(*_DRIFT)
        drifting = asyncio.create_task(_drift(member.process, rate))
        try:
            await self._lasts()
        finally:
            drifting.cancel()
            member.process.step(0.0)
        return "clock drifts"

    def _step(self) -> float:
        size: float = _SMALLEST_STEP * (_LARGEST_STEP / _SMALLEST_STEP) ** self._chance.random()
        return self._chance.choice((-size, size))

    async def _seen_by_a_peer(self, member: Member, ahead: float) -> bool:
        """Whether one that it is not cut off from says how far its clock is off, before long."""
        others = [each for each in self._stage.peers_of(member) if member.name not in each.revoked]

        async def seen() -> bool:
            return any([abs(ahead - await _offset(other, member)) < _OFFSET_WITHIN for other in others])

        with contextlib.suppress(AssertionError):
            await until(seen, "", seconds=_SEEN_WITHIN)
            return True
        return False

    async def _fill_disk(self, member: Member) -> str:
        ballast = member.process.data_dir / _BALLAST
        try:
            await asyncio.to_thread(_fill, ballast)
            await self._pause(0.5, 6)
        finally:
            ballast.unlink(missing_ok=True)
        return "disk full"

    async def _restart_database(self, member: Member) -> str:
        server = self._stage.server
        assert server is not None
        crashes = self._chance.random() < 0.5
        await asyncio.to_thread(server.crash if crashes else server.stop)
        try:
            await self._pause(0.0, 4)
        finally:
            await asyncio.to_thread(server.start)
        return "PostgreSQL crashed" if crashes else "PostgreSQL restarted"

    # Ways between them.

    async def _strike_link(self, link: Link) -> None:
        faults: tuple[tuple[Callable[[Link], Awaitable[str]], int], ...] = (
            *((self._blackhole, 3), (self._cut, 3), (self._one_way, 3), (self._half_open, 2)),
            *((self._flap, 2), (self._reset, 2), (self._slow, 2), (self._lose_answers, 3)),
        )
        deeds, weights = zip(*faults, strict=True)
        deed: Callable[[Link], Awaitable[str]] = self._chance.choices(deeds, weights=weights)[0]
        try:
            self.struck[await deed(link)] += 1
        finally:
            link.heal()

    async def _blackhole(self, link: Link) -> str:
        for proxy in link.ways.values():
            proxy.hold()
        await self._lasts()
        return "blackhole both ways"

    async def _cut(self, link: Link) -> str:
        for proxy in link.ways.values():
            proxy.down()
        await self._lasts()
        return "partition both ways"

    async def _one_way(self, link: Link) -> str:
        self._one_of(link).down()
        await self._lasts()
        return "partition one way"

    async def _half_open(self, link: Link) -> str:
        self._one_of(link).back.held = True
        await self._lasts()
        return "half open: what is sent arrives, and no answer comes"

    async def _flap(self, link: Link) -> str:
        for _ in range(self._chance.randint(3, 6)):
            for proxy in link.ways.values():
                proxy.down()
            await self._pause(1, 1)
            for proxy in link.ways.values():
                proxy.up()
            await self._pause(1, 1)
        return "flapping, a second each"

    async def _reset(self, link: Link) -> str:
        for _ in range(self._chance.randint(1, 5)):
            for proxy in link.ways.values():
                proxy.reset()
            await self._pause(0.05, 0.5)
        return "connections reset"

    async def _slow(self, link: Link) -> str:
        for proxy in link.ways.values():
            proxy.there.delay = proxy.back.delay = self._chance.uniform(0.05, 1.0)
            proxy.there.bytes_per_second = self._chance.choice((0, 20_000))
            proxy.back.slices = self._chance.choice((0, 100))
        await self._pause(2, 10)
        return "slow link"

    async def _lose_answers(self, link: Link) -> str:
        """What was answered meanwhile is never heard: the connection ends before."""
        for _ in range(self._chance.randint(1, 4)):
            proxies = list(link.ways.values())
            for proxy in proxies:
                proxy.back.held = True
            await self._pause(0.1, 1.5)
            for proxy in proxies:
                proxy.reset()
                proxy.flow()
            await self._pause(0.1, 1.0)
        return "answers lost"

    def _one_of(self, link: Link) -> ChaosProxy:
        return self._chance.choice([link.ways[name] for name in sorted(link.ways)])


def _starts_and_dies(process: HopperProcess) -> bool:
    """Whether a failpoint has killed it, in some seconds; it is dead then in any case."""
    try:
        process.start()
        code = process.wait(_DIES_WITHIN)
    except NotStarted as error:
        # Where it is the transaction of its start that is lost, it says so and ends.
        if error.exit_code != -signal.SIGKILL and "a test has lost" not in str(error):
            raise
        return True
    except subprocess.TimeoutExpired:
        process.kill()
        return False
    if code != -signal.SIGKILL:
        raise AssertionError(f"a Hopper has ended by itself: {process.complaint()[-500:]}")
    return True


async def _offset(here: Member, there: Member) -> float:
    """How far ahead the clock of *there* is in the status of *here*, in seconds."""
    answer = await here.client.peers.GetPeer(GetPeerRequest(name=f"peers/{there.name}"))
    return from_proto(answer.status.clock_offset).total_seconds()


async def _drift(process: SteppedProcess, rate: float) -> None:
    began = time.monotonic()
    while True:
        await asyncio.sleep(0.2)
        process.step(rate * (time.monotonic() - began))


def _direction(step: float) -> str:
    return "forward" if step > 0 else "back"


def _fill(ballast: object) -> None:
    """Take all the room there is."""
    with contextlib.suppress(OSError), open(str(ballast), "wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 65_536)
