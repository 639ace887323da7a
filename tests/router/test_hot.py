"""
The hot path and units of work are two ways of doing the same: the same calls leave the same rows, get the same answers,
and are told the same by the log. Each scenario runs twice, on two databases: as calls are done, and with the hot path
leaving everything to units.
"""

import json
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from hopper.router.v1 import task_pb2 as pb
from hopper.router.v1 import task_service_pb2 as task_svc
from hopper.router.v1 import work_service_pb2 as svc
from hopper_router import recall, tables
from hopper_router.hot import Left
from hopper_router.store_sql import EVENTS
from hopper_router.unit import Unit
from hopper_testing.clock import ManualClock
from tests.router.harness import MINUTE, NOW, ROOT, SECOND, Router, a_router, ref

Scenario = Callable[[Router], Awaitable[list[Message]]]

WEB = "projects/web"
NEVER_EQUAL = {"short_id", "decision", "generation"}
"""Made of random or of the log's own counting. Ids are compared by the order in which they were given out."""


def at(seconds: float) -> Timestamp:
    time = Timestamp()
    time.FromDatetime(NOW + timedelta(seconds=seconds))
    return time


def lasting(seconds: float) -> Duration:
    length = Duration()
    length.FromTimedelta(timedelta(seconds=seconds))
    return length


def leave_everything(router: Router) -> None:
    """Let the hot path do nothing."""

    async def one(_: Any) -> Left:
        return Left.COLD

    async def many(items: Sequence[Any]) -> list[Left]:
        return [Left.COLD] * len(items)

    hot = cast("Any", router.engine.hot)
    hot.submit, hot.claim, hot.renew, hot.complete = one, one, many, many


class Seen:
    """What is left of a scenario, with names replaced by the order in which they were given out."""

    def __init__(self, rows: list[dict[str, Any]], told: list[Message], answers: list[Message]) -> None:
        self._names: dict[str, str] = {}
        for number, row in enumerate(sorted(rows, key=lambda row: str(row["id"]))):
            self._names[row["id"]] = f"task-{number}"
        self.rows = [
            {
                **{name: value for name, value in row.items() if name not in NEVER_EQUAL},
                "id": self._names[row["id"]],
            }
            for row in rows
        ]
        for row in self.rows:
            row["spec"] = self._plain(row["spec"])
        self.rows.sort(key=lambda row: str(row["id"]))
        self.told = [self._plain(message) for message in told]
        self.answers = [self._plain(message) for message in answers]

    def _plain(self, message: Message) -> str:
        copy = type(message)()
        copy.CopyFrom(message)
        _forget(copy)
        text = str(copy)
        for id_, name in self._names.items():
            text = text.replace(id_, name)
        return text


def _forget(message: Any) -> None:
    for field, value in message.ListFields():
        if field.name in {"generation", "decision", "elapsed"} and field.message_type is None:
            message.ClearField(field.name)
        elif field.name == "decision":
            value.ClearField("name")
            value.ClearField("elapsed")
        elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for inner in value if field.is_repeated else [value]:
                _forget(inner)


async def looked_at(router: Router, answers: list[Message]) -> Seen:
    def look(unit: Unit) -> Seen:
        conn = unit.store.conn
        rows = [dict(row._mapping) for row in conn.execute(select(tables.tasks))]
        for row in rows:
            row["spec"] = pb.TaskSpec.FromString(row["spec"])
            row["live"] = json.loads(row["live"] or "{}")  # engines write the same document in their own ways
        events = EVENTS.read(conn, after=0, limit=10_000)
        return Seen(rows, list(recall.told(unit, events)), answers)

    return await router.engine.read(look)


async def both_ways(template: Path, engine: str, scenario: Scenario) -> tuple[Seen, Seen]:
    seen = []
    for cold in (False, True):
        async with a_router(template, ManualClock(NOW), engine=engine) as router:
            router.registry.project("web", "web")
            router.registry.project("app", "app")
            if cold:
                leave_everything(router)
            seen.append(await looked_at(router, await scenario(router)))
    return seen[0], seen[1]


async def require_same(template: Path, engine: str, scenario: Scenario) -> None:
    hot, cold = await both_ways(template, engine, scenario)
    for mine, other in zip(hot.rows, cold.rows, strict=True):
        assert {name: (value, other[name]) for name, value in mine.items() if value != other[name]} == {}
    assert hot.answers == cold.answers
    assert hot.told == cold.told
    assert hot.rows  # or nothing was compared


