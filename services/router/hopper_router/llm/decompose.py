"""From the parts that an advisor proposes to a plan that the router can hand over."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from typing import Final, NamedTuple

from hopper_router.llm.advisor import Subtask
from hopper_router.llm.prompt import MOST_SUBTASKS
from hopper_router.model import Clocks, TaskSpec

MOST_TITLE_BYTES: Final = 300


class PlanProblem(ValueError):
    """The parts make no plan; the message names the part and the field, and quotes no text."""


class Part(NamedTuple):
    """What one part asks for, and the positions of those that must succeed first, as Delegate takes them."""

    spec: TaskSpec
    after: tuple[int, ...]


def plan(subtasks: tuple[Subtask, ...], parent: TaskSpec) -> tuple[Part, ...]:
    """
    The parts of *parent*, in the order of *subtasks*.

    A part asks for what its parent asks for in everything that says who may do it, for whom and until when: the
    advisor only says what is to be done. Capabilities are the one exception: a part need not take all that the whole
    takes, so that none are asked for, and each part is routed by what it says.

    Raises:
        PlanProblem: No parts or too many, a part without title, a position that is not there, or parts that wait for
            each other.
    """
    if not 1 <= len(subtasks) <= MOST_SUBTASKS:
        raise PlanProblem(f"subtasks: must be 1 to {MOST_SUBTASKS}, and are {len(subtasks)}")
    parts = tuple(_part(position, subtasks, parent) for position in range(len(subtasks)))
    _require_acyclic(parts)
    return parts


def _part(position: int, subtasks: tuple[Subtask, ...], parent: TaskSpec) -> Part:
    subtask = subtasks[position]
    title = _within(subtask.title.strip(), MOST_TITLE_BYTES)
    if not title:
        raise PlanProblem(f"subtasks[{position}].title: is empty")
    after = tuple(dict.fromkeys(subtask.after))
    for other in after:
        if not 0 <= other < len(subtasks):
            raise PlanProblem(f"subtasks[{position}].after: there is no part {other}")
    spec = TaskSpec(
        title=title,
        description=subtask.description,
        tags=parent.tags,
        required_labels=parent.required_labels,
        priority=parent.priority,
        requester=parent.requester,
        clocks=Clocks(finish_by=parent.clocks.finish_by, heartbeat=parent.clocks.heartbeat),
        retry=parent.retry,
        labels=parent.labels,
        fairness_key=parent.fairness_key,
        fairness_weight=parent.fairness_weight,
        concurrency_key=parent.concurrency_key,
    )
    return Part(spec, after)


def _within(text: str, most: int) -> str:
    """*text* in at most so many bytes of UTF-8, cut between characters."""
    return text.encode()[:most].decode(errors="ignore")


def _require_acyclic(parts: tuple[Part, ...]) -> None:
    try:
        TopologicalSorter({position: part.after for position, part in enumerate(parts)}).prepare()
    except CycleError as error:
        path = ", ".join(f"subtasks[{position}]" for position in error.args[1])
        raise PlanProblem(f"{path}: wait for each other") from None
