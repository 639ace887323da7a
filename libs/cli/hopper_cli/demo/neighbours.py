"""
The second half of the demo: two Hoppers on this machine, and work that crosses between them.

```
   home ── invitation, policy ──► work        what `home` cannot do, `work` may be asked to do
   home ── task ────────────────► work ── its worker ──► result ──► home
   home ── task ────────────────► work ── killed with -9 at half time, started again ──► result ──► home
   home ── private task           stays, whatever `work` could do with it
```
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Final, TypeVar

from google.protobuf.duration_pb2 import Duration

from hopper.common.v1.options_pb2 import TRUST_LEVEL_TRUSTED
from hopper.federation.v1 import delegation_service_pb2 as custody
from hopper.federation.v1 import peer_admin_service_pb2 as peers
from hopper.memory.v1.episode_pb2 import Feedback
from hopper.memory.v1.episodic_service_pb2 import GetEpisodeRequest
from hopper.registry.v1.project_pb2 import Project
from hopper.registry.v1.project_service_pb2 import ListProjectsRequest, RegisterProjectRequest
from hopper.router.v1.task_pb2 import Task, TaskView
from hopper.router.v1.task_service_pb2 import ExplainTaskRequest, GetTaskRequest
from hopper_cli.demo.child import OwnHopper, own_hopper
from hopper_client import AsyncHopper, TaskContext, Worker
from hopper_common.errors import HopperError, NotFound, Unavailable

T = TypeVar("T")

PATIENCE: Final = 40.0
_POLL: Final = 0.1
_SKILL: Final = "research.papers"
_OVER: Final = (Task.STATE_SUCCEEDED, Task.STATE_FAILED, Task.STATE_REJECTED, Task.STATE_CANCELLED)

HOME_POLICY: Final = f"""\
sensitive = ["private"]

