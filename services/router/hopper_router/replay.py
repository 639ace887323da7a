"""
Recorded decisions compared with what another policy decides, and what that would have come to.

    decisions, tasks ─► Rehearsal, oldest first ─► Again ─┐
    shadow's choices ────────────────────────────► Again ─┼─► compare ─► changes, and `offpolicy`'s estimate
    verdicts of memory, ends of tasks ────────────────────┘

A rehearsal decides with the projects as they are now and nobody busy, at the time of the record. Where it goes by what
is learned, it learns anew, the weights of factors too: from these tasks and the factors that were recorded of them, in
their order, each decided before its own outcome is known, as it would have been.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from hopper_router import offpolicy, routing
from hopper_router.candidates import Candidates
from hopper_router.learned import Learned
from hopper_router.load import Load
from hopper_router.model import Basis, Decision, Lesson, Task, TaskState, Truth
from hopper_router.offpolicy import Estimate, Log
from hopper_router.rules import Policy
from hopper_router.weighing import weighed

_OF_FEEDBACK: Final = 1.0
_OF_AN_END: Final = 0.5
_FEW: Final = 30


class Verdict(NamedTuple):
    """
    What is known of how a decision turned out.

    Attributes:
        right: What feedback says; None: nothing.
        project: Where the task belonged, by feedback; "": not known, or nowhere.
        nobody: It belonged to nobody.
        well: Whether its task ended well; None: it has not ended, or was called off.
    """

    right: bool | None = None
    project: str = ""
    nobody: bool = False
    well: bool | None = None


class Recorded(NamedTuple):
    """
    A decision with its task as it is now.

    Attributes:
        refused: Projects that could not have it, by the filter that says so.
    """

    decision: Decision
    task: Task
    refused: Mapping[str, str]


class Again(NamedTuple):
    """
    The other decision about a task.

    Attributes:
        project: "": nowhere.
        tied: Others were as good.
    """

    project: str
    confidence: float
    tied: bool = False


class Change(NamedTuple):
    """
    A task that would go elsewhere.

    Attributes:
        went: How it went, 1 well, 0 not; None: nobody knows.
        expected: How likely it would go well; None: there is nothing to tell it from.
    """

    recorded: Recorded
    again: Again
    went: float | None
    expected: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """
    Two ways to decide about the same tasks.

    Attributes:
        changes: All of them, in the order of what was compared.
        estimate: None: of no task it is known how it went.
        judged: Of how many it is.
        blind: The share that would go well by choosing blindly among those who can take each task.
        notes: What the estimate takes for granted, for people.
    """

    compared: int
    changes: Sequence[Change]
    estimate: Estimate | None
    judged: int
    blind: float
    notes: Sequence[str]

    @property
    def agreement(self) -> float:
        """The share of decisions that are the same; 1 where there are none."""
        return 1.0 - len(self.changes) / self.compared if self.compared else 1.0


# ---------------------------------------------------------------- deciding again


class Rehearsal:
    """
    Decides about recorded tasks by another policy.

    Args:
        learner: One that has learned nothing; asked only where the policy goes by what is learned.
    """

    def __init__(self, policy: Policy, candidates: Candidates, learner: Learned) -> None:
        self._policy = policy
        self._candidates = candidates
        self._learner = learner
        # What was busy then is known of a few, and what is busy now has nothing to do with it; and ties that a load
        # would part are what the estimate knows best.
        self._load = Load()
        self.learns = "learned" in policy.judges

    def decide(self, recorded: Sequence[Recorded], verdicts: Mapping[str, Verdict]) -> list[Again]:
        """Decide about all of them, the last one first: they come newest first."""
        again = [self._one(number, each, verdicts) for number, each in enumerate(reversed(recorded), start=1)]
        return again[::-1]

    def _one(self, number: int, recorded: Recorded, verdicts: Mapping[str, Verdict]) -> Again:
        decision, task = recorded.decision, recorded.task
        made = routing.decide(
            task.spec,
            self._candidates,
            self._policy,
            load=self._load,
            refused=recorded.refused,
            basis=Basis(),
            strategies=self._learner.strategies(decision.instance),
            said=decision.opinions,
            now=decision.create_time,
        )
        if self.learns:
            self._learner.apply(_lessons(number, recorded, verdict_of(recorded, verdicts)))
        return Again(made.project, made.confidence, _tied(made) > 1)


def _lessons(number: int, recorded: Recorded, verdict: Verdict) -> list[Lesson]:
    """What memory would teach of a decision: see its `lessons`."""
    sent = recorded.decision.project
    if verdict.nobody:
        truth, project, weight = Truth.NONE, "", _OF_FEEDBACK
    elif verdict.project:
        truth, project, weight = Truth.RIGHT, verdict.project, _OF_FEEDBACK
    elif verdict.right is False and sent:
        truth, project, weight = Truth.WRONG, sent, _OF_FEEDBACK
    elif verdict.right is None and verdict.well is not None and sent:
        truth, project, weight = Truth.RIGHT if verdict.well else Truth.FAILED, sent, _OF_AN_END
    else:
        return []
    spec, decision = recorded.task.spec, recorded.decision
    when = decision.create_time or recorded.task.create_time
    return [
        Lesson(
            number, decision.instance, decision.name, spec.title, spec.description, spec.tags, truth, project,
            "replay", weight, when, sent, tuple(weighed(decision.candidates)),
        )
    ]  # fmt: skip


def _tied(decision: Decision) -> int:
    """How many of those recorded have the score of the first."""
    if decision.strategy in ("pin", "only-candidate") or not decision.candidates:
        return 1
    best = decision.candidates[0].score
    return sum(candidate.score == best for candidate in decision.candidates)


# ---------------------------------------------------------------- comparing


def verdict_of(recorded: Recorded, verdicts: Mapping[str, Verdict]) -> Verdict:
    """What memory knows of a decision, or else what the task itself tells."""
    decision, task = recorded.decision, recorded.task
    known = verdicts.get(decision.name, _UNKNOWN)
    if known.right is not None or known.well is not None:
        return known
    if task.decision != decision.name:  # a later one sent it elsewhere
        return Verdict(well=False)
    if task.state is TaskState.SUCCEEDED:
        return Verdict(well=True)
    return Verdict(well=False) if task.state in _BAD_ENDS else _UNKNOWN


_UNKNOWN: Final = Verdict()
_BAD_ENDS: Final = frozenset({TaskState.FAILED, TaskState.REJECTED})


def _went(verdict: Verdict) -> float | None:
    said = verdict.right if verdict.right is not None else verdict.well
    return None if said is None else float(said)


def _would_go(verdict: Verdict, project: str) -> float:
    """How a choice would have gone, where feedback says where the task belonged; else NaN."""
    if verdict.nobody:
        return float(not project)
    return float(project == verdict.project) if verdict.project else math.nan


def compare(
    recorded: Sequence[Recorded],
    again: Sequence[Again],
    verdicts: Mapping[str, Verdict],
    *,
    notes: Iterable[str] = (),
) -> Comparison:
    """
    Compare recorded decisions with other ones about the same tasks, and estimate what these would come to.

    Args:
        verdicts: By the decision's name; of those that are missing the task itself tells.
        notes: To be said besides.
    """
    found = [verdict_of(each, verdicts) for each in recorded]
    judged = [row for row, verdict in enumerate(found) if _went(verdict) is not None]
    estimate = None
    if judged:
        log = _log(
            [recorded[row] for row in judged], [again[row] for row in judged], [found[row] for row in judged]
        )
        estimate = offpolicy.estimate(log)
    expected = dict(zip(judged, estimate.expected.tolist(), strict=True)) if estimate else {}
    changes = [
        Change(each, other, _went(found[row]), expected.get(row))
        for row, (each, other) in enumerate(zip(recorded, again, strict=True))
        if each.decision.project != other.project
    ]
    eligible = [recorded[row].decision.eligible_count for row in judged]
    blind = float(np.mean([1.0 / count if count else 0.0 for count in eligible])) if eligible else 0.0
    return Comparison(
        len(recorded),
        changes,
        estimate,
        len(judged),
        blind,
        [*notes, *_caveats(estimate, len(judged), found)],
    )


def _log(recorded: Sequence[Recorded], again: Sequence[Again], verdicts: Sequence[Verdict]) -> Log:
    decisions = [each.decision for each in recorded]
    numbers: dict[str, int] = {}

    def number(project: str) -> int:
        return numbers.setdefault(project, len(numbers))

    sure = [{c.project: c.confidence for c in decision.candidates} for decision in decisions]
    return Log(
        outcomes=np.array([_went(verdict) for verdict in verdicts], np.float64),
        projects=np.array([number(decision.project) for decision in decisions], np.intp),
        confidences=_shares([decision.confidence for decision in decisions]),
        # Two policies that both find a tie break it alike.
        chances=np.array(
            [
                1.0 if other.tied else 1.0 / _tied(decision)
                for decision, other in zip(decisions, again, strict=True)
            ]
        ),
        same=np.array(
            [d.project == other.project for d, other in zip(decisions, again, strict=True)], np.bool_
        ),
        known=np.array(
            [_would_go(verdict, other.project) for verdict, other in zip(verdicts, again, strict=True)]
        ),
        others=np.array([number(other.project) for other in again], np.intp),
        others_recorded=_shares(
            [known.get(other.project, 0.0) for known, other in zip(sure, again, strict=True)]
        ),
        others_confidences=_shares([other.confidence for other in again]),
    )


def _shares(values: Sequence[float]) -> offpolicy.Doubles:
    return np.clip(np.array(values, np.float64), 0.0, 1.0)


def _caveats(estimate: Estimate | None, judged: int, verdicts: Sequence[Verdict]) -> list[str]:
    if estimate is None:
        return ["it is not known yet how any of these tasks went: nothing can be estimated"]
    said = []
    if judged < _FEW:
        said.append(f"only {judged} outcomes are known: the interval is as wide as it has to be")
    if estimate.modelled:
        said.append(
            f"decisions are deterministic: what would have come of {estimate.modelled} tasks that would go elsewhere "
            "was not seen, and is modelled by how sure the record and the other policy are"
        )
        if not any(verdict.project or verdict.nobody for verdict in verdicts):
            said.append("no feedback names the right place of any task: it would tell more than any model")
    return said
