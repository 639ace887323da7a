"""
Where a task goes: filter, score, decide. Recording is elsewhere.

A decision is a function of the task, the projects, the policy, who is ruled out from outside and how many open tasks
each project has. There is no clock in it and no chance: the same inputs give the same decision, in any process, in
whatever order the projects came.

**Filter.** In this order, each project counted for the first that applies: what the caller refuses, under the
caller's names; `project-paused`, `capability`, `label`, `no-live-worker`, `capacity`, and, if the requester has pinned
a project, `pin` for all others. Nothing bypasses a filter, a pin neither.

**Score.** Nine factors, each about 0 to 1, times the policy's weights:

========== ==================================================================================================
rules      the sum of the weights of the rules that count (rules.py); may be negative or above 1
tags       share of the task's tags that the project has, of those that any project has
capability required capabilities over all it has: a specialist before a generalist
text       idf-weighted share of the task's words found in the project's name, examples and description
workload   1 idle, 0 full: open tasks over `max_open`, without one over those of the busiest (at least 10)
velocity   speed against that of the others, pulled to 0.5 where nothing is urgent
cost       1 for the cheapest, 0.5 for twice its cost
sla        1 for the shortest promise, 0.5 for twice as long
boost      the sum of the project's own boosts for the task's tags
========== ==================================================================================================

The first three, text and boost are *evidence*: they speak for a project because of what the task is. The others are
*circumstance*: they order those who are equally right. Who is unknown in a circumstance gets the median of it.

**Confidence.** With s the score of a candidate, b the best sum of circumstances among the n candidates, and
x = (s - b) / 0.15, its mass is exp(x) / n below b and 1 / n + exp(x) - 1 above it; confidence is its share of all
mass. So the shares sum to 1 and order candidates as the scores do; where nothing but circumstance distinguishes them
each has about 1 / n; and a project that evidence lifts clearly above the rest takes nearly all, among 10 as among
1,000. A lone candidate has 1.

**Decide.** A pin decides (`pin`); else being alone does (`only-candidate`); else, if no candidate's evidence reaches
0.05, the policy's default project, whatever the threshold (`default`); else the greatest score (named after the
policy's strategy, or `default` where there is no evidence), if its confidence reaches the threshold. Equal scores go
by a hash of title and project, which spreads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol

import numpy as np

from hopper_router.candidates import (
    BoolArray,
    Candidates,
    FloatArray,
    HashArray,
    IntArray,
    holders,
    stable_hash,
    topical,
)
from hopper_router.model import Basis, Candidate, Decision, Exclusion, Factor, Outcome, Project, TaskSpec
from hopper_router.rules import FACTORS, OnUnsure, Policy, Rule
from hopper_router.words import Text

__all__ = ["STRATEGIES", "Candidates", "Question", "Strategy", "Verdict", "WhyNot", "decide", "why_not"]

MAX_RECORDED: Final = 5
MAX_NAMED: Final = 20
MAX_EVIDENCE: Final = 10
SHARPNESS: Final = 0.15
"""A lead of this much in the score makes a candidate e times as likely."""
LEAST_EVIDENCE: Final = 0.05
BUSY: Final = 10
"""Fewer open tasks than this are not a full house, where nobody has more."""

_EVIDENCE: Final = ("rules", "tags", "capability", "text", "boost")
_CIRCUMSTANCES: Final = ("workload", "velocity", "cost", "sla")


# ---------------------------------------------------------------- what a strategy sees and answers


@dataclass(frozen=True, slots=True)
class Question:
    """A task to place, read once, and all it may be judged by. `load` has the open tasks of each row."""

    task: TaskSpec
    text: Text
    candidates: Candidates
    policy: Policy
    load: FloatArray


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

    def judge(self, question: Question, eligible: IntArray) -> Verdict:
        """Score *eligible*, rows of `question.candidates`, at least one."""


class WhyNot(NamedTuple):
    """
    Why a project does not get a task.

    Attributes:
        filter: What rules it out; empty if it is eligible. `not-registered` if nobody knows it.
        detail: For people: what is missing.
        candidate: How it scores; None if it is ruled out.
        rank: Its place among the eligible, from 1; 0 if it is ruled out.
    """

    filter: str
    detail: str
    candidate: Candidate | None
    rank: int


# ---------------------------------------------------------------- deciding


def decide(
    task: TaskSpec,
    candidates: Candidates,
    policy: Policy,
    *,
    load: Mapping[str, int],
    refused: Mapping[str, str],
    basis: Basis,
    strategies: Mapping[str, Strategy] | None = None,
) -> Decision:
    """
    Decide where *task* goes.

    Args:
        load: Open tasks by project name; who is missing has none.
        refused: Projects ruled out from outside, by name, with the name of the filter, e.g. `instance-not-running`.
        basis: Recorded as it is.
        strategies: Ways to judge by the name policies call them. Default: the built-in ones.

    Returns:
        The decision, without a name, a task, an instance and times.
    """
    question = _question(task, candidates, policy, load)
    sieve = _filter(question, refused)
    eligible = np.flatnonzero(sieve.left)
    exclusions = sieve.exclusions(candidates)
    if not eligible.size:
        reasoning = _nobody(task, candidates, exclusions)
        strategy = "pin" if task.project else policy.strategy
        return Decision(
            Outcome.NO_CANDIDATE, strategy=strategy, reasoning=reasoning, exclusions=exclusions, basis=basis
        )
    verdict = (strategies or STRATEGIES)[policy.strategy].judge(question, eligible)
    field = _Field(question, eligible, verdict)
    choice = _choose(field)
    return Decision(
        choice.outcome,
        project=field.name(choice.position) if choice.outcome is Outcome.ROUTED else "",
        confidence=field.confidence(choice.position),
        strategy=choice.strategy,
        reasoning=choice.reasoning,
        candidates=field.record(choice.position),
        exclusions=exclusions,
        eligible_count=len(eligible),
        basis=basis,
    )


def why_not(
    task: TaskSpec,
    candidates: Candidates,
    policy: Policy,
    project: str,
    *,
    load: Mapping[str, int],
    refused: Mapping[str, str],
    strategies: Mapping[str, Strategy] | None = None,
) -> WhyNot:
    """Say why *project* (a name) would not get *task*, also where a decision's record does not reach."""
    row = candidates.rows.get(project)
    if row is None:
        return WhyNot("not-registered", f"{project} is not registered", None, 0)
    question = _question(task, candidates, policy, load)
    sieve = _filter(question, refused)
    if not sieve.left[row]:
        name = sieve.catcher(row)
        return WhyNot(
            name, _detail(name, question, candidates.projects[row], int(question.load[row])), None, 0
        )
    eligible = np.flatnonzero(sieve.left)
    verdict = (strategies or STRATEGIES)[policy.strategy].judge(question, eligible)
    field = _Field(question, eligible, verdict)
    position = int(np.searchsorted(eligible, row))
    return WhyNot("", "", field.candidate(position), field.rank(position))


