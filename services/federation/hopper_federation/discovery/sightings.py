"""What strangers say about themselves, cut down to what is safe to keep and to show."""

import ipaddress
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

MOST_SIGHTINGS: Final = 200
MOST_PER_INSTALL: Final = 4
MOST_TXT_BYTES: Final = 400

_INSTALL_ID: Final = re.compile(r"[a-z2-7]{32}")
_VERSION: Final = "1"


class Source(StrEnum):
    """Where a Hopper was heard of."""

    MDNS = "MDNS"
    DNS = "DNS"
    STATIC = "STATIC"


@dataclass(frozen=True, slots=True)
class Sighting:
    """
    A Hopper that might be there.

    Attributes:
        claimed_install_id: What it says; anybody may say anything. Empty: nothing was said.
        peer_address: host:port; empty: not told.
        pairing_address: host:port; empty: not told, or not open.
    """

    source: Source
    seen: datetime
    claimed_install_id: str = ""
    peer_address: str = ""
    pairing_address: str = ""


class Sightings:
    """
    The latest sightings, as many as may be; whoever floods pushes out the oldest, and no more than a few by one name.

    Not thread-safe.
    """

    def __init__(self, most: int = MOST_SIGHTINGS) -> None:
        self._most = most
        self._kept: OrderedDict[tuple[Source, str, str, str], Sighting] = OrderedDict()
        self.left_out = 0

    def add(self, sighting: Sighting) -> None:
        """Keep it as the latest."""
        key = (sighting.source, sighting.claimed_install_id, sighting.peer_address, sighting.pairing_address)
        if key in self._kept:
            self._kept.move_to_end(key)
        self._kept[key] = sighting
        same = [other for other in self._kept if other[:2] == key[:2] and sighting.claimed_install_id]
        for surplus in same[:-MOST_PER_INSTALL]:
            self._drop(surplus)
        while len(self._kept) > self._most:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: tuple[Source, str, str, str]) -> None:
        del self._kept[key]
        self.left_out += 1

    def latest(self) -> list[Sighting]:
        """All that are kept, the latest first."""
        return list(reversed(self._kept.values()))


def announcement(install_id: str, *, peer_port: int, pairing_port: int) -> dict[str, str]:
    """
    What a Hopper says of itself on the network: which it is, and two ports. No name, no person, no version of software.

    Args:
        pairing_port: 0: not open.
    """
    return {"v": _VERSION, "td": f"{install_id}.hopper", "peer": str(peer_port), "pair": str(pairing_port)}


def read_announcement(
    properties: Mapping[bytes, bytes | None], addresses: Iterable[str], now: datetime
) -> Sighting | None:
    """
    What an announcement says, if it is one of ours and says nothing impossible.

    Args:
        addresses: Where it says it is; only those of this network count, so that nobody sends us elsewhere.
    """
    if sum(len(key) + len(value or b"") + 2 for key, value in properties.items()) > MOST_TXT_BYTES:
        return None
    said = {key: (value or b"").decode("ascii", "replace") for key, value in properties.items()}
    install_id = said.get(b"td", "").removesuffix(".hopper")
    host = next((address for address in addresses if is_near(address)), None)
    peer, pairing = _port(said.get(b"peer", "")), _port(said.get(b"pair", ""))
    if (
        said.get(b"v") != _VERSION
        or not _INSTALL_ID.fullmatch(install_id)
        or host is None
        or not (peer or pairing)
    ):
        return None
    return Sighting(
        Source.MDNS,
        now,
        install_id,
        peer_address=_joined(host, peer) if peer else "",
        pairing_address=_joined(host, pairing) if pairing else "",
    )


def is_near(address: str) -> bool:
    """Whether an IP address is of this machine or of a private network."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return (parsed.is_private or parsed.is_link_local or parsed.is_loopback) and not parsed.is_unspecified


def _port(text: str) -> int:
    """A port; 0: none."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 5 and int(text) <= 65535 else 0


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
