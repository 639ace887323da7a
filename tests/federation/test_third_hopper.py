"""A task that goes through a Hopper to a third, which its origin does not know; and its result all the way back."""

from collections.abc import AsyncIterator
from typing import Final, NamedTuple

import pytest
import pytest_asyncio

from hopper.federation.v1 import delegation_service_pb2 as rsvc
from hopper.federation.v1.delegation_pb2 import DELEGATION_STATE_COMPLETED
from hopper.router.v1.task_pb2 import Task
from hopper_client import TaskContext
from hopper_testing.processes import temporary_directory
from tests.federation.hoppers import WholeHopper, pair

pytestmark = pytest.mark.asyncio(loop_scope="module")

POLICY: Final = """
[[rule]]
name = "reviews, wherever"
effect = "allow"
direction = "both"
capabilities = ["docs.*"]
transit = "any"
"""


class Three(NamedTuple):
    """home knows the agency, and the agency knows somebody who can do it."""

    home: WholeHopper
    agency: WholeHopper
    expert: WholeHopper

    @property
    def all(self) -> tuple[WholeHopper, ...]:
        return (self.home, self.agency, self.expert)


async def review(context: TaskContext) -> bytes:
    return f"read: {context.task.spec.title}".encode()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def three() -> AsyncIterator[Three]:
    """Paired in a line; each knows what the next one takes."""
    with temporary_directory() as directory:
        home, agency, expert = (WholeHopper(directory / name) for name in ("home", "agency", "expert"))
        async with home.running(), agency.running(), expert.running():
            await pair(home, agency)
            await pair(agency, expert)
            await expert.project("reviews", "docs.review")
            await expert.work("reviews", review)
            for one, other in ((home, agency), (agency, expert)):
                await one.trust(other.name, POLICY)
                await other.trust(one.name, POLICY)
            for hopper in (agency, home):
                await hopper.offers("docs.review")
            yield Three(home, agency, expert)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def done(three: Three) -> Task:
    """A task of home's, as home has it in the end."""
    name = await three.home.submit("a paper", "docs.review", labels={"project": "x"})
    return await three.home.reached(name, Task.STATE_SUCCEEDED)


async def custody(hopper: WholeHopper) -> list[tuple[str, str, bool, str]]:
    """Of the newest hand-over that has ended well."""
    hand_over = await hopper.hand_over(DELEGATION_STATE_COMPLETED)
    request = rsvc.GetRemoteDelegationRequest(id=hand_over.id)
    links = (await hopper.client.remote_delegations.GetRemoteDelegation(request)).custody
    return [(link.kind, link.peer.removeprefix("peers/"), link.verified, link.problem) for link in links]


async def test_it_is_done_by_the_third_and_the_result_comes_back(three: Three, done: Task) -> None:
    assert done.result == b"read: a paper"
    (there,) = [task for task in await three.expert.tasks() if task.spec.title == "a paper"]
    assert there.spec.requester == "peer.agency"
    assert there.spec.labels["project"] == "x"
    assert len(there.spec.labels["hopper.path"].split(",")) == 2


async def test_it_is_the_same_task_everywhere(three: Three, done: Task) -> None:
    uids = {each.task_uid for hopper in three.all for each in await hopper.hand_overs()}
    (uid,) = uids
    assert uid.endswith(done.name.rpartition("/")[2])


async def test_who_is_not_known_is_quoted_by_who_is(three: Three, done: Task) -> None:
    """home does not know the expert, nor the expert home; the agency knows both."""
    assert await custody(three.home) == [
        ("task", "", True, ""),
        ("hop", "", True, ""),
        ("result", "", False, ""),
        ("countersign", "agency", True, ""),
    ]
    assert await custody(three.expert) == [
        ("task", "", False, ""),
        ("hop", "", False, ""),
        ("hop", "agency", True, ""),
        ("result", "", True, ""),
    ]


async def test_who_is_in_between_knows_all_of_it(three: Three, done: Task) -> None:
    (task,) = [each for each in await three.agency.tasks() if each.name.startswith("instances/global/")]
    request = rsvc.ExplainCustodyRequest(task=task.name)
    came, went = (await three.agency.client.remote_delegations.ExplainCustody(request)).hand_overs
    assert [came.delegation.handed_over, went.delegation.handed_over] == [False, True]
    assert [link.kind for link in came.custody] == ["task", "hop", "result", "countersign"]
    assert [link.kind for link in went.custody] == ["task", "hop", "hop", "result"]
    assert all(link.verified for each in (came, went) for link in each.custody)
