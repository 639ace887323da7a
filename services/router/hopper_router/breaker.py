"""Leaving somebody alone who does not answer, an LLM or a Sage, so that no task waits for what will not come."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

from hopper_common.clock import Clock
from hopper_common.errors import HopperError
from hopper_router.backoff import Backoff

FAILURES: Final = 3
"""That many failures in a row, and it is left alone."""
FIRST_REST: Final = timedelta(seconds=1)
LONGEST_REST: Final = timedelta(minutes=1)


class Resting(Exception):
    """It is left alone, and was not called; `rest` says for how long yet."""

    def __init__(self, rest: timedelta) -> None:
        super().__init__("left alone after several failures in a row")
        self.rest = rest


class Breaker:
    """
    Lets calls through until some of them in a row have failed; then, after a rest, one at a time.

    The rest is twice as long after each further failure, and ends with the first answer. A call that is cancelled says
    nothing.

    Args:
        what: Who is called, for the log.
        troubles: The errors that are failures; with any other, it has answered.
        failures: How many in a row are enough.
    """

    def __init__(
        self, what: str, clock: Clock, *troubles: type[HopperError], failures: int = FAILURES
    ) -> None:
        self._clock = clock
        self._troubles = troubles
        self._most = failures
        self._backoff = Backoff(what, first=FIRST_REST, longest=LONGEST_REST)
        self._failures = 0
        self._rests_until = 0.0
        self._trying = False

    @contextmanager
    def call(self) -> Iterator[None]:
        """
        Around one call.

        Raises:
            Resting: It is not to be called now.
        """
        tripped = self._failures >= self._most
        if tripped:
            self._admit()
            self._trying = True
        try:
            yield
        except self._troubles as error:
            self._failed(error.metadata.get("cause", error.reason))
            raise
        except HopperError:
            self._answered()
            raise
        else:
            self._answered()
        finally:
            if tripped:
                self._trying = False

    def _admit(self) -> None:
        rest = self._rests_until - self._clock.monotonic()
        if rest > 0 or self._trying:
            raise Resting(timedelta(seconds=rest) if rest > 0 else FIRST_REST)

    def _answered(self) -> None:
        self._failures = 0
        self._backoff.worked()

    def _failed(self, why: str) -> None:
        self._failures += 1
        if self._failures >= self._most:
            self._rests_until = self._clock.monotonic() + self._backoff.failed(why)
