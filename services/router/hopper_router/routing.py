"""
Where a task goes: filter, score, decide. Recording is elsewhere.

A decision is a function of the task, the projects, the policy, who is ruled out from outside and how many open tasks
each project has. There is no clock in it and no chance: the same inputs give the same decision, in any process, in
whatever order the projects came.

**Filter.** In this order, each project counted for the first that applies: what the caller refuses, under the
caller's names; `project-paused`, `capability`, `label`, `no-live-worker`, `capacity`, and, if the requester has pinned
a project, `pin` for all others. Nothing bypasses a filter, a pin neither.

**Score.** These factors, each about 0 to 1, times their weights:

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
deadline   for tasks that have one: 1 for who can do it in time, 0 for who needs twice the time there is
hours      where somebody is closed: 1 for who works now, less for who opens later: the more urgent the task the
           less, and 0 for who opens when the task has to be begun
semantic   learned: what the project is called and what it and its past tasks mean, against those of the others
learned    learned: how far outcomes of tasks with such words move that; may be negative
========== ==================================================================================================

The last two are there where the model took part, and their sum is what it said: the logarithm of a share. The first
three, text, boost and these are *evidence*: they speak for a project because of what the task is. The others are
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

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final, NamedTuple

import numpy as np

from hopper_router.candidates import Candidates, HashArray, stable_hash
from hopper_router.cascade import Await, Consult, Decided, Exhausted, Stage, Use, following
from hopper_router.filters import Sieve, detail_of, id_of, sieve
from hopper_router.load import Load, column_of
from hopper_router.model import (
    Basis,
    Candidate,
    Decision,
    Exclusion,
    Factor,
    Opinion,
    Outcome,
    TaskSpec,
    Word,
)
from hopper_router.rules import OnUnsure, Policy
from hopper_router.scoring import EVIDENCE, STRATEGIES, Question, Strategy, Verdict
from hopper_router.words import Text

__all__ = [
    "STRATEGIES",
    "Candidates",
    "Load",
    "Question",
    "Strategy",
    "Verdict",
    "WhyNot",
    "decide",
    "why_not",
]

MAX_RECORDED: Final = 5


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


def decide(  # noqa: PLR0913 -- all that a decision is a function of
    task: TaskSpec,
    candidates: Candidates,
    policy: Policy,
    *,
    load: Mapping[str, int],
    refused: Mapping[str, str],
    basis: Basis,
    strategies: Mapping[str, Strategy] | None = None,
    said: Sequence[Opinion] = (),
    now: datetime | None = None,
) -> Decision:
    """
    Decide where *task* goes.

    Where the policy has stages and somebody else is to be asked first, the outcome is UNSURE, and
    `cascade.following` of the decision's opinions says who.

    Args:
        said: What others were asked about it and said, oldest first; for policies that have stages.
        load: Open tasks by project name; who is missing has none. A `Load` is much quicker than others,
            which are made into a column for this once.
        refused: Projects ruled out from outside, by name, with the name of the filter, e.g. `instance-not-running`,
            and after a colon why, if it says so.
        basis: Recorded as it is.
        strategies: Ways to judge by the name policies call them. Default: the built-in ones.
        now: What deadlines and working hours are measured from; None: they do not count.

    Returns:
        The decision, without a name, a task, an instance and times.
    """
    column = column_of(load, candidates)
    with column.lock:
        left = sieve(task, candidates, refused, column)
        if not left.eligible.size:
            reasoning = _nobody(task, candidates, left.exclusions)
            strategy = "pin" if task.project else policy.strategy
            return Decision(
                Outcome.NO_CANDIDATE,
                strategy=strategy,
                reasoning=reasoning,
                exclusions=left.exclusions,
                basis=basis,
            )
        question = Question(task, Text.of(task.title, task.description), candidates, policy, column, now)
        field = _field(question, left, strategies or STRATEGIES)
        opinions = _still_valid(field, said)
        choice = _choose(field, opinions)
        return Decision(
            choice.outcome,
            project=field.name(choice.position) if choice.outcome is Outcome.ROUTED else "",
            confidence=field.confidence(choice.position) if choice.confidence is None else choice.confidence,
            strategy=choice.strategy,
            reasoning=choice.reasoning,
            candidates=field.record(choice.position),
            exclusions=left.exclusions,
            eligible_count=len(left.eligible),
            basis=basis,
            opinions=(*field.own, *opinions),
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
    now: datetime | None = None,
) -> WhyNot:
    """Say why *project* (a name) would not get *task*, also where a decision's record does not reach."""
    row = candidates.rows.get(project)
    if row is None:
        return WhyNot("not-registered", f"{project} is not registered", None, 0)
    column = column_of(load, candidates)
    with column.lock:
        left = sieve(task, candidates, refused, column)
        if not left.left[row]:
            name, said = left.catcher(row)
            detail = detail_of(name, task, candidates.projects[row], int(column.open[row])) or said
            return WhyNot(name, detail, None, 0)
        question = Question(task, Text.of(task.title, task.description), candidates, policy, column, now)
        field = _field(question, left, strategies or STRATEGIES)
        position = int(np.searchsorted(left.eligible, row))
        return WhyNot("", "", field.candidate(position), field.rank(position))


