"""When a schedule comes, from what was typed."""

import re
from dataclasses import dataclass
from datetime import datetime

from hopper.router.v1.schedule_pb2 import Schedule
from hopper_cli.problems import UsageProblem
from hopper_cli.times import parse_duration, parse_time
from hopper_common.timestamps import to_proto


@dataclass(frozen=True, slots=True)
class Timing:
    """What was typed; None means: not said."""

    cron: str
    zone: str
    overlap: str = "skip"
    catch_up: str = "one"
    jitter: str | None = None
    within: str | None = None
    begin: str | None = None
    end: str | None = None


def new_schedule(timing: Timing, now: datetime) -> Schedule:
    """
    A schedule without its task.

    Args:
        now: The zone is that of times which name none.

    Raises:
        UsageProblem: Something is no time, no policy or no number.
    """
    schedule = Schedule(cron=timing.cron, time_zone=timing.zone)
    _overlap(schedule, timing.overlap)
    _catch_up(schedule, timing.catch_up)
    if timing.jitter is not None:
        schedule.jitter.CopyFrom(to_proto(parse_duration(timing.jitter)))
    if timing.within is not None:
        schedule.finish_within.CopyFrom(to_proto(parse_duration(timing.within)))
    if timing.begin is not None:
        schedule.start_time.CopyFrom(to_proto(parse_time(timing.begin, now=now, end_of_day=False)))
    if timing.end is not None:
        schedule.end_time.CopyFrom(to_proto(parse_time(timing.end, now=now)))
    return schedule


def _overlap(schedule: Schedule, text: str) -> None:
    policies = {"skip": Schedule.OVERLAP_SKIP, "queue": Schedule.OVERLAP_QUEUE}
    if text.lower() in policies:
        schedule.overlap = policies[text.lower()]
    else:
        schedule.overlap = Schedule.OVERLAP_LIMIT
        schedule.max_open = _number(text, "--overlap", "skip, queue", most=100)


def _catch_up(schedule: Schedule, text: str) -> None:
    policies = {"none": Schedule.CATCH_UP_NONE, "one": Schedule.CATCH_UP_ONE}
    if text.lower() in policies:
        schedule.catch_up = policies[text.lower()]
    else:
        schedule.catch_up = Schedule.CATCH_UP_ALL
        schedule.max_catch_up = _number(text, "--catch-up", "none, one", most=1000)


def _number(text: str, option: str, words: str, *, most: int) -> int:
    if re.fullmatch(r"\d{1,4}", text, re.ASCII) and 1 <= int(text) <= most:
        return int(text)
    raise UsageProblem(
        f"{option} {text!r} is no policy", remedy=f"write {words}, or a number from 1 to {most}"
    )
