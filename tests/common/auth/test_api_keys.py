"""API keys: their form, their check, and what is kept of them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopper_common.auth import api_keys


def test_a_key_has_256_random_bits_and_a_check() -> None:
    made = api_keys.new_key()
    assert re.fullmatch(r"hop_[0-9a-z]{12}_[0-9A-Za-z]{43}_[0-9A-Za-z]{6}", made.key)
    assert api_keys.id_of(made.key) == made.id
    assert api_keys.matches(made.key, made.hash)


def test_no_two_keys_are_alike() -> None:
    made = [api_keys.new_key() for _ in range(200)]
    assert len({key.key for key in made}) == len({key.id for key in made}) == 200


def test_another_key_does_not_match() -> None:
    assert not api_keys.matches(api_keys.new_key().key, api_keys.new_key().hash)


def test_the_representation_shows_no_secret() -> None:
    made = api_keys.new_key()
    assert made.key not in f"{made} {made!r}"
    assert made.hash.hex() not in f"{made!r}"


@pytest.mark.parametrize("place", [4, 20, 40, -1])
def test_a_mistyped_key_is_noticed_without_any_database(place: int) -> None:
    key = api_keys.new_key().key
    wrong = "b" if key[place] == "a" else "a"
    characters = list(key)
    characters[place] = wrong
    assert api_keys.id_of("".join(characters)) is None


@given(st.text(max_size=100))
def test_whatever_else_it_is_it_is_no_key(text: str) -> None:
    assert api_keys.id_of(text) is None
