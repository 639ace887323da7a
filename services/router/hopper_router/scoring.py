"""
How good the projects that can take a task are for it: the nine factors of `routing`, weighed.

What does not depend on the task's text is worked out once and kept:

- `Plan`, for a policy and a set of candidates: its rules and weights as columns; kept with the candidates.
- `Pace`, in a plan, for an urgency: the weighted factors that depend on nothing but it; kept with the plan.
- `Standing`, for a plan, an urgency and a sieve: the circumstances of the eligible; kept with the load, with which it
  changes, one row at a time.

So a decision pays for the words, tags and rules that the task does touch, for a few additions over all that are
eligible, and for the lines of the five that are recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Final, Protocol

import numpy as np

from hopper_router.candidates import BoolArray, Candidates, FloatArray, IntArray, Overlap
from hopper_router.filters import Sieve
from hopper_router.kept import Kept
from hopper_router.load import LoadColumn
from hopper_router.model import Factor, Project, TaskSpec
from hopper_router.rules import FACTORS, Policy
from hopper_router.words import Text

MAX_EVIDENCE: Final = 10
SHARPNESS: Final = 0.15
"""A lead of this much in the score makes a candidate e times as likely."""
LEAST_EVIDENCE: Final = 0.05
BUSY: Final = 10
"""Fewer open tasks than this are not a full house, where nobody has more."""
EVIDENCE: Final = frozenset({"rules", "tags", "capability", "text", "boost"})

_HIGHEST_LEAD: Final = 500.0
_FEW: Final = 16
"""Up to so many rows are quicker one by one than all at once."""


@dataclass(frozen=True, slots=True)
class Question:
    """A task to place, read once, and all it may be judged by."""

    task: TaskSpec
    text: Text
    candidates: Candidates
    policy: Policy
    load: LoadColumn


@dataclass(frozen=True, slots=True)
class Verdict:
    """
    A strategy's answer about the eligible rows, aligned with them.

    Attributes:
        scores: The greater the better.
        shares: How likely each is the right one; they sum to 1 and order as the scores do.
        informed: Whether anything in the task speaks for anybody.
        factors: What the score of the n-th eligible row is made of; asked for those that are recorded only.
    """

    scores: FloatArray
    shares: FloatArray
    informed: bool
    factors: Callable[[int], tuple[Factor, ...]]


class Strategy(Protocol):
    """A way to judge the projects that have passed the filters."""

    def judge(self, question: Question, sieve: Sieve) -> Verdict:
        """Score the rows that are eligible, at least one."""


class RulesStrategy:
    """Judges by the policy's rules and by what projects say about themselves."""

    def judge(self, question: Question, sieve: Sieve) -> Verdict:
        """Weigh the nine factors."""
        sheet = _Sheet(question, sieve)
        evidence, standing = sheet.evidence(), sheet.standing
        scores = evidence + standing.total
        # Sums that differ only in the last bits are ties, and are broken as ties. np.round does the same, slower.
        scores *= 1e9
        np.rint(scores, scores)
        scores /= 1e9
        return Verdict(
            scores=scores,
            shares=_shares(scores, standing.best),
            informed=evidence.max() >= LEAST_EVIDENCE,
            factors=sheet.factors,
        )


STRATEGIES: Final[Mapping[str, Strategy]] = MappingProxyType({"rules": RulesStrategy()})


def _shares(scores: FloatArray, base: float) -> FloatArray:
    """The confidence in each, as `routing` has it; the exponents are bounded where e^x overflows."""
    lead = scores - base
    lead /= SHARPNESS
    np.minimum(lead, _HIGHEST_LEAD, out=lead)
    mass = np.minimum(lead, 0.0)
    np.exp(mass, out=mass)
    mass /= len(scores)
    np.maximum(lead, 0.0, out=lead)
    mass += np.expm1(lead, out=lead)
    mass /= np.add.reduce(mass)
    return mass


def urgency(task: TaskSpec) -> float:
    """How much speed matters, 0.25 to 1: by priority above the middle, and at least 0.75 with a deadline."""
    deadline = task.clocks.finish_by or task.clocks.start_by or task.before_event
    return max(0.25, (task.priority - 50) / 50, 0.75 if deadline else 0.0)


