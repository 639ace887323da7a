"""What a bar is, how it is judged, and how its result is kept."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.bench.rig import Rig

RESULTS: Final = Path(".bench/results.jsonl")


@dataclass(frozen=True, slots=True)
class Result:
    """
    One bar, measured.

    Attributes:
        must: The bar itself, in words, e.g. `>= 0.5`; empty for a figure that is only reported.
        target: What is aimed at, in words.
        ok: Whether the bar was met; None where there is none, or it means nothing on a machine this busy.
        verdict: In words: `target`, `must`, `missed`, or why it was not judged.
        sides: The figures it was made from: Hopper's, and the floor's or peer's.
        note: What a reader has to know to understand the figures.
    """

    name: str
    value: float
    unit: str
    target: str = ""
    ok: bool | None = None
    sides: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    must: str = ""
    verdict: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Limit:
    """A bar and its target. `at_least` says which way is better."""

    must: float
    target: float
    at_least: bool
    unit: str = "x"

    def judge(
        self,
        name: str,
        value: float,
        sides: Mapping[str, Mapping[str, float]],
        *,
        note: str = "",
        skipped: str = "",
    ) -> Result:
        """
        A figure with what is to be said of it.

        Args:
            skipped: Why it is not judged; "" to judge it.
        """
        met = self._meets(value, self.must)
        verdict = skipped or (
            "missed" if not met else "target" if self._meets(value, self.target) else "must"
        )
        return Result(
            name=name,
            value=round(value, 3),
            unit=self.unit,
            target=self._words(self.target),
            ok=None if skipped else met,
            sides=sides,
            must=self._words(self.must),
            verdict=verdict,
            note=note,
        )

    def _meets(self, value: float, limit: float) -> bool:
        return value >= limit if self.at_least else value <= limit

    def _words(self, limit: float) -> str:
        return f"{'>=' if self.at_least else '<='} {limit:g} {self.unit}"


def at_least(must: float, target: float, unit: str = "x") -> Limit:
    """A bar that the value has to reach."""
    return Limit(must, target, at_least=True, unit=unit)


def at_most(must: float, target: float, unit: str = "x") -> Limit:
    """A bar that the value must not pass."""
    return Limit(must, target, at_least=False, unit=unit)


Measure = Callable[["Rig"], Awaitable[Sequence[Result]]]
BARS: Final[dict[str, Measure]] = {}


def bar(measure: Measure) -> Measure:
    """Register a function that measures one or more bars."""
    BARS[measure.__name__] = measure
    return measure


def machine() -> dict[str, object]:
    """What it ran on, and how busy that was."""
    load = os.getloadavg()
    return {
        "cpus": os.cpu_count(),
        "load_1m": round(load[0], 2),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
    }


def keep(results: Sequence[Result]) -> None:
    """Append results to the file, one line each."""
    RESULTS.parent.mkdir(exist_ok=True)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with RESULTS.open("a") as file:
        for result in results:
            file.write(json.dumps({**asdict(result), "machine": machine(), "time": now}) + "\n")


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """The middle and the tail of some durations, in milliseconds."""
    ordered = sorted(seconds)
    return {
        "p50_ms": round(statistics.median(ordered) * 1e3, 3),
        "p99_ms": round(ordered[int(len(ordered) * 0.99)] * 1e3, 3),
        "max_ms": round(ordered[-1] * 1e3, 3),
    }