def _question(task: TaskSpec, candidates: Candidates, policy: Policy, load: Mapping[str, int]) -> Question:
    open_tasks = _open_by_row(candidates, load)
    return Question(task, Text.of(task.title, task.description), candidates, policy, open_tasks)


def _open_by_row(candidates: Candidates, load: Mapping[str, int]) -> FloatArray:
    """How many open tasks each project has. Most have none, and are not looked at."""
    column = np.zeros(len(candidates))
    for name, count in load.items():
        row = candidates.rows.get(name)
        if row is not None:
            column[row] = count
    return column


# ---------------------------------------------------------------- filters


class _Sieve:
    """The rows that are left, and what each filter caught."""

    def __init__(self, size: int) -> None:
        self.left: BoolArray = np.ones(size, dtype=np.bool_)
        self._caught: list[tuple[str, str, IntArray]] = []

    def drop(self, name: str, rows: IntArray | BoolArray, detail: str = "") -> None:
        """Rule out those of *rows* (numbers, or a mask) that are left."""
        chosen = np.zeros_like(self.left)
        chosen[rows] = True
        caught = np.flatnonzero(chosen & self.left)
        if caught.size:
            self.left[caught] = False
            self._caught.append((name, detail, caught))

    def catcher(self, row: int) -> str:
        """The filter that ruled *row* out."""
        return next(name for name, _, caught in self._caught if row in caught)

    def exclusions(self, candidates: Candidates) -> tuple[Exclusion, ...]:
        """What was ruled out, in the order of the filters."""
        return tuple(
            Exclusion(
                name, len(rows), tuple(candidates.names[row] for row in rows[:MAX_NAMED].tolist()), detail
            )
            for name, detail, rows in self._caught
        )


