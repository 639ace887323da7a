"""
How often a principal may call: a token bucket for each principal and class of calls, and a count of its open streams.

The owner is not limited. Time is given in seconds of a clock that never steps.
"""

import ipaddress
import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final, NamedTuple

from hopper_common.auth.model import Kind, Principal, RateClass

_MOST_BUCKETS: Final = 20_000
_KNOWN: Final = frozenset({Kind.PERSON, Kind.AGENT})


class Rate(NamedTuple):
    """So many calls a second, and so many at once after a pause."""

    per_second: float
    burst: float


_NO_LIMIT: Final = Rate(math.inf, math.inf)


class Rates(NamedTuple):
    """
    The limits of one principal.

    Attributes:
        services: Of a service of this Hopper, in any class: it gathers the calls of many.
        open_streams: Of the class WATCH, at the same time.
        strangers: For each network of strangers (IPv4 /24, IPv6 /64), and of callers who fail to prove who they are.
    """

    read: Rate = Rate(500, 1000)
    write: Rate = Rate(200, 400)
    work: Rate = Rate(5000, 10_000)
    admin: Rate = Rate(10, 20)
    services: Rate = Rate(5000, 10_000)
    strangers: Rate = Rate(1, 20)
    open_streams: int = 100

    def by_class(self) -> Mapping[RateClass, Rate]:
        """The classes that are counted by the call. A stream counts as a read when it is opened."""
        return {
            RateClass.READ: self.read,
            RateClass.WRITE: self.write,
            RateClass.WORK: self.work,
            RateClass.WATCH: self.read,
            RateClass.ADMIN: self.admin,
            RateClass.STRANGER: self.strangers,
        }


class Bucket:
    """Tokens that come back with time."""

    __slots__ = ("_at", "_left", "_rate")

    def __init__(self, rate: Rate, now: float) -> None:
        self._rate = rate
        self._left = rate.burst
        self._at = now

    def take(self, now: float) -> float:
        """
        Take a token.

        Returns:
            0; or, when there is none, the seconds until there is one.
        """
        per_second, burst = self._rate
        left = min(burst, self._left + (now - self._at) * per_second)
        self._at = now
        if left >= 1:
            self._left = left - 1
            return 0.0
        self._left = left
        return (1 - left) / per_second


class _Buckets:
    """Buckets by key. Those not used for longest are forgotten when there are too many."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[tuple[str, int], Bucket] = OrderedDict()

    def of(self, key: tuple[str, int], rate: Rate, now: float) -> Bucket:
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= _MOST_BUCKETS:
                self._buckets.popitem(last=False)
            bucket = self._buckets[key] = Bucket(rate, now)
        else:
            self._buckets.move_to_end(key)
        return bucket


class Limiter:
    """The buckets of everybody."""

    def __init__(self, rates: Rates) -> None:
        self._rates = rates
        self._by_class = rates.by_class()
        self._principals = _Buckets()
        self._networks = _Buckets()  # apart: strangers can be any number, and must not push out the others
        self._open: dict[str, int] = {}

    def bucket(self, principal: Principal, rate_class: RateClass, now: float) -> Bucket:
        """What calls of that class by that principal are counted with. May be kept for a while."""
        rate = self._by_class[rate_class]
        if principal.kind is Kind.SERVICE:
            rate = self._rates.services
        elif principal.kind is Kind.OWNER:
            rate = _NO_LIMIT
        return self._principals.of((principal.name, rate_class), rate, now)

    def take(self, principal: Principal, rate_class: RateClass, now: float) -> float:
        """
        Count a call.

        Returns:
            0; or, when it is one too many, the seconds until it would not be.
        """
        return self.bucket(principal, rate_class, now).take(now)

    def take_stranger(self, network: str, now: float) -> float:
        """Count a failure to prove who one is, from that network. Returns as `take`."""
        return self._networks.of((network, RateClass.STRANGER), self._rates.strangers, now).take(now)

    def open(self, principal: Principal) -> bool:
        """Count a stream as open; False: it is one too many."""
        count = self._open.get(principal.name, 0)
        if principal.kind in _KNOWN and count >= self._rates.open_streams:
            return False
        self._open[principal.name] = count + 1
        return True

    def close(self, principal: Principal) -> None:
        """Count it no longer."""
        count = self._open[principal.name] - 1
        if count:
            self._open[principal.name] = count
        else:
            del self._open[principal.name]


def network_of(address: str) -> str:
    """What strangers are counted by: the /24 of an IPv4 address, the /64 of an IPv6 one; else the address itself."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        parsed = parsed.ipv4_mapped
    prefix = 24 if parsed.version == 4 else 64
    return str(ipaddress.ip_network((parsed, prefix), strict=False))
