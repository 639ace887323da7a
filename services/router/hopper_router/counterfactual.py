"""
What would have changed a decision: single changes that put its second candidate before its first. Pure.

All of it is arithmetic on the record: a score is the sum of value times weight over its factors, so the lead of the
first over the second says how far one thing alone has to move. What the record does not say is taken from what is known
now, and marked so: `recomputed`.

========= ==============================================================================================
pin       without the requester's choice, others might have it
filter    somebody who was ruled out might have it
tag       without a tag of the task, or with one more that the second has
word      without the words that the task shares with the first
rule      without the rules that spoke for the first, or against the second; with one more for the second
load      with more open tasks at the first, or fewer at the second
weight    with another weight of a factor in which the two differ
threshold with another confidence asked for
========= ==============================================================================================

A change is looked at for the first two alone: what it would do to others is not said.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from hopper_router.filters import id_of
from hopper_router.model import Candidate, Decision, Factor, Outcome, TaskSpec
from hopper_router.scoring import BUSY, LEAST_EVIDENCE, MAX_EVIDENCE
from hopper_router.weighing import SHARPNESS

MOST: Final = 12
MOST_WEIGHT: Final = 10.0
"""Policies give no factor, and no rule, a greater one."""
_OPEN: Final = re.compile(r"(\d+) open(?: of (\d+))?")


class Kind(enum.Enum):
    """What would have to change."""

    PIN = "PIN"
    FILTER = "FILTER"
    TAG = "TAG"
    WORD = "WORD"
    RULE = "RULE"
    LOAD = "LOAD"
    WEIGHT = "WEIGHT"
    THRESHOLD = "THRESHOLD"


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """
    One change that alone would have changed a decision.

    Attributes:
        what: The name of what changes.
        value, needed: How it was, and how it would have to be, or to be beyond, where that is a number.
        project: Where the task would have gone; "": nowhere, or nobody knows.
        recomputed: It takes something from what is known now.
    """

    kind: Kind
    what: str
    message: str
    project: str = ""
    value: float = 0.0
    needed: float = 0.0
    recomputed: bool = False


class Known(NamedTuple):
    """
    What is known now, beside the record.

    Attributes:
        tags: The tags of the second candidate, case-folded.
        tags_of_any: How many of the task's tags any project has.
        moved: By project, how far each word moves what was learned of it, in log odds.
    """

    tags: Collection[str] = ()
    tags_of_any: int = 0
    moved: Mapping[str, Mapping[str, float]] = {}


def counterfactuals(decision: Decision, task: TaskSpec, known: Known) -> list[Counterfactual]:
    """The single changes that would have changed *decision* about *task*, at most `MOST`."""
    return [*_all(decision, task, known)][:MOST]


def _all(decision: Decision, task: TaskSpec, known: Known) -> Iterator[Counterfactual]:
    if decision.strategy == "pin":
        yield _pin(decision)
    pair = first_two(decision)
    if pair is None:
        yield from _filters(decision)
    else:
        duel = _Duel(
            *pair,
            informed=decision.strategy != "default",
            routed=decision.outcome is Outcome.ROUTED,
        )
        yield from _tags(duel, task, known)
        yield from _words(duel, known)
        yield from _rules(duel)
        yield from _loads(duel)
        yield from _weights(duel)
    yield from _threshold(decision)


def first_two(decision: Decision) -> tuple[Candidate, Candidate] | None:
    """The candidate that a decision is for, and the best of the others; None: there are no two."""
    chosen = decision.project if decision.outcome is Outcome.ROUTED else ""
    candidates = sorted(decision.candidates, key=lambda candidate: candidate.project != chosen)
    if len(candidates) < 2:  # two
        return None
    return candidates[0], candidates[1]


class _Duel:
    """The first two, and what keeps the second behind."""

    def __init__(self, first: Candidate, second: Candidate, *, informed: bool, routed: bool) -> None:
        self.first, self.second = first, second
        self.lead = first.score - second.score
        self.informed = informed
        self._routed = routed
        self._first = {factor.name: factor for factor in first.factors}
        self._second = {factor.name: factor for factor in second.factors}

    def of_first(self, name: str) -> Factor:
        return self._first.get(name, _NOTHING)

    def of_second(self, name: str) -> Factor:
        return self._second.get(name, _NOTHING)

    @property
    def names(self) -> list[str]:
        return [factor.name for factor in self.first.factors]

    @property
    def it_would(self) -> str:
        who = id_of(self.second.project)
        return f"it would have gone to {who}" if self._routed else f"{who} would have been the first"


_NOTHING: Final = Factor("", 0.0, 0.0)


def _part(factor: Factor) -> float:
    return factor.value * factor.weight


# ---------------------------------------------------------------- who could have it


def _pin(decision: Decision) -> Counterfactual:
    chosen = id_of(decision.project)
    return Counterfactual(
        Kind.PIN, chosen, f"the requester chose {chosen}: without that, the others would have been weighed"
    )


def _filters(decision: Decision) -> Iterator[Counterfactual]:
    for exclusion in decision.exclusions:
        if exclusion.filter == "pin":
            continue
        alone = decision.outcome is Outcome.NO_CANDIDATE and exclusion.count == 1 and exclusion.projects
        who = id_of(exclusion.projects[0]) if exclusion.count == 1 and exclusion.projects else ""
        ruled_out = who or f"{exclusion.count} projects"
        detail = f" ({exclusion.detail})" if exclusion.detail else ""
        yield Counterfactual(
            Kind.FILTER,
            exclusion.filter,
            f"the filter `{exclusion.filter}`{detail} ruled out {ruled_out}, which could have had it",
            project=exclusion.projects[0] if alone else "",
            value=exclusion.count,
        )


# ---------------------------------------------------------------- the task


def _tags(duel: _Duel, task: TaskSpec, known: Known) -> Iterator[Counterfactual]:
    first, second, count = duel.of_first("tags"), duel.of_second("tags"), known.tags_of_any
    weight = first.weight
    boosted = {*duel.of_first("boost").evidence, *duel.of_second("boost").evidence}
    told = len(first.evidence) < MAX_EVIDENCE and len(second.evidence) < MAX_EVIDENCE
    if not weight or not told:
        return
    for tag in first.evidence:
        if tag in second.evidence or tag in boosted:
            continue
        mine, theirs = len(first.evidence) - 1, len(second.evidence)
        if _lead_by_tags(duel, mine, theirs, count - 1) < 0:
            message = f"without the tag {tag}, {duel.it_would}"
            yield Counterfactual(Kind.TAG, tag, message, duel.second.project, value=1.0, recomputed=True)
    carried = {tag.casefold() for tag in task.tags}
    mine_now = {tag.casefold() for tag in first.evidence}
    for tag in sorted(set(known.tags) - carried - mine_now):
        mine, theirs = len(first.evidence), len(second.evidence) + 1
        if _lead_by_tags(duel, mine, theirs, count + 1) < 0:
            message = f"with the tag {tag}, {duel.it_would}"
            yield Counterfactual(Kind.TAG, tag, message, duel.second.project, needed=1.0, recomputed=True)
            return  # any other of them would do the same


def _lead_by_tags(duel: _Duel, mine: int, theirs: int, count: int) -> float:
    """The lead if the two shared so many tags with the task, of so many that any project has."""
    first, second = duel.of_first("tags"), duel.of_second("tags")
    now = (mine - theirs) / count if count > 0 else 0.0
    return duel.lead + first.weight * (now - (first.value - second.value))


def _words(duel: _Duel, known: Known) -> Iterator[Counterfactual]:
    first, second = duel.of_first("text"), duel.of_second("text")
    if first.evidence and duel.lead - _part(first) + _part(second) < 0:
        words = ", ".join(first.evidence)
        plural = "s" if len(first.evidence) > 1 else ""
        yield Counterfactual(
            Kind.WORD,
            words,
            f"without the word{plural} {words}, {duel.it_would}",
            duel.second.project,
            value=1.0,
        )
    for_first = known.moved.get(duel.first.project, {})
    for_second = known.moved.get(duel.second.project, {})
    far = {word: weight - for_second.get(word, 0.0) for word, weight in for_first.items()}
    enough = sorted(
        (weight, word) for word, weight in far.items() if weight * SHARPNESS > max(duel.lead, 0.0)
    )
    for _, word in enough[::-1][:3]:
        message = f"without the word {word}, by what is known now, {duel.it_would}"
        yield Counterfactual(Kind.WORD, word, message, duel.second.project, value=1.0, recomputed=True)


# ---------------------------------------------------------------- the projects and the policy


def _rules(duel: _Duel) -> Iterator[Counterfactual]:
    first, second = duel.of_first("rules"), duel.of_second("rules")
    for factor, lead in ((first, duel.lead - _part(first)), (second, duel.lead + _part(second))):
        if factor.evidence and lead < 0 <= duel.lead:
            names = ", ".join(factor.evidence)
            plural = "s" if len(factor.evidence) > 1 else ""
            message = f"without the rule{plural} {names}, {duel.it_would}"
            yield Counterfactual(Kind.RULE, names, message, duel.second.project, value=factor.value)
    least = duel.lead if duel.informed else max(duel.lead, LEAST_EVIDENCE)
    needed = max(least, 0.0) / first.weight if first.weight > 0 else math.inf
    if needed < MOST_WEIGHT:
        who = id_of(duel.second.project)
        message = f"with a rule for {who} that weighs more than {_up(needed)}, {duel.it_would}"
        yield Counterfactual(Kind.RULE, who, message, duel.second.project, needed=needed)


def _loads(duel: _Duel) -> Iterator[Counterfactual]:
    first, second = duel.of_first("workload"), duel.of_second("workload")
    if not first.weight or duel.lead < 0:
        return
    step = duel.lead / first.weight
    busier, idler = _Load.of(first), _Load.of(second)
    if busier is not None:
        needed = math.floor((1.0 - first.value + step) * busier.measure + _HAIR) + 1
        if needed > busier.measure:
            needed = _busiest(duel, busier, idler)
        if needed:
            yield _load(duel, duel.first.project, busier.open, needed, "more")
    if idler is not None:
        needed = math.ceil((1.0 - second.value - step) * idler.measure - _HAIR) - 1
        if needed >= 0:
            yield _load(duel, duel.second.project, idler.open, needed, "fewer")


_HAIR: Final = 1e-9


def _busiest(duel: _Duel, busier: _Load, idler: _Load | None) -> int:
    """The open tasks of the first at which it would be the measure of those without a limit; 0: that is not enough."""
    if busier.limited or idler is None or idler.limited:
        return 0
    first, second = duel.of_first("workload"), duel.of_second("workload")
    share = (
        duel.lead - _part(first) + _part(second)
    ) / first.weight  # of the second, with nothing for the first
    if share >= 1.0 - _HAIR:
        return 0
    return max(math.floor(idler.open / (1.0 - share) + _HAIR), math.floor(busier.measure)) + 1


def _load(duel: _Duel, project: str, open_: int, needed: int, direction: str) -> Counterfactual:
    who = id_of(project)
    message = f"with {needed} open tasks or {direction} at {who}, not {open_}, {duel.it_would}"
    return Counterfactual(Kind.LOAD, who, message, duel.second.project, value=open_, needed=needed)


class _Load(NamedTuple):
    """Open tasks, and how many of them would be a full house."""

    open: int
    measure: float
    limited: bool

    @classmethod
    def of(cls, factor: Factor) -> _Load | None:
        """What the factor's line says; None: it says nothing."""
        said = _OPEN.match(factor.evidence[0]) if factor.evidence else None
        if said is None:
            return None
        open_ = int(said[1])
        if said[2]:
            return cls(open_, float(said[2]), limited=True)
        measure = open_ / (1.0 - factor.value) if open_ and factor.value < 1.0 else float(BUSY)
        return cls(open_, measure, limited=False)


