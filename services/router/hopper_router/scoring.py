"""
How good the projects that can take a task are for it: the factors of `routing`, weighed.

What does not depend on the task's text is worked out once and kept:

- `Plan`, for a policy and a set of candidates: its rules and weights as columns; kept with the candidates.
- `Pace`, in a plan, for an urgency: the weighted factors that depend on nothing but it; kept with the plan.
- `Standing`, for a plan, an urgency and a sieve: the circumstances of the eligible, and how they would score with
  nothing else; kept with the load, with which it changes, one row at a time.

So a decision pays for the words, tags and rules that the task does touch, for scoring the projects that these speak
for, and for the lines of the five that are recorded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol

import numpy as np

from hopper_learning.factor_weights import Weight
from hopper_router.candidates import BoolArray, Candidates, FloatArray, IntArray, Overlap
from hopper_router.filters import Sieve
from hopper_router.hours import AtWork, duration
from hopper_router.kept import Kept
from hopper_router.load import LoadColumn
from hopper_router.model import Factor, TaskSpec, WeightOrigin
from hopper_router.rules import FACTORS, Policy, Rule, Weights
from hopper_router.weighing import SHARPNESS
from hopper_router.words import Text

MAX_EVIDENCE: Final = 10
LEAST_EVIDENCE: Final = 0.05
BUSY: Final = 10
"""Fewer open tasks than this are not a full house, where nobody has more."""
EVIDENCE: Final = frozenset({"rules", "tags", "capability", "text", "boost", "semantic", "learned"})

_HIGHEST_LEAD: Final = 500.0
_MOST_WORKLOADS: Final = 4096
_MOST_ALONE: Final = 1024
_FEW: Final = 16
"""Up to so many changes of load are taken in one by one."""
_SPARSE: Final = 0.25
"""Where words speak for no more than this share of the eligible, those that nothing speaks for are not scored anew."""


class Question(NamedTuple):
    """A task to place, read once, and all it may be judged by."""

    task: TaskSpec
    text: Text
    candidates: Candidates
    policy: Policy
    load: LoadColumn
    now: datetime | None = None
    """Without it, deadlines and working hours do not count."""


class Verdict(NamedTuple):
    """
    A strategy's answer about the eligible rows, aligned with them.

    Attributes:
        scores: The greater the better.
        masses: How likely each is the right one, in shares of `mass`, which is their sum; they order as the scores do.
        informed: Whether anything in the task speaks for anybody.
        factors: What the scores of some, by position, are made of; asked for those that are recorded only.
        judge: Who has judged, where that is not the strategy that was asked.
    """

    scores: FloatArray
    masses: FloatArray
    mass: float
    informed: bool
    factors: Callable[[Sequence[int]], Sequence[tuple[Factor, ...]]]
    judge: str = ""


class Strategy(Protocol):
    """A way to judge the projects that have passed the filters."""

    def judge(self, question: Question, sieve: Sieve) -> Verdict:
        """Score the rows that are eligible, at least one."""


class RulesStrategy:
    """Judges by the policy's rules and by what projects say about themselves."""

    def judge(self, question: Question, sieve: Sieve) -> Verdict:
        """Weigh all factors."""
        sheet = _Sheet(question, sieve)
        evidence, standing = sheet.evidence(), sheet.standing
        informed = evidence.item(evidence.argmax()) >= LEAST_EVIDENCE
        if sheet.clocked:
            circumstances = sheet.circumstances
            scores = _rounded(np.add(evidence, circumstances, evidence))
            masses = _masses(scores, circumstances.item(circumstances.argmax()), scores.size)
        elif sheet.touching > _SPARSE * evidence.size:
            scores = _rounded(np.add(evidence, standing.total, evidence))
            masses = _masses(scores, standing.best, scores.size)
        else:
            scores, masses = standing.scores.copy(), standing.masses.copy()
            touched = evidence.astype(np.bool_).nonzero()[0]
            if touched.size:
                own = _rounded(evidence[touched] + standing.total[touched])
                scores[touched] = own
                masses[touched] = _masses(own, standing.best, scores.size)
        return Verdict(scores, masses, float(np.add.reduce(masses)), informed, sheet.factors)


STRATEGIES: Final[Mapping[str, Strategy]] = MappingProxyType({"rules": RulesStrategy()})


