"""The benchmarks themselves: one floor and one bar, for a moment, so that they keep working."""

import asyncio
from collections.abc import Awaitable, Iterator

import pytest

from hopper.router.v1 import task_service_pb2
from hopper_router.llm.advisor import Ask, Choice, Question
from hopper_router.llm.openai import OpenAI
from hopper_router.llm.prompt import read, write
from hopper_testing.processes import temporary_directory
from tests.bench import __main__, bars_guard, driving, message
from tests.bench.bar import BARS, at_least
from tests.bench.cascade import Model
from tests.bench.cpu import snapshot
from tests.bench.full_table import DATABASE, Size, opened, prepare
from tests.bench.load import Load, Pace, Rounds, Sample, Side, closed_loop
from tests.bench.rawsql import raw_sqlite, sqlite_insert
from tests.bench.rig import POSTGRESQL, SQLITE, Rig, Router, Target


async def test_a_router_and_its_floors_are_measured_and_judged() -> None:
    async with Rig(Pace(0.1, 1), projects=10, memory=False) as rig, rig.router(SQLITE) as router:
        slim = rig.directory / "slim.db"

        async def inserts(seconds: float) -> Load:
            with raw_sqlite(slim) as connection:
                return sqlite_insert(connection, 100, seconds)

        rounds = await rig.bench().interleaved(
            Side("echo", lambda _: submits(rig.echo), {"server": rig.echo.pid}),
            Side("hopper", lambda _: submits(router), router.processes(rig)),
            Side("rows", inserts),
            warm=False,
        )
    assert rounds.ratio("hopper", "echo") > 0
    assert rounds.rate("rows") > 0
    # How long they take depends on who else is busy; what they use hardly does.
    assert 0 <= rounds.cpu("echo", "server") < rounds.cpu("hopper", "router")
    assert rounds.p50("hopper") < rounds.p99("hopper")


def submits(target: Target) -> Awaitable[Load]:
    """So many that each side uses processor time that can be seen, however fast or slow the machine is."""
    return closed_loop(lambda number: target.tasks.SubmitTask(message.submit(number)), 4, 300, most=200)


async def test_the_guard_is_measured_beside_no_guard() -> None:
    async with Rig(Pace(0.1, 1)) as rig:
        measured = await bars_guard.guard(rig)
    for name, result in zip(("service", "key"), measured, strict=True):
        assert name in result.name
        added = result.sides["added, %"]
        assert added["low"] <= added["median"] <= added["high"]
        sides = [result.sides[side] for side in (name, f"open, sent what {name} is")]
        assert all(side["us"] > 0 and side["us_server"] > 0 for side in sides)


async def test_a_full_table_can_be_worked_on_as_often_as_one_likes() -> None:
    size = Size(finished=2000, open=200)
    with temporary_directory() as directory:
        directory.chmod(0o755)  # the server may run as another user
        async with Rig(projects=10, memory=False) as rig:
            await prepare(rig, directory / "table", size)
            for left in (20, 19):
                with opened(directory / "table") as (server, found):
                    assert found == size
                    async with rig.router(POSTGRESQL, place=server.url(DATABASE)) as router:
                        assert await _open_tasks_before_one_is_done(router) == left


async def _open_tasks_before_one_is_done(router: Router) -> int:
    wanted = task_service_pb2.ListTasksRequest(requester=f"requester{message.HOT}", page_size=100)
    found = (await router.tasks.ListTasks(wanted)).tasks
    assert {(task.project, task.spec.title) for task in found} == {
        (message.QUEUE, message.spec(message.HOT).title)
    }
    [claimed] = await driving.claim(router, "worker", 1)
    assert claimed.name == found[-1].name
    await driving.complete(router, [claimed])
    return len(found)


def test_every_bar_is_run_by_the_main_program() -> None:
    assert __main__.__doc__
    assert {"submit", "submit_latency", "submit_batches", "claim", "pinned_claim", "peers"} < set(BARS)
    assert {"start_latency", "storage", "embedded", "replicas", "full_table", "resident", "next_task"} < set(
        BARS
    )
    assert {"rules_decision", "learned_decision", "submit_learned"} < set(BARS)


def test_the_simulated_model_answers_what_a_router_asks() -> None:
    choices = tuple(Choice(f"projects/{id}", id, "", (), 0.3) for id in ("web", "ops"))
    question = Question("title", "a description", (), choices, allowed=frozenset(Ask))
    prompt = write(question)
    request = OpenAI().body(prompt, model="perfect", max_tokens=100)
    model = Model()
    for right, said in (("projects/ops", "projects/ops"), ("projects/other", None), (None, None)):
        model.right = right
        reply = model.answer(request)
        assert read(reply["choices"][0]["message"]["content"], question).project == said
    assert model.asked == 3


@pytest.mark.parametrize(("value", "verdict"), [(0.4, "missed"), (0.5, "must"), (0.7, "target")])
def test_a_bar_says_how_far_it_is(value: float, verdict: str) -> None:
    result = at_least(0.5, 0.65).judge("a bar", value, {})
    assert (result.verdict, result.ok) == (verdict, verdict != "missed")


def test_what_others_disturbed_is_left_out_or_makes_the_machine_busy() -> None:
    def sample(rate: float, others: float) -> Sample:
        return Sample(rate, (), {}, others)

    calm = Rounds({"a": [sample(1, 0.1), sample(2, 0.0), sample(99, 2.0)], "b": [sample(6, 0.0)] * 3})
    assert (calm.busy, calm.rate("a"), calm.ratio("a", "b")) == (False, 1.5, 0.25)
    busy = Rounds({"a": [sample(1, 0.1), sample(2, 1.0), sample(3, 2.0)]})
    assert (busy.busy, busy.rate("a"), bool(busy.skipped)) == (True, 3, True)


async def test_a_closed_loop_counts_what_was_answered() -> None:
    numbers: Iterator[int] = iter(range(10**9))
    load = await closed_loop(lambda number: asyncio.sleep(0, next(numbers)), 3, 60, each=2, most=20)
    assert (load.count, len(load.latencies), next(numbers)) == (20, 10, 10)


def test_a_snapshot_sees_this_process_and_what_it_used() -> None:
    before = snapshot()
    end = before.at + 0.05
    while snapshot().at < end:
        pass
    after = snapshot()
    assert after.of(1) >= before.of(1)
    assert after.busy >= before.busy
