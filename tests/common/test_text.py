import pytest

from hopper_common.text import one_line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain words", "plain words"),
        (" two\r\nlines\tand\u2028more ", "two lines and more"),
        ("\x1b[2Jcleared\x07", "[2Jcleared"),
        ("abc\u202edcba\u200b", "abcdcba"),
        ("Größe 請求書 🔥", "Größe 請求書 🔥"),
        ("\ud800 lone", "lone"),
        ("\n \x00\t", ""),
    ],
)
def test_words_become_one_printable_line(text: str, line: str) -> None:
    assert one_line(text, most_bytes=100) == line
    assert line.isprintable()


@pytest.mark.parametrize("most", [3, 10, 100])
def test_what_is_too_long_is_cut_between_characters(most: int) -> None:
    for text in ("x" * 1000, "é" * 1000, "🔥" * 1000, "a" * most + "é"):
        line = one_line(text, most_bytes=most)
        assert line.endswith("…")
        assert most - 4 < len(line.encode()) <= most
    assert one_line("x" * most, most_bytes=most) == "x" * most


def test_nothing_is_left_of_a_text_with_no_room() -> None:
    assert one_line("x", most_bytes=0) == ""