# ---------------------------------------------------------------- what is kept


class Plan:
    """
    A policy as columns of one set of candidates.

    Attributes:
        rows: Of each rule, the row of its project; -1 if that is not registered.
        strengths, ranks: Of each rule, its weight and its priority; `ranks` is None where all have the same.
        nothing: The lines of the factors that are 0, by name.
    """

    def __init__(self, policy: Policy, candidates: Candidates) -> None:
        self.policy = policy  # kept alive: plans are found by its id
        self.candidates = candidates
        rules = policy.rules
        self.rows: IntArray = np.array(
            [candidates.rows.get(rule.project, -1) for rule in rules], dtype=np.intp
        )
        self.strengths: FloatArray = np.array([rule.weight for rule in rules], dtype=np.float64)
        ranks = np.array([rule.priority for rule in rules], dtype=np.intp)
        self.ranks: IntArray | None = ranks if len({rule.priority for rule in rules}) > 1 else None
        self.nothing: Mapping[str, Factor] = {
            name: Factor(name, 0.0, getattr(policy.weights, name)) for name in FACTORS
        }
        self._paces: Kept[float, Pace] = Kept(64)
        self._able: Kept[Sieve, BoolArray] = Kept(64)

    @classmethod
    def of(cls, policy: Policy, candidates: Candidates) -> Plan:
        """The plan, kept with the candidates."""
        plan: Plan = candidates.plans.get(id(policy), lambda: cls(policy, candidates))
        return plan

    def pace(self, urgency: float) -> Pace:
        """What depends on nothing but how urgent a task is."""
        return self._paces.get(urgency, lambda: Pace(self, urgency))

    def able(self, sieve: Sieve) -> BoolArray:
        """Which rules are for a project that is eligible."""
        return self._able.get(sieve, lambda: (self.rows >= 0) & sieve.left[self.rows])


class Pace:
    """The factors that depend only on how urgent a task is; see `Plan.pace`."""

    def __init__(self, plan: Plan, urgency: float) -> None:
        candidates, weights = plan.candidates, plan.policy.weights
        self.plan = plan
        self.velocity: FloatArray = 0.5 + (candidates.speed - 0.5) * urgency
        self.weighted = (
            weights.velocity * self.velocity,
            weights.cost * candidates.thrift,
            weights.sla * candidates.promise,
        )
        self._lines: dict[int, tuple[Factor, Factor, Factor]] = {}

    def lines(self, row: int) -> tuple[Factor, Factor, Factor]:
        """The factors velocity, cost and sla of a project: the same objects for every task."""
        found = self._lines.get(row)
        if found is None:
            candidates, weights = self.plan.candidates, self.plan.policy.weights
            project = candidates.projects[row]
            speed = (f"{project.velocity:g} a day",) if project.velocity > 0 else ()
            price = (f"{project.cost:g} a task",) if project.cost > 0 else ()
            within = (f"within {_duration(project.sla)}",) if project.sla else ()
            found = self._lines[row] = (
                Factor("velocity", self.velocity.item(row), weights.velocity, speed),
                Factor("cost", candidates.thrift.item(row), weights.cost, price),
                Factor("sla", candidates.promise.item(row), weights.sla, within),
            )
        return found


