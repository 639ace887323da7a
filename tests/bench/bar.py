"""What a bar is, and how its result is kept."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

RESULTS: Final = Path(".bench/results.jsonl")


@dataclass(frozen=True, slots=True)
class Result:
    """
    One bar, measured.

    Attributes:
        target: In words, e.g. `<= 10 ms`; empty for a figure that is only reported.
        ok: Whether the target was met; None where there is none.
        sides: The figures it was made from: Hopper's, and the floor's or peer's.
    """

    name: str
    value: float
    unit: str
    target: str = ""
    ok: bool | None = None
    sides: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


Measure = Callable[[], Awaitable[Sequence[Result]]]
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
