"""Home and work, as the README tells it: its two policies, and what each of their rules says of real tasks."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest
import pytest_asyncio

from hopper.federation.v1 import delegation_service_pb2 as rsvc
from hopper.federation.v1.delegation_pb2 import DELEGATION_STATE_QUARANTINED
from hopper.federation.v1.peer_admin_service_pb2 import (
    Crossing,
    ExplainPolicyRequest,
    ExplainPolicyResponse,
)
from hopper.router.v1 import delegation_service_pb2 as dsvc
from hopper.router.v1.delegation_pb2 import Delegation
from hopper.router.v1.task_pb2 import Task, Wait
from hopper.router.v1.task_service_pb2 import CancelTaskRequest
from hopper_client import TaskContext
from hopper_testing.processes import temporary_directory
from tests.federation.hoppers import WholeHopper, pair

pytestmark = pytest.mark.asyncio(loop_scope="module")

README: Final = Path(__file__).parents[2] / "services" / "federation" / "README.md"

DECIDE: Final = rsvc.DecideRemoteDelegationRequest


def policies() -> tuple[str, str]:
    """As they stand in the README: home's for work, and work's for home; without a date that is going to pass."""
    at_home, at_work = re.findall(r"```toml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    without_date, dates = re.subn(r"(?m)^expires = .*\n", "", at_home)
    assert dates == 1
    return without_date, at_work


class Both(NamedTuple):
    """Two Hoppers of one person."""

    home: WholeHopper
    work: WholeHopper


async def do(context: TaskContext) -> str:
    return f"done: {context.task.spec.title}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def both() -> AsyncIterator[Both]:
    """Each can do something that the other cannot, and knows what the other takes."""
    with temporary_directory() as directory:
        home, work = WholeHopper(directory / "home"), WholeHopper(directory / "work")
        async with home.running(), work.running():
            await pair(home, work)
            await home.project("house", "house.garden", "docs.scan", "research.recipes")
            await work.project("office", "docs.review", "docs.sign", "research.books")
            await home.work("house", do)
            await work.work("office", do)
            at_home, at_work = policies()
            await home.trust("work", at_home)
            await work.trust("home", at_work)
            for capability in ("docs.review", "docs.sign", "research.books"):
                await home.offers(capability)
            await work.offers("research.recipes")
            yield Both(home, work)


async def ruling(hopper: WholeHopper, peer: str, task: str) -> ExplainPolicyResponse:
    """What a Hopper's policy says of one of its tasks, were it to go there."""
    out = Crossing(direction=Crossing.DIRECTION_OUT)
    request = ExplainPolicyRequest(name=f"peers/{peer}", crossing=out, task=task)
    return await hopper.client.peers.ExplainPolicy(request)


async def titles(hopper: WholeHopper) -> set[str]:
    """Of all tasks that a Hopper has ever had."""
    return {task.spec.title for task in await hopper.tasks()}


async def stays(hopper: WholeHopper, other: WholeHopper, task: str) -> ExplainPolicyResponse:
    """See that a task goes nowhere, not even where a person sends it; what the policy says of it."""
    here = await hopper.task(task)
    assert (here.state, here.wait.reason) == (Task.STATE_SUBMITTED, Wait.REASON_NO_ELIGIBLE_EXECUTOR)
    said = await ruling(hopper, other.name, task)
    assert not said.allowed
    sent = dsvc.DelegateTaskRequest(
        task=task, kind=Delegation.KIND_ROUTE, to_instance=f"instances/peer-{other.name}"
    )
    await hopper.client.delegations.DelegateTask(sent)
    await hopper.reached(task, Task.STATE_SUBMITTED)
    assert here.spec.title not in {each.title for each in await hopper.hand_overs()}
    assert here.spec.title not in await titles(other)
    await hopper.client.tasks.CancelTask(CancelTaskRequest(name=task))
    return said


def assert_by(said: ExplainPolicyResponse, reason: str, rule: str) -> None:
    """Which rule it was, and why."""
    assert (said.reason, said.rule.partition(":")[0]) == (reason, rule)