def _filter(question: Question, refused: Mapping[str, str]) -> _Sieve:
    task, candidates = question.task, question.candidates
    sieve = _Sieve(len(candidates))
    for name, rows in _refused_rows(candidates, refused):
        sieve.drop(name, rows)
    sieve.drop("project-paused", candidates.paused)
    _require(
        sieve, "capability", {c: holders(candidates.capabilities, c) for c in task.required_capabilities}
    )
    labels = sorted(task.required_labels.items())
    _require(
        sieve, "label", {f"{key}={value}": holders(candidates.labels, (key, value)) for key, value in labels}
    )
    sieve.drop("no-live-worker", candidates.unattended)
    sieve.drop("capacity", question.load >= candidates.limits)
    if task.project:
        others = np.ones(len(candidates), dtype=np.bool_)
        others[[candidates.rows[task.project]] if task.project in candidates.rows else []] = False
        sieve.drop("pin", others, f"the requester wants {_id(task.project)}")
    return sieve


def _refused_rows(candidates: Candidates, refused: Mapping[str, str]) -> list[tuple[str, IntArray]]:
    by_filter: dict[str, list[int]] = {}
    for project, name in refused.items():
        if project in candidates.rows:
            by_filter.setdefault(name, []).append(candidates.rows[project])
    return [(name, np.array(sorted(rows), dtype=np.intp)) for name, rows in sorted(by_filter.items())]


def _require(sieve: _Sieve, name: str, wanted: Mapping[str, IntArray]) -> None:
    """Rule out who lacks any of what is wanted, and say what is lacking to how many."""
    if not wanted:
        return
    complete = np.ones_like(sieve.left)
    missing = []
    for what, rows in wanted.items():
        has = np.zeros_like(sieve.left)
        has[rows] = True
        lacking = int(np.count_nonzero(sieve.left & ~has))
        if lacking:
            missing.append(f"{what} ({lacking})")
        complete &= has
    sieve.drop(name, ~complete, f"missing {', '.join(missing)}")


def _detail(name: str, question: Question, project: Project, load: int) -> str:
    """Why one filter rules one project out."""
    task = question.task
    lacking = [c for c in task.required_capabilities if c not in project.capabilities]
    other = [f"{k}={v}" for k, v in sorted(task.required_labels.items()) if project.labels.get(k) != v]
    return {
        "project-paused": "it is paused",
        "capability": f"missing {', '.join(lacking)}",
        "label": f"missing {', '.join(other)}",
        "no-live-worker": "it needs a live worker and has none",
        "capacity": f"{load} open tasks, and it takes {project.max_open}",
        "pin": f"the requester wants {_id(task.project)}",
    }.get(name, "")


# ---------------------------------------------------------------- the strategy `rules`


class RulesStrategy:
    """Judges by the policy's rules and by what projects say about themselves."""

    def judge(self, question: Question, eligible: IntArray) -> Verdict:
        """Weigh the nine factors."""
        sheet = _Sheet.of(question, eligible)
        evidence = sheet.total(_EVIDENCE)
        circumstance = sheet.total(_CIRCUMSTANCES)
        # Sums that differ only in the last bits are ties, and are broken as ties.
        scores = np.round(evidence + circumstance, 9)
        return Verdict(
            scores=scores,
            shares=_shares(scores, float(circumstance.max())),
            informed=bool(evidence.max() >= LEAST_EVIDENCE),
            factors=sheet.factors,
        )


STRATEGIES: Final[Mapping[str, Strategy]] = MappingProxyType({"rules": RulesStrategy()})


def _shares(scores: FloatArray, base: float) -> FloatArray:
    """The confidence in each, as the head of this file has it; the exponents are bounded where e^x overflows."""
    lead = np.minimum((scores - base) / SHARPNESS, 500.0)
    mass = np.exp(np.minimum(lead, 0.0)) / len(scores) + np.expm1(np.maximum(lead, 0.0))
    return np.asarray(mass / mass.sum())