class Standing:
    """
    The circumstances of the eligible, aligned with them, as of the last `catch_up`.

    Attributes:
        workload: The factor.
        total: The weighted sum of all circumstances.
        best: The greatest of these.
    """

    def __init__(self, load: LoadColumn, sieve: Sieve, pace: Pace) -> None:
        self._load, self._sieve = load, sieve
        rows = slice(None) if sieve.everybody else sieve.eligible
        self._limits = load.candidates.limits[rows]
        self._weight = pace.plan.policy.weights.workload
        self._velocity, self._cost, self._sla = (column[rows] for column in pace.weighted)
        self._rebuild()

    @classmethod
    def of(cls, load: LoadColumn, sieve: Sieve, pace: Pace) -> Standing:
        """The standing, kept with the load, and up to date."""
        standing: Standing = load.standings.get((sieve, pace), lambda: cls(load, sieve, pace))
        standing.catch_up()
        return standing

    def catch_up(self) -> None:
        """Take in what has changed since; what changes the measure of all takes them all."""
        changed = self._load.changed[self._seen :]
        if not changed:
            return
        self._seen += len(changed)
        if len(changed) > _FEW or not all(map(self._adjust, changed)):
            self._rebuild()
        else:
            self.best = float(self.total.max())

    def _rebuild(self) -> None:
        sieve = self._sieve
        self._seen = len(self._load.changed)
        self._open = self._load.open.copy() if sieve.everybody else self._load.open[sieve.eligible]
        # Only those without a limit are compared with each other: one more task for somebody must never help them, and
        # what a project with a limit holds is nobody else's measure.
        self._busiest = max(BUSY, float(self._open[sieve.unlimited].max(initial=0.0)))
        measure = np.where(np.isinf(self._limits), self._busiest, self._limits)
        self.workload: FloatArray = np.maximum(1.0 - self._open / measure, 0.0)
        total = self._weight * self.workload
        total += self._velocity
        total += self._cost
        total += self._sla
        self.total: FloatArray = total
        self.best = float(total.max())

    def _adjust(self, row: int) -> bool:
        """Take in one row's change; False: it was, or becomes, the measure of the others."""
        if not self._sieve.left[row]:
            return True
        at = row if self._sieve.everybody else int(np.searchsorted(self._sieve.eligible, row))
        before, now, measure = self._open.item(at), self._load.open.item(row), self._limits.item(at)
        if measure == np.inf:
            if now > self._busiest or before == self._busiest > BUSY:
                return False
            measure = self._busiest
        self._open[at] = now
        workload = self.workload[at] = max(1.0 - now / measure, 0.0)
        self.total[at] = self._weight * workload + self._velocity[at] + self._cost[at] + self._sla[at]
        return True


# ---------------------------------------------------------------- one task


