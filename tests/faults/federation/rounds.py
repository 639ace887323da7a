"""
Rounds of the nemesis: Hoppers that hand work to each other, tasks everywhere, faults at several places at once; then
all is healed, what is open comes to its end, and everything is checked.

Each round has Hoppers of its own and a seed: the same seed gives the same tasks and the same faults in the same order;
when they strike, the machine decides.
"""

import asyncio
import json
import random
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from google.protobuf.duration_pb2 import Duration

from hopper.federation.v1 import peer_admin_service_pb2 as peers
from hopper.federation.v1.peer_pb2 import Peer
from hopper_common.errors import HopperError, Unavailable
from hopper_common.rpc.errors import DeadlineExceeded
from tests.faults.federation.asking import Asker
from tests.faults.federation.checking import DRAIN_SECONDS, ENDED, Seen, late, look, unfinished, violations
from tests.faults.federation.planting import blind
from tests.faults.federation.stage import Stage, directory_kept_if, set_up
from tests.faults.federation.striking import Nemesis

MOST_DRAIN_SECONDS: Final = 180.0
_LOOK_EVERY: Final = 1.0
MODES: Final = (Peer.REVOCATION_DRAIN, Peer.REVOCATION_NOW, Peer.REVOCATION_COMPROMISED)

Say = Callable[[str], None]


def told(mode: Peer.Revocation.ValueType) -> str:
    """What a revocation is called: `DRAIN`."""
    return Peer.Revocation.Name(mode).removeprefix("REVOCATION_")


@dataclass
class Result:
    """What came of one round, or of several."""

    seed: int
    rounds: int = 0
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    struck: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    drained_after: list[float] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)

    def add(self, other: "Result") -> None:
        """As if it had been one."""
        self.rounds += other.rounds
        self.seconds += other.seconds
        self.counts += other.counts
        self.struck += other.struck
        self.violations += other.violations
        self.drained_after += other.drained_after
        self.kept += other.kept

    def lines(self) -> Iterator[str]:
        """A summary, and every violation."""
        yield f"{self.rounds} rounds from seed {self.seed} in {self.seconds / 60:.1f} minutes"
        for what, count in sorted(self.struck.items()):
            yield f"  {count:5} x {what}"
        yield "  " + ", ".join(f"{name} {count}" for name, count in self.counts.items())
        if self.drained_after:
            yield f"  all at rest after {max(self.drained_after):.0f} s at most"
        yield f"  violations {len(self.violations)}"
        for violation in self.violations[:50]:
            yield f"  {violation}"
        for directory in self.kept:
            yield f"  kept: {directory}"


def run(
    seed: int,
    *,
    hoppers: int,
    seconds: float,
    postgres: bool = True,
    revokes: Peer.Revocation.ValueType | None = None,
    say: Say = print,
) -> Result:
    """
    One round.

    Args:
        hoppers: Two to four.
        seconds: How long faults strike.
        postgres: Whether one of them is on PostgreSQL.
        revokes: How an owner revokes a peer meanwhile.
        say: Told how it goes.
    """
    result = Result(seed, rounds=1)
    began = time.monotonic()
    with directory_kept_if(lambda: bool(result.violations)) as directory:
        try:
            asyncio.run(_round(result, directory, hoppers, seconds, postgres, revokes, say))
        except Exception as error:
            traceback.print_exception(error)
            result.violations.append(f"seed {seed}: {type(error).__name__}: {error}")
        finally:
            if result.violations:
                result.kept.append(directory)
                say(f"seed {seed}: kept in {directory}")
    result.seconds = time.monotonic() - began
    return result


async def _round(
    result: Result,
    directory: Path,
    hoppers: int,
    seconds: float,
    postgres: bool,
    revokes: Peer.Revocation.ValueType | None,
    say: Say,
) -> None:
    chance = random.Random(result.seed)
    async with set_up(directory, hoppers=hoppers, postgres=postgres) as stage:
        asker = Asker(stage, random.Random(chance.getrandbits(64)))
        nemesis = Nemesis(stage, random.Random(chance.getrandbits(64)), long=seconds > 60)
        async with asyncio.TaskGroup() as group:
            group.create_task(asker.run(seconds))
            striking = group.create_task(nemesis.run(seconds))
            if revokes is not None:
                group.create_task(_revoke(stage, revokes, chance, seconds, nemesis))
            await striking
        result.struck += nemesis.struck
        seen = await _at_rest(stage, asker, result)
        result.violations += await violations(seen)
        result.violations += blind(seen)
        _count(result, seen)
        if result.violations:
            _keep_small_disks(stage)
            _keep_seen(stage, seen)
    for line in result.violations[:20]:
        say(f"seed {result.seed}: {line}")