@dataclass(frozen=True, slots=True)
class _Sheet:
    """The factors' values for the eligible rows; a factor that is 0 for all is left out."""

    question: Question
    eligible: IntArray
    values: Mapping[str, FloatArray]
    rules: Sequence[Rule]
    words: dict[str, str]

    @classmethod
    def of(cls, question: Question, eligible: IntArray) -> _Sheet:
        task, text, candidates = question.task, question.text, question.candidates
        title, description = topical(text.title), topical(text.head)
        rules = _rules_that_count(question, eligible)
        columns = {
            "rules": _rules_column(rules, candidates),
            "tags": _tags_column(task, candidates),
            "text": candidates.text.overlap(title, description),
            "boost": _boost_column(task, candidates),
            "workload": _workload_column(question, eligible),
            "velocity": 0.5 + (candidates.speed - 0.5) * _urgency(task),
            "cost": candidates.thrift,
            "sla": candidates.promise,
        }
        if task.required_capabilities:
            # All eligible ones have all of them.
            columns["capability"] = len(set(task.required_capabilities)) / candidates.capability_counts
        values = {name: column[eligible] for name, column in columns.items() if column is not None}
        return cls(question, eligible, values, rules, {**description, **title})

    def total(self, names: Iterable[str]) -> FloatArray:
        """The weighted sum of some factors."""
        weights = self.question.policy.weights
        total = np.zeros(len(self.eligible))
        for name in names:
            if name in self.values:
                total += getattr(weights, name) * self.values[name]
        return total

    def factors(self, position: int) -> tuple[Factor, ...]:
        """What the score of one of them is made of."""
        weights, values = self.question.policy.weights, self.values
        evidence = self._evidence(int(self.eligible[position]))
        factors = [
            Factor(
                name,
                values[name].item(position) if name in values else 0.0,
                getattr(weights, name),
                tuple(evidence.get(name, ())),
            )
            for name in FACTORS
        ]
        return tuple(factors)

    def _evidence(self, row: int) -> dict[str, Sequence[str]]:
        """What stands behind a project's factors, at most 10 things each."""
        candidates, load = self.question.candidates, self.question.load
        project = candidates.projects[row]
        evidence: dict[str, Sequence[str]] = {"workload": (_open_tasks(int(load[row]), project.max_open),)}
        if self.rules:
            evidence["rules"] = [rule.name for rule in self.rules if rule.project == project.name]
        if "tags" in self.values:
            evidence["tags"] = self._tags_among(project.tags)
        if "boost" in self.values:
            evidence["boost"] = self._tags_among(project.boosts)
        if "capability" in self.values:
            evidence["capability"] = list(dict.fromkeys(self.question.task.required_capabilities))
        if "text" in self.values:
            shared = candidates.text.shared_words(row, self.words.keys())[:MAX_EVIDENCE]
            evidence["text"] = [self.words[word] for word in shared]
        if project.velocity > 0:
            evidence["velocity"] = (f"{project.velocity:g} a day",)
        if project.cost > 0:
            evidence["cost"] = (f"{project.cost:g} a task",)
        if project.sla:
            evidence["sla"] = (f"within {_duration(project.sla)}",)
        return {name: things[:MAX_EVIDENCE] for name, things in evidence.items()}

    def _tags_among(self, held: Iterable[str]) -> list[str]:
        """The task's tags that a project has, in any case."""
        known = {tag.casefold() for tag in held}
        return [tag for tag in dict.fromkeys(self.question.task.tags) if tag.casefold() in known]


def _rules_that_count(question: Question, eligible: IntArray) -> list[Rule]:
    """Those that fired for an eligible project, of the greatest priority among them."""
    task, rows = question.task, question.candidates.rows
    fired = question.policy.fired(
        question.text, tags=task.tags, capabilities=task.required_capabilities, priority=task.priority
    )
    if not fired:
        return []
    able = np.zeros(len(question.candidates), dtype=np.bool_)
    able[eligible] = True
    fired = [rule for rule in fired if rule.project in rows and able[rows[rule.project]]]
    greatest = max((rule.priority for rule in fired), default=0)
    return [rule for rule in fired if rule.priority == greatest]


