"""
What must hold when a run is over. The numbers are those of the catalogue of faults.

Each check returns what is wrong, a line each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from hopper_federation.delegation.model import Delegation, Role, State
from tests.federation.sim.sim_router import TaskState

if TYPE_CHECKING:
    from tests.federation.sim.world import World


def violations(world: World) -> list[str]:
    """Everything that is wrong."""
    checks = (_ended, _one_result, _runs, _drained, _paths, _agreed)
    return [line for check in checks for line in check(world)]


def _ended(world: World) -> Iterator[str]:
    """I1: no task is lost: each has ended, everywhere."""
    for home, name in world.submitted:
        if name not in world.hoppers[home].router.tasks:
            yield f"I1 {name} of {home} is lost"
    for hopper in world.hoppers.values():
        for task in hopper.router.tasks.values():
            if not task.state.over:
                yield f"I1 {task.name} at {hopper.name} is {task.state}, at {task.at!r}"
    for hopper in world.hoppers.values():
        for each in hopper.tables.delegations.values():
            if each.state.open:
                yield f"I1 {each.role} {each.id} at {hopper.name} is {each.state}"


def _one_result(world: World) -> Iterator[str]:
    """I2: at most one result is accepted, and it is one that somebody came to."""
    for hopper in world.hoppers.values():
        for task in hopper.router.tasks.values():
            if len(set(task.results)) > 1:
                yield f"I2 {task.name} at {hopper.name} has results {task.results}"
            if task.state is TaskState.SUCCEEDED and task.result not in world.finished:
                yield f"I2 {task.name} at {hopper.name} has a result of nobody: {task.result!r}"


def _runs(world: World) -> Iterator[str]:
    """I3: what is exclusive ran once at most; what succeeded ran."""
    runs = Counter(run.uid for run in world.ledger)
    for home, name in world.submitted:
        task = world.hoppers[home].router.tasks.get(name)
        if task is None:
            continue
        if task.exclusive and runs[task.uid] > 1:
            yield f"I3 {task.uid} is exclusive and ran {runs[task.uid]} times"
        if task.state is TaskState.SUCCEEDED and not runs[task.uid]:
            yield f"I3 {task.uid} succeeded and never ran"


def _drained(world: World) -> Iterator[str]:
    """I5: nothing is left to be said or done."""
    for hopper in world.hoppers.values():
        for key, row in hopper.tables.outbox.items():
            yield f"I5 {hopper.name} has {key} for {row.peer}: {type(row.message.body).__name__}"
        for chore in hopper.tables.errands:
            yield f"I5 {hopper.name} has {chore.errand.task} for {chore.delegation}"


def _paths(world: World) -> Iterator[str]:
    """I6: no Hopper twice in a path, and no more of them than allowed."""
    for hopper in world.hoppers.values():
        for task in hopper.router.tasks.values():
            path = (*task.path, hopper.name)
            if len(set(path)) != len(path):
                yield f"I6 {task.uid} went {' > '.join(path)}"
            if len(path) > 4:
                yield f"I6 {task.uid} went through {len(path)}"


# How one side ended, and what the other may know of it.
_AGREE = {
    State.COMPLETED: {State.COMPLETED},
    State.FAILED: {State.FAILED},
    State.REJECTED: {State.REJECTED, State.CANCELLED, State.EXPIRED, State.RECLAIMED, State.ORPHANED},
}


def _agreed(world: World) -> Iterator[str]:
    """I7: both sides agree on how it ended."""
    for hopper in world.hoppers.values():
        for out in hopper.tables.delegations.values():
            if out.role is Role.OUT:
                yield from _agreed_on(world, out)


def _agreed_on(world: World, out: Delegation) -> Iterator[str]:
    there = world.hoppers[out.peer].tables.delegations.get((Role.IN, out.id))
    if there is None or out.state.open or there.state.open:
        return
    if out.state is State.FAILED and out.reason:
        return  # a person gave it up
    allowed = _AGREE.get(out.state)
    if allowed is not None and there.state not in allowed:
        yield f"I7 {out.id}: {out.state} at who handed over, {there.state} at {out.peer}"
    done = there.state is State.COMPLETED and there.settled
    if done and out.state is not State.COMPLETED and not out.late and there.reason != "PEER_REVOKED":
        known = world.hoppers[out.peer].revoked | world.hoppers[there.peer].revoked
        if not known:
            yield f"I7 {out.id}: done at {out.peer} and {out.state} at who handed over"
