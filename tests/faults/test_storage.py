"""
A storage in trouble, beneath real routers: slow disks, connections that break around a commit, none left to be had,
transactions that the server takes back, and routers that die beside others.
"""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import grpc
import pytest

from hopper.router.v1.task_pb2 import Task
from hopper.router.v1.task_service_pb2 import GetTaskRequest, SubmitTaskRequest
from hopper_client import AsyncHopper
from hopper_common.errors import HopperError
from hopper_testing.checker import Report, check
from hopper_testing.dump import take_dump
from hopper_testing.history import History, Ledger
from hopper_testing.postgres import OwnServer, private_server
from hopper_testing.processes import HopperProcess, temporary_directory
from hopper_testing.workload import PROJECT, ROOT, Habits, claim_request, drain, prepare, run, task_spec
from tests.e2e.calls import Stubs, connected
from tests.faults.promises import FAIL_OVER, MARGIN
from tests.faults.stage import Stage, stage_in_temporary_directory
from tests.faults.test_claims import CLOCKS_DIFFER, call_off, complete

_ROLES: Final = ("submitter", "submitter", "worker", "worker", "streamer", "canceller", "watcher")

Figure = Callable[[str, object], None]


@pytest.fixture(scope="module")
def replicas() -> Iterator[Stage]:
    """Two routers on one PostgreSQL."""
    with stage_in_temporary_directory("postgresql") as stage:
        prepare(stage.addresses[0])
        yield stage


def at_rest(stage: Stage) -> int:
    """Call off what other tests have left; returns the log's generation."""
    with connected(stage.addresses[0]) as stubs:
        call_off(stubs)
    return prepare(stage.addresses[0])


def used(stage: Stage, ledger: Ledger, rest: int, *, seconds: float) -> Report:
    """Let callers use a stage for a while, finish what they left, and check."""
    asyncio.run(run(stage.addresses, ledger, _ROLES, seed=1, seconds=seconds, habits=Habits(pause=0.05)))
    stage.calm()
    left = asyncio.run(drain(stage.addresses[-1], ledger, seconds=60))
    assert left == 0
    history = History.read([ledger.path, stage.ledger.path])
    return check(history, take_dump(stage.addresses[-1], after=rest), promise=1_000_000 + MARGIN)


def submit(stubs: Stubs, title: str, *, request_id: str = "", timeout: float = 60) -> Task:
    request = SubmitTaskRequest(parent=ROOT, spec=task_spec(title), request_id=request_id)
    return stubs.tasks.SubmitTask(request, timeout=timeout).task


# ---------------------------------------------------------------- slow disks


def test_while_a_commit_takes_long_reads_are_answered(stage: Stage, figure: Figure) -> None:
    router = stage.routers[0]
    with connected(stage.addresses[0]) as stubs:
        name = submit(stubs, "before").name
    slow = "; ".join(f"router:{place}.before=sleep:2" for place in ("commit", "statement"))
    router.kill()
    stage.start(router, slow)
    try:
        with connected(stage.addresses[0]) as stubs:
            for _ in range(5):  # a machine that was busy all the while shows nothing
                took, reads = reads_beside_a_submission(stubs, name)
                figure("a commit of 2 s: the submission, the slowest read", (took, max(reads, default=0.0)))
                assert took > 1.95
                if len(reads) >= 3:
                    break
    finally:
        stage.calm()
    assert len(reads) >= 3  # none of which waited for the commit


def reads_beside_a_submission(stubs: Stubs, name: str) -> tuple[float, list[float]]:
    """How many seconds a submission takes, and each read that was answered before it."""
    began = time.monotonic()
    request = SubmitTaskRequest(parent=ROOT, spec=task_spec("slow"))
    writing = stubs.tasks.SubmitTask.future(request, timeout=60)
    reads: list[float] = []
    while not writing.done():
        asked = time.monotonic()
        stubs.tasks.GetTask(GetTaskRequest(name=name), timeout=60)
        if not writing.done():
            reads.append(time.monotonic() - asked)
    took = time.monotonic() - began
    assert writing.result().task.state == Task.STATE_QUEUED
    return took, reads