def _rules_column(rules: Sequence[Rule], candidates: Candidates) -> FloatArray | None:
    if not rules:
        return None
    column = np.zeros(len(candidates))
    for rule in rules:
        column[candidates.rows[rule.project]] += rule.weight
    return column


def _tags_column(task: TaskSpec, candidates: Candidates) -> FloatArray | None:
    known = {tag.casefold() for tag in task.tags} & candidates.tags.keys()
    if not known:
        return None
    column = np.zeros(len(candidates))
    for tag in known:
        column[candidates.tags[tag]] += 1.0
    return column / len(known)


def _boost_column(task: TaskSpec, candidates: Candidates) -> FloatArray | None:
    known = sorted({tag.casefold() for tag in task.tags} & candidates.boosted.keys())
    if not known:
        return None
    column = np.zeros(len(candidates))
    for tag in known:
        column[candidates.boosted[tag]] += candidates.boosts[tag]
    return column


def _workload_column(question: Question, eligible: IntArray) -> FloatArray:
    load, limits = question.load, question.candidates.limits
    # Only those without a limit are compared with each other: one more task for somebody must never help them, and
    # what a project with a limit holds is nobody else's measure.
    unlimited = load[eligible][np.isinf(limits[eligible])]
    busiest = max(BUSY, float(unlimited.max(initial=0.0)))
    return np.asarray(np.maximum(1.0 - load / np.where(np.isinf(limits), busiest, limits), 0.0))


def _urgency(task: TaskSpec) -> float:
    """How much speed matters, 0.25 to 1: by priority above the middle, and at least 0.75 with a deadline."""
    deadline = task.clocks.finish_by or task.clocks.start_by or task.before_event
    return max(0.25, (task.priority - 50) / 50, 0.75 if deadline else 0.0)


# ---------------------------------------------------------------- choosing


class _Choice(NamedTuple):
    outcome: Outcome
    position: int
    strategy: str
    reasoning: str


class _Field:
    """The eligible rows with their verdict: a position is an index among them."""

    def __init__(self, question: Question, eligible: IntArray, verdict: Verdict) -> None:
        self.question = question
        self.eligible = eligible
        self.verdict = verdict
        self.ties = _mix(question.candidates.salts[eligible], question.task.title)
        self.best = self._best_first(MAX_RECORDED)
        self._made: dict[int, Candidate] = {}

    def name(self, position: int) -> str:
        return self.question.candidates.names[int(self.eligible[position])]

    def confidence(self, position: int) -> float:
        return float(self.verdict.shares[position])

    def position(self, project: str) -> int | None:
        """Where a project stands among the eligible; None if it is none of them."""
        row = self.question.candidates.rows.get(project)
        if row is None:
            return None
        at = int(np.searchsorted(self.eligible, row))
        return at if at < len(self.eligible) and self.eligible[at] == row else None

    def candidate(self, position: int) -> Candidate:
        """One of them with all it is made of; made once."""
        if position not in self._made:
            score, factors = float(self.verdict.scores[position]), self.verdict.factors(position)
            self._made[position] = Candidate(self.name(position), score, self.confidence(position), factors)
        return self._made[position]

    def record(self, chosen: int) -> tuple[Candidate, ...]:
        """The best, and in any case the one chosen."""
        positions = self.best if chosen in self.best else [*self.best[:-1], chosen]
        return tuple(self.candidate(position) for position in positions)

    def rank(self, position: int) -> int:
        """From 1."""
        scores, ties = self.verdict.scores, self.ties
        equal = (scores == scores[position]) & (ties < ties[position])
        return 1 + int(np.count_nonzero(scores > scores[position])) + int(np.count_nonzero(equal))

    def _best_first(self, count: int) -> list[int]:
        scores = self.verdict.scores
        positions = np.arange(len(scores))
        if len(scores) > count:
            # Whoever ties with the last of the best has to be looked at, too.
            # Sorting is quicker than partitioning where most are equal, and here most are: nothing speaks for them.
            positions = np.flatnonzero(scores >= np.sort(scores)[-count])
        order = np.lexsort((self.ties[positions], -scores[positions]))
        best: list[int] = positions[order[:count]].tolist()
        return best


