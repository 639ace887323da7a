"""
How long a Hopper that is killed is missed by its peer: from kill -9, with a restart at once, until the next thing that
the peer has to say is answered.

Two whole Hoppers as processes of their own, each with a worker; the message is a call-off of a task that the killed one
was working on.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, Final

from hopper.router.v1.task_service_pb2 import CancelTaskRequest
from hopper_client import AsyncHopper
from hopper_testing.processes import temporary_directory
from tests.bench.bar import Result, at_most, bar
from tests.bench.rig import Rig
from tests.faults.federation.stage import Member, capability, set_up
from tests.faults.federation.working import Job

MISSED: Final = at_most(5.0, 3.5, "s")

_TIMES: Final = 7
_PATIENCE: Final = 60.0
_LOOK_EVERY: Final = 0.005


@bar
async def delegation_restart(rig: Rig) -> list[Result]:
    """Kill a Hopper with -9, start it at once, and see when its peer is answered; the longest of several times."""
    seconds, starts = [], []
    with temporary_directory() as directory:
        async with set_up(directory, hoppers=2, postgres=False) as stage:
            ann, bob = stage.members
            for number in range(_TIMES):
                seconds.append(await _missed(ann, bob, number))
                starts.append(bob.process.start_seconds)
    shown = {
        "restart": {"most_s": max(seconds), "median_s": statistics.median(seconds)},
        "of which the process takes": {"most_s": max(starts), "median_s": statistics.median(starts)},
    }
    busy = os.getloadavg()[0] > 2 * (os.cpu_count() or 1)
    return [
        MISSED.judge(
            "kill -9 until the next message of a peer is answered",
            max(seconds),
            shown,
            skipped="others use the machine: most of it is the start of a process" if busy else "",
        )
    ]


async def _missed(ann: Member, bob: Member, number: int) -> float:
    """One time."""
    made = await ann.client.submit(
        f"long {number}",
        required_capabilities=[capability(bob.name)],
        payload=Job(f"long-{number}", 30.0).payload(),
        allow_duplicate=True,
    )
    await _until(lambda: _running(ann), "bob does not begin")
    began = time.monotonic()
    bob.process.kill()
    starting = asyncio.create_task(asyncio.to_thread(bob.process.start))
    await _call_off(ann.client, made.task.name)
    await _until(lambda: _said(ann, "cancel"), "it is not called off")
    await _until(lambda: not _said(ann), "bob does not answer")
    seconds = time.monotonic() - began
    await starting
    await _until(lambda: not _open(ann), "bob does not say how it ended")
    return seconds


async def _call_off(client: AsyncHopper, task: str) -> None:
    await client.tasks.CancelTask(CancelTaskRequest(name=task, reason="measured"))


def _running(member: Member) -> list[dict[str, Any]]:
    return member.rows("SELECT id FROM {s}delegations WHERE state = 'RUNNING'", None)


def _open(member: Member) -> list[dict[str, Any]]:
    return member.rows("SELECT id FROM {s}delegations WHERE open", None)


def _said(member: Member, kind: str = "") -> list[dict[str, Any]]:
    """What has not been answered yet."""
    rows = member.rows("SELECT kind FROM {s}outbox", None)
    return [row for row in rows if not kind or row["kind"] == kind]


async def _until(condition: Callable[[], object], problem: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(problem)
        await asyncio.sleep(_LOOK_EVERY)
