"""
Where strangers come from, and how often each may ask: plain arithmetic, so that a flood costs next to nothing.

Sources are networks, not addresses, /24 of IPv4 and /64 of IPv6: whoever has one address of such a network usually has
all of them.
"""

import ipaddress
from collections import OrderedDict
from typing import Final
from urllib.parse import unquote

NOWHERE: Final = "unix"
MOST_SOURCES: Final = 4096


def network_of(peer: str) -> str:
    """
    The network a caller is in.

    Args:
        peer: As gRPC has it: `ipv4:192.0.2.7:51234`, `ipv6:[2001:db8::7]:51234` (brackets perhaps escaped), `unix:`.
    """
    kind, _, rest = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return NOWHERE
    host = rest.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return NOWHERE
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    prefix = 24 if address.version == 4 else 64
    return str(ipaddress.ip_network((address, prefix), strict=False))


class Rates:
    """
    A token bucket for each source, and one for all together.

    Args:
        per_second: Of each source.
        burst: How many calls of one source may come at once.
        total_per_second, total_burst: The same of all sources together.
    """

    def __init__(
        self,
        *,
        per_second: float = 1.0,
        burst: float = 5.0,
        total_per_second: float = 20.0,
        total_burst: float = 40.0,
    ) -> None:
        self._each = (per_second, burst)
        self._all = (total_per_second, total_burst)
        self._buckets: OrderedDict[str, tuple[float, float]] = (
            OrderedDict()
        )  # those that asked last come last
        self._total = (total_burst, 0.0)

    def take(self, source: str, now: float) -> bool:
        """
        Whether a source may make one more call.

        Args:
            now: Seconds of a clock that never goes back.
        """
        left = _refilled(self._buckets.pop(source, (self._each[1], now)), now, *self._each)
        total = _refilled(self._total, now, *self._all)
        # A source over its own limit does not use up what is there for the others.
        allowed = left >= 1 and total >= 1
        self._buckets[source] = (left - allowed, now)
        self._total = (total - allowed, now)
        while len(self._buckets) > MOST_SOURCES:
            self._buckets.popitem(last=False)
        return allowed


def _refilled(bucket: tuple[float, float], now: float, per_second: float, burst: float) -> float:
    left, then = bucket
    return min(burst, left + (now - then) * per_second)
