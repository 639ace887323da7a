"""`hopper.router.v1.RoutingService`: decisions tried out and looked up, policies governed."""

from __future__ import annotations

import asyncio
import re
from datetime import datetime
from typing import Final

from hopper.router.v1 import decision_pb2 as pb
from hopper.router.v1 import routing_service_pb2 as svc
from hopper.router.v1.routing_service_pb2_grpc import RoutingServiceServicer
from hopper_common.errors import EtagMismatch, FieldViolation, InvalidArgument
from hopper_common.timestamps import to_proto
from hopper_router import intake, placing, routing
from hopper_router.convert import decision_to_proto, spec_from_proto
from hopper_router.engine import Engine
from hopper_router.errors import DecisionNotFound
from hopper_router.model import Decision, Outcome, Task
from hopper_router.policies import InForce
from hopper_router.policy_yaml import (
    BUILT_IN,
    BUILT_IN_SOURCE,
    PolicyProblem,
    check_policy,
    load_policy,
    unknown_projects,
)
from hopper_router.rules import Policy
from hopper_router.servicer import Context, Page, up_to_date
from hopper_router.store_sql import PolicyRow, task_id
from hopper_router.unit import Unit

_POLICY_NAME: Final = re.compile(r"(instances/[^/]+)/policy")
_REPLAY_DEFAULT: Final = 1000
_REPLAY_SHOWN: Final = 100


