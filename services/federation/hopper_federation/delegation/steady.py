"""
A clock for lengths of time that are written down: it begins as the wall clock's seconds since 1970 when the process
does, and then goes on evenly, whatever the wall clock is set to.

Between two runs of the process it jumps as far as the wall clock was wrong: so after a start, whoever has handed work
over gives it a whole lease more (`Desk.restarted`).
"""

from hopper_common.clock import Clock


class SteadyClock:
    """Made when the process starts."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._start = clock.now().timestamp() - clock.monotonic()

    def __call__(self) -> float:
        """Seconds since 1970, as far as they went by while this process ran."""
        return self._start + self._clock.monotonic()