class _Sheet:
    """The factors of one task; what is 0 for all is None."""

    def __init__(self, question: Question, sieve: Sieve) -> None:
        task, candidates = question.task, question.candidates
        self.question = question
        self.sieve = sieve
        self.plan = Plan.of(question.policy, candidates)
        self.pace = self.plan.pace(urgency(task))
        self.standing = Standing.of(question.load, sieve, self.pace)
        self.rules: IntArray | None = self._rules_that_count()
        self.overlap: Overlap | None = candidates.text.overlap(question.text)
        tags = {tag.casefold() for tag in task.tags}
        self.tags = candidates.tags.keys() & tags
        self.boosts = sorted(candidates.boosted.keys() & tags) if candidates.boosted else []
        self.required = len(set(task.required_capabilities)) if task.required_capabilities else 0

    def _rules_that_count(self) -> IntArray | None:
        """Those that fired for an eligible project, of the greatest priority among them; None: there are none."""
        task, plan = self.question.task, self.plan
        firing = plan.policy.firing(
            self.question.text,
            tags=task.tags,
            capabilities=task.required_capabilities,
            priority=task.priority,
        )
        if firing is None:
            return None
        firing &= plan.able(self.sieve)
        rules = firing.nonzero()[0]
        if not rules.size:
            return None
        if plan.ranks is None:
            return rules
        ranks = plan.ranks[rules]
        greatest: IntArray = rules[ranks == ranks.max()]
        return greatest

    def evidence(self) -> FloatArray:
        """The weighted sum of what speaks for each of the eligible because of what the task is."""
        candidates, weights = self.question.candidates, self.question.policy.weights
        total = np.zeros(len(candidates)) if self.overlap is None else weights.text * self.overlap.share
        if self.rules is not None:
            self._add_rules(total, weights.rules)
        if self.tags:
            share = weights.tags / len(self.tags)
            for tag in self.tags:  # in any order: they all add the same
                total[candidates.tags[tag]] += share
        for tag in self.boosts:
            total[candidates.boosted[tag]] += weights.boost * candidates.boosts[tag]
        if self.required:
            # All eligible ones have all of them.
            total += weights.capability * (self.required / candidates.capability_counts)
        return total if self.sieve.everybody else total[self.sieve.eligible]

    def _add_rules(self, total: FloatArray, weight: float) -> None:
        rules, plan = self.rules, self.plan
        if rules is None:
            return
        if len(rules) > _FEW:
            total += weight * np.bincount(plan.rows[rules], plan.strengths[rules], len(total))
            return
        for rule in rules.tolist():
            total[plan.rows[rule]] += weight * plan.strengths[rule]

    # What the score of one of them is made of.

    def factors(self, position: int) -> tuple[Factor, ...]:
        """All nine, in the order of the policy's weights; those that are not this task's own are shared objects."""
        row = int(self.sieve.eligible[position])
        velocity, cost, sla = self.pace.lines(row)
        return (
            self._rules(row),
            self._tags(row),
            self._capability(row),
            self._text(row),
            self._workload(position, row),
            velocity,
            cost,
            sla,
            self._boost(row),
        )

    def _rules(self, row: int) -> Factor:
        plan, rules = self.plan, self.rules
        if rules is None:
            return plan.nothing["rules"]
        own = rules[plan.rows[rules] == row].tolist()
        if not own:
            return plan.nothing["rules"]
        names = tuple(plan.policy.rules[rule].name for rule in own[:MAX_EVIDENCE])
        value = sum(plan.strengths[own].tolist())
        return Factor("rules", value, plan.policy.weights.rules, names)

    def _tags(self, row: int) -> Factor:
        nothing = self.plan.nothing["tags"]
        if not self.tags:
            return nothing
        held = {tag.casefold() for tag in self._project(row).tags}
        shared = self.tags & held
        if not shared:
            return nothing
        return Factor("tags", len(shared) / len(self.tags), nothing.weight, self._tags_among(held))

    def _capability(self, row: int) -> Factor:
        nothing = self.plan.nothing["capability"]
        if not self.required:
            return nothing
        value = self.required / self.question.candidates.capability_counts.item(row)
        names = tuple(dict.fromkeys(self.question.task.required_capabilities))[:MAX_EVIDENCE]
        return Factor("capability", value, nothing.weight, names)

    def _text(self, row: int) -> Factor:
        nothing, overlap = self.plan.nothing["text"], self.overlap
        if overlap is None:
            return nothing
        shared = self.question.candidates.text.shared_words(row, overlap, self.question.text, MAX_EVIDENCE)
        return Factor("text", overlap.share.item(row), nothing.weight, shared) if shared else nothing

    def _workload(self, position: int, row: int) -> Factor:
        weight = self.plan.nothing["workload"].weight
        count = _open_tasks(int(self.question.load.open[row]), self._project(row).max_open)
        return Factor("workload", self.standing.workload.item(position), weight, (count,))

    def _boost(self, row: int) -> Factor:
        nothing = self.plan.nothing["boost"]
        if not self.boosts:
            return nothing
        candidates = self.question.candidates
        value = 0.0
        for tag in self.boosts:
            value += float(candidates.boosts[tag][candidates.boosted[tag] == row].sum())
        held = {tag.casefold() for tag in self._project(row).boosts}
        return Factor("boost", value, nothing.weight, self._tags_among(held))

    def _project(self, row: int) -> Project:
        return self.question.candidates.projects[row]

    def _tags_among(self, held: Iterable[str]) -> tuple[str, ...]:
        """The task's tags that are among those, in any case."""
        found: Sequence[str] = [
            tag for tag in dict.fromkeys(self.question.task.tags) if tag.casefold() in held
        ]
        return tuple(found[:MAX_EVIDENCE])


def _open_tasks(load: int, limit: int) -> str:
    return f"{load} open of {limit}" if limit else f"{load} open"


def _duration(length: timedelta) -> str:
    hours = length.total_seconds() / 3600
    return f"{hours:g} h" if hours < 72 else f"{hours / 24:g} days"