@dataclass(frozen=True, eq=False)
class Shares:
    """
    What was learned says of a task.

    Attributes:
        of: How likely each of the eligible is the right one, if any of them is; the sum is 1.
        none: How likely none of them is.
        semantic: What names and meaning alone say of each: the logarithm of its share.
    """

    of: FloatArray
    none: float
    semantic: FloatArray

    @cached_property
    def factor(self) -> FloatArray:
        """The logarithm of each share, from 0 for next to none to 1 for a certainty."""
        factor: FloatArray = 1.0 + np.log(np.maximum(self.of, _LEAST_SHARE)) / _SPAN
        return factor

    def factors(self, at: int) -> tuple[Factor, Factor]:
        """
        The factor of one of them in two: what it is called and means, and how far outcomes of tasks with such words
        move that, up or down. Their sum is the factor.
        """
        likeness = max(self.semantic.item(at), LEAST)
        semantic = 1.0 + likeness / _SPAN
        return (
            Factor("semantic", semantic, LEARNED_WEIGHT, (f"{math.exp(likeness):.1%}",)),
            Factor("learned", self.factor.item(at) - semantic, LEARNED_WEIGHT, (f"{self.of.item(at):.1%}",)),
        )

    @cached_property
    def most(self) -> float:
        """The greatest share."""
        return self.of.item(self.of.argmax())


class Mind(Protocol):
    """Whoever has learned where tasks belong."""

    def shares(self, task: TaskSpec, candidates: Candidates, sieve: Sieve) -> Shares | None:
        """What was learned says of a task; None: nothing yet."""

    def weights(self) -> Mapping[str, Weight]:
        """The weights of the factors in `weighing.RANGES`, by now."""


class LearnedStrategy:
    """
    Judges by what was learned, where nothing else is to be said: the logarithm of each share is one factor more.

    Rules stand in front: one of weight 1 decides, whatever was learned; of less weight, it is one opinion more. Words
    are what was learned *from*: they have no weight of their own. The weights of the other factors are learned too,
    from how decisions go, beginning with those of `weighing.RANGES`; a weight that the policy says counts as it says.
    """

    def __init__(self, mind: Mind) -> None:
        self._mind = mind
        self._beside: Kept[tuple[int, tuple[Weight, ...]], _Beside] = Kept(64)

    def judge(self, question: Question, sieve: Sieve) -> Verdict:
        """Weigh what was learned, rules, boosts and circumstances."""
        shares = self._mind.shares(question.task, question.candidates, sieve)
        if shares is None:
            return STRATEGIES["rules"].judge(question, sieve)._replace(judge="rules")
        policy, weights = question.policy, self._mind.weights()
        beside = self._beside.get((id(policy), tuple(weights.values())), lambda: _beside(policy, weights))
        sheet = _Sheet(question._replace(policy=beside.policy), sieve, beside.origins)
        evidence = sheet.evidence()
        informed = evidence.max() >= LEAST_EVIDENCE or shares.most >= _TELLING / shares.of.size
        scores = _rounded(evidence + sheet.circumstances + LEARNED_WEIGHT * shares.factor)
        masses = np.exp((scores - scores.max()) / SHARPNESS)
        mass = float(masses.sum()) / max(1.0 - shares.none, _LEAST_SHARE)

        def factors(positions: Sequence[int]) -> Sequence[tuple[Factor, ...]]:
            return [
                (*lines, *shares.factors(at))
                for at, lines in zip(positions, sheet.factors(positions), strict=True)
            ]

        return Verdict(scores, masses, mass, bool(informed), factors)


_LEAST_SHARE: Final = 1e-6
LEAST: Final = math.log(_LEAST_SHARE)
_SPAN: Final = -LEAST
LEARNED_WEIGHT: Final = SHARPNESS * _SPAN
"""So that, with nothing beside it, confidence is the share that was learned."""
_TELLING: Final = 1.2
"""A share of so much more than everybody's says something."""
_AHEAD: Final = 3.0
"""A rule of weight 1 outweighs the least share."""


class Origin(NamedTuple):
    """Where a weight comes from, and how many lessons it was learned from."""

    weight: WeightOrigin = WeightOrigin.SHIPPED
    lessons: int = 0


_SHIPPED: Final = Weights()
_SAID: Final = Origin(WeightOrigin.POLICY)


