"""
The whole engine on a real database, driven at random, against what must always hold.

The model knows little: who was given which claim, and what every task looked like before. What must hold is written as
invariants over the rows, which are read after every step:

- no task is lost, none comes from nowhere
- at most one worker owns a task, and tokens only grow
- generations only grow, and every event is a move of the transition table
- what has ended stays as it ended
- every open task that does not run says why
- a DELEGATED task has exactly one open delegation, no other task has any, and what was called off does not run
- `blockers` is what a count of the dependencies gives, the load what a recount gives
- the numbers of the queues are what a count of the rows gives, and waits are counted as each task says it waits
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.message import Message
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select

from hopper.router.v1 import delegation_service_pb2 as delegation_svc
from hopper.router.v1 import task_pb2 as pb
from hopper.router.v1 import task_service_pb2 as task_svc
from hopper.router.v1 import work_service_pb2 as work_svc
from hopper.router.v1.delegation_pb2 import Delegation as DelegationMessage
from hopper.router.v1.delegation_pb2 import Subtask
from hopper.router.v1.task_service_pb2 import TaskEvent
from hopper_common.errors import LostRace, NotFound, WrongState
from hopper_common.eventlog import Event as LogEvent
from hopper_router import recall, tables
from hopper_router.decomposing import Decomposer
from hopper_router.delegation_servicer import DelegationServicer
from hopper_router.errors import StaleToken
from hopper_router.model import (
    Delegation,
    DelegationState,
    InstanceState,
    Project,
    Scope,
    Task,
    TaskState,
)
from hopper_router.queue_counts import count_open
from hopper_router.queue_stats import SINCE, Delta, Spot, spots_of
from hopper_router.store_sql import EVENTS, _delegation, _task
from hopper_router.task_servicer import TaskServicer
from hopper_router.transitions import TABLE, Event, claimable, held
from hopper_router.unit import Unit
from hopper_router.views import waits_of
from hopper_router.work_servicer import WorkServicer
from hopper_testing.clock import ManualClock
from tests.router.harness import NOW, ROOT, Router, a_router

T = TypeVar("T")
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
PROJECTS = ("projects/web", "projects/team", "projects/offer")
INSTANCES = ("instances/team", "instances/run", "instances/offer")
CAPABILITIES = ("web", "team", "offer", "nobody")
OUTSIDE = (
    1,
    1,
    5,
    29,
    31,
    90,
    300,
    "unnoticed",
    "all well",
    "all well",
    "pause",
    "unregister",
    "halt",
    "stop",
    "restart",
)
CHANGES = ("cancel", "block", "unblock", "priority", "dependencies", "answer", "answer")
USES = ("renew", "complete", "complete", "fail", "fail", "release", "progress", "ask")
NOBODY: Any = None
"""The context of a call that came by no wire."""
HOLDING = (TaskState.RUNNING, TaskState.INPUT_REQUIRED)
REFUSED = (WrongState, LostRace, NotFound)
"""What a move that is not possible just now may be refused with. Anything else is a defect."""

indexes = st.integers(0, 1000)


class _Read:
    """A servicer of work whose answers are messages, also those that go out as the bytes they were made as."""

    def __init__(self, servicer: WorkServicer) -> None:
        self._servicer = servicer

    def __getattr__(self, method: str) -> Callable[[Message, Any], Awaitable[Any]]:
        async def call(request: Message, context: Any) -> Any:
            answer = await getattr(self._servicer, method)(request, context)
            if not isinstance(answer, bytes):
                return answer
            return getattr(work_svc, f"{method}Response").FromString(answer)

        return call


def _without_times(spots: Delta) -> Counter[Spot]:
    """Since when tasks have been ready, a router that was started again knows less exactly."""
    counts: Counter[Spot] = Counter()
    for (project, instance, key, slot, time), count in spots.items():
        counts[project, instance, key, slot, 0 if slot == SINCE else time] += count
    return counts


class World:
    """Everything there is, as one snapshot of the rows."""

    def __init__(self, unit: Unit) -> None:
        conn = unit.store.conn
        self.tasks: dict[str, Task] = {
            task.name: task for task in map(_task, conn.execute(select(tables.tasks)))
        }
        self.delegations: list[Delegation] = [
            _delegation(row) for row in conn.execute(select(tables.delegations).order_by("id"))
        ]
        self.waits = waits_of(unit, list(self.tasks.values()))
        counted = count_open(conn)
        self.counts, self.counted = counted.load, counted.backlog.spots()
        self.dependencies = [(row.task, row.depends_on) for row in conn.execute(select(tables.dependencies))]
        self.head = EVENTS.head(conn)


class Machine(RuleBasedStateMachine):
    template: Path

    @initialize()
    def start(self) -> None:
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.clock = ManualClock(NOW)
        self.router: Router = self.run(
            self.stack.enter_async_context(a_router(self.template, self.clock, serve=False))
        )
        registry = self.router.registry
        registry.project("web", "web", max_running=3)
        registry.team("team", "team")
        registry.team("offer", "offer", manual_accept=True, offer_timeout=timedelta(seconds=90))
        registry.instance("run", Scope.ORCHESTRATION, "instances/team", max_workers=2)
        self.names: set[str] = set()
        self.claims: list[tuple[str, int]] = []
        self.leases: dict[str, tuple[int, datetime | None, timedelta]] = {}
        self.before: dict[str, Task] = {}
        self.delegations: list[Delegation] = []
        self.seen = 0
        self.serve()

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.run(self.stack.aclose())
            self.runner.close()

    def run(self, call: Awaitable[T]) -> T:
        async def awaited() -> T:
            return await call

        return self.runner.run(awaited())

    def serve(self) -> None:
        engine = self.router.engine
        self.task_service, self.work_service = TaskServicer(engine), _Read(WorkServicer(engine))
        self.delegation_service = DelegationServicer(engine, Decomposer(engine))

    def attempt(self, call: Awaitable[T]) -> T | None:
        """Make a call that may be refused because of the state things are in."""
        try:
            return self.run(call)
        except REFUSED:
            return None

    def world(self) -> World:
        return self.run(self.router.engine.read(World))

    def some_task(self, index: int) -> str:
        names = sorted(self.before)
        return names[index % len(names)]

    # ------------------------------------------------------------ taking in

    @rule(
        capability=st.sampled_from(CAPABILITIES),
        parent=st.sampled_from([ROOT, ROOT, "instances/team", "instances/run"]),
        depends=st.lists(indexes, max_size=2),
        hours=st.sampled_from([0, 9]),
        start_by=st.sampled_from([0, 0, 60]),
        finish_by=st.sampled_from([0, 0, 0, 200]),
        attempts=st.sampled_from([1, 3]),
        priority=st.integers(0, 100),
    )
    def submit(self, capability: str, parent: str, depends: list[int], **spec: int) -> None:
        clocks = pb.Clocks()
        for field in ("start_by", "finish_by"):
            if spec[field]:
                getattr(clocks, field).FromDatetime(self.clock.now() + spec[field] * SECOND)
        wanted = pb.TaskSpec(
            title="t",
            required_capabilities=[capability],
            dependencies={self.some_task(index) for index in depends} if self.before else (),
            clocks=clocks,
            retry=pb.RetryPolicy(max_attempts=spec["attempts"]),
            priority=spec["priority"],
        )
        wanted.estimated_effort.FromTimedelta(timedelta(hours=spec["hours"]))
        request = task_svc.SubmitTaskRequest(parent=parent, spec=wanted)
        made = self.attempt(self.task_service.SubmitTask(request, NOBODY))
        if isinstance(made, bytes):  # of the hot path: they go out as they are
            made = task_svc.SubmitTaskResponse.FromString(made)
        if made is not None:
            self.names.add(made.task.name)

    @rule(count=st.integers(1, 4), capability=st.sampled_from(CAPABILITIES))
    def submit_many(self, count: int, capability: str) -> None:
        spec = pb.TaskSpec(title="t", required_capabilities=[capability])
        items = [task_svc.SubmitTasksItem(spec=spec, after=[n - 1] if n else []) for n in range(count)]
        request = task_svc.SubmitTasksRequest(parent=ROOT, items=items)
        answer = self.run(self.task_service.SubmitTasks(request, NOBODY))
        self.names |= {result.task.name for result in answer.results if result.HasField("task")}

    # ------------------------------------------------------------ working

    @precondition(lambda self: self.queues() or self.claims)
    @rule(
        index=indexes,
        worker=st.sampled_from(["ann", "bob"]),
        uses=st.lists(st.tuples(indexes, st.sampled_from(USES)), max_size=3),
        stale=st.integers(0, 3),
    )
    def work(self, index: int, worker: str, uses: list[tuple[int, str]], stale: int) -> None:
        """A worker claims, and does something with what it has; now and then with what it has no longer."""
        if self.queues():
            self.claim(index, worker, 1 + index % 3)
        for which, what in uses:
            self.holds()
            if self.claims and (not stale or not self.leases):
                self.use_claim(*self.claims[which % len(self.claims)], what)
            elif self.leases:
                name = sorted(self.leases)[which % len(self.leases)]
                self.use_claim(name, self.leases[name][0], what)

    def claim(self, index: int, worker: str, most: int) -> None:
        queues = self.queues()
        request = work_svc.ClaimTasksRequest(queue=queues[index % len(queues)], worker=worker, max_tasks=most)
        request.lease_duration.FromTimedelta(30 * SECOND)
        answer = self.attempt(self.work_service.ClaimTasks(request, NOBODY))
        for task in answer.tasks if answer is not None else ():
            token = task.claim.fencing_token
            assert self.before[task.name].state is TaskState.QUEUED
            self.claims.append((task.name, token))
            self.leases[task.name] = (token, self.clock.now() + 30 * SECOND, 30 * SECOND)

    def queues(self) -> list[str]:
        """Where something is ready."""
        ready = [task for task in self.before.values() if claimable(task, self.clock.now())]
        return sorted({queue for task in ready for queue in (task.project, task.instance)} - {"", ROOT})

    def use_claim(self, name: str, token: int, what: str) -> None:
        """With a claim that may be long lost; the model knows which is not."""
        live, lease_end, lease = self.leases.get(name, (0, None, SECOND))
        task, now = self.before[name], self.clock.now()
        owned = token == live and task.state in HOLDING and (lease_end is None or lease_end > now)
        possible = owned and (task.state is TaskState.RUNNING or what == "renew")
        assert self.use(what, work_svc.ClaimRef(task=name, fencing_token=token)) == possible, (what, task)
        if not possible:
            return
        if what in ("complete", "fail", "release"):
            del self.leases[name]
        elif what == "ask":
            self.leases[name] = (token, None, lease)
        elif lease_end is not None:
            self.leases[name] = (token, max(lease_end, now + MINUTE), MINUTE)

    def use(self, what: str, claim: work_svc.ClaimRef) -> bool:
        """Whether it was done."""
        service = self.work_service
        if what in ("renew", "complete"):
            done = work_svc.Completion(claim=claim, result=b"r")
            call: Any = (
                service.RenewClaims(work_svc.RenewClaimsRequest(claims=[claim]), NOBODY)
                if what == "renew"
                else service.CompleteTasks(work_svc.CompleteTasksRequest(completions=[done]), NOBODY)
            )
            (result,) = self.run(call).results
            return bool(result.HasField("updated"))
        calls: dict[str, Any] = {
            "fail": lambda: service.FailTask(
                work_svc.FailTaskRequest(claim=claim, failure=pb.Failure(reason="BUSY")),
                NOBODY,
            ),
            "release": lambda: service.ReleaseTask(work_svc.ReleaseTaskRequest(claim=claim), NOBODY),
            "progress": lambda: service.ReportProgress(
                work_svc.ReportProgressRequest(claim=claim, progress=pb.Progress(fraction=0.5)),
                NOBODY,
            ),
            "ask": lambda: service.RequestInput(
                work_svc.RequestInputRequest(claim=claim, input=pb.InputRequest(question="?")),
                NOBODY,
            ),
        }
        return self.attempt(calls[what]()) is not None

    def answer(self, index: int) -> None:
        asking = sorted(n for n, task in self.before.items() if task.state is TaskState.INPUT_REQUIRED)
        if not asking:
            return
        name = asking[index % len(asking)]
        self.run(self.task_service.AnswerTask(task_svc.AnswerTaskRequest(name=name, answer="yes"), NOBODY))
        token, _, lease = self.leases[name]
        self.leases[name] = (token, self.clock.now() + lease, lease)

    # ------------------------------------------------------------ changing

    @precondition(lambda self: self.before)
    @rule(
        index=indexes,
        what=st.sampled_from(CHANGES),
        other=indexes,
    )
    def change(self, index: int, what: str, other: int) -> None:
        if what == "answer":
            self.answer(index)
            return
        name, service = self.some_task(index), self.task_service
        spec = pb.TaskSpec(priority=other % 100, dependencies=[self.some_task(other)])
        update = task_svc.UpdateTaskRequest(task=pb.Task(name=name, spec=spec))
        update.update_mask.paths.append(f"spec.{what}")
        calls: dict[str, Any] = {
            "cancel": lambda: service.CancelTask(task_svc.CancelTaskRequest(name=name, reason="no"), NOBODY),
            "block": lambda: service.BlockTask(
                task_svc.BlockTaskRequest(name=name, hold=pb.Hold(by="cleo")), NOBODY
            ),
            "unblock": lambda: service.UnblockTask(task_svc.UnblockTaskRequest(name=name), NOBODY),
        }
        self.attempt(calls.get(what, lambda: service.UpdateTask(update, NOBODY))())

    @precondition(lambda self: self.before)
    @rule(
        index=indexes,
        kind=st.sampled_from(["ROUTE", "REASSIGN", "ESCALATE", "DECOMPOSE"]),
        to=st.sampled_from(["instances/run", "instances/team", "instances/offer"]),
        parts=st.integers(1, 3),
    )
    def delegate(self, index: int, kind: str, to: str, parts: int) -> None:
        handed = sorted(child for made in self.delegations for child in made.child_tasks)
        name = handed[index % len(handed)] if handed and parts > 1 else self.some_task(index)
        subtasks = [
            Subtask(spec=pb.TaskSpec(title="p", required_capabilities=[CAPABILITIES[n % 4]]))
            for n in range(parts)
        ]
        token, _, _ = self.leases.get(name, (0, None, SECOND))
        request = delegation_svc.DelegateTaskRequest(
            task=name,
            kind=DelegationMessage.Kind.Value(f"KIND_{kind}"),
            to_instance="" if kind in ("ESCALATE", "DECOMPOSE") else to,
            subtasks=subtasks if kind == "DECOMPOSE" else (),
            fencing_token=token,
        )
        self.attempt(self.delegation_service.DelegateTask(request, NOBODY))

    @precondition(lambda self: self.delegations)
    @rule(index=indexes, what=st.sampled_from(["accept", "accept", "reject"]), offered=st.booleans())
    def respond(self, index: int, what: str, offered: bool) -> None:
        offers = [made for made in self.delegations if made.state is DelegationState.OFFERED]
        made = offers if offered and offers else self.delegations
        name, service = made[index % len(made)].name, self.delegation_service
        if what == "accept":
            accept = delegation_svc.AcceptDelegationRequest(name=name)
            self.attempt(service.AcceptDelegation(accept, NOBODY))
        else:
            reject = delegation_svc.RejectDelegationRequest(name=name)
            self.attempt(service.RejectDelegation(reject, NOBODY))

    # ------------------------------------------------------------ the world outside

    @rule(what=st.sampled_from(OUTSIDE), index=indexes)
    def outside(self, what: Any, index: int) -> None:
        if isinstance(what, int):
            self.pass_time(what)
        elif what == "restart":
            self.restart()
        elif what == "unnoticed":
            self.clock.advance(31 * SECOND)
        else:
            self.turn(what, index)

    def pass_time(self, seconds: int) -> None:
        self.run(self.router.pass_time(seconds * SECOND))

    def turn(self, what: str, index: int) -> None:
        """Something happens in the registry; half of the time everything is put right again."""
        registry = self.router.registry
        project, instance = PROJECTS[index % 3], INSTANCES[index % 3]
        if what == "all well":
            for name in PROJECTS:
                limit = 3 if name == "projects/web" else 0
                registry.put(Project(name, capabilities=frozenset({name[9:]}), max_running=limit))
            for name in INSTANCES:
                registry.change(name, state=InstanceState.RUNNING, start_time=self.clock.now())
        elif what == "unregister":
            registry.remove(project)
        elif what == "pause" and project in registry.current.projects:
            registry.change(project, paused=True)
        elif what in ("halt", "stop"):
            state = InstanceState.PAUSED if what == "halt" else InstanceState.STOPPING
            registry.change(instance, state=state)
        self.run(self.router.follow())

    def restart(self) -> None:
        """What is durable is all there is."""
        self.run(self.router.stop())
        self.run(self.router.open())
        self.serve()

    # ------------------------------------------------------------ what must hold

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "router"):
            return
        world = self.world()
        self.no_task_is_lost(world)
        self.tasks_only_go_forward(world)
        self.delegations_own(world)
        self.everyone_says_why(world)
        self.counts_are_right(world)
        self.queues_are_counted(world)
        self.events_are_moves(world)
        self.before, self.delegations = world.tasks, world.delegations

    def no_task_is_lost(self, world: World) -> None:
        children = {child for made in world.delegations for child in made.child_tasks}
        assert set(world.tasks) == self.names | children
        assert set(self.before) <= set(world.tasks)

    def tasks_only_go_forward(self, world: World) -> None:
        now = self.clock.now()
        tokens = Counter(name for name, _ in self.claims)
        for name, task in world.tasks.items():
            before = self.before.get(name)
            if before is not None:
                assert task.token >= before.token
                assert task.generation >= before.generation
                assert task.generation > before.generation or quiet(task) == quiet(before)
                assert not before.state.final or task == before
            assert task.token == tokens[name]
            assert (task.state in HOLDING) <= (task.claim is not None)
            owners = [token for claimed, token in self.claims if claimed == name and owns(task, token, now)]
            assert owners in ([], [task.token])
        generations = [task.generation for task in world.tasks.values()]
        assert len(set(generations)) == len(generations)

    def delegations_own(self, world: World) -> None:
        open_ = Counter(made.task for made in world.delegations if made.state.open)
        delegated = {name for name, task in world.tasks.items() if task.state is TaskState.DELEGATED}
        assert dict(open_) == dict.fromkeys(delegated, 1)
        for made in world.delegations:
            assert len(set(made.path)) == len(made.path)
            states = [world.tasks[child].state for child in made.child_tasks]
            assert made.state.open == any(not state.final for state in states), (made, states)
            assert (made.offer_end is not None) == (made.state is DelegationState.OFFERED)
            for child in made.child_tasks:
                assert world.tasks[child].delegation == made.name
                offered = world.tasks[child].offered and not world.tasks[child].state.final
                assert offered == (
                    made.state is DelegationState.OFFERED and not world.tasks[child].state.final
                )

    def everyone_says_why(self, world: World) -> None:
        for name, task in world.tasks.items():
            waits = not task.state.final and task.state is not TaskState.RUNNING
            wait = world.waits[name]
            assert (wait is not None) == waits, task
            assert wait is None or wait.message

    def counts_are_right(self, world: World) -> None:
        load = self.router.engine._load
        for counted, fresh in (
            (load.by_project, world.counts.by_project),
            (load.by_instance, world.counts.by_instance),
        ):
            assert {key: count for key, count in counted.items() if count} == dict(fresh)
        waiting = Counter(
            name for name, other in world.dependencies if world.tasks[other].state is not TaskState.SUCCEEDED
        )
        for name, task in world.tasks.items():
            assert task.state.final or task.blockers == waiting[name], name
            assert task.state not in HOLDING or not waiting[name]

    def queues_are_counted(self, world: World) -> None:
        """In memory as in the rows, whoever counts them: one task at a time, all in one query, or by why they wait."""
        open_tasks = [task for task in world.tasks.values() if not task.state.final]
        one_by_one = Counter(spot for task in open_tasks for spot in spots_of(task))
        queues = self.router.engine.queues
        assert world.counted == one_by_one
        assert _without_times(queues.backlog.spots()) == _without_times(world.counted)
        total = queues.numbers(self.router.registry.current, limit=5).total
        assert total.states == Counter(task.state.value for task in open_tasks)
        # What is not placed is counted by why it is not; for each task it may be told that it waits for a time first.
        placed = Counter(
            wait.reason.value
            for name, wait in world.waits.items()
            if wait is not None and world.tasks[name].state is not TaskState.SUBMITTED
        )
        assert total.waits >= placed
        assert total.waits.total() == placed.total() + total.states["SUBMITTED"]
        assert total.ready == total.waits["WORKER"]

    def events_are_moves(self, world: World) -> None:
        def look(unit: Unit) -> tuple[list[LogEvent], list[TaskEvent]]:
            events = EVENTS.read(unit.store.conn, after=self.seen, limit=5000)
            return events, recall.told(unit, events)

        events, all_told = self.run(self.router.engine.read(look))
        versions = [event.version for event in events]
        assert versions == sorted(set(versions))
        assert not versions or versions[-1] == world.head
        states = {name: task.state for name, task in self.before.items()}
        for event, told in zip(events, all_told, strict=True):
            to = TaskState(pb.Task.State.Name(told.task.state).removeprefix("STATE_"))
            if told.kind in ("SUBMIT", "OFFER"):
                assert event.key not in states
                assert to in (TaskState.SUBMITTED, TaskState.QUEUED)
                assert to is TaskState.SUBMITTED or told.kind == "SUBMIT"
            else:
                assert TABLE[states[event.key], Event(told.kind)] is to
            states[event.key] = to
        assert states == {name: task.state for name, task in world.tasks.items()}
        self.seen = world.head


def quiet(task: Task) -> Task:
    """A task without what may change with no event: its lease, its turn, and what deciding left it waiting for."""
    return replace(task, claim=None, wait=None, rank=0)


def owns(task: Task, token: int, now: datetime) -> bool:
    try:
        held(task, token, now)
    except StaleToken:
        return False
    return True


def test_whatever_happens_the_rows_stay_true(empty_router_db: Path) -> None:
    class OnThisDatabase(Machine):
        template = empty_router_db

    run_state_machine_as_test(
        OnThisDatabase,
        settings=settings(
            max_examples=30,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
