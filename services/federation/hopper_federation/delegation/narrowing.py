"""
How far a task may be handed on: whoever hands it on may narrow that, and nobody may widen it.

    origin: 3 Hoppers, 16 copies ── 1 + 7 ──► B: 2 more, 7 below it ── 1 + 3 ──► C: 1 more, 3 below it ── …

A limit of Hoppers alone would let each of them hand on as many copies as it likes. So a hand-over takes one copy of the
budget and half of the rest with it, and what is left is for the next: however the tree grows, its copies are at most
the first Hopper's budget.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from hopper_federation.errors import CapabilityDenied, FanOutLimit, HopLimit

MOST_HOPS: Final = 8
"""To how many Hoppers a task comes at most, whatever its origin allows."""

DEFAULT_HOPS: Final = 3
DEFAULT_FAN_OUT: Final = 16


@dataclass(frozen=True, slots=True)
class Redelegation:
    """
    What is allowed beyond the Hopper that a task is offered to.

    Attributes:
        any: To any Hopper. False: to `installs` alone.
        installs: Install ids.
        hops: How many more Hoppers it may come to.
        fan_out: How many copies may be under way below that Hopper, all together.
    """

    any: bool = False
    installs: frozenset[str] = frozenset()
    hops: int = 0
    fan_out: int = 0

    def allows(self, install_id: str) -> bool:
        """Whether it may come to that Hopper."""
        return self.any or install_id in self.installs

    def within(self, other: "Redelegation") -> bool:
        """Whether it allows nothing that the other does not."""
        reaches = other.any or (not self.any and self.installs <= other.installs)
        return reaches and 0 <= self.hops <= other.hops and 0 <= self.fan_out <= other.fan_out

    def meet(self, other: "Redelegation") -> "Redelegation":
        """What both allow."""
        if self.any and other.any:
            installs: frozenset[str] = frozenset()
        elif self.any or other.any:
            installs = other.installs if self.any else self.installs
        else:
            installs = self.installs & other.installs
        both = self.any and other.any
        return Redelegation(both, installs, min(self.hops, other.hops), min(self.fan_out, other.fan_out))

    def below(self) -> "Redelegation":
        """The most that may be allowed to whoever it is handed on to."""
        return Redelegation(self.any, self.installs, self.hops - 1, self.fan_out - 1)


NOBODY: Final = Redelegation()
"""It may not be handed on."""


def share(budget: int, spent: int) -> int:
    """
    How many copies whoever gets the next one may have below it: half of what is left beside that one.

    Args:
        budget: How many copies may be under way below this Hopper.
        spent: How many of these are out: one for each open hand-over, and what each was given.

    Raises:
        FanOutLimit: None is left.
    """
    left = budget - spent
    if left < 1:
        raise FanOutLimit(f"all {budget} copies of the task are under way", fan_out=str(budget))
    return (left - 1) // 2


def at_origin(
    *,
    hops: int = DEFAULT_HOPS,
    fan_out: int = DEFAULT_FAN_OUT,
    spent: int = 0,
    installs: Iterable[str] | None = None,
) -> Redelegation:
    """
    What the first Hopper allows to whom it hands over.

    Args:
        hops: To how many Hoppers the task may come in all.
        fan_out: How many copies of it may be under way in all.
        spent: See `share`.
        installs: To whom it may be handed on; None: to anybody.

    Raises:
        FanOutLimit: No copy is left.
    """
    below = share(fan_out, spent)
    further = min(hops, MOST_HOPS) - 1
    if further < 1 or below < 1 or installs == ():
        return NOBODY
    return Redelegation(installs is None, frozenset(installs or ()), further, below)


def check_step(allowed: Redelegation, to: str) -> None:
    """
    Check that a task may go one step further.

    Raises:
        CapabilityDenied: Not to that Hopper.
        HopLimit: To no further one.
        FanOutLimit: In no further copy.
    """
    if not allowed.allows(to):
        raise CapabilityDenied(f"the task may not be handed on to {to}", capability="redelegation")
    if allowed.hops < 1:
        raise HopLimit("the task has been through as many Hoppers as it may", hops=str(allowed.hops))
    if allowed.fan_out < 1:
        raise FanOutLimit("no further copy of the task may be under way", fan_out=str(allowed.fan_out))


def handed_on(allowed: Redelegation, to: str, *, spent: int) -> Redelegation:
    """
    What a Hopper in between allows to whom it hands on.

    Args:
        allowed: What it was allowed itself.
        spent: See `share`.

    Raises:
        CapabilityDenied: It may not come to that Hopper.
        HopLimit: It may come to no further one.
        FanOutLimit: No copy is left.
    """
    check_step(allowed, to)
    below = share(allowed.fan_out, spent)
    if allowed.hops == 1 or below == 0:
        return NOBODY
    return Redelegation(allowed.any, allowed.installs, allowed.hops - 1, below)