SPECS = {
    "plain": pb.TaskSpec(title="t", required_capabilities=["web"]),
    "all of it": pb.TaskSpec(
        title="t",
        description="d" * 500,
        tags=["a", "type:Bug"],
        required_capabilities=["web"],
        priority=0,
        requester="cleo",
        payload=b"\x00\xff",
        labels={"k": "v"},
        fairness_key="f",
        fairness_weight=2.5,
        concurrency_key="customer-7",
        estimated_effort=lasting(90),
    ),
    "slots": pb.TaskSpec(title="t", required_capabilities=["web"], slots=3),
    "pinned": pb.TaskSpec(title="t", project=WEB),
    "later": pb.TaskSpec(title="t", project=WEB, clocks=pb.Clocks(start_after=at(20))),
    "clocks": pb.TaskSpec(
        title="t",
        project=WEB,
        clocks=pb.Clocks(start_by=at(500), finish_by=at(90), run_for=lasting(45), heartbeat=lasting(10)),
    ),
    "finish first": pb.TaskSpec(title="t", project=WEB, clocks=pb.Clocks(finish_by=at(35))),
    "run for a moment": pb.TaskSpec(title="t", project=WEB, clocks=pb.Clocks(run_for=lasting(3))),
    "retried": pb.TaskSpec(
        title="t", project=WEB, retry=pb.RetryPolicy(max_attempts=5, first_backoff=lasting(1), factor=1.5)
    ),
}


async def submitted(router: Router, *specs: pb.TaskSpec) -> task_svc.SubmitTasksResponse:
    items = [task_svc.SubmitTasksItem(spec=spec) for spec in specs]
    return await router.tasks.SubmitTasks(task_svc.SubmitTasksRequest(parent=ROOT, items=items))


async def claimed(router: Router, most: int = 1, **fields: Any) -> svc.ClaimTasksResponse:
    request = svc.ClaimTasksRequest(queue=WEB, worker="ann", max_tasks=most, **fields)
    return await router.work.ClaimTasks(request)


async def completed(router: Router, *tasks: pb.Task, result: bytes = b"r") -> svc.CompleteTasksResponse:
    ends = [svc.Completion(claim=ref(task), result=result) for task in tasks]
    return await router.work.CompleteTasks(svc.CompleteTasksRequest(completions=ends))


async def renewed(router: Router, *tasks: pb.Task, seconds: int) -> svc.RenewClaimsResponse:
    request = svc.RenewClaimsRequest(claims=map(ref, tasks), lease_duration=Duration(seconds=seconds))
    return await router.work.RenewClaims(request)


@pytest.mark.parametrize("spec", SPECS)
async def test_a_life(empty_router_db: Path, engine_kind: str, spec: str) -> None:
    """Submitted, claimed, renewed, renewed for less, completed; completed once more."""

    async def scenario(router: Router) -> list[Message]:
        answers: list[Message] = [await router.submitted(**_fields(SPECS[spec]))]
        answers.append(await submitted(router, SPECS[spec], SPECS["plain"]))
        await router.pass_time(20 * SECOND)
        claims = await claimed(router, 4, lease_duration=lasting(30))
        assert claims.tasks
        answers.append(claims)
        router.clock.advance(2 * SECOND)
        answers.append(await renewed(router, *claims.tasks, seconds=40))
        answers.append(await renewed(router, *claims.tasks, seconds=5))
        answers += [await completed(router, *claims.tasks) for _ in range(2)]
        return answers

    await require_same(empty_router_db, engine_kind, scenario)


def _fields(spec: pb.TaskSpec) -> dict[str, Any]:
    return {field.name: value for field, value in spec.ListFields()}


async def test_what_failed_before(empty_router_db: Path, engine_kind: str) -> None:
    """A second attempt has the failure of the first, and forgets it with its progress when it succeeds."""

    async def scenario(router: Router) -> list[Message]:
        await submitted(router, SPECS["retried"], SPECS["retried"])
        first, second = (await claimed(router, 2)).tasks
        answers: list[Message] = [await router.fail(first, "BUSY", message='it\'s "busy" ü')]
        progress = svc.ReportProgressRequest(
            claim=ref(second), progress=pb.Progress(fraction=0.5, message="m")
        )
        answers.append(await router.work.ReportProgress(progress))
        await router.pass_time(SECOND)
        again = await claimed(router, 2)
        answers += [again, await completed(router, *again.tasks, second)]
        return answers

    await require_same(empty_router_db, engine_kind, scenario)


async def test_a_question_before(empty_router_db: Path, engine_kind: str) -> None:
    async def scenario(router: Router) -> list[Message]:
        await submitted(router, SPECS["plain"])
        (task,) = (await claimed(router)).tasks
        question = svc.RequestInputRequest(claim=ref(task), input=pb.InputRequest(question="?"))
        await router.work.RequestInput(question)
        answers: list[Message] = [await renewed(router, task, seconds=10), await completed(router, task)]
        await router.tasks.AnswerTask(
            task_svc.AnswerTaskRequest(name=task.name, answer="yes", answered_by="cleo")
        )
        return [*answers, await renewed(router, task, seconds=90), await completed(router, task)]

    await require_same(empty_router_db, engine_kind, scenario)


