"""Trying again: how long to wait after each failure, and what to tell the log, once for each change."""

from datetime import timedelta

import structlog

from hopper_common.errors import ShuttingDown

_log = structlog.get_logger(__name__)


class Backoff:
    """
    One thing that is tried for as long as it takes.

    Args:
        what: For the log, e.g. "registry projects".
        first: The wait after the first failure; each is twice the one before.
        longest: The longest wait.
    """

    def __init__(self, what: str, *, first: timedelta, longest: timedelta) -> None:
        self._what = what
        self._first = first
        self._longest = longest
        self._next = first
        self._trouble: str | None = ""  # None: it works; "": nobody knows yet

    def failed(self, reason: str) -> float:
        """It failed; returns how many seconds to wait."""
        if self._trouble != reason:
            # A neighbour that goes down in order, perhaps together with us, is no trouble yet.
            say = _log.info if reason == ShuttingDown.reason else _log.warning
            say("trouble, trying again", what=self._what, reason=reason)
        self._trouble = reason
        wait, self._next = self._next, min(2 * self._next, self._longest)
        return wait.total_seconds()

    def worked(self) -> None:
        """It worked; the next failure is a first one again."""
        if self._trouble is not None:
            _log.info("works", what=self._what, after=self._trouble)
        self._trouble = None
        self._next = self._first
