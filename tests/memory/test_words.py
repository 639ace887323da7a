"""Any text to words that can be searched for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopper_memory.words import words_of


def words(text: str) -> list[str]:
    return words_of(text, most=32)


def test_words_keep_their_order_and_come_once() -> None:
    assert words("Fix login, fix LOGIN page!") == ["Fix", "login", "page"]


def test_stop_words_are_left_out_in_any_case() -> None:
    assert words("The page is not WITH us") == ["page"]
    assert words("how is it that you are") == []


@pytest.mark.parametrize("text", ["", "   ", "!?*()\"'", "_ - _", "🙂🙂", "\u0301"])
def test_a_text_without_words_has_none(text: str) -> None:
    assert words(text) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('a" OR NEAR("x', ["NEAR", "x"]),
        ("title:secret* ^first {x}", ["title", "secret", "first", "x"]),
        ("snake_case kebab-case", ["snake", "case", "kebab"]),
        ("C++ v2.0", ["C", "v2", "0"]),
        ("Straße café", ["Straße", "café"]),
        ("cafe\u0301s", ["cafe\u0301s"]),
        ("修复登录 ошибка", ["修复登录", "ошибка"]),
    ],
)
def test_what_becomes_of_punctuation_and_other_scripts(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_at_most_so_many_are_taken_from_the_beginning() -> None:
    assert words_of("one1 two2 three3", most=2) == ["one1", "two2"]


@given(st.text())
def test_no_word_has_anything_that_could_be_syntax(text: str) -> None:
    assert not set("\"'*^:(){}-+_ \n") & set("".join(words(text)))