def _origins(weights: Weights) -> dict[str, Origin]:
    """Of the weights that a policy says; one that is as shipped need not have been said."""
    return {name: _SAID for name in FACTORS if getattr(weights, name) != getattr(_SHIPPED, name)}


class _Beside(NamedTuple):
    """
    A policy with the weights that its factors have beside what was learned.

    Attributes:
        asked: The policy itself: kept alive, because it is found by its id.
        origins: Of those that are not shipped.
    """

    asked: Policy
    policy: Policy
    origins: Mapping[str, Origin]


def _beside(policy: Policy, learned: Mapping[str, Weight]) -> _Beside:
    said = _origins(policy.weights)
    free = {name: weight for name, weight in learned.items() if name not in said}
    values = {name: weight.value for name, weight in free.items()}
    weights = replace(policy.weights, rules=_AHEAD * policy.weights.rules, text=0.0, **values)
    origins = {
        name: Origin(WeightOrigin.LEARNED, weight.lessons) for name, weight in free.items() if weight.lessons
    }
    return _Beside(policy, policy.weighing(weights), {**said, **origins})


def _rounded(scores: FloatArray) -> FloatArray:
    """Sums that differ only in the last bits are ties, and are broken as ties. In place; np.round does it slower."""
    np.multiply(scores, _BILLION, scores)
    np.rint(scores, scores)
    np.divide(scores, _BILLION, scores)
    return scores


def _masses(scores: FloatArray, base: float, count: int) -> FloatArray:
    """The mass of each of some among *count*, as `routing` has it; the exponents are bounded where e^x overflows."""
    lead = np.subtract(scores, base)
    np.divide(lead, _SHARPNESS, lead)
    masses: FloatArray = np.minimum(lead, _ZERO)
    np.exp(masses, masses)
    np.divide(masses, count, masses)
    highest = lead.item(lead.argmax())
    if highest > 0:
        np.maximum(lead, _ZERO, out=lead)
        if highest > _HIGHEST_LEAD:
            np.minimum(lead, _HIGHEST_LEAD, out=lead)
        np.add(masses, np.expm1(lead, lead), masses)
    return masses


# Arrays without dimensions: a Python float is made into one for every call that it is an argument of.
_ZERO: Final = np.array(0.0)
_BILLION: Final = np.array(1e9)
_SHARPNESS: Final = np.array(SHARPNESS)


def urgency(task: TaskSpec) -> float:
    """How much speed matters, 0.25 to 1: by priority above the middle, and at least 0.75 with a deadline."""
    deadline = task.clocks.finish_by or task.clocks.start_by or task.before_event
    return max(0.25, (task.priority - 50) / 50, 0.75 if deadline else 0.0)


# ---------------------------------------------------------------- what is kept


class Lines(NamedTuple):
    """The factors of one candidate, in the order of the policy's weights."""

    rules: Factor
    tags: Factor
    capability: Factor
    text: Factor
    workload: Factor
    velocity: Factor
    cost: Factor
    sla: Factor
    boost: Factor
    deadline: Factor
    hours: Factor


