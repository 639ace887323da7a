"""Leaving a Sage alone that does not answer, so that no task waits for what will not come."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

from hopper_common.clock import Clock
from hopper_router.backoff import Backoff
from hopper_router.sage.errors import SageAnswerInvalid, SageUnavailable

FAILURES: Final = 3
"""That many failures in a row, and the Sage is left alone."""
FIRST_REST: Final = timedelta(seconds=1)
LONGEST_REST: Final = timedelta(minutes=1)


class Breaker:
    """
    Lets calls through until `FAILURES` of them in a row have failed; then, after a rest, one at a time.

    The rest is twice as long after each further failure, and ends with the first answer.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._backoff = Backoff("sage", first=FIRST_REST, longest=LONGEST_REST)
        self._failures = 0
        self._rests_until = 0.0
        self._trying = False

    @contextmanager
    def call(self, method: str) -> Iterator[None]:
        """
        Around one call.

        Raises:
            SageUnavailable: The Sage rests; it says for how long.
        """
        tripped = self._failures >= FAILURES
        if tripped:
            self._admit(method)
            self._trying = True
        try:
            yield
        except (SageUnavailable, SageAnswerInvalid) as error:
            self._failed(error)
            raise
        else:
            self._failures = 0
            self._backoff.worked()
        finally:
            if tripped:
                self._trying = False

    def _admit(self, method: str) -> None:
        rest = self._rests_until - self._clock.monotonic()
        if rest > 0 or self._trying:
            error = SageUnavailable(
                "the Sage failed several times in a row and is left alone", method=method, cause="resting"
            )
            error.retry_after = timedelta(seconds=rest) if rest > 0 else FIRST_REST
            raise error

    def _failed(self, error: SageUnavailable | SageAnswerInvalid) -> None:
        self._failures += 1
        if self._failures >= FAILURES:
            wait = self._backoff.failed(error.metadata.get("cause", error.reason))
            self._rests_until = self._clock.monotonic() + wait
