from datetime import UTC, datetime, timedelta

from hopper_sage.model import Ranked, Task
from hopper_sage.ordering import in_order
from tests.sage.factories import WEB, remembered

NOW = datetime(2026, 6, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def names(order: list[Ranked]) -> str:
    return " ".join(one.task for one in order)


def test_what_would_be_late_comes_before_what_matters_more() -> None:
    tasks = [Task("important", "", priority=100), Task("due", "", priority=0, finish_by=NOW + 2 * HOUR)]
    assert names(in_order(tasks, {}, NOW)) == "due important"


def test_what_is_late_already_comes_first_the_latest_before() -> None:
    tasks = [
        Task("soon", "", finish_by=NOW + HOUR),
        Task("late", "", finish_by=NOW - HOUR),
        Task("later", "", finish_by=NOW - 2 * HOUR),
    ]
    order = in_order(tasks, {}, NOW)
    assert names(order) == "later late soon"
    assert "too late already" in order[0].reason


def test_time_that_is_far_off_does_not_hurry() -> None:
    tasks = [Task("june", "", finish_by=NOW + 240 * HOUR), Task("important", "", priority=80)]
    assert names(in_order(tasks, {}, NOW)) == "important june"


def test_of_what_matters_the_same_the_shorter_comes_first() -> None:
    tasks = [Task("long", "", estimated_effort=5 * HOUR), Task("short", "", estimated_effort=HOUR / 6)]
    assert names(in_order(tasks, {}, NOW)) == "short long"


def test_what_tasks_like_it_took_stands_in_for_an_estimate() -> None:
    tasks = [Task("first", ""), Task("second", "")]
    past = {"second": [remembered(WEB, minutes=minutes) for minutes in (2, 3, 500)]}
    order = in_order(tasks, past, NOW)
    assert names(order) == "second first"
    assert order[0].reason == "priority 50, takes about 3 min (as 3 like it did)"


def test_what_takes_long_has_to_be_begun_earlier() -> None:
    tasks = [
        Task("quick", "", finish_by=NOW + 5 * HOUR, estimated_effort=HOUR),
        Task("slow", "", finish_by=NOW + 6 * HOUR, estimated_effort=5 * HOUR),
    ]
    assert names(in_order(tasks, {}, NOW)) == "slow quick"


def test_equals_keep_their_order() -> None:
    assert names(in_order([Task(name, "") for name in "cab"], {}, NOW)) == "c a b"
