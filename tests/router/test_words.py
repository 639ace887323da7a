"""How text becomes words."""

from __future__ import annotations

import pytest

from hopper_router.words import SCORED_CHARACTERS, Text, fold, tokens


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Refund my CREDIT card!", ["refund", "my", "credit", "card"]),
        ("meas_multifit/ticket-3146", ["meas", "multifit", "ticket", "3146"]),
        ("C++ and C#, not c", ["c++", "and", "c#", "not", "c"]),
        ("issue#12", ["issue", "12"]),
        ("don't", ["don", "t"]),
        ("Straße ÉCOLE", ["strasse", "école"]),
        ("e\N{COMBINING ACUTE ACCENT}cole", ["école"]),
        ("C++ für Anfänger, issue#12", ["c++", "für", "anfänger", "issue", "12"]),
        ("", []),
    ],
)
def test_words_are_runs_of_letters_and_digits_in_any_script(text: str, words: list[str]) -> None:
    assert tokens(text) == words


@pytest.mark.parametrize(
    ("word", "folded"),
    [
        ("invoices", "invoice"),
        ("status", "status"),
        ("class", "class"),
        ("analysis", "analysis"),
        ("bus", "bus"),
    ],
)
def test_only_a_plural_s_is_folded(word: str, folded: str) -> None:
    assert fold(word) == folded


def test_no_phrase_reaches_from_the_title_into_the_description() -> None:
    spelled = Text.of("pay by credit", "card is lost").spelled()

    assert " credit " in spelled
    assert " credit card " not in spelled


def test_a_long_description_is_cut_between_words() -> None:
    text = Text.of("title", "x" * (SCORED_CHARACTERS - 10) + " " + "invoice " * 20)

    assert text.head == ["x" * (SCORED_CHARACTERS - 10), "invoice"]
    assert set(text.tail) == {"invoice"}
    assert " invoice invoice " in text.spelled()
