"""
What feedback and outcomes teach.

A lesson says that a text belonged somewhere, did not belong there, or belonged nowhere; who says so; and how much
that counts. This is all of it:

    what memory is told                                 teaches                              source      weight
    feedback GOOD                                       RIGHT where it was sent              its author  1
    feedback BAD with a better project                  RIGHT the better one                 its author  1
    feedback BAD without                                WRONG where it was sent              its author  1
    feedback NONE                                       NONE                                 its author  1
    SUCCEEDED                                           RIGHT where it was sent              the worker  0.5
    FAILED, REJECTED for a reason of `WRONG_PLACE`      WRONG where it was sent              the worker  0.5
    REROUTED to another project, unless it was a pin    WRONG where it was sent              router      0.25
    SUCCEEDED later than promised                       LATE where it was sent               the worker  0.5
    FAILED for any other reason                         FAILED where it was sent             the worker  0.5
    anything else, e.g. that it was called off          nothing

LATE says that it belonged there, and FAILED says nothing of where it belonged; both say that it did not go well, from
which routers learn how much workload, speed, cost and promises should count. For that, a lesson carries what the
decision weighed.

Feedback that comes up from a level below is feedback, and teaches the level it came to. That a better project is
RIGHT says of the first that it was WRONG, so that is no lesson of its own.

**Nothing is taught**

- by a decision that no strategy made: one whose instance had nothing to choose (`UNDECIDED`). A pin is a choice, the
  requester's;
- about nobody: by feedback GOOD or BAD on a decision that sent the task nowhere, unless it names a better project;
- by feedback that contradicts itself: BAD, and better where it was;
- by an outcome after a verdict: whoever said that it was right or wrong knew better than the end can tell.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final, NamedTuple

from hopper_memory.model import Candidate, Feedback, Match, Outcome

WRONG_PLACE: Final = frozenset({"WRONG_PROJECT", "NOT_MINE", "CANNOT", "OUT_OF_SCOPE", "MISROUTED"})
"""The reasons of a failure by which a worker says that the task should not have come to it."""

LATE: Final = "LATE"
"""The reason of a success that came later than promised."""

UNDECIDED: Final = frozenset({"", "scope"})
PIN: Final = "pin"

ANONYMOUS: Final = "anonymous"
ROUTER: Final = "router"

OF_FEEDBACK: Final = 1.0
OF_AN_END: Final = 0.5
OF_A_LATER_DECISION: Final = 0.25


class Truth(StrEnum):
    """What is so."""

    RIGHT = "RIGHT"
    WRONG = "WRONG"
    NONE = "NONE"  # it belonged to nobody
    LATE = "LATE"  # it was done there, later than promised
    FAILED = "FAILED"  # it failed there, which says nothing of where it belonged


class Teaching(NamedTuple):
    """What something teaches. `project` is empty with NONE."""

    truth: Truth
    project: str
    source: str
    weight: float


@dataclass(frozen=True, slots=True)
class Lesson:
    """
    What was taught, with the text it is about.

    Attributes:
        position: Its place in the order, from 1.
        create_time: When memory heard of it.
        sent_to: Where the decision sent the task; empty: nowhere.
        candidates: What it weighed, where that has factors whose weights are learned.
    """

    position: int
    instance: str
    decision: str
    title: str
    description: str
    tags: tuple[str, ...]
    teaching: Teaching
    create_time: datetime
    sent_to: str = ""
    candidates: tuple[Candidate, ...] = ()


def taught_by_feedback(feedback: Feedback, *, project: str, strategy: str) -> Teaching | None:
    """
    What feedback on a decision teaches.

    Args:
        project: Where the decision sent the task; empty: nowhere.
        strategy: What decided.
    """
    if strategy in UNDECIDED:
        return None
    source = feedback.author or ANONYMOUS
    match feedback.match:
        case Match.GOOD:
            return _about(Truth.RIGHT, project, source, OF_FEEDBACK)
        case Match.BAD if feedback.better_project:
            better = feedback.better_project if feedback.better_project != project else ""
            return _about(Truth.RIGHT, better, source, OF_FEEDBACK)
        case Match.BAD:
            return _about(Truth.WRONG, project, source, OF_FEEDBACK)
        case Match.NONE:
            return Teaching(Truth.NONE, "", source, OF_FEEDBACK)
    return None


def taught_by_outcome(
    outcome: Outcome,
    *,
    worker: str,
    failure_reason: str,
    rerouted_to: str,
    project: str,
    strategy: str,
    judged: bool,
) -> Teaching | None:
    """
    What came of a decision, as a lesson: see `model.EpisodeOutcome`.

    Args:
        project: Where the decision sent the task; empty: nowhere.
        strategy: What decided.
        judged: Feedback has said whether it was right.
    """
    if strategy in UNDECIDED or judged:
        return None
    source = worker or ROUTER
    match outcome:
        case Outcome.SUCCEEDED:
            truth = Truth.LATE if failure_reason == LATE else Truth.RIGHT
            return _about(truth, project, source, OF_AN_END)
        case Outcome.FAILED | Outcome.REJECTED if failure_reason in WRONG_PLACE:
            return _about(Truth.WRONG, project, source, OF_AN_END)
        case Outcome.FAILED:
            return _about(Truth.FAILED, project, source, OF_AN_END)
        case Outcome.REROUTED if strategy != PIN and rerouted_to not in ("", project):
            return _about(Truth.WRONG, project, source, OF_A_LATER_DECISION)
    return None


def _about(truth: Truth, project: str, source: str, weight: float) -> Teaching | None:
    return Teaching(truth, project, source, weight) if project else None
