"""
Where a task that is about to leave comes from: the first task of this router that is the same work, and who brought it.

A task that was handed over from instance to instance is the same work all along. A part of a decomposed task is work of
its own, begun where it was decomposed; but if what it is a part of came from another Hopper, it is that one's all the
same.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from hopper.router.v1.delegation_pb2 import Delegation


@dataclass(frozen=True, slots=True)
class Lineage:
    """
    The way of a task within this Hopper.

    Attributes:
        work: The first task that is the same work.
        first: The first task of all: of which this is perhaps a part.
        delegation: The router's, that brought the task to where it is; empty: none did.
    """

    work: str
    first: str
    delegation: str = ""

    @property
    def is_part(self) -> bool:
        """Whether it is no more than a part of what came first."""
        return self.work != self.first


def lineage_of(task: str, chain: Iterable[Delegation]) -> Lineage:
    """
    Follow a task up.

    Args:
        task: Its name.
        chain: Every delegation of the work, as the router lists them.
    """
    brought = {child: delegation for delegation in chain for child in delegation.child_tasks}
    came = brought.get(task)
    work = first = task
    part = False
    while (delegation := brought.get(first)) is not None:
        part = part or delegation.kind == Delegation.KIND_DECOMPOSE
        first = delegation.task
        if not part:
            work = first
    return Lineage(work, first, came.name if came is not None else "")