def _mix(salts: HashArray, title: str) -> HashArray:
    """One number for each project and this title, all alike in being unlike: the finalizer of splitmix64."""
    mixed = salts ^ np.uint64(stable_hash(title))
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _choose(field: _Field) -> _Choice:
    policy, task = field.question.policy, field.question.task
    best = field.best[0]
    if task.project:
        return _Choice(Outcome.ROUTED, best, "pin", f"the requester chose {_id(task.project)}")
    if len(field.eligible) == 1:
        reasoning = f"{_id(field.name(best))} is the only one that can take it"
        return _Choice(Outcome.ROUTED, best, "only-candidate", reasoning)
    if not field.verdict.informed:
        default = field.position(policy.default_project)
        if default is not None:
            reasoning = f"nothing speaks for anybody, and such tasks go to {_id(policy.default_project)}"
            return _Choice(Outcome.ROUTED, default, "default", reasoning)
    strategy = policy.strategy if field.verdict.informed else "default"
    return _dare(_Choice(Outcome.ROUTED, best, strategy, _because(field, best)), field)


def _dare(choice: _Choice, field: _Field) -> _Choice:
    """Keep to the choice if it is sure enough; else do what the policy says."""
    policy = field.question.policy
    confidence = field.confidence(choice.position)
    if confidence >= policy.threshold:
        return choice
    doubt = f"{confidence:.2f} is less than the {policy.threshold:.2f} that the policy asks for"
    match policy.on_unsure:
        case OnUnsure.ROUTE:
            return choice._replace(reasoning=f"{choice.reasoning}; {doubt}, but it routes all the same")
        case OnUnsure.ASK:
            return choice._replace(outcome=Outcome.UNSURE, reasoning=f"{choice.reasoning}; {doubt}")
        case OnUnsure.REJECT:
            return choice._replace(outcome=Outcome.REJECTED, reasoning=f"{choice.reasoning}; {doubt}")


# ---------------------------------------------------------------- saying why


def _because(field: _Field, best: int) -> str:
    name = _id(field.name(best))
    if not field.verdict.informed:
        return f"nothing speaks for anybody; of {len(field.eligible)} that can take it, {name} is best placed"
    reasons = [_spoken(factor) for factor in field.candidate(best).factors if _speaks(factor)]
    if not reasons:
        return f"{name} is so much better placed that the little that speaks for others does not count"
    verb = "speaks" if len(reasons) == 1 and not reasons[0].startswith("the words") else "speak"
    second = field.best[1]
    share, other = field.confidence(best), field.confidence(second)
    return (
        f"{_list(reasons)} {verb} for {name}, {share:.2f} against {other:.2f} for {_id(field.name(second))}"
    )


def _speaks(factor: Factor) -> bool:
    return factor.name in _EVIDENCE and bool(factor.evidence) and factor.value * factor.weight > 0


def _spoken(factor: Factor) -> str:
    noun = {"rules": "rule", "tags": "tag", "capability": "capability", "text": "word", "boost": "boost for"}[
        factor.name
    ]
    plural = "s" if len(factor.evidence) > 1 and factor.name != "boost" else ""
    return f"the {noun}{plural} {', '.join(factor.evidence[:3])}"


def _nobody(task: TaskSpec, candidates: Candidates, exclusions: Sequence[Exclusion]) -> str:
    if not len(candidates):
        return "no project is registered"
    if task.project and task.project not in candidates.rows:
        return f"the requester wants {_id(task.project)}, which is not registered"
    why = "; ".join(
        f"{exclusion.count} by {exclusion.filter}{f' ({exclusion.detail})' if exclusion.detail else ''}"
        for exclusion in exclusions
    )
    return f"nobody can take it: {why}"


def _list(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _open_tasks(load: int, limit: int) -> str:
    return f"{load} open of {limit}" if limit else f"{load} open"


def _duration(length: timedelta) -> str:
    hours = length.total_seconds() / 3600
    return f"{hours:g} h" if hours < 72 else f"{hours / 24:g} days"


def _id(name: str) -> str:
    return name.removeprefix("projects/")
