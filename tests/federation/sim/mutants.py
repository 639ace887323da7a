"""
Bugs made by hand, to see whether the simulator finds them: `python -m tests.federation.sim.mutants [NAME …]`.

Each changes one thing in the core, or in what the shells promise it, while a world runs. One that no world finds shows
where the simulator is blind; a unit test has to see it then.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

from hopper_federation.delegation import delegatee, delegator
from hopper_federation.delegation.desk import Desk
from hopper_federation.delegation.model import (
    Delegation,
    Errand,
    Outcome,
    Receipt,
    Renewal,
    Result,
    Role,
    State,
    Task,
)
from tests.federation.sim.invariants import violations
from tests.federation.sim.memory_store import MemoryDelegations
from tests.federation.sim.sim_hopper import Crash, SimHopper
from tests.federation.sim.world import World

Swap = tuple[object, str, Callable[[Any], Any]]
"""Where something is, its name, and what becomes of it."""

TRIED = 300


@dataclass(frozen=True)
class Mutant:
    """
    One bug.

    Attributes:
        says: What is wrong with it.
        plan: What the worlds are like in which it is looked for; empty: as they come.
        first: A seed, a little before one that finds it.
    """

    says: str
    swaps: tuple[Swap, ...]
    plan: Mapping[str, Any] = field(default_factory=dict)
    first: int = 0


def without(*kinds: type) -> Callable[[Any], Any]:
    """Steps of which these actions are left out."""

    def changed(original: Any) -> Any:
        def step(*args: Any, **kwargs: Any) -> Any:
            done = original(*args, **kwargs)
            if done is None:
                return None
            return replace(done, actions=tuple(each for each in done.actions if not isinstance(each, kinds)))

        return step

    return changed


def always(value: Any) -> Callable[[Any], Any]:
    return lambda original: lambda *args, **kwargs: value


def _value(value: Any) -> Callable[[Any], Any]:
    return lambda original: value


def _no_fence(original: Any) -> Any:
    def tick(was: Delegation, now: float) -> Any:
        return (
            original(replace(was, lease_end=None), now)
            if was.state is not State.QUARANTINED
            else original(was, now)
        )

    return tick


def _deaf(original: Any) -> Any:
    def goes_on(was: Delegation, at_least: State, now: float) -> Any:
        alive = original(was, at_least, now)
        return alive if was.lease_end is None else replace(alive, lease_end=was.lease_end)

    return goes_on


def _applied_late(original: Any) -> Any:
    def ended(was: Delegation, result: Result) -> Any:
        open_again = was.state in (State.RECLAIMED, State.EXPIRED) and not was.result
        return original(replace(was, state=State.RUNNING) if open_again else was, result)

    return ended


def _kept_apart(name: str) -> Callable[[Any], Any]:
    """What the store is told of in that method is written in another transaction."""

    def changed(original: Any) -> Any:
        def txn(hopper: SimHopper, work: Any, by: str = "") -> Any:
            held: list[tuple[Any, ...]] = []

            def beside(desk: Desk, store: MemoryDelegations) -> Any:
                store.__dict__[name] = lambda *args: held.append(args)
                return work(desk, store)

            answer = original(hopper, beside, by)
            if held:
                original(hopper, lambda desk, store: [getattr(store, name)(*args) for args in held])
            return answer

        return txn

    return changed


def _forgetful(original: Any) -> Any:
    def take(desk: Any, peer: str, message: Any) -> Any:
        return replace(desk._do(peer, message), message=message.id)

    return take


def _whosever(original: Any) -> Any:
    def do(desk: Any, peer: str, message: Any) -> Any:
        for role in Role:
            was = desk._store.delegation(role, message.delegation)
            if was is not None:
                peer = was.peer
        return original(desk, peer, message)

    return do


def _overlooked(*reasons: str) -> Callable[[Any], Any]:
    def changed(original: Any) -> Any:
        def refusal(*args: Any) -> Any:
            found = original(*args)
            return None if found is not None and found.reason in reasons else found

        return refusal

    return changed


def _given_back(original: Any) -> Any:
    def errand_for(done: Delegation) -> Any:
        return Errand(Task.RETURN) if done.outcome is Outcome.CANCELLED else original(done)

    return errand_for


def _waits_for_the_dead(original: Any) -> Any:
    def cancel(was: Delegation, reason: str, now: float, *, by_router: bool) -> Any:
        masked = was.reason == "PEER_REVOKED" and was.state.open
        step = original(replace(was, reason="") if masked else was, reason, now, by_router=by_router)
        return replace(step, delegation=replace(step.delegation, lease_end=None)) if masked else step

    return cancel


def _answered_first(original: Any) -> Any:
    """The first answer is durable before what it is about."""

    def txn(hopper: SimHopper, work: Any, by: str = "") -> Any:
        answers: list[tuple[Any, Any]] = []

        def beside(desk: Desk, store: MemoryDelegations) -> Any:
            keep = store.keep_answer

            def kept(peer: str, digest: bytes, receipt: Receipt, now: float) -> None:
                answers.append(((peer, receipt.message), (digest, receipt)))
                keep(peer, digest, receipt, now)

            store.keep_answer = kept  # type: ignore[method-assign]
            return work(desk, store)

        try:
            return original(hopper, beside, by)
        except Crash:
            hopper.tables.inbox.update(answers)
            raise

    return txn


FENCED: Mapping[str, Any] = {
    "skew": 0.0,
    "revocations": 0,
    "restores": 0,
    "cancels": 0,
    "called_off": 0,
    "hurried": 0.0,
    "hoppers": 3,
    "tasks": 12,
    "crash": 0.0,
    "refusals": 0.0,
    "quarantine": 0.0,
    "partitions": 25,
    "exclusive": 0.0,
    "leases": (60.0, 120.0),
    "liars": 0,
    "unreachable": 0.0,
}
"""Worlds in which no lease is lost but to the network."""

UNDISTURBED: Mapping[str, Any] = {**FENCED, "partitions": 0, "crash": 0.0, "loss": 0.0, "delay": 0.02}
"""Worlds in which none is lost at all."""

MUTANTS: Mapping[str, Mutant] = {
    "no-fence": Mutant("who lost its lease goes on", ((delegatee, "tick", _no_fence),), FENCED),
    "late-fence": Mutant("who lost its lease stops late", ((delegatee, "STOPS_AT", _value(2.5)),), FENCED),
    "early-reclaim": Mutant("tasks are taken back early", ((delegator, "GRACE", _value(-50.0)),), FENCED),
    "deaf": Mutant("renewals renew nothing", ((delegator, "_goes_on", _deaf),), UNDISTURBED),
    "no-stop": Mutant("a lost lease stops nothing", ((delegatee, "tick", without(Errand)),), FENCED),
    "no-renewal": Mutant("nothing is renewed", ((delegatee, "tick", without(Renewal)),), UNDISTURBED),
    "exclusive-reclaimed": Mutant(
        "what must not run twice is taken back", ((delegator, "_may_not_run_twice", always(False)),)
    ),
    "exclusive-given-back": Mutant(
        "what must not run twice goes back half done",
        ((delegator, "_errand_for", _given_back),),
        {"called_off": 6, "exclusive": 1.0},
    ),
    "applied-late": Mutant("a result counts after the end", ((delegator, "_ended", _applied_late),)),
    "errand-apart": Mutant(
        "an errand is written after the commit", ((SimHopper, "txn", _kept_apart("errand")),), {"crash": 0.02}
    ),
    "message-apart": Mutant(
        "a message is written after the commit, and notes are not compared",
        ((SimHopper, "txn", _kept_apart("send")), (delegatee, "_missing", always(None))),
        {"crash": 0.02},
        first=15,
    ),
    "answer-first": Mutant(
        "the inbox is written before the effect",
        ((SimHopper, "txn", _answered_first),),
        {"crash": 0.02},
        first=30,
    ),
    "no-inbox": Mutant(
        "a message is done as often as it comes",
        ((Desk, "take", _forgetful),),
        {"refusals": 0.6, "duplicate": 0.9, "exclusive": 1.0, "tasks": 12},
    ),
    "not-adopted": Mutant("a task claimed again is offered again", ((Desk, "claimed", always(None)),)),
    "whosever": Mutant("anybody may speak of a hand-over", ((Desk, "_do", _whosever),), {"liars": 1}),
    "loops": Mutant(
        "a task comes back", ((Desk, "_refusal", _overlooked("DELEGATION_LOOP")),), {"careless": True}
    ),
    "copies": Mutant(
        "a task comes twice",
        ((Desk, "_refusal", _overlooked("DUPLICATE_TASK")),),
        {"partitions": 12},
        first=10,
    ),
    "waits-for-the-dead": Mutant(
        "a call-off waits for who is gone",
        ((delegator, "cancel", _waits_for_the_dead),),
        {"revocations": 3, "exclusive": 1.0},
    ),
    "not-doubted": Mutant(
        "after an old copy, what must not run twice is offered again",
        ((SimHopper, "_may_have_run", always(False)),),
        {"restores": 6, "exclusive": 1.0, "tasks": 12, "crash": 0.0},
        first=40,
    ),
    "sure-after-a-restore": Mutant(
        "who was restored says what never began there",
        ((delegatee, "_may_have_begun", always(False)),),
        {
            "hoppers": 3,
            "restores": 12,
            "exclusive": 1.0,
            "tasks": 12,
            "crash": 0.0,
            "quarantine": 1.0,
        },
    ),
    "gone-in-vain": Mutant(
        "nothing comes back from who is gone", ((delegator, "gone", without(Errand)),), {"revocations": 3}
    ),
    "lying-disk": Mutant("the disk loses what was committed", (), {"disk_lies": True, "crash": 0.02}),
}


@contextmanager
def alive(mutant: Mutant) -> Iterator[None]:
    """While it is in the code."""
    with ExitStack() as stack:
        for owner, name, change in mutant.swaps:
            stack.enter_context(patch.object(owner, name, change(getattr(owner, name))))
        yield


def found_by(mutant: Mutant, seeds: range) -> tuple[int, str] | None:
    """The first seed whose world shows it, and what it shows; None: none does."""
    with alive(mutant):
        for seed in seeds:
            world = World(seed, **mutant.plan)
            try:
                world.run()
            except Exception as error:
                return seed, repr(error)
            wrong = violations(world)
            if wrong:
                return seed, wrong[0]
    return None


def main() -> int:
    """Returns how many were not found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="which; none: all")
    parser.add_argument("--seeds", type=int, default=TRIED, help=f"how many worlds to try (default {TRIED})")
    wanted = parser.parse_args()
    missed = 0
    for name in wanted.names or MUTANTS:
        began = time.monotonic()
        found = found_by(MUTANTS[name], range(wanted.seeds))
        missed += found is None
        what = "NOT FOUND" if found is None else f"seed {found[0]:<4} {found[1][:110]}"
        print(f"{name:22} {time.monotonic() - began:6.1f} s  {what}", flush=True)
    return missed


if __name__ == "__main__":
    sys.exit(main())
