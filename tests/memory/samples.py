"""Episodes, outcomes and feedback as tests say them: only what matters to the test."""

from datetime import UTC, datetime, timedelta
from typing import Any

from hopper_memory.model import Episode, EpisodeOutcome, Outcome

START = datetime(2026, 1, 1, tzinfo=UTC)


def decision(number: int | str) -> str:
    return f"decisions/d{number}"


def episode(number: int | str, **fields: Any) -> Episode:
    """The episode of a decision; numbered ones were decided a second apart."""
    seconds = number if isinstance(number, int) else 0
    said: dict[str, Any] = {
        "task": f"instances/global/tasks/t{number}",
        "instance": "instances/global",
        "decide_time": START + timedelta(seconds=seconds),
        "project": "projects/web",
        "confidence": 0.5,
    }
    return Episode(decision=decision(number), **(said | fields))


def outcome(number: int | str, kind: Outcome = Outcome.SUCCEEDED, **fields: Any) -> EpisodeOutcome:
    said: dict[str, Any] = {"finish_time": START + timedelta(minutes=1)}
    return EpisodeOutcome(decision(number), kind, **(said | fields))