@pytest.mark.slow
def test_a_slow_disk_breaks_no_promise_but_speed(stage: Stage, ledger: Ledger) -> None:
    rest = at_rest(stage)
    with stage.outage():  # reaping waits for the disk like everybody else
        for router in stage.routers:
            router.kill()
            stage.start(router, "router:commit.before=sleep:0.15; router:statement.before=sleep:0.15")
        asyncio.run(run(stage.addresses, ledger, _ROLES, seed=2, seconds=4, habits=Habits(pause=0.05)))
    report = used(stage, ledger, rest, seconds=0.5)
    assert report.violations == []
    assert report.counts["completes"] > 0


# ---------------------------------------------------------------- connections that break


@pytest.mark.parametrize("place", ["commit.before", "commit.sent", "statement.before", "statement.sent"])
def test_a_connection_lost_around_a_commit_costs_no_task(replicas: Stage, place: str, figure: Figure) -> None:
    """Every answer is yes, or says that nobody knows; and whoever asks again gets the one task there is."""
    router = replicas.routers[0]
    router.kill()
    replicas.start(router, f"router:{place}=drop@6")  # after what a start does, and before the last of these
    unknown: dict[str, str] = {}
    names: dict[str, str] = {}
    codes: set[grpc.StatusCode] = set()
    try:
        with connected(replicas.addresses[0]) as stubs:
            for number in range(12):
                title, request_id = f"{place} {number}", str(uuid.uuid4())
                try:
                    names[title] = submit(stubs, title, request_id=request_id, timeout=8).name
                except grpc.RpcError as error:
                    codes.add(error.code())
                    unknown[title] = request_id
    finally:
        replicas.calm()
    figure("answered yes, unknown", (len(names), len(unknown)))
    assert codes <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
    with connected(replicas.addresses[1]) as stubs:
        for title, request_id in unknown.items():
            names[title] = submit(stubs, title, request_id=request_id).name
    there = [(task.title, task.name) for task in take_dump(replicas.addresses[1]).tasks]
    for title, name in names.items():
        assert [task for task in there if task[0] == title] == [(title, name)]


async def test_without_a_connection_to_be_had_callers_are_told_and_later_served(figure: Figure) -> None:
    """Others have taken every connection that is not an administrator's, and ours are cut."""
    with (
        private_server(max_connections=str(_PLACES + _RESERVED)) as server,
        temporary_directory() as directory,
    ):
        database = ordinary_database(server)
        with HopperProcess(directory / "a", environment={"HOPPER_ROUTER_DATABASE": database}) as router:
            await asyncio.to_thread(prepare, router.address)
            async with AsyncHopper(router.address, timeout=8.0) as hopper:
                name = (await hopper.submit("before the crowd", project=PROJECT)).task.name
                crowd = await everything(database)
                async with asyncio.timeout(60):
                    while len(crowd) < _PLACES:  # else ours, or the one that cut them, may still hold one
                        await asyncio.to_thread(server.execute, _CUT_OURS)
                        crowd += await everything(database)
                told = {await reason_of(hopper.submit("in the crowd", project=PROJECT)) for _ in range(2)}
                for connection in crowd:
                    await connection.close()
                for _ in range(20):  # each with the retries of the SDK
                    if not await reason_of(hopper.submit("after the crowd", project=PROJECT)):
                        break
                else:
                    pytest.fail(f"the router does not come back: {router.log_text()[-4000:]}")
                assert (await hopper.tasks.GetTask(GetTaskRequest(name=name))).task.name == name
                assert router.running
    figure("others, and what was told", (len(crowd), told))
    assert told <= {"STORAGE_UNAVAILABLE", "DEADLINE_EXCEEDED"}
    assert told


_PLACES: Final = 22
_RESERVED: Final = 3
"""For administrators: PostgreSQL's own default."""
_CUT_OURS: Final = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
    " WHERE usename = 'ordinary' AND application_name <> 'crowd'"
)


def ordinary_database(server: OwnServer) -> str:
    """A database whose owner is nobody special."""
    address = urlsplit(server.create_database())
    server.execute("CREATE ROLE ordinary LOGIN")
    server.execute(f'ALTER DATABASE "{address.path[1:]}" OWNER TO ordinary')
    return urlunsplit(address._replace(netloc="ordinary@"))


async def everything(database: str) -> list["asyncpg.Connection[asyncpg.Record]"]:
    """Every connection there still is."""
    taken: list[asyncpg.Connection[asyncpg.Record]] = []
    while True:
        try:
            taken.append(await asyncpg.connect(database, server_settings={"application_name": "crowd"}))
        except asyncpg.TooManyConnectionsError:
            return taken


