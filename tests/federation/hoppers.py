"""Whole Hoppers, each with a data directory of its own, in this process: paired, trusted, and put to work."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from hopper.common.v1.options_pb2 import TRUST_LEVEL_KNOWN
from hopper.federation.v1 import delegation_service_pb2 as rsvc
from hopper.federation.v1 import peer_admin_service_pb2 as asvc
from hopper.federation.v1 import peer_pb2 as ppb
from hopper.registry.v1 import project_service_pb2 as psvc
from hopper.registry.v1.project_pb2 import Executor, Project
from hopper.router.v1 import routing_service_pb2 as wsvc
from hopper.router.v1 import task_service_pb2 as tsvc
from hopper.router.v1.task_pb2 import TASK_VIEW_FULL, Task, TaskSpec
from hopper_client import AsyncHopper, TaskContext, Unreachable, Worker
from hopper_common.errors import NotFound, ServiceUnavailable
from hopper_common.host import Ready, installed_services, serve
from hopper_common.settings import HostSettings
from tests.federation.harness import LOOPBACK, PATIENCE, environment, loopback_of_its_own

T = TypeVar("T")

A_CLAIM_IS_OVER: Final = 180.0
"""Seconds until what was claimed by who died, or was cut off, has been done by another; and some."""

POLICY: Final = """
[[rule]]
name = "reviews"
effect = "allow"
direction = "both"
capabilities = ["docs.*"]
"""


class WholeHopper:
    """
    All services in one process, as `hopper up` runs them.

    `start` and `stop` may alternate: the data directory stays, and so does the port for peers.
    """

    def __init__(self, directory: Path, **variables: str) -> None:
        self.directory = directory
        self.name = directory.name
        listen = {"HOPPER_PEER_LISTEN": f"{loopback_of_its_own()}:0"}
        self.variables = {**LOOPBACK, **listen, "HOPPER_NAME": self.name, **variables}
        self._server = AsyncExitStack()
        self._work = AsyncExitStack()
        self.client: AsyncHopper

    @asynccontextmanager
    async def running(self) -> AsyncIterator["WholeHopper"]:
        """Start, and stop in the end."""
        await self.start()
        try:
            yield self
        finally:
            await self.stop()

    async def start(self) -> None:
        """Serve, and connect."""
        with environment(**self.variables):
            settings = HostSettings(data_dir=self.directory)
            await self._server.enter_async_context(_served(settings))
        self.client = AsyncHopper(f"unix:{settings.socket_path}", timeout=PATIENCE)
        self._server.push_async_callback(self.client.close)
        await found(self._answers)

    async def _answers(self) -> bool | None:
        """
        Whether it does.

        Channels of one process share their connections by address: what was called while nobody served there makes
        others wait too before it is tried again.
        """
        try:
            await self.client.projects.ListProjects(psvc.ListProjectsRequest())
        except Unreachable:
            return None
        return True

    async def stop(self) -> None:
        """Workers first, then the rest."""
        await self._work.aclose()
        await self._server.aclose()

    # Peers.

    async def invite(self, name: str) -> str:
        request = asvc.CreateInvitationRequest(peer_id=name, level=TRUST_LEVEL_KNOWN)
        return (await self.client.peers.CreateInvitation(request)).token

    async def join(self, token: str, name: str) -> ppb.Peer:
        return (await self.client.peers.Join(asvc.JoinRequest(token=token, peer_id=name))).peer

    async def peer(self, name: str) -> ppb.Peer:
        return (await self.client.peers.GetPeer(asvc.GetPeerRequest(name=f"peers/{name}"))).peer

    async def trust(self, name: str, policy: str = POLICY) -> None:
        await self.client.peers.SetTrust(asvc.SetTrustRequest(name=f"peers/{name}", policy=policy))

    async def revoke(self, name: str, mode: Any) -> None:
        await self.client.peers.RevokePeer(asvc.RevokePeerRequest(name=f"peers/{name}", mode=mode))

    # Work.

    async def project(self, name: str, *capabilities: str) -> None:
        """A project of its own that needs a live worker."""
        project = Project(capabilities=capabilities, executor=Executor(requires_live_worker=True))
        await self.client.projects.RegisterProject(
            psvc.RegisterProjectRequest(project_id=name, project=project)
        )

    async def work(
        self, project: str, handler: Callable[[TaskContext], Awaitable[bytes | str | None]]
    ) -> Worker:
        """Have somebody work for a project until the Hopper stops."""
        worker = Worker(self.client, f"projects/{project}", handler, worker_id=f"{self.name}-1")
        running = asyncio.ensure_future(worker.run())

        async def end() -> None:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

        self._work.push_async_callback(end)
        return worker

    async def submit(self, title: str, *capabilities: str, **fields: Any) -> str:
        """A task; returns its name."""
        answer = await self.client.submit(title, required_capabilities=capabilities, **fields)
        return answer.task.name

    async def task(self, name: str) -> Task:
        return (await self.client.tasks.GetTask(tsvc.GetTaskRequest(name=name, view=TASK_VIEW_FULL))).task

    async def tasks(self) -> list[Task]:
        """All tasks, of every state."""
        states = [value for value in Task.State.values() if value]
        return list((await self.client.tasks.ListTasks(tsvc.ListTasksRequest(states=states))).tasks)

    async def reached(self, name: str, *states: Task.State.ValueType) -> Task:
        """The task, once it is in one of the states."""

        async def look() -> Task | None:
            task = await self.task(name)
            return task if task.state in states else None

        return await found(look, A_CLAIM_IS_OVER)

    async def hand_overs(self) -> list[rsvc.RemoteDelegation]:
        """All hand-overs, the newest first."""
        request = rsvc.ListRemoteDelegationsRequest()
        return list((await self.client.remote_delegations.ListRemoteDelegations(request)).delegations)

    async def hand_over(self, *states: Any) -> rsvc.RemoteDelegation:
        """The newest hand-over, once there is one in one of the states."""

        async def look() -> rsvc.RemoteDelegation | None:
            hand_overs = await self.hand_overs()
            return hand_overs[0] if hand_overs and hand_overs[0].state in states else None

        return await found(look)

    async def can_place(self, capability: str) -> None:
        """Wait until the router would choose somebody for it: what the registry has, it hears a moment later."""
        spec = TaskSpec(title="whoever can", required_capabilities=[capability])
        request = wsvc.SuggestRouteRequest(parent="instances/global", spec=spec)

        async def look() -> bool | None:
            return bool((await self.client.routing.SuggestRoute(request)).decision.candidates) or None

        await found(look)

    async def offers(self, capability: str) -> str:
        """The project of a peer that has a capability and somebody there, once there is one."""

        async def look() -> str | None:
            request = psvc.ListProjectsRequest(capability=capability)
            projects = (await self.client.projects.ListProjects(request)).projects
            peers = [each for each in projects if each.executor.type == Executor.TYPE_PEER]
            return peers[0].name if peers and peers[0].presence.live_workers else None

        return await found(look)


@asynccontextmanager
async def _served(settings: HostSettings) -> AsyncIterator[None]:
    stop = asyncio.Event()
    started: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as group:
        group.create_task(serve(installed_services(), settings, ready=started.set_result, stop=stop))
        await started
        yield
        stop.set()


async def found(look: Callable[[], Awaitable[T | None]], patience: float = PATIENCE) -> T:
    """What comes of looking, once it is there."""
    async with asyncio.timeout(patience):
        while True:
            try:
                result = await look()
            except (NotFound, ServiceUnavailable):  # another process takes over, say
                result = None
            if result is not None:
                return result
            await asyncio.sleep(0.02)


async def pair(left: WholeHopper, right: WholeHopper) -> None:
    """Have each as a peer of the other, by the names of their directories, where it will be after a restart too."""
    await right.join(await left.invite(right.name), left.name)
    for one, other in ((left, right), (right, left)):
        (address, *_) = (await other.peer(one.name)).addresses
        one.variables["HOPPER_PEER_LISTEN"] = address
