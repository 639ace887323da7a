"""What is done at this Hopper's router for hand-overs, with the real one: errands, claims, and what nobody can do."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import grpc.aio
import pytest
import pytest_asyncio

from hopper.common.v1.options_pb2 import TRUST_LEVEL_TRUSTED
from hopper.federation.v1 import delegation_pb2 as dpb
from hopper.registry.v1 import instance_service_pb2 as isvc
from hopper.registry.v1 import project_service_pb2 as psvc
from hopper.registry.v1.instance_pb2 import SCOPE_FEDERATED, Instance, InstanceConfig
from hopper.registry.v1.project_pb2 import Border, Executor, Project
from hopper.router.v1 import delegation_service_pb2 as dsvc
from hopper.router.v1 import task_service_pb2 as tsvc
from hopper.router.v1 import work_service_pb2 as wsvc
from hopper.router.v1.delegation_pb2 import Delegation as Handed
from hopper.router.v1.task_pb2 import RetryPolicy, TaskSpec
from hopper.router.v1.task_pb2 import Task as RouterTask
from hopper_client import AsyncHopper
from hopper_common.clock import SystemClock
from hopper_common.database import Database
from hopper_common.errors import HopperError
from hopper_common.host import Ready, installed_services, serve
from hopper_common.identity.store import IdentityStore
from hopper_common.settings import HostSettings
from hopper_common.startup import make_private
from hopper_common.timestamps import to_proto
from hopper_federation.delegation.appraising import Appraiser
from hopper_federation.delegation.claims import Claims
from hopper_federation.delegation.credits import Credits
from hopper_federation.delegation.desks import Desks, Sitting
from hopper_federation.delegation.errands import Errands, Router
from hopper_federation.delegation.files_wanted import FilesWanted
from hopper_federation.delegation.model import Delegation, Errand, Outcome, Role, State, Task, TaskNews
from hopper_federation.delegation.sealing import Ended, HandOver, seal_offer, seal_result
from hopper_federation.delegation.steady import SteadyClock
from hopper_federation.delegation.unplaced import Unplaced
from hopper_federation.store_sql import Federation
from hopper_federation.tables import METADATA, MIGRATIONS
from hopper_federation.trust_admin import TrustAdmin
from hopper_federation.trust_snapshot import TrustSnapshots
from hopper_testing.processes import temporary_directory
from tests.channels import separate_channel
from tests.federation.harness import PATIENCE
from tests.federation.hoppers import found

pytestmark = pytest.mark.asyncio(loop_scope="module")

PEER: Final = "p" * 32
INSTANCE: Final = "instances/peer-bob"
POLICY: Final = """
[[rule]]
name = "what is done far away"
effect = "allow"
direction = "out"
capabilities = ["far"]
"""
CLOCK: Final = SystemClock()
_LEASE: Final = timedelta(minutes=15)


class Bench:
    """A router, and everything that federation does there; the desk on a database of its own."""

    def __init__(
        self, client: AsyncHopper, channel: grpc.aio.Channel, federation: Federation, own: Any
    ) -> None:
        self.client, self.identity, self.federation = client, own, federation
        self.desks = Desks(federation, TrustAdmin(own), SteadyClock(CLOCK), own.install_id)
        self.claims = Claims(channel, self.desks)
        self.credit = Credits(CLOCK.monotonic)
        appraiser = Appraiser(channel, self.claims, TrustSnapshots())
        self.wanted = FilesWanted(self.desks, lambda: None)
        router = Router(channel, self.claims, TrustSnapshots(), appraiser, self.wanted)
        self.errands = Errands(self.desks, router, self.credit)
        self.unplaced = Unplaced(self.desks, self.claims, patience=0.0)
        self._made = 0

    def offer(self, **fields: Any) -> tuple[str, dpb.Offer]:
        """An offer of this Hopper's own, and its id."""
        self._made += 1
        id_, now = f"{self._made:026}", CLOCK.now()
        hand_over = HandOver(PEER, id_, 1, lease=_LEASE)
        body = dpb.TaskBody(title="read", priority=50, **fields)
        return id_, seal_offer(self.identity, body, hand_over, task=id_, not_after=now + _LEASE, now=now)

    async def came(
        self, errand: Errand, *, state: State = State.ACCEPTED, unconfirmed: bool = False, **fields: Any
    ) -> Delegation:
        """Something that a peer has handed over, and what is to be done about it."""
        id_, offer = self.offer(**fields)
        new = self._new(id_, Role.IN, offer, state=state)
        return await self._put(replace(new, exclusive=unconfirmed, unconfirmed=unconfirmed), errand)

    async def went(self, *, retry: int = 1, only_there: bool = False) -> Delegation:
        """A task that is with a peer: because somebody said so, or because it can be done only there."""
        spec = TaskSpec(title="read", retry=RetryPolicy(max_attempts=retry))
        if only_there:
            spec.required_capabilities.append("far")
        submitting = tsvc.SubmitTaskRequest(parent="instances/global", spec=spec)
        answer = await self.client.tasks.SubmitTask(submitting)
        if not only_there:
            request = dsvc.DelegateTaskRequest(
                task=answer.task.name, kind=Handed.KIND_ROUTE, to_instance=INSTANCE
            )
            await self.client.delegations.DelegateTask(request)
        claimed = await self.client.work.ClaimTasks(
            wsvc.ClaimTasksRequest(queue=INSTANCE, worker="federation", wait=to_proto(timedelta(seconds=20)))
        )
        (task,) = claimed.tasks
        id_, offer = self.offer()
        new = self._new(id_, Role.OUT, offer, state=State.RUNNING)
        return await self._put(replace(new, task=task.name, token=task.claim.fencing_token), None)

    def _new(self, id_: str, role: Role, offer: dpb.Offer, *, state: State) -> Delegation:
        now = self.desks.steady()
        return Delegation(
            id=id_,
            role=role,
            peer=PEER,
            task_uid=f"{self.identity.install_id}/{id_}",
            epoch=1,
            state=state,
            lease=900.0,
            offer=offer.SerializeToString(),
            created=now,
            updated=now,
        )

    async def is_confirmed(self, about: Delegation) -> None:
        """Who handed it over still wants it."""
        await self._put(replace(await self.known(about), unconfirmed=False), None)

    async def tried(self, about: Delegation) -> bool | None:
        """Whether an errand of it was tried, and not done."""
        chores = await self.desks.read(lambda rows: rows.errands(self.desks.steady() + 3600, 100))
        return any(each.delegation.id == about.id and each.attempts for each in chores) or None

    async def _put(self, new: Delegation, errand: Errand | None) -> Delegation:
        def work(sitting: Sitting) -> None:
            sitting.rows.save(new)
            if errand is not None:
                sitting.rows.errand(new, errand)

        await self.desks.write(work)
        return new

    async def ends(self, known: Delegation, outcome: Outcome, errand: Task, **fields: Any) -> None:
        """The peer has said how it ended."""
        offer = dpb.Offer.FromString(known.offer)
        ended = Ended(outcome, datetime.now(UTC), **fields)
        result = seal_result(self.identity, offer, ended).SerializeToString()
        state = {Outcome.SUCCEEDED: State.COMPLETED, Outcome.FAILED: State.FAILED}[outcome]
        await self._put(replace(known, state=state, outcome=outcome, result=result), Errand(errand))

    async def known(self, about: Delegation) -> Delegation:
        """As it is written down now."""
        found_ = await self.desks.read(lambda rows: rows.delegation(about.role, about.id))
        assert found_ is not None
        return found_

    async def until(self, about: Delegation, true: Callable[[Delegation], object]) -> Delegation:
        """As it is once that is true."""

        async def look() -> Delegation | None:
            known = await self.known(about)
            return known if true(known) else None

        return await found(look)

    async def over(self, about: Delegation) -> None:
        """Nobody wants it any more: nothing of it is claimed by who comes next."""
        top = await self.top(about.task)
        await self.client.tasks.CancelTask(tsvc.CancelTaskRequest(name=top.name))

    async def task(self, name: str) -> RouterTask:
        return (await self.client.tasks.GetTask(tsvc.GetTaskRequest(name=name))).task

    async def top(self, name: str) -> RouterTask:
        """The task that was handed over."""
        chain = (
            await self.client.delegations.ListDelegations(dsvc.ListDelegationsRequest(task=name))
        ).delegations
        return await self.task(chain[0].task)

    async def ways_of(self, about: Delegation) -> Sequence[Handed]:
        """The hand-overs of the task within the router, oldest first."""
        request = dsvc.ListDelegationsRequest(task=about.task)
        return (await self.client.delegations.ListDelegations(request)).delegations

    async def made_of(self, about: Delegation) -> list[RouterTask]:
        """The tasks that were made of what came."""
        states = [value for value in RouterTask.State.values() if value]
        tasks = (
            await self.client.tasks.ListTasks(tsvc.ListTasksRequest(states=states, page_size=1000))
        ).tasks
        return [task for task in tasks if task.spec.labels.get("hopper.task_uid") == about.task_uid]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench() -> AsyncIterator[Bench]:
    with temporary_directory() as directory:
        stop, started = asyncio.Event(), asyncio.get_running_loop().create_future()
        settings = HostSettings(data_dir=directory / "hopper")
        services = [each for each in installed_services() if each.name != "federation"]
        own = directory / "own"
        make_private(own)
        db = await Database.open(
            own / "federation.db", metadata=METADATA, migrations=MIGRATIONS, service="federation"
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(serve(services, settings, ready=started.set_result, stop=stop))
            _: Ready = await started
            address = f"unix:{settings.socket_path}"
            async with AsyncHopper(address, timeout=PATIENCE) as client, separate_channel(address) as channel:
                await _make_places(client)
                made = Bench(
                    client, channel, Federation(db, CLOCK), IdentityStore.open(own / "identity", CLOCK)
                )
                running = [group.create_task(made.errands.run())]
                yield made
                for task in running:
                    task.cancel()
            stop.set()
        await db.close()


async def _make_places(client: AsyncHopper) -> None:
    """A peer's project and instance, and a project of this Hopper's own."""
    peer = Project(
        executor=Executor(type=Executor.TYPE_PEER),
        border=Border(peer=PEER, level=TRUST_LEVEL_TRUSTED, policy=POLICY),
        capabilities=["far"],
    )
    await client.projects.RegisterProject(psvc.RegisterProjectRequest(project_id="peer-bob", project=peer))
    own = Project(capabilities=["near"])
    await client.projects.RegisterProject(psvc.RegisterProjectRequest(project_id="own", project=own))
    instance = Instance(
        parent="instances/global",
        scope=SCOPE_FEDERATED,
        project="projects/peer-bob",
        config=InstanceConfig(peer=PEER),
    )
    await client.instances.CreateInstance(
        isvc.CreateInstanceRequest(instance_id="peer-bob", instance=instance)
    )
    await client.instances.StartInstance(isvc.StartInstanceRequest(name=INSTANCE))

    async def reaches() -> bool | None:
        answer = await client.submit("is there a way", project="projects/own")
        request = dsvc.DelegateTaskRequest(
            task=answer.task.name, kind=Handed.KIND_ROUTE, to_instance=INSTANCE
        )
        try:
            handed = (await client.delegations.DelegateTask(request)).delegation
        except HopperError:
            return None
        await client.delegations.RejectDelegation(dsvc.RejectDelegationRequest(name=handed.name))
        return True

    await found(reaches)


async def test_what_came_is_made_a_task_once_however_often_it_is_tried(bench: Bench) -> None:
    about = await bench.came(Errand(Task.SUBMIT), required_capabilities=["near"])
    known = await bench.until(about, lambda each: each.task)
    await bench.desks.write(lambda sitting: sitting.rows.errand(known, Errand(Task.SUBMIT)))
    await nothing_left(bench)
    (task,) = await bench.made_of(about)
    assert (task.name, task.project) == (known.task, "projects/own")


async def test_what_was_in_a_copy_and_must_not_run_twice_is_made_a_task_once_it_is_confirmed(
    bench: Bench,
) -> None:
    over = await bench.came(Errand(Task.SUBMIT), state=State.RECLAIMED, unconfirmed=True)
    about = await bench.came(Errand(Task.SUBMIT), unconfirmed=True, required_capabilities=["near"])
    await found(lambda: bench.tried(about))
    assert await bench.made_of(about) == []

    await bench.is_confirmed(about)

    assert (await bench.until(about, lambda each: each.task)).state is State.ACCEPTED
    await nothing_left(bench)
    assert await bench.made_of(over) == []


async def test_what_the_router_does_not_take_is_refused(bench: Bench) -> None:
    about = await bench.came(Errand(Task.SUBMIT), tags=["two words"])
    known = await bench.until(about, lambda each: each.state is State.REJECTED)
    assert (known.reason, known.task) == ("INVALID_REQUEST", "")


async def test_an_orphan_that_is_kept_is_made_anew_as_this_hoppers_own(bench: Bench) -> None:
    about = await bench.came(
        Errand(Task.SUBMIT, "KEEP"), state=State.CANCELLED, required_capabilities=["near"]
    )
    await nothing_left(bench)
    (task,) = await bench.made_of(about)
    assert "hopper.delegation" not in task.spec.labels
    assert (await bench.known(about)).task == ""


async def test_what_is_stopped_twice_is_stopped(bench: Bench) -> None:
    about = await bench.came(Errand(Task.SUBMIT), required_capabilities=["near"])
    known = await bench.until(about, lambda each: each.task)
    for _ in range(2):
        await bench.desks.write(lambda sitting: sitting.rows.errand(known, Errand(Task.STOP, "CANCELLED")))
    await nothing_left(bench)
    assert (await bench.task(known.task)).state == RouterTask.STATE_CANCELLED


async def test_a_result_completes_the_claim_and_the_task_that_was_handed_over(bench: Bench) -> None:
    about = await bench.went()
    await bench.ends(about, Outcome.SUCCEEDED, Task.COMPLETE, output=b"done")
    await bench.until(about, lambda each: each.settled)
    assert (await bench.top(about.task)).state == RouterTask.STATE_SUCCEEDED


async def test_a_claim_that_is_lost_is_taken_again_to_tell_how_it_ended(bench: Bench) -> None:
    about = await bench.went()
    claim = wsvc.ClaimRef(task=about.task, fencing_token=about.token)
    await bench.client.work.ReleaseTask(wsvc.ReleaseTaskRequest(claim=claim))
    await bench.ends(about, Outcome.SUCCEEDED, Task.COMPLETE, output=b"done")
    known = await bench.until(about, lambda each: each.settled)
    assert known.token > about.token
    assert (await bench.top(about.task)).state == RouterTask.STATE_SUCCEEDED


async def test_a_claim_that_is_lost_is_taken_again_while_the_peer_works(bench: Bench) -> None:
    about = await bench.went()
    claim = wsvc.ClaimRef(task=about.task, fencing_token=about.token)
    await bench.client.work.ReleaseTask(wsvc.ReleaseTaskRequest(claim=claim))
    await bench.claims.keep()
    known = await bench.known(about)
    assert (known.state, known.token > about.token) == (State.RUNNING, True)
    assert bench.claims.open_with(PEER) >= 1
    await bench.over(about)


async def test_a_task_that_is_over_here_is_wanted_from_nobody(bench: Bench) -> None:
    about = await bench.went()
    await bench.over(about)
    await bench.claims.keep()
    known = await bench.known(about)
    assert (known.state, known.settled) == (State.CANCELLING, True)


async def test_a_failure_is_tried_again_as_the_task_says_and_counts_once(bench: Bench) -> None:
    about = await bench.went(retry=2)
    await bench.ends(about, Outcome.FAILED, Task.FAIL, failure_reason="ILLEGIBLE", failure_message="blots")
    await bench.until(about, lambda each: each.settled)
    task = await bench.task(about.task)
    assert (task.state, task.failure.reason, task.attempt) == (RouterTask.STATE_QUEUED, "ILLEGIBLE", 1)

    async def again() -> list[RouterTask] | None:
        request = wsvc.ClaimTasksRequest(
            queue=INSTANCE, worker="federation", wait=to_proto(timedelta(seconds=5))
        )
        return list((await bench.client.work.ClaimTasks(request)).tasks) or None

    (claimed,) = await found(again)
    assert claimed.name == about.task
    # The answer was lost, and the task was claimed again meanwhile: what was said stays said once.
    lost = replace(await bench.known(about), token=claimed.claim.fencing_token, settled=False)

    def work(sitting: Sitting) -> None:
        sitting.rows.save(lost)
        sitting.rows.errand(lost, Errand(Task.FAIL))

    await bench.desks.write(work)
    await bench.until(about, lambda each: each.settled)
    ready = await bench.task(about.task)
    assert (ready.state, ready.failure.reason) == (RouterTask.STATE_QUEUED, "ILLEGIBLE")
    await bench.over(about)


@pytest.mark.parametrize(
    ("reason", "closed"),
    [
        ("QUOTA", Handed.STATE_RETURNED),
        ("PEER_REVOKED", Handed.STATE_RETURNED),
        ("LEASE_LOST", Handed.STATE_CANCELLED),
        ("DELEGATION_NOT_FOUND", Handed.STATE_CANCELLED),
    ],
)
async def test_what_comes_back_is_decided_about_without_the_peer_unless_it_may_come_again(
    bench: Bench, reason: str, closed: Handed.State.ValueType
) -> None:
    about = await bench.went(only_there=True)
    returned = replace(about, state=State.RECLAIMED)
    await bench.desks.write(lambda sitting: sitting.rows.save(returned))
    for _ in range(2):
        await bench.desks.write(
            lambda sitting: sitting.rows.errand(returned, Errand(Task.RETURN, reason, "said"))
        )
    await bench.until(about, lambda each: each.settled)
    await nothing_left(bench)
    there, *again = await bench.ways_of(about)
    assert there.state == closed
    assert [way.to_instance for way in again] == ([INSTANCE] if closed == Handed.STATE_CANCELLED else [])
    top = await bench.top(about.task)
    assert (top.state == RouterTask.STATE_DELEGATED) == bool(again)
    await bench.over(about)


async def test_what_nobody_here_can_do_goes_back(bench: Bench) -> None:
    about = await bench.came(Errand(Task.SUBMIT), required_capabilities=["flying"])
    known = await bench.until(about, lambda each: each.task)
    can = await bench.came(Errand(Task.SUBMIT), required_capabilities=["near"])
    await bench.until(can, lambda each: each.task)
    await bench.unplaced.look()
    await nothing_left(bench)
    assert (await bench.known(about)).state is State.CANCELLING
    assert (await bench.task(known.task)).state == RouterTask.STATE_CANCELLED
    stopped = TaskNews(outcome=Outcome.CANCELLED, sealed=b"x")  # as the watch tells it
    back = await bench.desks.write(lambda sitting: sitting.desk.news(about.id, stopped))
    assert (back.state, back.reason) == (State.REJECTED, "NO_ELIGIBLE_EXECUTOR")
    assert (await bench.known(can)).state is State.ACCEPTED


async def nothing_left(bench: Bench) -> None:
    """Wait until every errand has been carried out."""

    async def look() -> bool | None:
        return (await bench.desks.read(lambda rows: rows.next_errand())) is None or None

    await found(look)