def _field(question: Question, left: Sieve, strategies: Mapping[str, Strategy]) -> _Field:
    policy = question.policy
    if not policy.stages:
        return _Field(question, left, strategies[policy.strategy].judge(question, left))
    return _judged(question, left, strategies)


def _judged(question: Question, left: Sieve, strategies: Mapping[str, Strategy]) -> _Field:
    """By the stages that judge at once: the first of them that is sure enough, or else the last."""
    own: list[Opinion] = []
    for stage in question.policy.stages:
        if stage.use.local:
            use = stage.use.value
            field = _Field(question, left, strategies.get(use, STRATEGIES["rules"]).judge(question, left))
            field.judge = field.verdict.judge or use
            own.append(_own_opinion(field, stage))
            field.own = tuple(own)
            if own[-1].word is Word.CHOICE and own[-1].confidence >= stage.threshold:
                break
    return field


def _own_opinion(field: _Field, stage: Stage) -> Opinion:
    use, best = stage.use.value, field.best[0]
    if not field.verdict.informed:
        return Opinion(use, Word.UNSURE, threshold=stage.threshold, reason="nothing speaks for anybody")
    confidence = min(field.confidence(best), 1.0)
    return Opinion(use, Word.CHOICE, field.name(best), confidence, stage.threshold, _because(field, best))


def _still_valid(field: _Field, said: Sequence[Opinion]) -> tuple[Opinion, ...]:
    """What was said, but for choices of those who cannot have the task any more."""
    return tuple(
        replace(opinion, word=Word.FAILED, reason=f"{id_of(opinion.project)} cannot take it any more")
        if opinion.word is Word.CHOICE and field.position(opinion.project) is None
        else opinion
        for opinion in said
    )


# ---------------------------------------------------------------- choosing


class _Choice(NamedTuple):
    outcome: Outcome
    position: int
    strategy: str
    reasoning: str
    confidence: float | None = None
    """None: that of the position."""


class _Field:
    """
    The eligible rows with their verdict: a position is an index among them.

    Attributes:
        judge: The strategy that made the verdict.
        own: With stages: what those said that judge at once.
    """

    judge: str
    own: tuple[Opinion, ...] = ()

    def __init__(self, question: Question, sieve: Sieve, verdict: Verdict) -> None:
        self.judge = verdict.judge or question.policy.strategy
        self.question = question
        self.sieve = sieve
        self.eligible = sieve.eligible
        self.verdict = verdict
        self.best = self._best_first()
        self.recorded = self._made(self.best)

    def name(self, position: int) -> str:
        return self.question.candidates.names[self.eligible.item(position)]

    def confidence(self, position: int) -> float:
        return self.verdict.masses.item(position) / self.verdict.mass

    def position(self, project: str) -> int | None:
        """Where a project stands among the eligible; None if it is none of them."""
        row = self.question.candidates.rows.get(project)
        if row is None:
            return None
        at = int(np.searchsorted(self.eligible, row))
        return at if at < len(self.eligible) and self.eligible[at] == row else None

    def known_position(self, project: str) -> int:
        """Where a project stands that is known to be eligible."""
        return int(np.searchsorted(self.eligible, self.question.candidates.rows[project]))

    def candidate(self, position: int) -> Candidate:
        """One of them with all it is made of."""
        return self._made([position])[0]

    def _made(self, positions: list[int]) -> list[Candidate]:
        names, eligible, verdict = self.question.candidates.names, self.eligible, self.verdict
        scores, masses, mass = verdict.scores, verdict.masses, verdict.mass
        return [
            Candidate(names[eligible.item(at)], scores.item(at), masses.item(at) / mass, factors)
            for at, factors in zip(positions, verdict.factors(positions), strict=True)
        ]

    def record(self, chosen: int) -> tuple[Candidate, ...]:
        """The best, and in any case the one chosen."""
        if chosen in self.best:
            return tuple(self.recorded)
        return *self.recorded[:-1], self.candidate(chosen)

    def rank(self, position: int) -> int:
        """From 1."""
        scores = self.verdict.scores
        better = int(np.count_nonzero(scores > scores[position]))
        equal = np.flatnonzero(scores == scores[position])
        ties = self._ties()[equal]
        return 1 + better + int(np.count_nonzero(ties < ties[np.searchsorted(equal, position)]))

    def _best_first(self) -> list[int]:
        """The best, equal ones in the order of their ties."""
        scores = self.verdict.scores
        rest = scores.copy()
        best: list[int] = []
        found: list[float] = []
        # Quicker than sorting: finding the greatest of a thousand takes less time than a call.
        for _ in range(min(MAX_RECORDED, len(rest))):
            at = int(rest.argmax())
            best.append(at)
            found.append(rest.item(at))
            rest[at] = -np.inf
        last = found[-1]
        more = rest.item(rest.argmax()) == last
        if not more and len(set(found)) == len(found):
            return best
        ties = self._ties()
        better = found.index(last) if more else len(best)
        first = sorted(best[:better], key=lambda at: (-scores.item(at), ties.item(at)))
        if not more:
            return first
        np.putmask(ties, scores != last, _LAST)
        return [*first, *_least(ties, len(best) - better)]

    def _ties(self) -> HashArray:
        """What the order of equal scores goes by."""
        return _mixed(self.sieve.salts, stable_hash(self.question.task.title))