class Plan:
    """
    A policy as columns of one set of candidates.

    Attributes:
        rows: Of each rule, the row of its project; -1 if that is not registered.
        strengths, ranks: Of each rule, its weight and its priority; `ranks` is None where all have the same.
        nothing: The lines of the factors that are 0.
    """

    def __init__(self, policy: Policy, candidates: Candidates, origins: Mapping[str, Origin]) -> None:
        self.policy = policy  # kept alive: plans are found by its id
        self.candidates = candidates
        rules = policy.rules
        self.rows: IntArray = np.array(
            [candidates.rows.get(rule.project, -1) for rule in rules], dtype=np.intp
        )
        self.strengths: FloatArray = np.array([rule.weight for rule in rules], dtype=np.float64)
        ranks = np.array([rule.priority for rule in rules], dtype=np.intp)
        self.ranks: IntArray | None = ranks if len({rule.priority for rule in rules}) > 1 else None
        self.nothing = Lines(
            *(
                Factor(name, 0.0, getattr(policy.weights, name), (), *origins.get(name, Origin()))
                for name in FACTORS
            )
        )
        self._paces: Kept[float, Pace] = Kept(64)
        self._able: Kept[Sieve, BoolArray] = Kept(64)
        self._workloads: dict[tuple[float, float, float], Factor] = {}

    @classmethod
    def of(cls, policy: Policy, candidates: Candidates, origins: Mapping[str, Origin] | None = None) -> Plan:
        """
        The plan, kept with the candidates.

        Args:
            origins: Of the policy's weights; default: what differs from what is shipped is the policy's.
        """
        plan: Plan = candidates.plans.get(
            id(policy),
            lambda: cls(policy, candidates, _origins(policy.weights) if origins is None else origins),
        )
        return plan

    def pace(self, urgency: float) -> Pace:
        """What depends on nothing but how urgent a task is."""
        return self._paces.get(urgency, lambda: Pace(self, urgency))

    def workload(self, circumstance: tuple[float, float, float]) -> Factor:
        """The factor's line, from its value, the open tasks and their limit: the same object for the same three."""
        line = self._workloads.get(circumstance)
        if line is None:
            if len(self._workloads) >= _MOST_WORKLOADS:
                self._workloads.clear()
            value, count, limit = circumstance
            line = self.nothing.workload.of(value, (_open_tasks(count, limit),))
            self._workloads[circumstance] = line
        return line

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
            candidates, nothing = self.plan.candidates, self.plan.nothing
            project = candidates.projects[row]
            speed = (f"{project.velocity:g} a day",) if project.velocity > 0 else ()
            price = (f"{project.cost:g} a task",) if project.cost > 0 else ()
            within = (f"within {duration(project.sla)}",) if project.sla else ()
            found = self._lines[row] = (
                nothing.velocity.of(self.velocity.item(row), speed),
                nothing.cost.of(candidates.thrift.item(row), price),
                nothing.sla.of(candidates.promise.item(row), within),
            )
        return found


class Standing:
    """
    The circumstances of the eligible, aligned with them, as of the last `catch_up`.

    Attributes:
        workload: The factor.
        total: The weighted sum of all circumstances.
        best: The greatest of these.
        scores, masses: Those of who has no evidence for or against it.
    """

    workload: FloatArray
    total: FloatArray
    best: float
    scores: FloatArray
    masses: FloatArray

    def __init__(self, load: LoadColumn, sieve: Sieve, pace: Pace) -> None:
        self._load, self._sieve, self._pace = load, sieve, pace
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
        elif (best := self.total.item(self.total.argmax())) != self.best:
            self.best = best
            self.masses = _masses(self.scores, best, self.scores.size)
            self._alone.clear()

    def lines(self, at: int, row: int) -> tuple[Factor, Factor, Factor, Factor]:
        """The factors workload, velocity, cost and sla of one of them: the same until its load changes."""
        found = self._lines.get(at)
        if found is None:
            circumstance = self.workload.item(at), self._open.item(at), self._limits.item(at)
            found = self._lines[at] = (self._pace.plan.workload(circumstance), *self._pace.lines(row))
        return found

    def _rebuild(self) -> None:
        sieve = self._sieve
        self._seen = len(self._load.changed)
        self._open = self._load.open.copy() if sieve.everybody else self._load.open[sieve.eligible]
        # Only those without a limit are compared with each other: one more task for somebody must never help them, and
        # what a project with a limit holds is nobody else's measure.
        self._busiest = max(BUSY, float(self._open[sieve.unlimited].max(initial=0.0)))
        measure = np.where(np.isinf(self._limits), self._busiest, self._limits)
        self.workload = np.maximum(1.0 - self._open / measure, 0.0)
        total = self._weight * self.workload
        total += self._velocity
        total += self._cost
        total += self._sla
        self.total = total
        self.best = total.item(total.argmax())
        self.scores = _rounded(total.copy())
        self.masses = _masses(self.scores, self.best, total.size)
        self._alone: Kept[float, tuple[float, float]] = Kept(_MOST_ALONE)
        self._lines: dict[int, tuple[Factor, Factor, Factor, Factor]] = {}

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
        self._lines.pop(at, None)
        workload = self.workload[at] = max(1.0 - now / measure, 0.0)
        total = self._weight * workload + self._velocity.item(at) + self._cost.item(at) + self._sla.item(at)
        self.total[at] = total
        self.scores[at], self.masses[at] = self._alone.get(total, lambda: self._scored(total))
        return True

    def _scored(self, total: float) -> tuple[float, float]:
        """The score and the mass that come of circumstances alone."""
        score = _rounded(np.array([total]))
        return score.item(), _masses(score, self.best, self.total.size).item()


