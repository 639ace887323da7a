"""`hopper.router.v1.DelegationService`: tasks handed over between instances."""

from __future__ import annotations

from typing import Final

from hopper.router.v1 import delegation_service_pb2 as svc
from hopper.router.v1.delegation_pb2 import Subtask
from hopper.router.v1.delegation_service_pb2_grpc import DelegationServiceServicer
from hopper.router.v1.work_service_pb2 import ClaimRef
from hopper_common.errors import FieldViolation, InvalidArgument
from hopper_router import delegating, handover
from hopper_router.convert import delegation_to_proto, kind_from_proto, spec_from_proto, spec_to_proto
from hopper_router.decomposing import Decomposer
from hopper_router.engine import Engine
from hopper_router.holders import Holders
from hopper_router.model import DelegationKind
from hopper_router.servicer import Context, up_to_date
from hopper_router.unit import Unit
from hopper_router.views import task_view

MOST_IN_CHAIN: Final = 1000


class DelegationServicer(DelegationServiceServicer):
    """Translates; `delegating` and `decomposing` do the work."""

    def __init__(self, engine: Engine, decomposer: Decomposer, holders: Holders | None = None) -> None:
        self._engine = engine
        self._decomposer = decomposer
        self._holders = holders or Holders.of_nobody(engine.db, engine.clock)

    async def DelegateTask(
        self, request: svc.DelegateTaskRequest, context: Context
    ) -> svc.DelegateTaskResponse:
        kind = kind_from_proto(request.kind)
        _require_consistent(request, kind)
        parts = [(spec_from_proto(part.spec), tuple(part.after)) for part in request.subtasks]

        def effect(unit: Unit) -> svc.DelegateTaskResponse:
            delegation = delegating.delegate(
                unit, request.task, kind, request.to_instance, parts, request.reason, request.fencing_token
            )
            task = unit.task(request.task)
            return svc.DelegateTaskResponse(
                delegation=delegation_to_proto(delegation), task=task_view(unit, task)
            )

        return await up_to_date(
            self._engine,
            lambda: self._engine.mutate("DelegateTask", request, svc.DelegateTaskResponse, effect),
        )

    async def ProposeSubtasks(
        self, request: svc.ProposeSubtasksRequest, context: Context
    ) -> svc.ProposeSubtasksResponse:
        proposal = await self._decomposer.propose(request.task)
        return svc.ProposeSubtasksResponse(
            subtasks=[Subtask(spec=spec_to_proto(part.spec), after=part.after) for part in proposal.parts],
            reason=proposal.reason,
            model=proposal.model,
            input_tokens=proposal.cost.input_tokens,
            output_tokens=proposal.cost.output_tokens,
            money_micros=proposal.cost.money,
        )

    async def AcceptDelegation(
        self, request: svc.AcceptDelegationRequest, context: Context
    ) -> svc.AcceptDelegationResponse:
        def effect(unit: Unit) -> svc.AcceptDelegationResponse:
            return svc.AcceptDelegationResponse(
                delegation=delegation_to_proto(delegating.accept(unit, request.name))
            )

        return await self._engine.mutate("AcceptDelegation", request, svc.AcceptDelegationResponse, effect)

    async def RejectDelegation(
        self, request: svc.RejectDelegationRequest, context: Context
    ) -> svc.RejectDelegationResponse:
        token = request.fencing_token
        if token:
            delegation = await self._engine.read(lambda unit: unit.delegation(request.name))
            claims = [ClaimRef(task=child, fencing_token=token) for child in delegation.child_tasks]
            await self._holders.require_own(claims)

        def effect(unit: Unit) -> svc.RejectDelegationResponse:
            rejected = delegating.reject(
                unit, request.name, request.reason, token, may_come_again=request.may_come_again
            )
            return svc.RejectDelegationResponse(delegation=delegation_to_proto(rejected))

        return await self._engine.mutate("RejectDelegation", request, svc.RejectDelegationResponse, effect)

    async def GetDelegation(
        self, request: svc.GetDelegationRequest, context: Context
    ) -> svc.GetDelegationResponse:
        delegation = await self._engine.read(lambda unit: unit.delegation(request.name))
        return svc.GetDelegationResponse(delegation=delegation_to_proto(delegation))

    async def ListDelegations(
        self, request: svc.ListDelegationsRequest, context: Context
    ) -> svc.ListDelegationsResponse:
        found = await self._engine.read(lambda unit: handover.chain(unit, request.task, MOST_IN_CHAIN))
        return svc.ListDelegationsResponse(delegations=map(delegation_to_proto, found))


def _require_consistent(request: svc.DelegateTaskRequest, kind: DelegationKind) -> None:
    violations: list[FieldViolation] = []
    if kind in (DelegationKind.ROUTE, DelegationKind.REASSIGN) and not request.to_instance:
        violations.append(FieldViolation("to_instance", f"is required for {kind.value}"))
    if kind is DelegationKind.ESCALATE and request.to_instance:
        violations.append(
            FieldViolation("to_instance", "must be empty: an escalation goes to whoever is above")
        )
    if (kind is DelegationKind.DECOMPOSE) != bool(request.subtasks):
        violations.append(FieldViolation("subtasks", "are required for DECOMPOSE, and for nothing else"))
    if violations:
        raise InvalidArgument(violations=violations)