def _least(numbers: HashArray, count: int) -> list[int]:
    """Where the least of those are, which are used up."""
    found = []
    for _ in range(count):
        at = int(numbers.argmin())
        found.append(at)
        numbers[at] = _LAST
    return found


def _mixed(salts: HashArray, title: int) -> HashArray:
    """
    One number for each project and title, all alike in being unlike: the finalizer of splitmix64.

    Its first step, `mixed ^= mixed >> 30`, is the same for both together as for each alone: see `Candidates.salts`.
    """
    mixed = salts ^ _number(title ^ title >> 30)
    mixed *= _FIRST
    mixed ^= mixed >> _27
    mixed *= _SECOND
    mixed ^= mixed >> _31
    return mixed


def _number(value: int) -> HashArray:
    # An array without dimensions: a scalar would be made into one.
    return np.array(value, dtype=np.uint64)


_LAST: Final = _number(2**64 - 1)
_27, _31 = _number(27), _number(31)
_FIRST, _SECOND = _number(0xBF58476D1CE4E5B9), _number(0x94D049BB133111EB)


def _choose(field: _Field, said: Sequence[Opinion]) -> _Choice:
    policy, task = field.question.policy, field.question.task
    best = field.best[0]
    if task.project:
        return _Choice(Outcome.ROUTED, best, "pin", f"the requester chose {id_of(task.project)}")
    if said:  # whoever was asked has looked at more than how many can take it
        return _after(field, said)
    if len(field.eligible) == 1:
        reasoning = f"{id_of(field.name(best))} is the only one that can take it"
        return _Choice(Outcome.ROUTED, best, "only-candidate", reasoning)
    if policy.stages:
        return _after(field, said)
    if not field.verdict.informed:
        default = field.position(policy.default_project)
        if default is not None:
            reasoning = f"nothing speaks for anybody, and such tasks go to {id_of(policy.default_project)}"
            return _Choice(Outcome.ROUTED, default, "default", reasoning)
    strategy = field.judge if field.verdict.informed else "default"
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


# ---------------------------------------------------------------- choosing by stages


def _after(field: _Field, said: Sequence[Opinion]) -> _Choice:
    """What is to be done after what was said."""
    opinions = (*field.own, *said)
    best = field.best[0]
    match following(field.question.policy.stages, opinions):
        case Decided(opinion):
            return _by(field, opinion)
        case Consult(stage):
            reasoning = f"{_doubts(opinions)}: {_NAMES[stage.use]} is asked"
            return _Choice(Outcome.UNSURE, best, field.judge, reasoning)
        case Await(question):
            reasoning = f"{_doubts(opinions)}: {_NAMES[Use.SAGE]} asks the requester: {question.reason}"
            return _Choice(Outcome.UNSURE, best, Use.SAGE.value, reasoning)
        case Exhausted(choice, nobody):
            return _in_the_end(field, opinions, choice, nobody)


def _by(field: _Field, opinion: Opinion) -> _Choice:
    """As somebody said."""
    use, position = Use(opinion.stage), field.known_position(opinion.project)
    if use.local:
        strategy = field.judge if opinion is field.own[-1] else use.value
        return _Choice(Outcome.ROUTED, position, strategy, opinion.reason, opinion.confidence)
    reasoning = f"{_NAMES[use]} chose {id_of(opinion.project)}: {opinion.reason}"
    return _Choice(Outcome.ROUTED, position, use.value, reasoning, opinion.confidence)


