"""Has an LLM propose the parts of a task; whether it is decomposed into them is for whoever asked to say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hopper_router.cascade import Stage, Suggestion, Use
from hopper_router.engine import Engine
from hopper_router.errors import DelegationLoop, TaskWrongState
from hopper_router.llm import advisor as llm
from hopper_router.llm.budget import Limits
from hopper_router.llm.decompose import Part, PlanProblem, plan
from hopper_router.llm.errors import LlmAnswerInvalid, LlmNotConfigured
from hopper_router.llm.guarded import GuardedAdvisor
from hopper_router.model import DelegationKind, Task, TaskState
from hopper_router.unit import Unit

MOST_DEEP: Final = 3
"""A part of a part of a part is in one piece: models like to plan, and each level costs."""
_IN_HAND: Final = frozenset({TaskState.SUBMITTED, TaskState.QUEUED, TaskState.RUNNING})


@dataclass(frozen=True, slots=True)
class Proposal:
    """What was proposed, and why. No parts: it should stay in one piece."""

    parts: Sequence[Part]
    reason: str
    model: str
    cost: llm.Cost


class Decomposer:
    """
    Asks for parts.

    Args:
        model: The language model, if there is one.
    """

    def __init__(self, engine: Engine, model: GuardedAdvisor | None = None) -> None:
        self._engine = engine
        self._model = model

    async def propose(self, name: str) -> Proposal:
        """
        The parts that the LLM of a task's policy proposes, in no more than its budget and deadline.

        Raises:
            LlmNotConfigured: There is none, or the policy does not let it propose parts.
            TaskNotFound, TaskWrongState, DelegationLoop, BudgetExhausted, LlmUnavailable, LlmAnswerInvalid: See
                ProposeSubtasks.
        """
        task, stage, owner = await self._engine.read(lambda unit: _look(unit, name))
        if self._model is None:
            raise LlmNotConfigured(missing="HOPPER_LLM_URL")
        advice = await self._model.advise(
            _question(task),
            instance=owner,
            limits=Limits(stage.calls_per_day, stage.money_per_day),
            timeout=stage.deadline,
        )
        try:
            parts = plan(advice.subtasks, task.spec) if advice.subtasks else ()
        except PlanProblem as problem:
            raise LlmAnswerInvalid(f"the LLM proposed no plan: {problem}", problem=str(problem)) from None
        return Proposal(parts, advice.reason, advice.model, advice.cost)


def _look(unit: Unit, name: str) -> tuple[Task, Stage, str]:
    """The task, whom its policy asks, and whose policy that is."""
    task = unit.task(name)
    if task.state not in _IN_HAND:
        raise TaskWrongState(
            f"the task is {task.state.value}: it cannot be decomposed",
            task=name, state=task.state.value, event="DELEGATE",
        )  # fmt: skip
    _require_shallow(unit, task)
    in_force = unit.world.policies.in_force(task.instance, unit.world.directory)
    for stage in in_force.policy.stages:
        if stage.use is Use.LLM and Suggestion.SUBTASKS in stage.suggest:
            return task, stage, in_force.name.removesuffix("/policy")
    raise LlmNotConfigured(
        f"{in_force.name} lets no LLM propose parts: give its stage llm `suggest: [subtasks]`",
        missing="suggest: [subtasks]",
    )


def _require_shallow(unit: Unit, task: Task) -> None:
    above, deep = task, 0
    while above.delegation:
        came = unit.delegation(above.delegation)
        deep += came.kind is DelegationKind.DECOMPOSE
        if deep >= MOST_DEEP:
            raise DelegationLoop(
                f"the task is a part of a part, {deep} deep: it stays in one piece",
                path=",".join(came.path),
                instance=task.instance,
            )
        above = unit.task(came.task)


def _question(task: Task) -> llm.Question:
    spec = task.spec
    return llm.Question(
        title=spec.title,
        description=spec.description,
        tags=spec.tags,
        allowed=frozenset({llm.Ask.NOTHING_FITS, llm.Ask.SUBTASKS}),
    )