def _weights(duel: _Duel) -> Iterator[Counterfactual]:
    found: list[tuple[float, Counterfactual]] = []
    for name in duel.names:
        first, second = duel.of_first(name), duel.of_second(name)
        apart = first.value - second.value
        if name in _OF_THE_MODEL or not apart or duel.lead < 0:
            continue
        needed = first.weight - duel.lead / apart
        if not _HAIR < needed <= MOST_WEIGHT:
            continue
        more = needed > first.weight
        bound = f"more than {_up(needed)}" if more else f"less than {_down(needed)}"
        message = f"if the factor {name} weighed {bound}, not {first.weight:.2f}, {duel.it_would}"
        change = Counterfactual(Kind.WEIGHT, name, message, duel.second.project, first.weight, needed)
        found.append((abs(needed - first.weight) / max(first.weight, 0.1), change))
    yield from (change for _, change in sorted(found, key=lambda item: item[0]))


_OF_THE_MODEL: Final = ("semantic", "learned")  # their weight is no policy's to change


def _up(number: float) -> str:
    """Rounded so that more than that is enough."""
    return f"{math.ceil(number * 1000 - _HAIR) / 1000:g}"


def _down(number: float) -> str:
    return f"{math.floor(number * 1000 + _HAIR) / 1000:g}"


_CERTAIN: Final = 0.999  # there is no threshold above that to speak of


def _threshold(decision: Decision) -> Iterator[Counterfactual]:
    sure, best = decision.confidence, _best(decision.candidates)
    match decision.outcome:
        case Outcome.UNSURE | Outcome.REJECTED if best:
            message = f"with a threshold of {_down(sure)} or less, it would have gone to {id_of(best)}"
            yield Counterfactual(Kind.THRESHOLD, "threshold", message, best, needed=sure)
        case Outcome.ROUTED if decision.strategy not in ("pin", "only-candidate") and sure < _CERTAIN:
            message = f"with a threshold above {_up(sure)}, the policy would not have been sure enough"
            yield Counterfactual(Kind.THRESHOLD, "threshold", message, needed=sure)


def _best(candidates: Sequence[Candidate]) -> str:
    return candidates[0].project if candidates else ""
