"""ReplayPolicy and CompareShadow: reads what `replay` compares, lets it work in a thread, and says what came of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from hopper.router.v1 import routing_service_pb2 as svc
from hopper_common.errors import FieldViolation, HopperError, InvalidArgument
from hopper_common.timestamps import to_proto
from hopper_router import placing, shadow
from hopper_router.candidates import Candidates
from hopper_router.engine import Engine
from hopper_router.model import Decision, Outcome
from hopper_router.offpolicy import Estimate
from hopper_router.policy_yaml import load_policy
from hopper_router.replay import Again, Change, Comparison, Recorded, Rehearsal, Verdict, compare
from hopper_router.rules import Policy
from hopper_router.store_sql import task_id
from hopper_router.unit import Unit
from hopper_router.verdicts import Verdicts

DEFAULT: Final = 1000
SHOWN: Final = 100
_PAGE: Final = 500
STRATEGIES: Final = ("rules", "learned")

_AS_IT_IS = "the projects are taken as they are now, and as if nobody were busy"
_LEARNED_ANEW = "what is learned was learned anew from these tasks, each decided before its outcome was known"
_NO_MEMORY = "memory does not answer: what feedback says is not known, only how tasks ended"


class Replays:
    """Compares what was decided with what other policies decide."""

    def __init__(self, engine: Engine, verdicts: Verdicts) -> None:
        self._engine = engine
        self._verdicts = verdicts

    async def replay(self, request: svc.ReplayPolicyRequest) -> svc.ReplayPolicyResponse:
        """Let a policy decide about the latest tasks of an instance once more."""
        policy = await self._policy(request)
        recorded, left_out, candidates = await self._recorded(request.instance, request.limit or DEFAULT)
        verdicts, notes = await self._verdicts_on(recorded)
        notes = [_AS_IT_IS, *notes]
        if left_out:
            notes.append(f"{left_out} decisions are about tasks that are archived, and were left out")
        learner = self._engine.learned.novice()
        rehearsal = Rehearsal(policy, candidates, learner)
        if rehearsal.learns and recorded:
            await learner.wake()
            notes.append(_LEARNED_ANEW)

        def work() -> Comparison:
            return compare(recorded, rehearsal.decide(recorded, verdicts), verdicts, notes=notes)

        found = await asyncio.to_thread(work)
        return svc.ReplayPolicyResponse(
            replayed=found.compared,
            changed=len(found.changes),
            changes=_changes(found.changes),
            estimate=_estimate(found),
            notes=found.notes,
        )

    async def compare_shadow(self, request: svc.CompareShadowRequest) -> svc.CompareShadowResponse:
        """Compare what was decided with what the shadow would have."""
        chosen = await self._engine.read(
            lambda unit: _shadow_of(unit, request.instance, request.limit or DEFAULT)
        )
        recorded, again = await self._beside(chosen.rows)
        verdicts, notes = await self._verdicts_on(recorded)
        found = await asyncio.to_thread(lambda: compare(recorded, again, verdicts, notes=notes))
        first = recorded[-1].decision.create_time if recorded else None
        return svc.CompareShadowResponse(
            compared=found.compared,
            changed=len(found.changes),
            changes=_changes(found.changes),
            estimate=_estimate(found),
            notes=found.notes,
            strategy=chosen.strategy,
            first_time=to_proto(first),
        )

    # ------------------------------------------------------------ reading

    async def _policy(self, request: svc.ReplayPolicyRequest) -> Policy:
        if request.source:
            return await asyncio.to_thread(load_policy, request.source)
        if request.strategy not in STRATEGIES:
            problem = f"must be one of {', '.join(STRATEGIES)}, or give a source"
            raise InvalidArgument(violations=[FieldViolation("strategy", problem)])
        world = self._engine.registry.current
        in_force = self._engine.policies.in_force(request.instance, world).policy
        return replace(in_force, strategy=request.strategy, stages=())

    async def _recorded(self, instance: str, limit: int) -> tuple[list[Recorded], int, Candidates]:
        """The latest decisions with their tasks, newest first; how many tasks are gone; the projects."""
        recorded: list[Recorded] = []
        left_out, before = 0, ""
        candidates = self._engine.registry.current.candidates
        while limit > 0:
            size = min(limit, _PAGE)
            read = await self._engine.read(
                lambda unit, before=before, size=size: _page(unit, instance, before, size)  # type: ignore[misc]
            )
            page, count, before = read
            recorded += page
            left_out += count - len(page)
            if not before:
                break
            limit -= size
        return recorded, left_out, candidates

    async def _beside(self, rows: Sequence[shadow.Row]) -> tuple[list[Recorded], list[Again]]:
        recorded: list[Recorded] = []
        for begin in range(0, len(rows), _PAGE):
            names = [row.decision for row in rows[begin : begin + _PAGE]]
            recorded += await self._engine.read(
                lambda unit, names=names: _with_tasks(unit, unit.store.decisions(names).values())  # type: ignore[misc]
            )
        recorded.sort(key=lambda each: each.decision.name, reverse=True)
        chosen = {row.decision: Again(row.project, row.confidence) for row in rows}
        return recorded, [chosen[each.decision.name] for each in recorded]

    async def _verdicts_on(self, recorded: Sequence[Recorded]) -> tuple[dict[str, Verdict], list[str]]:
        try:
            return await self._verdicts.of([each.decision.name for each in recorded]), []
        except HopperError:
            return {}, [_NO_MEMORY]


def _page(unit: Unit, instance: str, before: str, size: int) -> tuple[list[Recorded], int, str]:
    """Some decisions that a policy made, how many there were, and where the next page begins; "": there is none."""
    unit.instance(instance)
    latest = unit.store.list_decisions(instance=instance, before_id=before, limit=size)
    # What a scope keeps in its queue was not decided by a policy, and would not be.
    made = [decision for decision in latest if decision.outcome is not Outcome.QUEUED]
    return _with_tasks(unit, made), len(made), task_id(latest[-1].name) if len(latest) == size else ""


def _with_tasks(unit: Unit, decisions: Sequence[Decision]) -> list[Recorded]:
    made = list(decisions)
    tasks = {task.name: task for task in unit.tasks({decision.task for decision in made})}
    return [
        Recorded(decision, task, placing.refused_then(unit, decision, task.spec))
        for decision in made
        if (task := tasks.get(decision.task)) is not None
    ]


class _Chosen:
    """What a shadow has chosen, and its strategy; "": there is no shadow now, and there are no choices."""

    def __init__(self, rows: Sequence[shadow.Row], strategy: str) -> None:
        self.rows = rows
        self.strategy = strategy


def _shadow_of(unit: Unit, instance: str, limit: int) -> _Chosen:
    unit.instance(instance)
    rows = shadow.latest(unit.store.conn, instance, limit)
    now = unit.world.policies.in_force(instance, unit.world.directory).policy.shadow
    # What an earlier shadow of another kind chose says nothing of this one.
    strategy = now.strategy if now is not None else rows[0].strategy if rows else ""
    return _Chosen([row for row in rows if row.strategy == strategy], strategy)


# ---------------------------------------------------------------- saying


def _changes(changes: Sequence[Change]) -> list[svc.ReplayChange]:
    return [
        svc.ReplayChange(
            decision=change.recorded.decision.name,
            task=change.recorded.decision.task,
            from_project=change.recorded.decision.project,
            to_project=change.again.project,
            from_confidence=change.recorded.decision.confidence,
            to_confidence=change.again.confidence,
            went=change.went,
            expected=change.expected,
        )
        for change in changes[:SHOWN]
    ]


def _estimate(found: Comparison) -> svc.PolicyEstimate | None:
    made: Estimate | None = found.estimate
    if made is None:
        return None
    return svc.PolicyEstimate(
        value=made.value,
        lower=made.lower,
        upper=made.upper,
        recorded=made.recorded,
        gain=made.gain,
        gain_lower=made.gain_lower,
        gain_upper=made.gain_upper,
        random=found.blind,
        agreement=found.agreement,
        judged=found.judged,
        modelled=made.modelled,
        method=svc.PolicyEstimate.Method.Value(f"METHOD_{made.method.name}"),
    )
