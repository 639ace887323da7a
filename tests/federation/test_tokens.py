"""Invitations as text: what comes back, and what does not pass for one."""

import base64
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopper_common.errors import InvalidArgument
from hopper_federation import tokens
from hopper_federation.tokens import Token, decode, encode

TOKEN = Token(
    invitation=bytes(range(16)),
    secret=bytes(range(16, 32)),
    install_id="abcdefghijklmnopqrstuvwxyz234567",
    root_key=b"\x02" + bytes(32),
    addresses=("192.0.2.7:8471", "[2001:db8::7]:8471"),
    expire_time=datetime(2026, 11, 23, 12, 0, 10, tzinfo=UTC),
)


def problem(text: str) -> str:
    with pytest.raises(InvalidArgument) as caught:
        decode(text)
    ((field, description),) = caught.value.violations
    assert field == "token"
    return description


def test_a_token_is_short_and_comes_back_as_it_was() -> None:
    text = encode(TOKEN)
    assert text.startswith("hopper1:")
    assert len(text) < 220
    assert decode(text) == TOKEN


def test_line_breaks_of_a_mail_do_not_matter() -> None:
    text = encode(TOKEN)
    assert decode(f"  {text[:40]}\n{text[40:90]}\r\n {text[90:]}\n") == TOKEN


@given(place=st.integers(min_value=8), letter=st.sampled_from("ABCDEFabcdef0123-_"))
def test_a_slip_is_found(place: int, letter: str) -> None:
    text = encode(TOKEN)
    place = 8 + place % (len(text) - 8)
    slipped = text[:place] + letter + text[place + 1 :]
    if _bytes(slipped) == _bytes(text):  # the bits that fill up the last character say nothing
        assert decode(slipped) == TOKEN
    else:
        assert "slip" in problem(slipped)


def _bytes(text: str) -> bytes:
    plain = text.removeprefix(tokens.PREFIX)
    return base64.urlsafe_b64decode(plain + "=" * (-len(plain) % 4))


@given(cut=st.integers(min_value=1, max_value=120))
def test_one_that_is_cut_short_is_refused(cut: int) -> None:
    assert "cut short" in problem(encode(TOKEN)[:-cut])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no invitation"),
        ("hello", "no invitation"),
        ("hopper1:", "cut short"),
        ("hopper1:!!!!", "cut short"),
        ("hopper2:AAAA", "newer Hopper"),
        ("hopper1:" + "ä" * 20, "no invitation"),
        ("hopper1:" + "A" * 5000, "no invitation"),
    ],
)
def test_what_is_no_token_is_told_apart(text: str, says: str) -> None:
    assert says in problem(text)


@given(content=st.binary(max_size=400))
def test_any_bytes_with_a_right_check_are_read_or_refused(content: bytes) -> None:
    text = tokens.PREFIX + base64.urlsafe_b64encode(content + tokens._check(content)).decode()
    try:
        found = decode(text)
    except InvalidArgument:
        return
    assert len(found.secret) == 16


@pytest.mark.parametrize(
    "wrong",
    [
        replace(TOKEN, secret=b"short"),
        replace(TOKEN, root_key=bytes(32)),
        replace(TOKEN, install_id="nobody"),
        replace(TOKEN, addresses=("",)),
        replace(TOKEN, addresses=("x" * 256,)),
        replace(TOKEN, addresses=("192.0.2.1:1",) * 9),
    ],
)
def test_a_token_that_cannot_be_is_not_made(wrong: Token) -> None:
    with pytest.raises(ValueError, match=r".+"):
        encode(wrong)


def test_a_token_does_not_show_its_secret() -> None:
    assert str(TOKEN) == "hopper1:…"
    assert repr(TOKEN.secret) not in repr(TOKEN)