[[rule]]
name = "research goes out"
effect = "allow"
direction = "out"
capabilities = ["{_SKILL}"]
"""
WORK_POLICY: Final = f"""\
[[rule]]
name = "research comes in"
effect = "allow"
direction = "in"
capabilities = ["{_SKILL}"]
in_flight = 10
"""


@dataclass(slots=True)
class Crossed:
    """
    One task that was done by the other Hopper.

    Attributes:
        seconds: From being submitted here to its result being here.
        custody: The chain, a line each.
        unverified: Links of it whose signature could not be verified.
        feedback: What home's memory has of how it went there.
        killed: The other Hopper was killed while it worked on it.
    """

    task: str
    title: str
    seconds: float
    result: str
    custody: list[str] = field(default_factory=list)
    unverified: int = 0
    feedback: str = ""
    killed: bool = False


@dataclass(slots=True)
class Together:
    """
    What came of it.

    Attributes:
        found: How `home` could have found `work` without being told: sightings.
        words: The six that both saw; empty: they differed.
        pairing_seconds: From the first Hopper's start to the pairing.
        stayed: Why the private task did not leave.
        failed: What went wrong, by what it was about; empty: nothing.
    """

    seconds: float = 0.0
    pairing_seconds: float = 0.0
    found: int = 0
    words: str = ""
    crossed: list[Crossed] = field(default_factory=list)
    stayed: str = ""
    outage_seconds: float = 0.0
    failed: dict[str, str] = field(default_factory=dict)


async def together(say: Callable[[str], None]) -> Together:
    """
    Do all of it.

    Args:
        say: Tells who watches what happens.

    Raises:
        HopperError: A call failed that should not.
        CommandError: A Hopper did not come up.
    """
    outcome, began = Together(), time.monotonic()
    async with AsyncExitStack() as stack:
        home_child = await stack.enter_async_context(own_hopper(**_settings("home")))
        work_child = await stack.enter_async_context(own_hopper(**_settings("work")))
        at_home, at_work = await asyncio.gather(home_child.start(), work_child.start())
        home = await stack.enter_async_context(AsyncHopper(at_home.address, timeout=30))
        work = await stack.enter_async_context(AsyncHopper(at_work.address, timeout=30))
        say("two Hoppers are up: home and work")
        await _look(home, outcome)
        await _pair(home, work, outcome)
        outcome.pairing_seconds = time.monotonic() - began
        say(f"paired: {outcome.words}")
        await _trust(home, work)
        await _settle_in(home, work)
        say("home may ask work for research, and nothing private leaves")
        # One that may be killed in the middle must be found again at the same port.
        work_child.environment["HOPPER_PEER_LISTEN"] = await _port_of(home)
        await _cross(home, work, outcome, say)
        await _stay(home, outcome, say)
        await _survive(home, work, work_child, outcome, say)
    outcome.seconds = time.monotonic() - began
    return outcome


def _settings(name: str) -> dict[str, str]:
    return {
        "HOPPER_NAME": name,
        "HOPPER_FEDERATION": "1",
        "HOPPER_PEER_LISTEN": "127.0.0.1:0",
        "HOPPER_PAIRING_LISTEN": "127.0.0.1:0",
        "HOPPER_DISCOVERY": "1" if _can_discover() else "0",
        "HOPPER_DISCOVERY_INTERFACES": "127.0.0.1",
    }


def _can_discover() -> bool:
    """What it takes is an extra: without it the two are told of each other."""
    with suppress(ImportError):
        import zeroconf  # noqa: F401 - only whether it is there

        return True
    return False


# ---------------------------------------------------------------- coming to know each other


async def _look(home: AsyncHopper, outcome: Together) -> None:
    """What is seen is a hint and no more: the pairing does not rest on it."""
    if not _can_discover():
        return
    seen = await home.peers.Discover(peers.DiscoverRequest(wait=Duration(seconds=1)))
    outcome.found = len(seen.sightings)


async def _pair(home: AsyncHopper, work: AsyncHopper, outcome: Together) -> None:
    invited = await work.peers.CreateInvitation(peers.CreateInvitationRequest(peer_id="home"))
    joined = await home.peers.Join(peers.JoinRequest(token=invited.token, peer_id="work"))
    there = await work.peers.GetPeer(peers.GetPeerRequest(name="peers/home"))
    words = " ".join(joined.peer.words)
    if list(joined.peer.words) != list(there.peer.words):
        outcome.failed["pairing"] = "the two owners see different words"
    outcome.words = words


async def _trust(home: AsyncHopper, work: AsyncHopper) -> None:
    for hopper, peer, policy in ((home, "peers/work", HOME_POLICY), (work, "peers/home", WORK_POLICY)):
        await hopper.peers.SetTrust(
            peers.SetTrustRequest(name=peer, level=TRUST_LEVEL_TRUSTED, policy=policy)
        )


async def _settle_in(home: AsyncHopper, work: AsyncHopper) -> None:
    """Until home knows what work can do."""
    project = Project(display_name="Research", capabilities=[_SKILL], tags=["papers"])
    await work.projects.RegisterProject(RegisterProjectRequest(project_id="research", project=project))

    async def known() -> bool:
        listed = await home.projects.ListProjects(ListProjectsRequest())
        return any(_SKILL in each.capabilities and each.HasField("border") for each in listed.projects)

    await _until(known, "home does not hear what work can do")


async def _port_of(home: AsyncHopper) -> str:
    peer = await home.peers.GetPeer(peers.GetPeerRequest(name="peers/work"))
    return peer.peer.addresses[0]


# ---------------------------------------------------------------- work that crosses


async def _cross(home: AsyncHopper, work: AsyncHopper, outcome: Together, say: Callable[[str], None]) -> None:
    worker = Worker(work, "projects/research", _research, worker_id="ada")
    running = asyncio.create_task(worker.run())
    try:
        crossed = await _asked(home, "Find what is known of fair queues")
    finally:
        worker.stop()
        await running
    outcome.crossed.append(crossed)
    _judge(crossed, outcome)
    say(f"done at work, and its result at home, {crossed.seconds:.1f} s after it was asked for")


async def _research(context: TaskContext) -> bytes:
    await context.progress(0.5, "reading")
    return f"three papers on {context.task.spec.title.removeprefix('Find what is known of ')}".encode()


async def _asked(home: AsyncHopper, title: str) -> Crossed:
    began = time.monotonic()
    made = await home.submit(title, required_capabilities=[_SKILL], requester="demo")
    task = await _ended(home, made.task.name)
    return await _told(home, task, time.monotonic() - began)


async def _ended(home: AsyncHopper, name: str) -> Task:
    async def over() -> Task | None:
        answer = await home.tasks.GetTask(GetTaskRequest(name=name, view=TaskView.TASK_VIEW_FULL))
        return answer.task if answer.task.state in _OVER else None

    return await _until(over, f"{name} did not come back")


async def _told(home: AsyncHopper, task: Task, seconds: float) -> Crossed:
    explained = await home.remote_delegations.ExplainCustody(custody.ExplainCustodyRequest(task=task.name))
    links = [link for hand_over in explained.hand_overs for link in hand_over.custody]
    return Crossed(
        feedback=await _until(
            lambda: _feedback(home, task), f"{task.name} came back without a word on how it went"
        ),
        task=task.name,
        title=task.spec.title,
        seconds=seconds,
        result=task.result.decode(errors="replace"),
        custody=[link.text for link in links],
        unverified=sum(not link.verified for link in links) if links else 1,
    )


async def _feedback(home: AsyncHopper, task: Task) -> str | None:
    """What was said of the decision that sent it there: it comes a moment after the result."""
    with suppress(NotFound):
        episode = (await home.episodes.GetEpisode(GetEpisodeRequest(decision=task.decision))).episode
        if episode.feedback:
            newest = episode.feedback[-1]
            effort = newest.actual_effort.ToTimedelta().total_seconds()
            match = "a good match" if newest.match == Feedback.MATCH_GOOD else "no good match"
            return f"{newest.author} says: {match}, {effort:.1f} s of work"
    return None


def _judge(crossed: Crossed, outcome: Together) -> None:
    if not crossed.result:
        outcome.failed[crossed.task] = "it came back without a result"
    elif crossed.unverified:
        outcome.failed[crossed.task] = f"{crossed.unverified} links of its custody are not verified"


async def _stay(home: AsyncHopper, outcome: Together, say: Callable[[str], None]) -> None:
    made = await home.submit(
        "Find what is known of my own health",
        required_capabilities=[_SKILL],
        labels={"private": "yes"},
        requester="demo",
    )
    explained = await home.tasks.ExplainTask(ExplainTaskRequest(name=made.task.name))
    outcome.stayed = " ".join(explained.sentences)
    if made.decision.project:
        outcome.failed[made.task.name] = f"what is private was routed to {made.decision.project}"
    say("what is private stays at home")


async def _survive(
    home: AsyncHopper,
    work: AsyncHopper,
    child: OwnHopper,
    outcome: Together,
    say: Callable[[str], None],
) -> None:
    """Work is killed while its worker is busy, and started again: nothing is lost, and nothing done twice."""
    begun = asyncio.Event()

    async def slow(context: TaskContext) -> bytes:
        begun.set()
        await asyncio.sleep(2)
        return await _research(context)

    worker = Worker(work, "projects/research", slow, worker_id="ada")
    running = asyncio.create_task(worker.run())
    asked = asyncio.create_task(_asked(home, "Find what is known of lost messages"))
    try:
        await asyncio.wait_for(begun.wait(), PATIENCE)
        logging.getLogger("hopper_client").setLevel(logging.ERROR)  # that its Hopper is gone is no news
        await child.kill()
        down = time.monotonic()
        say("work is killed with -9 while its worker is busy")
        await child.start()
        outcome.outage_seconds = time.monotonic() - down
        say(f"and is back after {outcome.outage_seconds:.1f} s")
        crossed = await asked
    finally:
        logging.getLogger("hopper_client").setLevel(logging.NOTSET)
        asked.cancel()
        worker.stop()
        await asyncio.gather(running, return_exceptions=True)
    crossed.killed = True
    outcome.crossed.append(crossed)
    _judge(crossed, outcome)
    say(f"nothing was lost: its result is at home, {crossed.seconds:.1f} s after it was asked for")


async def _until(look: Callable[[], Awaitable[T | None]], problem: str) -> T:
    """What *look* finds, once it finds something."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with suppress(Unavailable):
            if found := await look():
                return found
        await asyncio.sleep(_POLL)
    raise HopperError(problem)