# ---------------------------------------------------------------- one task


class InTime(NamedTuple):
    """
    Who of the eligible can do a task in time.

    Attributes:
        share: 1 for who can, 0 for who would need twice the time there is.
        days: How long each would take, with what it has to do before; NaN: nobody knows.
        left: The days there are.
    """

    share: FloatArray
    days: FloatArray
    left: float

    @classmethod
    def of(cls, question: Question, sieve: Sieve, left: float) -> InTime | None:
        """None: there is no time left for anybody, or it is not known how long anybody takes."""
        candidates, effort = question.candidates, question.task.estimated_effort
        pace: FloatArray = candidates.kept.get("days", lambda: _days_a_task(candidates))
        days = pace[sieve.eligible] * question.load.open[sieve.eligible]
        if effort is not None and question.task.clocks.finish_by:
            days = days + effort / _DAY
        known = days[~np.isnan(days)]
        if left <= 0.0 or not known.size:
            return None
        # Saying nothing is neither a virtue nor a fault.
        share = np.clip(2.0 - np.where(np.isnan(days), np.median(known), days) / left, 0.0, 1.0)
        return cls(share, days, left)

    def said(self, at: int) -> str:
        """How long one of them takes, and how long it may, for people."""
        takes = "nobody knows how long it takes"
        if not math.isnan(self.days.item(at)):
            takes = f"takes {duration(timedelta(days=self.days.item(at)))}"
        return f"{takes}, due in {duration(timedelta(days=self.left))}"


_DAY: Final = timedelta(days=1)


def _days_a_task(candidates: Candidates) -> FloatArray:
    """How many days each project takes for a task; NaN where that is not known."""
    velocity = np.array([project.velocity or math.nan for project in candidates.projects], dtype=np.float64)
    return 1.0 / velocity


