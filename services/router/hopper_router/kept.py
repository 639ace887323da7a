"""Values that are worked out once and kept."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Kept(Generic[K, V]):
    """
    What was worked out before, by what it depends on.

    Args:
        most: How many values are kept; one more, and all are forgotten and begin anew, which is as good as anything
            cleverer where hardly anybody gets there.
    """

    __slots__ = ("_most", "_values")

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: dict[K, V] = {}

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The value for *key*, made now if there is none. Two threads may both make it; either is as good."""
        found = self._values.get(key)
        if found is None:
            if len(self._values) >= self._most:
                self._values.clear()
            found = self._values[key] = make()
        return found

    def clear(self) -> None:
        """Forget all."""
        self._values.clear()