async def test_claims_that_are_lost(empty_router_db: Path, engine_kind: str) -> None:
    async def scenario(router: Router) -> list[Message]:
        await submitted(router, *[SPECS["plain"]] * 3)
        claims = await claimed(router, 3, lease_duration=lasting(5))
        router.clock.advance(5 * SECOND)  # to the microsecond, and nobody has noticed
        answers: list[Message] = [await renewed(router, *claims.tasks, seconds=9)]
        answers.append(await completed(router, *claims.tasks))
        await router.pass_time(SECOND)
        again = await claimed(router, 3)
        return [
            *answers,
            again,
            await completed(router, *claims.tasks),
            await completed(router, *again.tasks),
        ]

    await require_same(empty_router_db, engine_kind, scenario)


async def test_repeats_get_the_first_answer(empty_router_db: Path, engine_kind: str) -> None:
    once = "6f0c4b1e-4a0f-4a3e-9a55-0d6a3c1f0b{:02d}"

    async def scenario(router: Router) -> list[Message]:
        one = task_svc.SubmitTaskRequest(parent=ROOT, spec=SPECS["all of it"], request_id=once.format(1))
        items = [task_svc.SubmitTasksItem(spec=SPECS["plain"])] * 2
        many = task_svc.SubmitTasksRequest(parent=ROOT, items=items, request_id=once.format(2))
        answers: list[Message] = [await router.tasks.SubmitTask(one), await router.tasks.SubmitTasks(many)]
        first = await claimed(router, 3, request_id=once.format(3))
        await completed(router, first.tasks[0])
        router.clock.advance(MINUTE / 2)
        answers += [first, await router.tasks.SubmitTask(one), await router.tasks.SubmitTasks(many)]
        again = await claimed(router, 3, request_id=once.format(3))
        assert [task.name for task in again.tasks] == [task.name for task in first.tasks]
        return [*answers, again]

    await require_same(empty_router_db, engine_kind, scenario)


async def test_an_end_that_others_wait_for(empty_router_db: Path, engine_kind: str) -> None:
    async def scenario(router: Router) -> list[Message]:
        first = (await submitted(router, SPECS["plain"])).results[0].task
        after = pb.TaskSpec(title="after", project=WEB, dependencies=[first.name])
        answers: list[Message] = [await submitted(router, after)]
        answers.append(await completed(router, *(await claimed(router)).tasks))
        return [*answers, await claimed(router, 2)]

    await require_same(empty_router_db, engine_kind, scenario)


moves = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.sampled_from(sorted(SPECS))),
        st.tuples(st.just("claim"), st.integers(1, 5)),
        st.tuples(st.sampled_from(["renew", "complete", "fail", "release"]), st.integers(0, 50)),
        st.tuples(st.just("wait"), st.sampled_from([0.5, 1, 4, 10, 31])),
    ),
    min_size=5,
    max_size=25,
)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(moves=moves)
async def test_any_story(empty_router_db: Path, kind: str, moves: list[tuple[str, Any]]) -> None:
    async def scenario(router: Router) -> list[Message]:
        answers: list[Message] = [await submitted(router, SPECS["plain"])]
        held: list[pb.Task] = []
        for move, what in moves:
            if move == "submit":
                answers.append(await submitted(router, SPECS[what]))
            elif move == "claim":
                claims = await claimed(router, what, lease_duration=lasting(20))
                held += claims.tasks
                answers.append(claims)
            elif move == "wait":
                await router.pass_time(timedelta(seconds=what))
            elif held:
                answers += await used(router, move, held[what % len(held)])
        return answers

    await require_same(empty_router_db, kind, scenario)


async def used(router: Router, move: str, task: pb.Task) -> list[Message]:
    """Use a claim, that may be lost, on the calls that answer item by item."""
    if move == "renew":
        return [await renewed(router, task, seconds=15)]
    if move == "complete":
        return [await completed(router, task)]
    stream = router.work.Work()
    await stream.write(svc.WorkRequest(open=svc.WorkOpen(queue=WEB, worker="ann")))
    if move == "fail":
        failure = svc.FailTaskRequest(claim=ref(task), failure=pb.Failure(reason="X"))
        await stream.write(svc.WorkRequest(fail=failure))
    else:
        await stream.write(svc.WorkRequest(release=svc.ReleaseTaskRequest(claim=ref(task))))
    answer = await stream.read()
    assert isinstance(answer, svc.WorkResponse)
    await stream.done_writing()
    await stream.read()
    return [answer]