class RoutingServicer(RoutingServiceServicer):
    """Translates; `placing`, `routing` and `rules` do the work."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    # ------------------------------------------------------------ decisions

    async def SuggestRoute(
        self, request: svc.SuggestRouteRequest, context: Context
    ) -> svc.SuggestRouteResponse:
        spec = spec_from_proto(request.spec)

        def look(unit: Unit) -> svc.SuggestRouteResponse:
            intake.require_project(unit, spec.project)
            where = unit.instance(request.parent)
            decision = placing.suggest(unit, where, spec)
            return svc.SuggestRouteResponse(decision=decision_to_proto(decision))

        return await up_to_date(self._engine, lambda: self._engine.read(look))

    async def GetDecision(self, request: svc.GetDecisionRequest, context: Context) -> svc.GetDecisionResponse:
        found = await self._engine.read(lambda unit: unit.store.decisions([request.name]))
        if request.name not in found:
            raise DecisionNotFound(f"there is no decision {request.name}", decision=request.name)
        return svc.GetDecisionResponse(decision=decision_to_proto(found[request.name]))

    async def ListDecisions(
        self, request: svc.ListDecisionsRequest, context: Context
    ) -> svc.ListDecisionsResponse:
        page = Page.of(request)
        found = await self._engine.read(
            lambda unit: unit.store.list_decisions(
                task=request.task,
                instance=request.instance,
                project=request.project,
                before_id=page.before_id,
                limit=page.size + 1,
            )
        )
        decisions, token = page.cut(found, request, lambda decision: task_id(decision.name))
        return svc.ListDecisionsResponse(decisions=map(decision_to_proto, decisions), next_page_token=token)

    # ------------------------------------------------------------ policies

    async def GetPolicy(self, request: svc.GetPolicyRequest, context: Context) -> svc.GetPolicyResponse:
        def look(unit: Unit) -> svc.GetPolicyResponse:
            unit.instance(request.instance)
            in_force = unit.world.policies.in_force(request.instance, unit.world.directory)
            return svc.GetPolicyResponse(policy=_stored(unit, in_force))

        return await up_to_date(self._engine, lambda: self._engine.read(look))

    async def UpdatePolicy(
        self, request: svc.UpdatePolicyRequest, context: Context
    ) -> svc.UpdatePolicyResponse:
        instance = _instance_of(request.policy.name)
        source = request.policy.source
        policy = await asyncio.to_thread(load_policy, source) if source else None

        def effect(unit: Unit) -> svc.UpdatePolicyResponse:
            unit.instance(instance)
            row = _next_version(unit, instance, source, request.policy.etag)
            unit.store.put_policy(row)
            stored = InForce(f"{instance}/policy", row.version, policy or BUILT_IN)
            return svc.UpdatePolicyResponse(policy=_policy(stored, source, row.update_time))

        response = await up_to_date(
            self._engine,
            lambda: self._engine.mutate("UpdatePolicy", request, svc.UpdatePolicyResponse, effect),
        )
        self._engine.policies.put(
            instance, response.policy.version, policy
        )  # in force only once it is durable
        await self._engine.learn_if_asked()
        await self._engine.tell_of_policies()
        return response

    async def ValidatePolicy(
        self, request: svc.ValidatePolicyRequest, context: Context
    ) -> svc.ValidatePolicyResponse:
        policy, errors, warnings = await asyncio.to_thread(check_policy, request.source)
        known = self._engine.registry.current.projects
        unknown = unknown_projects(policy, known) if policy is not None else ()
        return svc.ValidatePolicyResponse(
            errors=map(_problem, errors),
            warnings=map(_problem, (*warnings, *unknown)),
            rule_count=len(policy.rules) if policy else 0,
        )

    async def ReplayPolicy(
        self, request: svc.ReplayPolicyRequest, context: Context
    ) -> svc.ReplayPolicyResponse:
        policy = await asyncio.to_thread(load_policy, request.source)
        limit = request.limit or _REPLAY_DEFAULT
        return await up_to_date(
            self._engine,
            lambda: self._engine.read(lambda unit: _replay(unit, request.instance, policy, limit)),
        )


def _instance_of(policy: str) -> str:
    matched = _POLICY_NAME.fullmatch(policy)
    if not matched:
        raise InvalidArgument(
            violations=[FieldViolation("policy.name", "must be instances/{instance}/policy")]
        )
    return matched[1]


def _next_version(unit: Unit, instance: str, source: str, etag: str) -> PolicyRow:
    stored = {row.instance: row for row in unit.store.policies()}.get(instance)
    version = stored.version if stored else 0
    # Where it was removed, whoever reads finds the built-in one, or that of an instance above.
    current = {_etag(version)} if stored and stored.source else {_etag(version), _etag(0)}
    if etag and etag not in current:
        raise EtagMismatch(resource=f"{instance}/policy", etag=_etag(version))
    return PolicyRow(instance, version + 1, source, unit.now)


def _etag(version: int) -> str:
    return f"p{version}"


def _stored(unit: Unit, in_force: InForce) -> pb.Policy:
    rows = {f"{row.instance}/policy": row for row in unit.store.policies()}
    row = rows.get(in_force.name)
    if row is None or not row.source:
        return _policy(in_force, BUILT_IN_SOURCE, None)
    return _policy(in_force, row.source, row.update_time)


def _policy(in_force: InForce, source: str, update_time: datetime | None) -> pb.Policy:
    return pb.Policy(
        name=in_force.name,
        source=source,
        version=in_force.version,
        etag=_etag(in_force.version),
        update_time=to_proto(update_time),
        rule_count=len(in_force.policy.rules),
        strategy=in_force.policy.strategy,
    )


def _problem(problem: PolicyProblem) -> pb.PolicyError:
    return pb.PolicyError(
        line=problem.line, column=problem.column, path=problem.path, message=problem.message
    )


def _replay(unit: Unit, instance: str, policy: Policy, limit: int) -> svc.ReplayPolicyResponse:
    """The recorded decisions made once more, by another policy, with the projects as they are now."""
    unit.instance(instance)
    # What a scope keeps in its queue was not decided by a policy, and would not be.
    latest = unit.store.list_decisions(instance=instance, limit=limit)
    recorded = [decision for decision in latest if decision.outcome is not Outcome.QUEUED]
    tasks = {task.name: task for task in unit.tasks({decision.task for decision in recorded})}
    changes: list[svc.ReplayChange] = []
    changed = 0
    for decision in recorded:
        again = _decide_again(unit, tasks[decision.task], decision, policy)
        if again.project != decision.project:
            changed += 1
            if len(changes) < _REPLAY_SHOWN:
                changes.append(
                    svc.ReplayChange(
                        decision=decision.name,
                        task=decision.task,
                        from_project=decision.project,
                        to_project=again.project,
                    )
                )
    return svc.ReplayPolicyResponse(replayed=len(recorded), changed=changed, changes=changes)


def _decide_again(unit: Unit, task: Task, decision: Decision, policy: Policy) -> Decision:
    # Load is left out: what was busy then is not known, and what is busy now has nothing to do with it.
    candidates = unit.world.directory.candidates
    refused = placing.refused_then(unit, decision)
    return routing.decide(
        task.spec,
        candidates,
        policy,
        load={},
        refused=refused,
        basis=placing.basis(unit, "", 0),
        strategies=unit.world.strategies(task.instance),
    )
