"""The router's numbers, as `hopper_common.metrics` wants them: nobody's words, and few labels however much there is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Final

from hopper_common.metrics import SECONDS, SIZES, Histogram, Measure
from hopper_router.engine import Engine
from hopper_router.model import OPEN_STATES, WaitReason
from hopper_router.queue_stats import Numbers

MOST_PROJECTS: Final = 50
"""Projects with the greatest backlog that have numbers of their own; the rest are one."""
OTHER: Final = "other"
_FLOWS: Final = (
    ("hopper_tasks_added", "Tasks taken in."),
    ("hopper_tasks_started", "Claims."),
    ("hopper_tasks_ended", "Tasks that ended, however."),
    ("hopper_tasks_failed", "Tasks that ended FAILED."),
)


class RouterMeasures:
    """What one router tells."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._sizes: dict[str, Histogram] = {}
        self._seconds: dict[str, Histogram] = {}
        for name, gatherer in engine.hot.gatherers.items():
            self._sizes[name], self._seconds[name] = Histogram(SIZES), Histogram(SECONDS)
            gatherer.observe = partial(self._observe, name)

    def _observe(self, name: str, size: int, seconds: float) -> None:
        self._sizes[name].observe(size)
        self._seconds[name].observe(seconds)

    def __call__(self) -> Iterator[Measure]:
        """All of it, now."""
        queues, clock = self._engine.queues, self._engine.clock
        answer = queues.numbers(self._engine.registry.current, limit=MOST_PROJECTS)
        total, now = answer.total, clock.now().timestamp()
        yield Measure("hopper_tasks", "gauge", "Open tasks.", _by_project(total, answer.projects))
        waits = [({"reason": reason.value}, float(total.waits[reason.value])) for reason in WaitReason]
        yield Measure("hopper_waits", "gauge", "Open tasks that do not run, by what they wait for.", waits)
        yield Measure(
            "hopper_ready_tasks", "gauge", "Tasks that a worker could claim now.", [({}, total.ready)]
        )
        age = 0.0 if total.oldest is None else max(now - total.oldest, 0.0)
        yield Measure(
            "hopper_oldest_ready_seconds", "gauge", "How long the oldest has been ready.", [({}, age)]
        )
        for (name, help_), count in zip(_FLOWS, queues.backlog.totals, strict=True):
            yield Measure(name, "counter", help_, [({}, count)])
        for name, help_, found in (
            ("hopper_set_size", "Items that one statement worked on.", self._sizes),
            ("hopper_set_seconds", "How long a set took, its commit included.", self._seconds),
        ):
            samples = [({"operation": operation}, histogram) for operation, histogram in found.items()]
            yield Measure(name, "histogram", help_, samples)


def _by_project(total: Numbers, projects: list[Numbers]) -> list[tuple[dict[str, str], float]]:
    rest = Counter(total.states)
    samples: list[tuple[dict[str, str], float]] = []
    for numbers in projects:
        rest.subtract(numbers.states)
        samples += _states(numbers.name.removeprefix("projects/"), numbers.states)
    return samples + _states(OTHER, rest)


def _states(project: str, states: Counter[str]) -> list[tuple[dict[str, str], float]]:
    names = sorted(state.value for state in OPEN_STATES)
    return [({"state": state, "project": project}, float(states[state])) for state in names]
