"""Questions and memories, with what a test does not care about filled in."""

from collections.abc import Iterable
from datetime import timedelta

from hopper_sage.model import Candidate, Precedent, Question, Remembered, Reply, Task

WEB = "projects/web"
API = "projects/api"
OPS = "projects/ops"


def task(title: str = "Fix the login page", *, name: str = "t1", description: str = "") -> Task:
    return Task(name=f"instances/global/tasks/{name}", title=title, description=description)


def question(
    candidates: Iterable[tuple[str, float]] = ((WEB, 0.4), (API, 0.35)),
    *,
    decision: str = "d1",
    about: Task | None = None,
    precedents: Iterable[Precedent] = (),
    replies: Iterable[Reply] = (),
    within: timedelta = timedelta(seconds=10),
) -> Question:
    return Question(
        decision=f"decisions/{decision}",
        instance="instances/global",
        task=about or task(),
        candidates=[Candidate(project, confidence=confidence) for project, confidence in candidates],
        precedents=tuple(precedents),
        replies=tuple(replies),
        within=within,
    )


def remembered(
    belongs: str | None,
    similarity: float = 1.0,
    *,
    decision: str = "p1",
    not_with: Iterable[str] = (),
    minutes: float | None = None,
) -> Remembered:
    duration = None if minutes is None else timedelta(minutes=minutes)
    return Remembered(f"decisions/{decision}", belongs, frozenset(not_with), duration, similarity)
