import pytest

from hopper_sage.judging import MOST_QUESTIONS, judge
from hopper_sage.model import Abstention, Choice, Clarification, Precedent, Reply, Why
from hopper_sage.ports import ModelAdvice
from tests.sage.factories import API, OPS, WEB, question, remembered


def chosen(answer: object) -> Choice:
    assert isinstance(answer, Choice), answer
    return answer


def test_a_router_that_is_sure_is_followed() -> None:
    answer = chosen(judge(question([(WEB, 0.9), (API, 0.05)]), []))
    assert answer.project == WEB
    assert answer.confidence == pytest.approx(0.9, abs=0.01)
    assert answer.precedents == []


def test_one_past_task_that_is_the_same_outweighs_the_routers_guess() -> None:
    answer = chosen(judge(question([(WEB, 0.6), (API, 0.4)]), [remembered(API, decision="before")]))
    assert (answer.project, answer.precedents) == (API, ["decisions/before"])


def test_more_evidence_makes_it_surer_and_never_certain() -> None:
    confidences = [
        chosen(judge(question(), [remembered(WEB, decision=f"p{n}") for n in range(count)])).confidence
        for count in (1, 2, 5, 500)
    ]
    assert confidences == sorted(confidences)
    assert confidences[-1] < 1


def test_what_did_badly_somewhere_is_not_sent_there_again() -> None:
    asked = question([(WEB, 0.5), (API, 0.45)])
    answer = chosen(judge(asked, [remembered(None, not_with=[WEB], decision=f"p{n}") for n in range(3)]))
    assert answer.project == API


def test_tasks_that_are_hardly_alike_say_nothing() -> None:
    asked = question([(WEB, 0.9), (API, 0.1)])
    assert judge(asked, [remembered(API, 0.19)]) == judge(asked, [])


def test_hoppers_own_precedents_count_but_not_twice() -> None:
    known = Precedent("decisions/p1", "Fix the login form", API, True, 0.9)
    asked = question([(WEB, 0.5), (API, 0.4)], precedents=[known])
    assert chosen(judge(asked, [])).project == API
    # The journal knows of the same decision that it went to the web shop in the end.
    assert chosen(judge(asked, [remembered(WEB, 0.9)])).project == WEB


def test_a_precedent_whose_end_nobody_knows_says_nothing() -> None:
    unknown = Precedent("decisions/p1", "Fix the login form", API, None, 1.0)
    asked = question([(WEB, 0.9), (API, 0.1)], precedents=[unknown])
    assert chosen(judge(asked, [])).confidence == pytest.approx(0.9)


def test_torn_between_two_it_asks_the_requester_which() -> None:
    answer = judge(question([(WEB, 0.45), (API, 0.45)]), [])
    assert isinstance(answer, Clarification)
    assert "web" in answer.question
    assert "api" in answer.question
    assert answer.question.endswith("?")


def test_it_asks_no_more_than_it_may() -> None:
    replies = [Reply("Which?", "No idea")] * MOST_QUESTIONS
    answer = judge(question([(WEB, 0.45), (API, 0.45)], replies=replies), [])
    assert isinstance(answer, Abstention)
    assert answer.kind is Why.UNSURE


def test_what_belonged_elsewhere_before_fits_nobody_here() -> None:
    answer = judge(question(), [remembered(OPS, decision=f"p{n}") for n in range(4)])
    assert isinstance(answer, Abstention)
    assert answer.kind is Why.NOTHING_FITS


def test_what_nobody_should_have_had_fits_nobody() -> None:
    answer = judge(question(), [remembered("", decision=f"p{n}") for n in range(4)])
    assert isinstance(answer, Abstention)
    assert answer.kind is Why.NOTHING_FITS


def test_a_language_model_is_one_voice_among_others() -> None:
    asked = question([(WEB, 0.5), (API, 0.45)])
    says = ModelAdvice(API, 0.9, "it is about\nendpoints")
    answer = chosen(judge(asked, [], says))
    assert answer.project == API
    assert "the language model says api: it is about endpoints" in answer.reason
    past = [remembered(WEB, decision=f"p{n}") for n in range(3)]
    assert chosen(judge(asked, past, says)).project == WEB


def test_a_language_model_that_says_none_speaks_for_nobody() -> None:
    answer = judge(question(), [], ModelAdvice("", 0.9, "not ours"))
    assert isinstance(answer, Abstention)
    assert answer.kind is Why.NOTHING_FITS


def test_a_language_models_question_is_asked_once_it_may_be() -> None:
    says = ModelAdvice(WEB, 0.4, "unclear", question="Which\x1b[31m page?")
    answer = judge(question(), [], says)
    assert isinstance(answer, Clarification)
    assert answer.question == "Which[31m page?"
    replies = [Reply("Which?", "The login page")] * MOST_QUESTIONS
    assert not isinstance(judge(question(replies=replies), [], says), Clarification)


def test_equal_candidates_keep_the_routers_order() -> None:
    replies = [Reply("Which?", "Either")] * MOST_QUESTIONS
    past = [remembered(WEB), remembered(API, decision="p2")]
    answer = judge(question([(API, 0.5), (WEB, 0.5)], replies=replies), past)
    assert chosen(answer).project == API
