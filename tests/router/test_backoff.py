"""Trying again: waits grow to a limit, and the log hears of changes only."""

from datetime import timedelta

from structlog.testing import capture_logs

from hopper_router.backoff import Backoff


def a_backoff() -> Backoff:
    return Backoff("the thing", first=timedelta(milliseconds=100), longest=timedelta(seconds=1))


def test_waits_double_up_to_the_longest() -> None:
    backoff = a_backoff()

    assert [backoff.failed("DOWN") for _ in range(6)] == [0.1, 0.2, 0.4, 0.8, 1, 1]


def test_success_begins_anew() -> None:
    backoff = a_backoff()
    backoff.failed("DOWN")
    backoff.failed("DOWN")
    backoff.worked()

    assert backoff.failed("DOWN") == 0.1


def test_the_log_hears_of_each_change_once() -> None:
    backoff = a_backoff()
    with capture_logs() as logs:
        for step in ("DOWN", "DOWN", "FULL", "", "", "DOWN"):
            if step:
                backoff.failed(step)
            else:
                backoff.worked()

    assert [(entry["event"], entry.get("reason")) for entry in logs] == [
        ("trouble, trying again", "DOWN"),
        ("trouble, trying again", "FULL"),
        ("works", None),
        ("trouble, trying again", "DOWN"),
    ]
