"""What strangers say about themselves, and how little of it is kept."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopper_federation.discovery.sightings import (
    MOST_PER_INSTALL,
    MOST_TXT_BYTES,
    Sighting,
    Sightings,
    Source,
    announcement,
    is_near,
    read_announcement,
)

NOW = datetime(2026, 11, 23, tzinfo=UTC)
INSTALL = "abcdefghijklmnopqrstuvwxyz234567"


def said(**changes: str | None) -> dict[bytes, bytes | None]:
    """An announcement as it arrives; None leaves a key out."""
    told: Mapping[str, str | None] = announcement(INSTALL, peer_port=8470, pairing_port=8471) | changes
    return {key.encode(): value.encode() for key, value in told.items() if value is not None}


def test_what_is_announced_is_read() -> None:
    assert read_announcement(said(), ["192.168.1.7"], NOW) == Sighting(
        Source.MDNS, NOW, INSTALL, "192.168.1.7:8470", "192.168.1.7:8471"
    )


def test_a_port_that_is_not_open_is_not_told() -> None:
    sighting = read_announcement(said(pair="0"), ["fd00::7"], NOW)
    assert sighting is not None
    assert (sighting.peer_address, sighting.pairing_address) == ("[fd00::7]:8470", "")


def test_an_announcement_is_small_and_tells_nothing_else() -> None:
    told = announcement(INSTALL, peer_port=65535, pairing_port=65535)
    assert set(told) == {"v", "td", "peer", "pair"}
    assert sum(len(key) + len(value) + 2 for key, value in told.items()) <= MOST_TXT_BYTES


@pytest.mark.parametrize(
    "changes",
    [
        {"v": "2"},
        {"v": None},
        {"td": None},
        {"td": "bob"},
        {"td": f"{INSTALL.upper()}.hopper"},
        {"td": f"{INSTALL}.hopper.example.org"},
        {"peer": "0", "pair": "0"},
        {"peer": "-1", "pair": "99999"},
        {"peer": "8470x", "pair": "\u0661\u0662"},
        {"more": "x" * MOST_TXT_BYTES},
    ],
)
def test_what_is_no_announcement_of_ours(changes: dict[str, str | None]) -> None:
    assert read_announcement(said(**changes), ["192.168.1.7"], NOW) is None


@pytest.mark.parametrize("address", ["8.8.8.8", "2a00:1450::1", "::", "", "host", "192.168.1.7:1"])
def test_nobody_sends_us_elsewhere(address: str) -> None:
    assert read_announcement(said(), [address], NOW) is None


@pytest.mark.parametrize("address", ["10.1.2.3", "127.0.0.1", "169.254.1.1", "fe80::1%eth0", "fd00::1"])
def test_addresses_of_this_network(address: str) -> None:
    assert is_near(address)


@given(
    st.dictionaries(st.binary(max_size=20), st.none() | st.binary(max_size=300)),
    st.lists(st.text(max_size=40)),
)
def test_no_announcement_breaks_the_reader(
    properties: dict[bytes, bytes | None], addresses: list[str]
) -> None:
    sighting = read_announcement(properties, addresses, NOW)
    assert sighting is None or sighting.claimed_install_id


def test_a_flood_pushes_out_the_oldest_and_is_counted() -> None:
    sightings = Sightings(most=3)
    for number in range(5):
        sightings.add(Sighting(Source.STATIC, NOW, peer_address=f"10.0.0.{number}:1"))
    assert [sighting.peer_address for sighting in sightings.latest()] == [
        "10.0.0.4:1",
        "10.0.0.3:1",
        "10.0.0.2:1",
    ]
    assert sightings.left_out == 2


def test_one_name_has_only_a_few_places() -> None:
    sightings = Sightings()
    other = Sighting(Source.MDNS, NOW, "b" * 32, "10.0.0.1:1")
    sightings.add(other)
    for number in range(10):
        sightings.add(Sighting(Source.MDNS, NOW, INSTALL, f"10.0.1.{number}:1"))
    latest = sightings.latest()
    assert len(latest) == MOST_PER_INSTALL + 1
    assert latest[-1] == other


def test_heard_again_it_is_the_latest() -> None:
    sightings = Sightings()
    first, second = (Sighting(Source.DNS, NOW, peer_address=f"a{number}.example:1") for number in range(2))
    for sighting in (first, second):
        sightings.add(sighting)
    again = Sighting(Source.DNS, NOW + timedelta(seconds=1), peer_address=first.peer_address)
    sightings.add(again)
    assert sightings.latest() == [again, second]