def _in_the_end(
    field: _Field, opinions: Sequence[Opinion], choice: Opinion | None, nobody: Opinion | None
) -> _Choice:
    """What becomes of a task that nobody is sure about: as the policy says."""
    policy = field.question.policy
    best = field.best[0]
    if nobody is not None and nobody.stage == Use.PERSON.value:
        reasoning = f"{_NAMES[Use.PERSON]} says that nobody here should have it: {nobody.reason}"
        return _Choice(Outcome.REJECTED, best, nobody.stage, reasoning, nobody.confidence)
    doubts = _doubts(opinions)
    strategy = nobody.stage if nobody is not None else field.judge
    if policy.on_unsure is OnUnsure.ASK:
        return _Choice(Outcome.UNSURE, best, strategy, doubts)
    if policy.on_unsure is OnUnsure.REJECT:
        return _Choice(Outcome.REJECTED, best, strategy, doubts)
    default = field.position(policy.default_project)
    if default is not None and (choice is None or nobody is not None):
        reasoning = f"{doubts}; such tasks go to {id_of(policy.default_project)}"
        return _Choice(Outcome.ROUTED, default, "default", reasoning)
    if choice is None:
        reasoning = (
            f"{doubts}; of {len(field.eligible)} that can take it, {id_of(field.name(best))} is best placed"
        )
        return _Choice(Outcome.ROUTED, best, "default", reasoning)
    by = _by(field, choice)
    return by._replace(reasoning=f"{by.reasoning}; {doubts}, but it routes all the same")


def _doubts(opinions: Sequence[Opinion]) -> str:
    """Why nobody was sure enough, each in a few words."""
    return "; ".join(f"{opinion.stage}: {_doubt(opinion)}" for opinion in opinions)


def _doubt(opinion: Opinion) -> str:
    match opinion.word:
        case Word.CHOICE:
            return f"{opinion.confidence:.2f} for {id_of(opinion.project)}, less than {opinion.threshold:.2f}"
        case Word.NOTHING_FITS:
            return "nothing fits" + (f", {opinion.reason}" if opinion.reason else "")
        case Word.ASKED:
            return "asked the requester"
        case _:
            return opinion.reason or "does not know"


_NAMES: Final = {
    Use.RULES: "the rules",
    Use.LEARNED: "what was learned",
    Use.LLM: "the LLM",
    Use.SAGE: "the Sage",
    Use.PERSON: "a person",
}

# ---------------------------------------------------------------- saying why


def _because(field: _Field, best: int) -> str:
    name = id_of(field.name(best))
    if not field.verdict.informed:
        return f"nothing speaks for anybody; of {len(field.eligible)} that can take it, {name} is best placed"
    others = _by_name(field.recorded[1])
    reasons = [_spoken(factor) for factor in field.recorded[0].factors if _speaks(factor, others)]
    if not reasons:
        return f"{name} is so much better placed that the little that speaks for others does not count"
    verb = "speaks" if len(reasons) == 1 and not reasons[0].startswith(_PLURALS) else "speak"
    first, second = field.recorded[:2]
    return (
        f"{_list(reasons)} {verb} for {name}, {first.confidence:.2f} against "
        f"{second.confidence:.2f} for {id_of(second.project)}"
    )


_NOUNS: Final = {
    "rules": "rule",
    "tags": "tag",
    "capability": "capability",
    "text": "word",
    "boost": "boost for",
}


_OF_THE_MODEL: Final = {
    "semantic": "what it is about",
    "learned": "the outcomes of tasks like it",
}
_PLURALS: Final = ("the words", "the outcomes")


def _by_name(candidate: Candidate) -> dict[str, Factor]:
    return {factor.name: factor for factor in candidate.factors}


def _speaks(factor: Factor, others: Mapping[str, Factor]) -> bool:
    """Whether it speaks for the first; what the model says of everybody, if it says more than of the second."""
    if factor.name in _OF_THE_MODEL:
        return factor.name in others and factor.value > others[factor.name].value
    return bool(factor.evidence) and factor.name in EVIDENCE and factor.value * factor.weight > 0


def _spoken(factor: Factor) -> str:
    if factor.name in _OF_THE_MODEL:
        return _OF_THE_MODEL[factor.name]
    plural = "s" if len(factor.evidence) > 1 and factor.name != "boost" else ""
    return f"the {_NOUNS[factor.name]}{plural} {', '.join(factor.evidence[:3])}"


def _nobody(task: TaskSpec, candidates: Candidates, exclusions: Sequence[Exclusion]) -> str:
    if not len(candidates):
        return "no project is registered"
    if task.project and task.project not in candidates.rows:
        return f"the requester wants {id_of(task.project)}, which is not registered"
    why = "; ".join(
        f"{exclusion.count} by {exclusion.filter}{f' ({exclusion.detail})' if exclusion.detail else ''}"
        for exclusion in exclusions
    )
    return f"nobody can take it: {why}"


def _list(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