async def reason_of(call: Awaitable[object]) -> str:
    """Why a call was refused; nothing if it was not."""
    try:
        await call
    except HopperError as error:
        return error.reason
    return ""


# ---------------------------------------------------------------- transactions that the server takes back

_PLANTED: Final = """
CREATE SEQUENCE planted;
CREATE FUNCTION plant() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    CASE nextval('public.planted') % 12
        WHEN 3 THEN RAISE EXCEPTION 'planted' USING ERRCODE = 'serialization_failure';
        WHEN 8 THEN RAISE EXCEPTION 'planted' USING ERRCODE = 'deadlock_detected';
        ELSE RETURN NULL;
    END CASE;
END $$;
CREATE TRIGGER planted BEFORE INSERT OR UPDATE ON hopper_router.tasks FOR EACH STATEMENT EXECUTE FUNCTION plant()
"""


@pytest.mark.slow
def test_transactions_that_the_server_takes_back_are_made_again(
    replicas: Stage, ledger_of_replicas: Ledger
) -> None:
    """One statement in six on tasks ends with a serialization failure or a deadlock."""
    assert replicas.server is not None
    rest = at_rest(replicas)
    name = urlsplit(replicas.database).path[1:]
    for statement in _PLANTED.split(";\nCREATE"):
        replicas.server.execute(
            statement if statement.startswith("\n") else f"CREATE{statement}", database=name
        )
    try:
        report = used(replicas, ledger_of_replicas, rest, seconds=4.0)
    finally:
        replicas.server.execute("DROP TRIGGER planted ON hopper_router.tasks", database=name)
    planted = replicas.server.execute("SELECT last_value FROM planted", database=name)
    assert planted > 12
    assert report.violations == []
    assert report.counts["completes"] > 0


@pytest.fixture
def ledger_of_replicas(replicas: Stage, request: pytest.FixtureRequest) -> Iterator[Ledger]:
    path = replicas.directory / "ledgers" / f"{len(list((replicas.directory / 'ledgers').iterdir()))}.jsonl"
    with Ledger(path, "callers") as ledger:
        yield ledger


# ---------------------------------------------------------------- routers that die beside others


def test_what_one_router_granted_another_keeps_and_ends(replicas: Stage) -> None:
    at_rest(replicas)
    first, second = replicas.routers
    with connected(replicas.addresses[0]) as one, connected(replicas.addresses[1]) as other:
        name = submit(one, "granted by the first").name
        (task,) = one.work.ClaimTasks(claim_request("w"), timeout=60).tasks
        assert task.name == name
        first.kill()
        try:
            assert complete(other, task, b"r").updated.state == Task.STATE_SUCCEEDED
            assert submit(other, "while the first is away").state == Task.STATE_QUEUED
            (second_task,) = other.work.ClaimTasks(claim_request("w", wait=30), timeout=60).tasks
            assert complete(other, second_task, b"r").updated.state == Task.STATE_SUCCEEDED
        finally:
            replicas.start(first)
    assert second.running


def test_who_takes_over_brings_back_what_ran_out(replicas: Stage, figure: Figure) -> None:
    """Each router is killed in turn, so that at one of the times it is the one that reaps."""
    at_rest(replicas)
    for dying, living in ((0, 1), (1, 0)):
        with connected(replicas.addresses[dying]) as one, connected(replicas.addresses[living]) as other:
            submit(one, f"left by {dying}")
            (task,) = one.work.ClaimTasks(claim_request("w", lease=1.0), timeout=60).tasks
            replicas.routers[dying].kill()
            try:
                (again,) = other.work.ClaimTasks(claim_request("v", wait=30), timeout=60).tasks
            finally:
                replicas.start(replicas.routers[dying])
            assert again.name == task.name
            assert complete(other, task, b"late").error.reason == "STALE_TOKEN"
            assert complete(other, again, b"r").updated.state == Task.STATE_SUCCEEDED
        start, end = again.claim.start_time.ToDatetime(UTC), task.claim.lease_expire_time.ToDatetime(UTC)
        figure(f"ready again after router {dying} was killed", start - end)
        assert -CLOCKS_DIFFER <= start - end <= FAIL_OVER
