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
from hopper_common.timestamps import time_field, to_proto
from hopper_router import intake, lookout, placing, policy_history, shadow
from hopper_router.advice import Sages
from hopper_router.cascade import Use
from hopper_router.convert import decision_to_proto, spec_from_proto
from hopper_router.engine import Engine
from hopper_router.errors import DecisionNotFound, PolicyVersionNotFound
from hopper_router.policies import InForce
from hopper_router.policy_yaml import (
    BUILT_IN,
    BUILT_IN_SOURCE,
    PolicyProblem,
    check_policy,
    load_policy,
    unknown_projects,
)
from hopper_router.replaying import Replays
from hopper_router.sage.convert import about_to_proto, performance_to_proto
from hopper_router.sage.errors import SageRefused
from hopper_router.servicer import Context, Page, up_to_date
from hopper_router.store_sql import PolicyRow, task_id
from hopper_router.unit import Unit
from hopper_router.verdicts import Verdicts
from hopper_router.views import duplicate_view

_POLICY_NAME: Final = re.compile(r"(instances/[^/]+)/policy")


class RoutingServicer(RoutingServiceServicer):
    """Translates; `placing`, `routing` and `rules` do the work."""

    def __init__(self, engine: Engine, verdicts: Verdicts, sages: Sages) -> None:
        self._engine = engine
        self._sages = sages
        self._replays = Replays(engine, verdicts)

    # ------------------------------------------------------------ decisions

    async def SuggestRoute(
        self, request: svc.SuggestRouteRequest, context: Context
    ) -> svc.SuggestRouteResponse:
        spec = spec_from_proto(request.spec)
        alike = self._engine.lookout.alike(request.parent, spec)

        def look(unit: Unit) -> svc.SuggestRouteResponse:
            intake.require_project(unit, spec.project)
            where = unit.instance(request.parent)
            decision = placing.suggest(unit, where, spec)
            found = lookout.still_open(unit, alike)
            return svc.SuggestRouteResponse(
                decision=decision_to_proto(decision), duplicates=map(duplicate_view, found)
            )

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
            if request.version:
                return svc.GetPolicyResponse(policy=_version(unit, request.instance, request.version))
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
            policy_history.keep(unit.store.conn, row)
            if policy is not None and policy.shadow is not None:
                shadow.begin(unit)
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

    async def ListPolicyVersions(
        self, request: svc.ListPolicyVersionsRequest, context: Context
    ) -> svc.ListPolicyVersionsResponse:
        page = Page.of(request)

        def look(unit: Unit) -> list[PolicyRow]:
            unit.instance(request.instance)
            return policy_history.versions(
                unit.store.conn, request.instance, before=int(page.before_id or 0), limit=page.size + 1
            )

        found = await up_to_date(self._engine, lambda: self._engine.read(look))
        rows, token = page.cut(found, request, lambda row: str(row.version))
        policies = await asyncio.to_thread(lambda: [_of_row(row, source="") for row in rows])
        return svc.ListPolicyVersionsResponse(policies=policies, next_page_token=token)

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
        return await up_to_date(self._engine, lambda: self._replays.replay(request))

    async def CompareShadow(
        self, request: svc.CompareShadowRequest, context: Context
    ) -> svc.CompareShadowResponse:
        return await up_to_date(self._engine, lambda: self._replays.compare_shadow(request))

    async def ReportSage(self, request: svc.ReportSageRequest, context: Context) -> svc.ReportSageResponse:
        address = await up_to_date(
            self._engine, lambda: self._engine.read(lambda unit: _sage_of(unit, request.instance))
        )
        sage = self._sages.at(address)
        about = await sage.about()
        seen = await sage.report(time_field(request, "start_time"), time_field(request, "end_time"))
        return svc.ReportSageResponse(sage=about_to_proto(about), performance=performance_to_proto(seen))


def _sage_of(unit: Unit, instance: str) -> str:
    """The address of the Sage that an instance's policy names; "": it is the operator's."""
    unit.instance(instance)
    policy = unit.world.policies.in_force(instance, unit.world.directory).policy
    for stage in policy.stages:
        if stage.use is Use.SAGE:
            return stage.address
    raise SageRefused(
        f"the policy of {instance} asks no Sage: give it a stage sage", method="ReportPerformance"
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


def _version(unit: Unit, instance: str, version: int) -> pb.Policy:
    row = policy_history.version(unit.store.conn, instance, version)
    if row is None:
        raise PolicyVersionNotFound(instance=instance, version=str(version))
    return _of_row(row, source=row.source)


def _of_row(row: PolicyRow, *, source: str) -> pb.Policy:
    """An earlier policy; one that was removed has no strategy, nor has one that this release cannot read."""
    policy = check_policy(row.source)[0] if row.source else None
    return pb.Policy(
        name=f"{row.instance}/policy",
        source=source,
        version=row.version,
        etag=_etag(row.version),
        update_time=to_proto(row.update_time),
        rule_count=len(policy.rules) if policy else 0,
        strategy=policy.strategy if policy else "",
    )


def _problem(problem: PolicyProblem) -> pb.PolicyError:
    return pb.PolicyError(
        line=problem.line, column=problem.column, path=problem.path, message=problem.message
    )
