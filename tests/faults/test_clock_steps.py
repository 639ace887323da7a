"""
A wall clock that is stepped by an hour, either way, moves no lease: nobody loses a task before its lease is over, and
nobody waits for one longer than that.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest

from hopper.router.v1.task_pb2 import Task
from hopper.router.v1.task_service_pb2 import SubmitTaskRequest
from hopper.router.v1.work_service_pb2 import RenewClaimsRequest
from hopper_testing.checker import Report, check
from hopper_testing.dump import take_dump
from hopper_testing.history import History, Ledger
from hopper_testing.postgres import postgres_server
from hopper_testing.processes import temporary_directory
from hopper_testing.workload import ROOT, Habits, claim_request, drain, prepare, ref, run, task_spec
from tests.e2e.calls import Stubs, connected
from tests.faults.stage import ENGINES, Engine
from tests.faults.stepping import SteppedProcess

HOUR: Final = 3600.0
_ROLES: Final = ("submitter", "submitter", "worker", "worker", "worker", "streamer", "canceller", "watcher")


@contextmanager
def stepped(engine: Engine) -> Iterator[tuple[SteppedProcess, Path]]:
    with temporary_directory() as directory:
        database = postgres_server().create_database() if engine == "postgresql" else ""
        environment = {"HOPPER_ROUTER_DATABASE": database} if database else {}
        with SteppedProcess(directory / "a", directory / "wrong_by", environment=environment) as process:
            yield process, directory


async def work(process: SteppedProcess, ledger: Ledger, steps: tuple[float, ...]) -> int:
    """Callers at work while the clock is stepped again and again; returns how many tasks could not be finished."""
    over = asyncio.Event()
    callers = asyncio.create_task(
        run([process.address], ledger, _ROLES, seed=1, seconds=60, habits=Habits(pause=0.05), over=over)
    )
    for step in steps:
        await asyncio.sleep(1.3)  # a lease and a bit, so that some run on either side of each step
        process.step(step)
    await asyncio.sleep(1.3)
    over.set()
    await callers
    return await drain(process.address, ledger, seconds=60)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [(HOUR, 0.0), (-HOUR, 0.0)], ids=["forwards first", "backwards first"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_of_the_wall_clock_moves_no_lease(
    engine: Engine, steps: tuple[float, ...], figure: Callable[[str, object], None]
) -> None:
    with stepped(engine) as (process, directory), Ledger(directory / "a.jsonl", "a") as ledger:
        at_rest = prepare(process.address)
        left = asyncio.run(work(process, ledger, steps))
        report: Report = check(
            History.read([ledger.path]), take_dump(process.address, after=at_rest), promise=30_000_000
        )
    figure("checked", dict(report.counts))
    assert (left, report.violations) == (0, [])
    assert report.counts["completes"] > 0


@pytest.mark.parametrize("engine", ENGINES)
def test_leases_are_as_long_before_a_step_as_after_it(engine: Engine) -> None:
    with stepped(engine) as (process, _):
        prepare(process.address)
        with connected(process.address) as stubs:
            for step in (HOUR, -HOUR):
                submit = SubmitTaskRequest(parent=ROOT, spec=task_spec(f"over a step of {step}"))
                name = stubs.tasks.SubmitTask(submit, timeout=60).task.name
                (kept,) = stubs.work.ClaimTasks(claim_request("w", lease=4), timeout=60).tasks
                claimed_at = time.monotonic()
                process.step(step)
                time.sleep(0.3)  # the clock looks at the wall every tenth of a second
                renewed = renew(stubs, kept, 4)
                assert renewed == "", step
                # And then it is left alone: it comes back when the lease is over, not before, and not an hour later.
                (again,) = stubs.work.ClaimTasks(claim_request("v", wait=30), timeout=60).tasks
                waited = time.monotonic() - claimed_at
                assert again.name == name
                assert waited > 4.2
                assert renew(stubs, kept, 4) == "STALE_TOKEN"
                process.step(0.0)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_back_while_the_router_is_away_keeps_nobodys_task_for_an_hour(engine: Engine) -> None:
    """On PostgreSQL it is the server's clock that counts, and that is right."""
    with stepped(engine) as (process, _):
        prepare(process.address)
        with connected(process.address) as stubs:
            submit = SubmitTaskRequest(parent=ROOT, spec=task_spec("left by the dead"))
            name = stubs.tasks.SubmitTask(submit, timeout=60).task.name
            (kept,) = stubs.work.ClaimTasks(claim_request("w", lease=1.0), timeout=60).tasks
        process.kill()
        process.step(-HOUR)
        process.start()
        with connected(process.address) as stubs:
            (again,) = stubs.work.ClaimTasks(claim_request("v", wait=30), timeout=60).tasks
            assert again.name == name
            assert again.claim.fencing_token > kept.claim.fencing_token
            assert renew(stubs, kept, 1.0) == "STALE_TOKEN"


def renew(stubs: Stubs, task: Task, seconds: float) -> str:
    """Extend a lease; the reason of the refusal, or nothing."""
    request = RenewClaimsRequest(claims=[ref(task)])
    request.lease_duration.FromTimedelta(timedelta(seconds=seconds))
    (result,) = stubs.work.RenewClaims(request, timeout=60).results
    return result.error.reason
