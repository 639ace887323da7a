"""The checker of histories finds what it is there to find."""

from datetime import UTC, datetime, timedelta

import pytest

from hopper.router.v1.task_pb2 import Task, TaskSpec
from tests.e2e.history import Claim, Completion, History, Submission, problems

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def task(
    name: str, title: str = "a", state: Task.State.ValueType = Task.STATE_QUEUED, result: bytes = b""
) -> Task:
    return Task(name=name, spec=TaskSpec(title=title), state=state, result=result)


def claim(token: int, after: timedelta, worker: str = "w") -> Claim:
    return Claim("t/1", worker, token, NOON + after, NOON + after + SECOND)


def done(token: int = 1, result: bytes = b"r", *, answered: bool = True, refused: bool = False) -> Completion:
    return Completion("t/1", token, result, "id", done=answered, refused=refused)


SUBMITTED = [Submission("a", "id", "t/1")]
SUCCEEDED = task("t/1", state=Task.STATE_SUCCEEDED, result=b"r")


@pytest.mark.parametrize(
    ("history", "tasks", "problem"),
    [
        (History(SUBMITTED), [], "t/1 was acknowledged, and is gone"),
        (History(SUBMITTED), [task("t/1"), task("t/2")], "a is there 2 times"),
        (History([Submission("a", "id")]), [task("t/1"), task("t/2")], "a is there 2 times"),
        (History(SUBMITTED), [task("t/1"), task("t/2", "b")], "b is there, and nobody asked for it"),
        (
            History([*SUBMITTED, Submission("b", "id", "t/2")]),
            [task("t/1", "b"), task("t/2", "a")],
            "t/1 was a, and is b",
        ),
        (History(SUBMITTED, [], [done()]), [task("t/1")], "t/1 was completed, and is STATE_QUEUED"),
        (
            History(SUBMITTED, [], [done(), done(2, b"q", answered=False)]),
            [task("t/1", state=Task.STATE_SUCCEEDED, result=b"q")],
            "t/1 was completed, and has another result",
        ),
        (History(SUBMITTED, [], [done(1), done(2)]), [SUCCEEDED], "t/1 was completed under 2 claims"),
        (History(SUBMITTED), [SUCCEEDED], "t/1 has succeeded, and nobody completed it so"),
        (
            History(SUBMITTED, [], [done(answered=False, refused=True)]),
            [SUCCEEDED],
            "t/1 has succeeded, and nobody completed it so",
        ),
        (
            History(SUBMITTED, [claim(2, 0 * SECOND), claim(2, 2 * SECOND, "v")]),
            [task("t/1")],
            "t/1 was claimed with token 2 and then with 2",
        ),
        (
            History(SUBMITTED, [claim(1, 0 * SECOND), claim(2, SECOND / 2, "v")]),
            [task("t/1")],
            "t/1 was claimed by v while w had it",
        ),
    ],
)
def test_a_broken_promise_is_found(history: History, tasks: list[Task], problem: str) -> None:
    assert problem in problems(history, tasks)


@pytest.mark.parametrize(
    ("history", "tasks"),
    [
        (History(SUBMITTED), [task("t/1")]),
        (History([Submission("a", "id")]), []),
        (History([Submission("a", "id")]), [task("t/1")]),
        (History(SUBMITTED, [claim(1, 0 * SECOND), claim(2, SECOND)], [done(2)]), [SUCCEEDED]),
        (History(SUBMITTED, [claim(1, 0 * SECOND)], [done(answered=False)]), [SUCCEEDED]),
        (History(SUBMITTED, [claim(1, 0 * SECOND)], [done(answered=False)]), [task("t/1")]),
    ],
)
def test_what_was_kept_is_no_problem(history: History, tasks: list[Task]) -> None:
    assert problems(history, tasks) == []
