import pytest

from hopper_sage.words import MOST_WORDS, similarity, words_of


def test_words_are_distinct_folded_and_say_something() -> None:
    assert words_of(["The Login, the LOGIN!", "is broken: e\u0301te\u0301"]) == [
        "login",
        "broken",
        "e\u0301te\u0301",
    ]


def test_no_word_is_syntax_to_the_index() -> None:
    assert words_of(["a\"b* OR NEAR(x) ^ -- '; {c}"]) == ["b", "near", "x", "c"]


def test_a_long_text_is_cut() -> None:
    assert len(words_of([" ".join(f"w{n}" for n in range(1000))])) == MOST_WORDS


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [("a1 b1", "b1 a1", 1.0), ("a1 b1", "c1", 0.0), ("", "", 0.0), ("a1 b1 c1 d1", "a1", 0.5)],
)
def test_how_alike(one: str, other: str, alike: float) -> None:
    assert similarity(one.split(), other.split()) == pytest.approx(alike)
