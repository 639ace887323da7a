"""Whose work a task is that is about to leave."""

from hopper.router.v1.delegation_pb2 import Delegation
from hopper_federation.delegation.lineage import Lineage, lineage_of

TOP, IN_TEAM, AT_PEER, PART = (f"instances/{name}/tasks/1" for name in ("global", "team", "peer-bob", "part"))
_ROUTE, _DECOMPOSE = Delegation.KIND_ROUTE, Delegation.KIND_DECOMPOSE


def handed(task: str, *children: str, kind: Delegation.Kind.ValueType = _ROUTE) -> Delegation:
    return Delegation(name=f"delegations/{task}", task=task, child_tasks=children, kind=kind)


def test_a_task_that_nobody_handed_over_is_its_own() -> None:
    assert lineage_of(TOP, []) == Lineage(TOP, TOP)


def test_handed_over_from_instance_to_instance_it_is_the_same_work() -> None:
    chain = [handed(TOP, IN_TEAM), handed(IN_TEAM, AT_PEER)]
    lineage = lineage_of(AT_PEER, chain)
    assert lineage == Lineage(TOP, TOP, f"delegations/{IN_TEAM}")
    assert not lineage.is_part


def test_a_part_is_work_of_its_own_and_belongs_to_the_whole() -> None:
    chain = [handed(TOP, IN_TEAM), handed(IN_TEAM, PART, "another", kind=_DECOMPOSE), handed(PART, AT_PEER)]
    lineage = lineage_of(AT_PEER, chain)
    assert (lineage.work, lineage.first, lineage.is_part) == (PART, TOP, True)
