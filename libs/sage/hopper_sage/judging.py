"""
How the reference Sage makes up its mind: weights, added up, of everything that speaks for a project.

    weight of a project =   PRIOR    x how sure the router is of it
                          + EVIDENCE x similarity squared, for each past task that belonged to it
                          + MODEL    x how sure the language model is, if it names it

and divided by 1 + EVIDENCE x similarity squared for each past task that was wrong there. What speaks for none of the
candidates is a weight of its own: what the router leaves over, past tasks that belonged elsewhere, a language model
that says so. A project's share of all weight is the confidence in it.

The constants are how much the three are worth beside each other: one past task that is the same, word for word, is
worth more than the router's best guess, and two of them more than a language model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hopper_common.text import one_line
from hopper_sage.model import (
    MOST_PRECEDENTS,
    MOST_REASON_BYTES,
    Abstention,
    Answer,
    Candidate,
    Choice,
    Clarification,
    Question,
    Remembered,
    Why,
)
from hopper_sage.ports import ModelAdvice

PRIOR: Final = 2.0
EVIDENCE: Final = 3.0
MODEL: Final = 4.0

LEAST_SIMILAR: Final = 0.2
"""Past tasks that are less like the one in question say nothing about it."""
SURE_ENOUGH: Final = 0.5
"""The Sage chooses when it is more likely right than wrong."""
WORTH_ASKING: Final = 0.6
"""It asks back when one of two projects is this likely the right one, and it cannot tell which."""
MOST_QUESTIONS: Final = 2
"""A requester is not asked more often than this about one task."""
MOST_CONFIDENCE: Final = 0.99

_SHOWN_BYTES: Final = 120


def judge(question: Question, past: Sequence[Remembered], advice: ModelAdvice | None = None) -> Answer:
    """
    Answer a question.

    Args:
        past: Of the Sage's own journal; those of the question itself are added here.
        advice: What a language model says. None: none was asked, or it gave no answer.
    """
    known = [one for one in (*past, *_of_question(question, past)) if one.similarity >= LEAST_SIMILAR]
    scales = _weigh(question, known, advice)
    if advice is not None and advice.question and _may_ask(question):
        return Clarification(one_line(advice.question, most_bytes=MOST_REASON_BYTES), scales.reason())
    best, *others = scales.ranked()
    if scales.share(best) >= SURE_ENOUGH:
        return Choice(
            project=best.project,
            confidence=min(MOST_CONFIDENCE, scales.share(best)),
            reason=scales.reason(best),
            precedents=scales.precedents(best),
        )
    if others and scales.share(best) + scales.share(others[0]) >= WORTH_ASKING and _may_ask(question):
        return Clarification(_which(best, others[0]), scales.reason(best))
    if scales.none >= SURE_ENOUGH * scales.total:
        return Abstention(Why.NOTHING_FITS, scales.reason())
    return Abstention(Why.UNSURE, scales.reason(best))


def _may_ask(question: Question) -> bool:
    return len(question.replies) < MOST_QUESTIONS


def _of_question(question: Question, past: Sequence[Remembered]) -> list[Remembered]:
    """What Hopper remembers, where the journal does not know better."""
    own = {one.decision for one in past}
    return [
        Remembered(
            decision=one.decision,
            belongs=one.project if one.success else None,
            not_with=frozenset() if one.success else frozenset({one.project}),
            duration=None,
            similarity=one.similarity,
        )
        for one in question.precedents
        if one.success is not None and one.decision not in own
    ]


@dataclass(frozen=True, slots=True)
class _Scales:
    """What speaks for each candidate, and for none."""

    question: Question
    weights: Mapping[str, float]
    none: float
    known: Sequence[Remembered]
    advice: ModelAdvice | None

    @property
    def total(self) -> float:
        return sum(self.weights.values()) + self.none

    def share(self, candidate: Candidate) -> float:
        return self.weights[candidate.project] / self.total

    def ranked(self) -> list[Candidate]:
        """The heaviest first; of equals, as the router had them."""
        return sorted(self.question.candidates, key=lambda one: -self.weights[one.project])

    def precedents(self, candidate: Candidate) -> list[str]:
        mattered = (one for one in self.known if one.belongs == candidate.project)
        best = sorted(mattered, key=lambda one: -one.similarity)
        return list(dict.fromkeys(one.decision for one in best))[:MOST_PRECEDENTS]

    def reason(self, candidate: Candidate | None = None) -> str:
        """What was weighed; of *candidate*, if one is given."""
        parts = [self._of_past(candidate), self._of_router(candidate), self._of_model()]
        return one_line("; ".join(part for part in parts if part), most_bytes=MOST_REASON_BYTES)

    def _of_past(self, candidate: Candidate | None) -> str:
        if not self.known:
            return "nothing like it is remembered"
        like = f"{len(self.known)} past task{'s' if len(self.known) > 1 else ''} like it"
        if candidate is None:
            here = {one.project for one in self.question.candidates}
            elsewhere = sum(one.belongs is not None and one.belongs not in here for one in self.known)
            return f"{like}, {elsewhere} of which belonged to none of the candidates"
        there = [one for one in self.known if one.belongs == candidate.project]
        wrong = sum(candidate.project in one.not_with for one in self.known)
        said = f"{like}: {len(there)} belonged to {_shown(candidate)}"
        if there:
            said += f", the most alike {max(one.similarity for one in there):.0%}"
        return f"{said}, {wrong} did badly there" if wrong else said

    def _of_router(self, candidate: Candidate | None) -> str:
        return "" if candidate is None else f"the router was {candidate.confidence:.0%} sure of it"

    def _of_model(self) -> str:
        if self.advice is None:
            return ""
        named = next((one for one in self.question.candidates if one.project == self.advice.project), None)
        said = "none of them" if named is None else _shown(named)
        return f"the language model says {said}: {one_line(self.advice.reason, most_bytes=400)}"


def _weigh(question: Question, known: Sequence[Remembered], advice: ModelAdvice | None) -> _Scales:
    # A candidate that nothing speaks for is still on the list: some filter could have thrown it out, and none did.
    weights = {one.project: PRIOR * max(one.confidence, 0.01) for one in question.candidates}
    none = PRIOR * max(0.0, 1 - sum(one.confidence for one in question.candidates))
    for one in known:
        strength = EVIDENCE * one.similarity**2
        if one.belongs in weights:
            weights[one.belongs] += strength
        elif one.belongs is not None:
            none += strength
    for one in known:
        for project in one.not_with & weights.keys():
            weights[project] /= 1 + EVIDENCE * one.similarity**2
    if advice is not None:
        if advice.project in weights:
            weights[advice.project] += MODEL * advice.confidence
        else:
            none += MODEL * advice.confidence
    return _Scales(question, weights, none, known, advice)


def _which(one: Candidate, other: Candidate) -> str:
    said = f"Is this more about {_described(one)}, or about {_described(other)}?"
    return one_line(said, most_bytes=MOST_REASON_BYTES)


def _described(candidate: Candidate) -> str:
    about = one_line(candidate.description, most_bytes=_SHOWN_BYTES)
    return f"{_shown(candidate)} ({about})" if about else _shown(candidate)


def _shown(candidate: Candidate) -> str:
    return one_line(candidate.called, most_bytes=_SHOWN_BYTES)
