"""
What counts as an answer. A Sage is a stranger: each of its answers is looked at before anybody acts on it.

Choices, numbers and orders are right or no answer at all. Words are only for people: they are cut and cleaned, and
never a reason to throw a good choice away.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from hopper_common.text import one_line
from hopper_router.sage.advisor import (
    About,
    Abstention,
    Advice,
    Asked,
    Bin,
    Choice,
    Clarification,
    Cost,
    Order,
    Performance,
    Question,
    Ranked,
)
from hopper_router.sage.errors import SageAnswerInvalid

MOST_WORDS: Final = 1_000
MOST_RANK_WORDS: Final = 300
MOST_REMARKS: Final = 4_000
MOST_PRECEDENTS: Final = 10

_DECISION: Final = re.compile(r"decisions/[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?", re.ASCII)
_MOST_NAME: Final = 63
_MOST_VERSION: Final = 100


def checked_advice(advice: Advice, question: Question, shortlist: int) -> Advice:
    """
    An answer to *question*, of whose candidates the first *shortlist* were sent.

    Raises:
        SageAnswerInvalid: It names what is not on the shortlist, is sure of no number from 0 to 1, or asks nothing.
    """
    method = "DecideRouting"
    _check_cost(advice.cost, method)
    match advice.answer:
        case Choice() as choice:
            if choice.project not in {one.project for one in question.candidates[:shortlist]}:
                raise _invalid(method, "a project that is not on the shortlist")
            _check_share(choice.confidence, method, "confidence")
            precedents = [one for one in choice.precedents if _DECISION.fullmatch(one)][:MOST_PRECEDENTS]
            reason = _words(choice.reason) or "the Sage gave no reason"
            return Advice(Choice(choice.project, choice.confidence, reason, precedents), advice.cost)
        case Clarification() as asked:
            said = _words(asked.question)
            if not said:
                raise _invalid(method, "a clarification without a question")
            return Advice(Clarification(said, _words(asked.reason)), advice.cost)
        case Abstention() as none:
            reason = _words(none.reason) or "the Sage gave no reason"
            return Advice(Abstention(none.kind, reason), advice.cost)


def checked_order(order: Order, tasks: Sequence[Asked]) -> Order:
    """
    An order of *tasks*.

    Raises:
        SageAnswerInvalid: Not every one of them is in it exactly once, or something else is.
    """
    _check_cost(order.cost, "PrioritizeQueue")
    if sorted(one.task for one in order.ranked) != sorted(task.name for task in tasks):
        raise _invalid("PrioritizeQueue", "an order that is not of the tasks asked about, each once")
    ranked = [Ranked(one.task, one_line(one.reason, most_bytes=MOST_RANK_WORDS)) for one in order.ranked]
    return Order(ranked, order.cost)


def checked_performance(seen: Performance) -> Performance:
    """
    A report.

    Raises:
        SageAnswerInvalid: Its numbers contradict each other.
    """
    method = "ReportPerformance"
    _check_cost(seen.cost, method)
    _check_share(seen.accuracy, method, "accuracy")
    _check_share(seen.calibration_error, method, "calibration error")
    kinds = (seen.choices, seen.clarifications, seen.abstentions)
    if min(*kinds, seen.right) < 0 or seen.decisions != sum(kinds):
        raise _invalid(method, "counts that do not add up")
    if not seen.right <= seen.judged <= seen.choices:
        raise _invalid(method, "more right than judged, or more judged than chosen")
    for bin_ in seen.bins:
        _check_bin(bin_, method)
    if sum(bin_.count for bin_ in seen.bins) != seen.judged:
        raise _invalid(method, "bins that do not hold all judged choices")
    return replace(seen, remarks=one_line(seen.remarks, most_bytes=MOST_REMARKS))


def checked_about(about: About) -> About:
    """
    Who it says it is.

    Raises:
        SageAnswerInvalid: It has no name.
    """
    name = one_line(about.name, most_bytes=_MOST_NAME)
    if not name:
        raise _invalid("GetSage", "no name")
    version = one_line(about.version, most_bytes=_MOST_VERSION)
    return About(name, version, _words(about.description), about.capabilities)


def _check_bin(bin_: Bin, method: str) -> None:
    for share in (bin_.lower, bin_.upper, bin_.mean_confidence, bin_.accuracy):
        _check_share(share, method, "bin")
    if bin_.count < 1:
        raise _invalid(method, "an empty bin")


def _check_cost(cost: Cost, method: str) -> None:
    if min(cost.model_calls, cost.input_tokens, cost.output_tokens, cost.money) < 0:
        raise _invalid(method, "a cost below nothing")


def _check_share(value: float, method: str, what: str) -> None:
    if not (math.isfinite(value) and 0 <= value <= 1):
        raise _invalid(method, f"a {what} that is no number from 0 to 1")


def _words(text: str) -> str:
    return one_line(text, most_bytes=MOST_WORDS)


def _invalid(method: str, problem: str) -> SageAnswerInvalid:
    # The Sage's own words stay out of it: errors reach logs.
    return SageAnswerInvalid(f"the Sage answered {method} with {problem}", method=method, problem=problem)
