"""
What must hold when a run is over. The numbers are those of the catalogue of faults.

Each check returns what is wrong, a line each. What a Hopper that lies has, and what becomes of tasks that it has had,
is its own affair, but for what the honest ones promise among each other.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import combinations
from typing import TYPE_CHECKING

from hopper_federation.delegation.model import Delegation, Role, State
from tests.federation.sim.sim_hopper import SimHopper
from tests.federation.sim.sim_router import Run, SimTask, TaskState

if TYPE_CHECKING:
    from tests.federation.sim.world import World


STOPPED_WITHIN = 15.0
"""Seconds in which a Hopper that comes up has stopped what it has no lease for: errands are tried every ten."""


def violations(world: World) -> list[str]:
    """Everything that is wrong."""
    checks = (_ended, _kept, _one_result, _runs, _drained, _paths, _agreed, _alarms, _fenced, _undisturbed)
    return [*world.found, *(line for check in checks for line in check(world))]


def _honest(world: World) -> list[SimHopper]:
    return [hopper for hopper in world.hoppers.values() if not hopper.lies]


def _tasks(world: World) -> Iterator[tuple[SimHopper, SimTask]]:
    for hopper in _honest(world):
        for task in hopper.router.tasks.values():
            yield hopper, task


def _ended(world: World) -> Iterator[str]:
    """I1: no task is lost: each has ended, everywhere, and so has every hand-over, on both sides."""
    for home, name in world.submitted:
        if name not in world.hoppers[home].router.tasks:
            yield f"I1 {name} of {home} is lost"
    for hopper, task in _tasks(world):
        if not task.state.over:
            yield f"I1 {task.name} at {hopper.name} is {task.state}, at {task.at!r}"
    for hopper in _honest(world):
        for each in hopper.tables.delegations.values():
            if each.state.open:
                yield f"I1 {each.role} {each.id} at {hopper.name} is {each.state}"
            if each.role is Role.OUT and not each.settled:
                yield f"I1 {each.role} {each.id} at {hopper.name} is {each.state}, and the router does not know"
            if each.role is Role.IN and each.result and not each.settled and not world.plan.revocations:
                yield f"I1 {each.role} {each.id} at {hopper.name} is {each.state}, and {each.peer} does not know"


def _kept(world: World) -> Iterator[str]:
    """What a Hopper has acknowledged it has, unless its owner brought back an old copy."""
    for name, delegation, role in sorted(world.acknowledged):
        hopper = world.hoppers[name]
        if hopper.lies or hopper.restored:
            continue
        each = hopper.tables.delegations.get((role, delegation))
        if each is None:
            yield f"F29 {name} has taken {delegation} over, and knows nothing of it"
        elif role is Role.OUT and each.state.open:
            yield f"F29 {name} has the result of {delegation}, which is {each.state}"


def _one_result(world: World) -> Iterator[str]:
    """I2: at most one result is applied, once, and it is one that somebody came to."""
    for hopper, task in _tasks(world):
        if len(task.results) > 1:
            yield f"I2 {task.name} at {hopper.name} has results {task.results}"
        nobodys = task.state is TaskState.SUCCEEDED and task.result not in world.finished
        if nobodys and task.what.uid not in world.exempted:
            yield f"I2 {task.name} at {hopper.name} has a result of nobody: {task.result!r}"


def _runs(world: World) -> Iterator[str]:
    """I3: what is exclusive ran once at most; what succeeded ran."""
    runs = Counter(run.uid for run in world.ledger)
    for home, name in world.submitted:
        task = world.hoppers[home].router.tasks.get(name)
        if task is None or task.what.uid in world.exempted:
            continue
        uid = task.what.uid
        if task.what.exclusive and runs[uid] > 1:
            where = [run.hopper for run in world.ledger if run.uid == uid]
            yield f"I3 {uid} is exclusive and ran {runs[uid]} times: {where}"
        if task.state is TaskState.SUCCEEDED and not runs[uid]:
            yield f"I3 {uid} succeeded and never ran"


def _drained(world: World) -> Iterator[str]:
    """I5: nothing is left to be said or done."""
    for hopper in _honest(world):
        for peer, rows in hopper.tables.outbox.items():
            for row in rows.values():
                yield f"I5 {hopper.name} has {type(row.message.body).__name__} {row.message.id} for {peer}"
        for chore in hopper.tables.errands.values():
            yield f"I5 {hopper.name} has {chore.errand.task} for {chore.delegation}"


def _paths(world: World) -> Iterator[str]:
    """I6: no Hopper twice in a path, and no more of them, and of copies, than allowed."""
    origins = {f"{home}/{name}": world.hoppers[home].router.tasks[name] for home, name in world.submitted}
    for hopper, task in _tasks(world):
        if task.what.uid in world.exempted:
            continue
        path = (*task.path, hopper.name)
        if len(set(path)) != len(path):
            yield f"I6 {task.what.uid} went {' > '.join(path)}"
        if len(path) - 1 > max(origins[task.what.uid].hops, 1):
            yield f"I6 {task.what.uid} went through {len(path)}"
    for uid, most in sorted(world.most_open.items()):
        if uid in origins and uid not in world.exempted and most > origins[uid].fan_out:
            yield f"I6 {uid} had {most} copies under way, below one hand-over or the origin"


# How one side ended, and what the other may know of it.
_AGREE = {
    State.COMPLETED: {State.COMPLETED},
    State.FAILED: {State.FAILED},
    State.REJECTED: {State.REJECTED, State.CANCELLED, State.EXPIRED, State.RECLAIMED, State.ORPHANED},
}


def _agreed(world: World) -> Iterator[str]:
    """I7: both sides agree on how it ended."""
    for hopper in _honest(world):
        for out in hopper.tables.delegations.values():
            if out.role is Role.OUT and not world.hoppers[out.peer].lies:
                yield from _agreed_on(world, hopper.name, out)


def _agreed_on(world: World, name: str, out: Delegation) -> Iterator[str]:
    there = world.hoppers[out.peer].tables.delegations.get((Role.IN, out.id))
    if there is None or there.peer != name:
        return
    if (
        out.state.open
        or there.state.open
        or not world.untouched(out.id, world.hoppers[name], world.hoppers[out.peer])
    ):
        return
    if out.state is State.FAILED and out.reason:
        return  # a person gave it up
    allowed = _AGREE.get(out.state)
    if allowed is not None and there.state not in allowed:
        yield f"I7 {out.id}: {out.state} at who handed over, {there.state} at {out.peer}"
    known = there.state is State.COMPLETED and there.settled and there.reason != "PEER_REVOKED"
    if known and out.state is not State.COMPLETED and not out.late and not world.plan.revocations:
        yield f"I7 {out.id}: done at {out.peer} and {out.state} at who handed over"


def _alarms(world: World) -> Iterator[str]:
    """People are told of what is so, and of nothing else."""
    torn = world.plan.revocations or world.plan.restores
    for name, raised in world.alarms:
        hopper = world.hoppers[name]
        if hopper.lies or world.hoppers[raised.peer].lies:
            continue
        about = [
            each
            for role in Role
            if (each := hopper.tables.delegations.get((role, raised.delegation))) is not None
        ]
        explained = {
            "suspect": any(each.exclusive for each in about) or (hopper.restored and not about),
            "orphaned": bool(torn),
            "disputed": bool(world.plan.restores),
            "late": any(each.late for each in about) or bool(world.plan.restores),
        }
        if not explained.get(raised.alarm.kind, False):
            yield f"an alarm at {name} for nothing: {raised.alarm.kind} of {raised.delegation}"


def _fenced(world: World) -> Iterator[str]:
    """
    Who lost a lease has stopped before anybody else begins.

    Where clocks are right, and nobody has called anything off: that is told while the work goes on. A Hopper further on
    stops when it is told, or when its own lease runs out, which may be later than that of whoever handed on. And where
    a machine comes up, workers may begin before leases are looked at: what has none any more is stopped at once.
    """
    plan = world.plan
    if plan.skew or plan.revocations or plan.cancels or plan.called_off or plan.hurried:
        return
    runs: dict[str, list[Run]] = defaultdict(list)
    for run in world.ledger:
        guarded = not run.unguarded and not _stopped_at_start(run)
        if len(run.path) < 2 and guarded and run.uid not in world.exempted:
            runs[run.uid].append(run)
    for uid, of_it in sorted(runs.items()):
        if not world.untouched(uid, *world.hoppers.values()):
            continue
        for one, other in combinations(of_it, 2):
            if other.begun < (one.end if one.end is not None else world.now):
                yield (
                    f"{uid} runs at {other.hopper} from {other.begun - world.began:.0f}"
                    f" while it runs at {one.hopper} from {one.begun - world.began:.0f}"
                )


def _stopped_at_start(run: Run) -> bool:
    return run.at_start and run.end is not None and run.end - run.begun < STOPPED_WITHIN


def _undisturbed(world: World) -> Iterator[str]:
    """Where nothing comes between two Hoppers, no lease is lost."""
    plan = world.plan
    if plan.crash or plan.loss or plan.partitions or plan.restores or plan.liars or plan.revocations:
        return
    for hopper in world.hoppers.values():
        for each in hopper.tables.delegations.values():
            if each.reason == "LEASE_LOST" and plan.delay < 1:
                yield f"{each.role} {each.id} at {hopper.name} has lost its lease for nothing"