async def test_what_is_personal_is_done_at_home(both: Both) -> None:
    name = await both.home.submit("water the roses", "house.garden", tags=["personal"])
    done = await both.home.reached(name, Task.STATE_SUCCEEDED)
    assert done.project == "projects/house"
    assert "water the roses" not in await titles(both.work)


@pytest.mark.parametrize("fields", [{"tags": ["personal"]}, {"labels": {"health": "knee"}}])
@pytest.mark.parametrize("capability", ["docs.review", "research.books"])
async def test_what_is_personal_stays_at_home(both: Both, capability: str, fields: dict[str, object]) -> None:
    name = await both.home.submit(f"a letter, {capability}, {fields}", capability, **fields)
    said = await stays(both.home, both.work, name)
    assert_by(said, "LABEL_DENIED", "personal stays")


async def test_documents_go_to_work_without_who_asked_and_what_for(both: Both) -> None:
    name = await both.home.submit(
        "a report", "docs.review", tags=["work"], labels={"project": "moon"}, requester="mia"
    )
    done = await both.home.reached(name, Task.STATE_SUCCEEDED)
    assert (done.project, done.result) == ("projects/peer-work", b"done: a report")
    assert (done.spec.requester, done.spec.labels["project"]) == ("mia", "moon")
    (there,) = [task for task in await both.work.tasks() if task.spec.title == "a report"]
    assert list(there.spec.tags) == ["work"]
    assert {key for key in there.spec.labels if not key.startswith("hopper.")} == set()
    for secret in (b"mia", b"moon"):
        assert secret not in there.SerializeToString()


async def test_documents_do_not_come_from_work(both: Both) -> None:
    """Though home could do it, and says nothing of that to work."""
    said = await stays(both.work, both.home, await both.work.submit("a contract", "docs.scan"))
    assert said.reason == "CAPABILITY_DENIED"


async def test_research_goes_either_way(both: Both) -> None:
    for here, there, capability in (
        (both.home, both.work, "research.books"),
        (both.work, both.home, "research.recipes"),
    ):
        done = await here.reached(await here.submit(capability, capability), Task.STATE_SUCCEEDED)
        assert done.project == f"projects/peer-{there.name}"
        assert capability in await titles(there)


async def test_what_is_about_customers_stays_at_work(both: Both) -> None:
    name = await both.work.submit("soup", "research.recipes", labels={"customer": "acme"})
    said = await stays(both.work, both.home, name)
    assert_by(said, "LABEL_DENIED", "customers stay")


async def test_what_is_private_needs_a_peer_that_was_compared(both: Both) -> None:
    said = await stays(
        both.home, both.work, await both.home.submit("a poem", "research.books", tags=["private"])
    )
    assert said.reason == "LABEL_DENIED"


async def test_what_no_rule_names_stays(both: Both) -> None:
    name = await both.home.submit("a thesis", "docs.review", tags=["study"])
    said = await stays(both.home, both.work, name)
    assert_by(said, "LABEL_DENIED", "documents to work")


async def test_what_is_too_urgent_stays(both: Both) -> None:
    name = await both.home.submit("now", "docs.review", tags=["work"], priority=61)
    said = await stays(both.home, both.work, name)
    assert_by(said, "QUOTA", "documents to work")


async def test_what_is_to_be_signed_is_looked_at_by_a_person_at_work(both: Both) -> None:
    name = await both.home.submit("a lease", "docs.sign", tags=["work"])
    waits = await both.work.hand_over(DELEGATION_STATE_QUARANTINED)
    assert waits.title == "a lease"
    assert "a lease" not in await titles(both.work)
    verdict = DECIDE(id=waits.id, verdict=DECIDE.VERDICT_ACCEPT)
    await both.work.client.remote_delegations.DecideRemoteDelegation(verdict)
    assert (await both.home.reached(name, Task.STATE_SUCCEEDED)).result == b"done: a lease"