async def _revoke(
    stage: Stage,
    mode: Peer.Revocation.ValueType,
    chance: random.Random,
    seconds: float,
    nemesis: Nemesis,
) -> None:
    """An owner ends it with a peer, while work is under way; whatever else is going on."""
    await asyncio.sleep(chance.uniform(0.3, 0.8) * seconds)
    link = chance.choice(stage.links)
    one, other = chance.sample((link.one, link.other), 2)
    drain = Duration(seconds=20) if mode == Peer.REVOCATION_DRAIN else None
    request = peers.RevokePeerRequest(name=f"peers/{other.name}", mode=mode, drain=drain)
    one.revoked.add(other.name)
    other.revoked.add(one.name)
    if mode == Peer.REVOCATION_COMPROMISED:
        other.shut_out.add(one.name)
    while True:
        try:
            await one.client.peers.RevokePeer(request)
            break
        except (Unavailable, DeadlineExceeded):  # it is down, or stopped
            await asyncio.sleep(0.5)
    nemesis.struck[f"peer revoked: {told(mode)}"] += 1


async def _at_rest(stage: Stage, asker: Asker, result: Result) -> Seen:
    """Once nothing goes on any more, or it has taken too long."""
    healed: Seen | None = None
    begun = time.monotonic()
    while True:
        taken = time.monotonic() - begun
        try:
            seen = await look(stage, asker.asked)
        except HopperError:  # one has just been started
            if taken > MOST_DRAIN_SECONDS:
                raise
            await asyncio.sleep(_LOOK_EVERY)
            continue
        healed = healed or seen
        if taken > DRAIN_SECONDS and not result.violations:
            result.violations += late(seen, healed)
        if not any(unfinished(seen)):
            result.drained_after.append(taken)
            return seen
        if taken > MOST_DRAIN_SECONDS:
            return seen
        await asyncio.sleep(_LOOK_EVERY)


def _count(result: Result, seen: Seen) -> None:
    begun = Counter(entry.uid for entry in seen.ledger if entry.what == "begin")
    result.counts += Counter(
        {
            "tasks": len(seen.asked),
            "acknowledged": sum(bool(asked.name) for asked in seen.asked),
            "exclusive": sum(asked.exclusive for asked in seen.asked),
            "called off": sum(asked.called_off for asked in seen.asked),
            "executions": sum(begun.values()),
            "executed again": sum(count > 1 for count in begun.values()),
            "hand-overs": sum(len(there.hand_overs) for there in seen.there.values()) // 2,
            "wait for a person": sum(
                task.state not in ENDED for there in seen.there.values() for task in there.tasks
            ),
            "kills": sum(member.kills for member in seen.stage.members),
        }
    )
    for there in seen.there.values():
        for row in there.hand_overs:
            if row["role"] == "OUT":
                result.counts[row["state"].lower()] += 1
            result.counts["late results"] += bool(row["role"] == "OUT" and row.get("late"))


def _keep_seen(stage: Stage, seen: Seen) -> None:
    """A server's databases go with it."""
    for name, there in seen.there.items():
        rows = [*there.hand_overs, *there.outbox, *there.errands]
        lines = [*(json.dumps(row, default=repr) for row in rows), *(str(task) for task in there.tasks)]
        (stage.directory / f"{name}.seen").write_text("\n".join(lines))


def _keep_small_disks(stage: Stage) -> None:
    """What is on a disk that goes away is to be looked at too."""
    for member in stage.members:
        if member.small_disk:
            copy = stage.directory / f"{member.name}-copy"
            shutil.copytree(
                member.process.data_dir, copy, ignore=shutil.ignore_patterns("*.sock"), dirs_exist_ok=True
            )