class _Sheet:
    """The factors of one task; what is 0 for all is None."""

    def __init__(self, question: Question, sieve: Sieve, origins: Mapping[str, Origin] | None = None) -> None:
        task, candidates = question.task, question.candidates
        self.question = question
        self.sieve = sieve
        self.plan = Plan.of(question.policy, candidates, origins)
        self.pace = self.plan.pace(urgency(task))
        self.standing = Standing.of(question.load, sieve, self.pace)
        self.rules: IntArray | None = self._rules_that_count()
        # Where words have no weight of their own, looking for them is most of what is left to pay.
        weighty = question.policy.weights.text != 0
        self.overlap: Overlap | None = candidates.text.overlap(question.text) if weighty else None
        self.folded = {tag: tag.casefold() for tag in task.tags}
        self.tags = candidates.tags.keys() & self.folded.values()
        self.boosts = sorted(candidates.boosted.keys() & self.folded.values()) if candidates.boosted else []
        self.required = len(set(task.required_capabilities)) if task.required_capabilities else 0
        due = task.clocks.finish_by or task.clocks.start_by
        self.in_time: InTime | None = None
        if due is not None and question.now is not None:
            self.in_time = InTime.of(question, sieve, (due - question.now) / _DAY)
        self.at_work: AtWork | None = None
        if question.now is not None:
            self.at_work = AtWork.of(task, candidates, sieve.eligible, question.now)

    @property
    def clocked(self) -> bool:
        """Whether the time of day says anything about anybody."""
        return self.in_time is not None or self.at_work is not None

    @property
    def circumstances(self) -> FloatArray:
        """The weighted sum of what orders those who are equally right."""
        total, nothing = self.standing.total, self.plan.nothing
        if self.in_time is not None:
            total = total + nothing.deadline.weight * self.in_time.share
        if self.at_work is not None:
            total = total + nothing.hours.weight * self.at_work.share
        return total

    def _rules_that_count(self) -> IntArray | None:
        """Those that fired for an eligible project, of the greatest priority among them; None: there are none."""
        task, plan = self.question.task, self.plan
        if not plan.policy.rules:
            return None
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
        """The weighted sum of what speaks for each of the eligible because of what the task is; the caller's own."""
        candidates, weights = self.question.candidates, self.question.policy.weights
        total = np.zeros(len(candidates)) if self.overlap is None else self.overlap.share * weights.text
        if self.rules is not None:
            rows = self.plan.rows[self.rules]
            np.add.at(total, rows, self.plan.strengths[self.rules] * weights.rules)
        if self.tags:
            each = weights.tags / len(self.tags)
            for tag in self.tags:
                total[candidates.tags[tag]] += each
        for tag in self.boosts:
            total[candidates.boosted[tag]] += weights.boost * candidates.boosts[tag]
        if self.required:
            # All eligible ones have all of them.
            total += weights.capability * (self.required / candidates.capability_counts)
        return total if self.sieve.everybody else total[self.sieve.eligible]

    @property
    def touching(self) -> int:
        """How many of the eligible there may be evidence for: all, if the task requires what all of them have."""
        if self.required:
            return self.sieve.eligible.size
        return 0 if self.overlap is None else self.overlap.size

    # What the scores are made of.

    def factors(self, positions: Sequence[int]) -> list[tuple[Factor, ...]]:
        """All of some of the eligible; those that are not this task's own are shared objects."""
        lines = self._timeless(positions)
        for clock, nothing in (
            (self.in_time, self.plan.nothing.deadline),
            (self.at_work, self.plan.nothing.hours),
        ):
            if clock is not None:
                lines = [
                    (*line, nothing.of(clock.share.item(at), (clock.said(at),)))
                    for at, line in zip(positions, lines, strict=True)
                ]
        return lines

    def _timeless(self, positions: Sequence[int]) -> list[tuple[Factor, ...]]:
        """The nine that every task has."""
        eligible, nothing = self.sieve.eligible, self.plan.nothing
        rows = [eligible.item(at) for at in positions]
        tags = self.question.candidates.folded_tags
        return [
            (
                own,
                nothing.tags if self.tags.isdisjoint(tags[row]) else self._tags(row),
                self._capability(row) if self.required else nothing.capability,
                nothing.text if self.overlap is None else self._text(row, self.overlap),
                *self.standing.lines(at, row),
                self._boost(row) if self.boosts else nothing.boost,
            )
            for at, row, own in zip(positions, rows, self._rules(rows), strict=True)
        ]

    def _rules(self, rows: Sequence[int]) -> list[Factor]:
        plan, rules, nothing = self.plan, self.rules, self.plan.nothing.rules
        if rules is None:
            return [nothing] * len(rows)
        wanted = np.zeros(len(plan.candidates), dtype=np.bool_)
        wanted[rows] = True
        fired: dict[int, list[Rule]] = {row: [] for row in rows}
        for rule in rules[wanted[plan.rows[rules]]].tolist():
            fired[plan.rows.item(rule)].append(plan.policy.rules[rule])
        return [
            nothing.of(sum([rule.weight for rule in own]), _first([r.name for r in own])) if own else nothing
            for own in map(fired.__getitem__, rows)
        ]

    def _text(self, row: int, overlap: Overlap) -> Factor:
        question, nothing = self.question, self.plan.nothing.text
        shared = question.candidates.text.shared_words(row, overlap, question.text, MAX_EVIDENCE)
        return nothing.of(overlap.share.item(row), shared) if shared else nothing

    def _tags(self, row: int) -> Factor:
        shared = self.tags & self.question.candidates.folded_tags[row]
        return self.plan.nothing.tags.of(len(shared) / len(self.tags), self._tags_among(shared))

    def _capability(self, row: int) -> Factor:
        value = self.required / self.question.candidates.capability_counts.item(row)
        names = _first(dict.fromkeys(self.question.task.required_capabilities))
        return self.plan.nothing.capability.of(value, names)

    def _boost(self, row: int) -> Factor:
        candidates, nothing = self.question.candidates, self.plan.nothing.boost
        value = 0.0
        for tag in self.boosts:
            value += float(candidates.boosts[tag][candidates.boosted[tag] == row].sum())
        held = {tag.casefold() for tag in candidates.projects[row].boosts}
        return nothing.of(value, self._tags_among(held))

    def _tags_among(self, held: Collection[str]) -> tuple[str, ...]:
        """The task's tags that are among those, in any case."""
        return _first([tag for tag, folded in self.folded.items() if folded in held])


def _first(things: Iterable[str]) -> tuple[str, ...]:
    return tuple(things)[:MAX_EVIDENCE]


def _open_tasks(count: float, limit: float) -> str:
    return f"{count:.0f} open" if limit == np.inf else f"{count:.0f} open of {limit:.0f}"
