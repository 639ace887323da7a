"""Federation as a process of its own: a task crosses, and every service lets it do what that takes."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

from hopper.common.v1.options_pb2 import TRUST_LEVEL_KNOWN
from hopper.federation.v1 import peer_admin_service_pb2 as asvc
from hopper.federation.v1.artifact_service_pb2 import ListArtifactsRequest
from hopper.memory.v1.feedback_service_pb2 import GetStatsRequest
from hopper.router.v1.task_pb2 import TASK_VIEW_FULL, Task
from hopper.router.v1.task_service_pb2 import GetTaskRequest
from hopper_client import AsyncHopper, TaskContext
from hopper_testing.processes import HopperProcess, lonely_host
from tests.federation.harness import LOOPBACK, PATIENCE
from tests.federation.hoppers import POLICY, WholeHopper, found

SERVICES = ("registry", "router", "memory", "federation")


def of_their_own(directory: Path) -> dict[str, HopperProcess]:
    """Processes with directories of their own, which call each other by mutual TLS."""
    host = lonely_host()
    ports = {service: f"{host}:{8301 + place}" for place, service in enumerate(SERVICES)}
    environment = {f"HOPPER_{service.upper()}_ADDRESS": address for service, address in ports.items()}
    environment["HOPPER_IDENTITY_DIR"] = str(directory / "identity")
    return {
        service: HopperProcess(
            directory / service,
            service=service,
            environment=LOOPBACK | environment | {"HOPPER_SERVICES_LISTEN": ports[service]},
        )
        for service in SERVICES
    }


async def do(context: TaskContext) -> bytes:
    await context.put_artifact(b"see the note", name="note.txt")
    return b"done"


async def test_a_task_crosses_from_services_that_are_processes_of_their_own(directory: Path) -> None:
    """Each is called as the service that federation is, and lets it do no more than its access options say."""
    parts = of_their_own(directory)
    work = WholeHopper(directory / "work")
    async with AsyncExitStack() as stack:
        for process in parts.values():
            stack.callback(process.close)
            process.launch()
        for process in parts.values():
            await asyncio.to_thread(process.wait_ready)
        router, memory, federation = [
            await stack.enter_async_context(AsyncHopper(parts[service].address, timeout=PATIENCE))
            for service in ("router", "memory", "federation")
        ]
        await stack.enter_async_context(work.running())
        await work.project("reviews", "docs.review")
        await work.work("reviews", do)
        invitation = asvc.CreateInvitationRequest(peer_id="work", level=TRUST_LEVEL_KNOWN)
        await work.join((await federation.peers.CreateInvitation(invitation)).token, "home")
        await work.trust("home", POLICY)
        await federation.peers.SetTrust(asvc.SetTrustRequest(name="peers/work", policy=POLICY))

        submitted = await router.submit("a paper", required_capabilities=["docs.review"])
        request = GetTaskRequest(name=submitted.task.name, view=TASK_VIEW_FULL)

        async def ended() -> Task | None:
            task = (await router.tasks.GetTask(request)).task
            return task if task.state == Task.STATE_SUCCEEDED else None

        done = await found(ended)
        assert (done.project, done.result) == ("projects/peer-work", b"done")

        async def judged() -> bool | None:
            stats = await memory.feedback.GetStats(GetStatsRequest(project=done.project))
            return bool(stats.judged) or None

        assert await found(judged)

        async def pulled() -> bool | None:
            listed = await federation.artifacts.ListArtifacts(ListArtifactsRequest(task=done.name))
            return any(each.stored == each.artifact.size for each in listed.artifacts) or None

        assert await found(pulled)
