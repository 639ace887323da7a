"""Names are read strictly, and those for people survive being typed."""

import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hopper_common.identity.spiffe import (
    SpiffeId,
    SpiffeInvalid,
    install_id_of_domain,
    read_shown,
    shown,
    trust_domain_of,
)
from hopper_testing.certificates import MALFORMED, malformed

INSTALL = "yaihsrmnxrnr4f5lrp5qzyinlxmtftde"
BASE32 = "abcdefghijklmnopqrstuvwxyz234567"

install_ids = st.text(BASE32, min_size=32, max_size=32)
segments = st.text(string.ascii_lowercase + string.digits + "._-", min_size=1, max_size=12).filter(
    lambda text: text not in (".", "..")
)
paths = st.lists(segments, max_size=4).map(lambda parts: "".join(f"/{part}" for part in parts))


@given(install_ids, paths)
def test_what_is_written_is_read_back(install_id: str, path: str) -> None:
    name = SpiffeId(trust_domain_of(install_id), path)
    assert SpiffeId.parse(str(name)) == name
    assert install_id_of_domain(name.trust_domain) == install_id


@given(
    st.text(max_size=300) | st.text("spifeh:/.@?#%-_AZaz09", max_size=60).map(lambda rest: f"spiffe://{rest}")
)
@example("spiffe://a/b\n")
@example("spiffe://a\n/b")
@example("spiffe://a/b\x00")
@example("spiffe://a/\N{FULLWIDTH LATIN SMALL LETTER A}")
@example("spiffe://\N{LATIN SMALL LETTER A WITH GRAVE}/b")
@example("spiffe://a..b/c")
@example("spiffe://.a/c")
@example("spiffe:///c")
@example("spiffe://a/..")
@example("spiffe://a/./b")
def test_whatever_is_read_is_strict_and_the_same_as_what_was_sent(text: str) -> None:
    try:
        name = SpiffeId.parse(text)
    except SpiffeInvalid:
        return
    assert str(name) == text
    assert len(text) <= 255
    assert text.isascii()
    assert text == text.lower()
    segments = name.path.split("/")[1:]
    assert all(segments)
    assert not {".", ".."} & set(segments)
    assert not set(text.removeprefix("spiffe://")) & set(":@?#%\\\n\0 ")


@pytest.mark.parametrize(
    "text", ["spiffe://a/..", "spiffe://a/b\n", "spiffe://a//b", "spiffe://", "", "spiffe://a/"]
)
def test_what_is_almost_a_name_is_none(text: str) -> None:
    with pytest.raises(SpiffeInvalid):
        SpiffeId.parse(text)


@pytest.mark.parametrize("kind", MALFORMED)
def test_every_malformed_name_is_refused(kind: str) -> None:
    with pytest.raises(SpiffeInvalid):
        SpiffeId.parse(malformed(kind, trust_domain_of(INSTALL)))


def test_a_name_of_255_bytes_is_read_and_one_of_256_is_not() -> None:
    start = f"spiffe://{trust_domain_of(INSTALL)}/"
    longest = start + "x" * (255 - len(start))
    assert str(SpiffeId.parse(longest)) == longest
    with pytest.raises(SpiffeInvalid, match="255 bytes"):
        SpiffeId.parse(longest + "x")


@pytest.mark.parametrize(
    "domain", ["example.org", "hopper", f"{INSTALL}.hopper.", f"x.{INSTALL}.hopper", "a.hopper"]
)
def test_a_trust_domain_that_is_no_hoppers_has_no_install_id(domain: str) -> None:
    with pytest.raises(SpiffeInvalid):
        install_id_of_domain(domain)


@given(install_ids)
def test_an_install_id_survives_being_shown_and_typed(install_id: str) -> None:
    text = shown(install_id)
    assert [len(group) for group in text.split("-")] == [4] * 9
    typed = text.upper().replace("-", " ").replace("O", "0").replace("L", "1").replace("B", "8")
    assert read_shown(text) == read_shown(typed) == install_id


@given(install_ids, st.integers(0, 35), st.sampled_from(BASE32))
def test_a_slip_in_one_character_is_found(install_id: str, place: int, other: str) -> None:
    plain = shown(install_id).replace("-", "")
    if plain[place] == other:
        return
    with pytest.raises(SpiffeInvalid, match="slip in the groups"):
        read_shown(plain[:place] + other + plain[place + 1 :])


@pytest.mark.parametrize("text", ["", INSTALL, shown(INSTALL) + "a", "9" * 36, shown(INSTALL)[:-1] + "9"])
def test_what_is_no_shown_install_id_is_refused(text: str) -> None:
    with pytest.raises(SpiffeInvalid):
        read_shown(text)
