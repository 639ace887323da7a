"""
Each peer's place in this Hopper's registry: a project that the router chooses like any other, if the peer is trusted,
and an instance that what is routed to it is handed to.

    trust, policy ─┐
    what it says ──┼─► place_of ─► the step that is missing ─► registry ─► router
    registry ──────┘                                            ▲
    heard of ─► a heartbeat, with as many slots as it would take┘   none for a while: the router leaves it out by itself

The policy goes along as the project's border, so that the router sees at once what could never leave. What the owner
sets on the project besides, its price, tags or boosts, stays; pausing it is the owner's way to send nothing there. A
peer that is no longer trusted so far, or wants nothing more of this Hopper, keeps its project, and its instance is
stopped: what is under way there goes on, what waits goes back.

A peer that is only known has a place too, which the router does not choose: what is there, a person has sent. So where
a peer has fallen to that level, its instance is stopped first, and what was routed there goes back.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import grpc.aio
import structlog
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from hopper.common.v1.options_pb2 import TRUST_LEVEL_KNOWN
from hopper.registry.v1 import instance_service_pb2 as isvc
from hopper.registry.v1 import project_service_pb2 as psvc
from hopper.registry.v1.instance_pb2 import SCOPE_FEDERATED, Instance, InstanceConfig
from hopper.registry.v1.instance_service_pb2_grpc import InstanceServiceStub
from hopper.registry.v1.project_pb2 import Border, Executor, Project, Worker
from hopper.registry.v1.project_service_pb2_grpc import ProjectServiceStub
from hopper_common.database import Signal
from hopper_common.errors import AlreadyExists, HopperError, Overloaded, StorageFull, StorageUnavailable
from hopper_common.timestamps import to_proto
from hopper_federation.convert import level_to_proto
from hopper_federation.delegation.calls import CALL_SECONDS, made
from hopper_federation.delegation.credits import Credits
from hopper_federation.delegation.inquiring import Advertised, Inquirer
from hopper_federation.delegation.own_registry import OwnRegistry
from hopper_federation.statuses import REFUSALS, Statuses
from hopper_federation.store_sql import Federation, SqlStore
from hopper_federation.trust import Level
from hopper_federation.trust_admin import TrustAdmin
from hopper_federation.trust_snapshot import TrustedPeer, TrustSnapshot, TrustSnapshots

if TYPE_CHECKING:  # they are in the type stubs only
    from hopper.registry.v1.instance_service_pb2_grpc import InstanceServiceAsyncStub
    from hopper.registry.v1.project_service_pb2_grpc import ProjectServiceAsyncStub

log = structlog.get_logger(__name__)

WORKER: Final = "federation"
PEER_LABEL: Final = "hopper.peer"
ROOT: Final = "instances/global"

LOOK_SECONDS: Final = 1.0
BEAT_SECONDS: Final = 7.0
TIME_TO_LIVE: Final = timedelta(seconds=20)
HEARD_WITHIN: Final = timedelta(seconds=25)
"""Together with the time to live: how long a peer that falls silent is still offered work."""

LOOK_EVERY: Final = 30.0
_AGAIN_AFTER: Final = 1.0
_MOST_ID: Final = 63

_OURS: Final = ("display_name", "working_hours", "velocity_per_day", "border")
_SAID: Final = ("capabilities",)


@dataclass(frozen=True, slots=True)
class Place:
    """
    What the registry should have of a peer.

    Attributes:
        open: Work may be handed there.
        project: The fields that are the federation service's.
        paths: Which these are.
    """

    open: bool
    project: Project
    paths: tuple[str, ...]


def place_of(peer: TrustedPeer, policy: str, said: Advertised | None, *, refuses: bool = False) -> Place:
    """
    What the registry should have.

    Args:
        policy: The one in force; empty: there is none.
        said: What the peer says of itself; None: nothing yet, and then what it said earlier stays.
        refuses: It wants nothing more of this Hopper, so that nothing is to wait for it.
    """
    trusted = bool(policy) and peer.may(Level.TRUSTED) and not refuses
    takes_work = trusted or (peer.level is Level.KNOWN and not refuses)
    border = Border(policy=policy if trusted else "", level=level_to_proto(peer.level), peer=peer.install_id)
    project = Project(display_name=peer.name.removeprefix("peers/"), border=border)
    if said is None:
        return Place(takes_work, project, ("display_name", "border"))
    project.capabilities.extend(said.capabilities)
    project.velocity_per_day = said.velocity
    if said.working_hours is not None:
        project.working_hours.CopyFrom(said.working_hours)
    return Place(takes_work, project, (*_OURS, *_SAID))


class Places:
    """Where in this Hopper's registry each peer has its place."""

    def __init__(self, registry: OwnRegistry) -> None:
        self._registry = registry

    def project_of(self, install_id: str) -> Project | None:
        """The project that stands for a peer."""
        found = (
            project
            for _, project in sorted(self._registry.projects.items())
            if project.executor.type == Executor.TYPE_PEER and project.border.peer == install_id
        )
        return next(found, None)

    def instance_for(self, project: str) -> Instance | None:
        """The instance that what is routed to a project is handed to."""
        found = (
            instance
            for instance in self._registry.instances.values()
            if instance.project == project and instance.state != Instance.STATE_TERMINATED
        )
        return next(found, None)

    def working(self, install_id: str) -> str:
        """The instance in which a peer may be handed work now; empty: there is none."""
        project = self.project_of(install_id)
        instance = None if project is None else self.instance_for(project.name)
        if instance is None or instance.state not in _AT_WORK:
            return ""
        return instance.name

    def closing(self, install_id: str) -> str:
        """The instance of a peer that is being stopped; empty: there is none."""
        project = self.project_of(install_id)
        instance = None if project is None else self.instance_for(project.name)
        stopping = instance is not None and instance.state == Instance.STATE_STOPPING
        return instance.name if instance is not None and stopping else ""

    def by_hand(self, install_id: str) -> bool:
        """Whether all that waits for a peer was sent there by a person: it is no more than known."""
        project = self.project_of(install_id)
        return project is not None and project.border.level == TRUST_LEVEL_KNOWN

    def peer_at(self, instance: str) -> str:
        """The install id of the peer that an instance stands for; empty: it stands for none."""
        known = self._registry.instances.get(instance)
        return known.config.peer if known is not None and known.scope == SCOPE_FEDERATED else ""


class PlaceKeeper:
    """Runs beside the server."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        registry: OwnRegistry,
        federation: Federation,
        trust: TrustAdmin,
        snapshots: TrustSnapshots,
        statuses: Statuses,
        inquirer: Inquirer,
    ) -> None:
        self._projects: ProjectServiceAsyncStub = ProjectServiceStub(channel)
        self._instances: InstanceServiceAsyncStub = InstanceServiceStub(channel)
        self._registry = registry
        self._places = Places(registry)
        self._federation = federation
        self._trust = trust
        self._snapshots = snapshots
        self._statuses = statuses
        self._inquirer = inquirer
        self._changed = Signal()
        snapshots.on_change(self._on_trust)
        statuses.on_failed(self._on_failed)
        statuses.on_back(lambda _: self._changed.fire())

    async def run(self) -> None:
        """Keep each peer's place right, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep())
            group.create_task(self._pass_on(self._registry.changed))
            group.create_task(self._pass_on(self._inquirer.changed))

    async def _pass_on(self, signal: Signal) -> None:
        seen = 0
        while True:
            seen = await signal.wait(after=seen)
            self._changed.fire()

    async def _keep(self) -> None:
        while True:
            seen = self._changed.count
            whole = not self._registry.known or await self._undisturbed()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY if whole else _AGAIN_AFTER):
                    await self._changed.wait(after=seen)

    async def _undisturbed(self) -> bool:
        try:
            return await self._look()
        except (StorageFull, StorageUnavailable, Overloaded) as error:
            log.warning("the places of peers are not looked at", reason=error.reason)
            return False

    async def _look(self) -> bool:
        """Take the next step for each peer that needs one. Returns whether none was refused."""
        peers = self._snapshots.current.peers
        policies = await self._federation.read(lambda store: self._policies(store, peers))
        whole = True
        for install_id, peer in peers.items():
            place = place_of(
                peer,
                policies[install_id],
                self._inquirer.known.get(install_id),
                refuses=self._statuses.of(install_id).refuses,
            )
            try:
                await self._step(peer, place)
            except HopperError as error:
                whole = False
                log.warning("a peer has not its place yet", peer=peer.name, reason=error.reason)
        return whole

    def _policies(self, store: SqlStore, peers: Iterable[str]) -> dict[str, str]:
        return {install_id: self._trust.policy_text(store, install_id) for install_id in peers}

    async def _step(self, peer: TrustedPeer, place: Place) -> None:
        """The next thing that is missing; what comes of it is seen in the registry, and then the one after it."""
        project = self._places.project_of(peer.install_id)
        if project is None:
            if place.open:
                await self._register(peer, place)
            return
        if await self._emptied(peer, project, place):
            return
        paths = list(_differing(project, place))
        if paths:
            wanted = Project(name=project.name)
            wanted.MergeFrom(place.project)
            request = psvc.UpdateProjectRequest(project=wanted, update_mask=FieldMask(paths=paths))
            await made(self._projects.UpdateProject(request, timeout=CALL_SECONDS))
            log.info("a peer's project is up to date", peer=peer.name, project=project.name, fields=paths)
        await self._settle_instance(peer, project.name, place)

    async def _emptied(self, peer: TrustedPeer, project: Project, place: Place) -> bool:
        """Whether a peer that has fallen to where only people send work had to be emptied of what was routed there."""
        fallen = place.project.border.level == TRUST_LEVEL_KNOWN != project.border.level
        instance = self._places.instance_for(project.name)
        if not fallen or instance is None or instance.state not in _TO_STOP:
            return False
        await self._stop(peer, instance)
        return True

    async def _register(self, peer: TrustedPeer, place: Place) -> None:
        project = Project(
            executor=Executor(type=Executor.TYPE_PEER, requires_live_worker=True),
            labels={PEER_LABEL: peer.install_id},
        )
        project.MergeFrom(place.project)
        request = psvc.RegisterProjectRequest(project_id=self._free_id(peer), project=project)
        with contextlib.suppress(AlreadyExists):  # somebody was faster: it is seen in the registry
            await made(self._projects.RegisterProject(request, timeout=CALL_SECONDS))
            log.info("a peer has a project", peer=peer.name, project=request.project_id)

    def _free_id(self, peer: TrustedPeer) -> str:
        """Nobody's name yet: its owner may call a project of its own as a peer's."""
        wished = f"peer-{peer.name.removeprefix('peers/')}"
        ids = (wished[: _MOST_ID - len(end)].rstrip("._-") + end for end in _endings())
        return next(each for each in ids if f"projects/{each}" not in self._registry.projects)

    async def _settle_instance(self, peer: TrustedPeer, project: str, place: Place) -> None:
        instance = self._places.instance_for(project)
        if instance is None:
            if place.open:
                await self._create_instance(peer, project)
        elif place.open and instance.state in _TO_START:
            await made(
                self._instances.StartInstance(
                    isvc.StartInstanceRequest(name=instance.name), timeout=CALL_SECONDS
                )
            )
        elif not place.open and instance.state in _TO_STOP:
            await self._stop(peer, instance)

    async def _stop(self, peer: TrustedPeer, instance: Instance) -> None:
        request = isvc.StopInstanceRequest(name=instance.name, reason=f"{peer.name} is {peer.level}")
        await made(self._instances.StopInstance(request, timeout=CALL_SECONDS))
        log.info("a peer is handed nothing that waited for it", peer=peer.name, level=peer.level)

    async def _create_instance(self, peer: TrustedPeer, project: str) -> None:
        instance = Instance(
            parent=ROOT,
            scope=SCOPE_FEDERATED,
            display_name=peer.name.removeprefix("peers/"),
            project=project,
            config=InstanceConfig(peer=peer.install_id),
        )
        request = isvc.CreateInstanceRequest(instance_id=project.removeprefix("projects/"), instance=instance)
        with contextlib.suppress(AlreadyExists):
            await made(self._instances.CreateInstance(request, timeout=CALL_SECONDS))

    def _on_trust(self, _: TrustSnapshot) -> None:
        self._changed.fire()

    def _on_failed(self, _: str, reason: str) -> None:
        if reason in REFUSALS:
            self._changed.fire()


class Pulse:
    """
    Tells the registry of each peer that is heard of, with as many slots as it would take. Runs beside the server.

    Args:
        open_with: How many hand-overs are open with a peer, by its install id.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        places: Places,
        snapshots: TrustSnapshots,
        statuses: Statuses,
        credit: Credits,
        *,
        open_with: Callable[[str], int],
    ) -> None:
        self._projects: ProjectServiceAsyncStub = ProjectServiceStub(channel)
        self._places = places
        self._snapshots = snapshots
        self._statuses = statuses
        self._credit = credit
        self._open_with = open_with
        self._said: dict[str, tuple[Worker, float]] = {}

    async def run(self) -> None:
        """For ever: each peer every few seconds, and soon after there is something else to say of it."""
        while True:
            now = asyncio.get_running_loop().time()
            await asyncio.gather(*(self._beat(each, now) for each in list(self._snapshots.current.peers)))
            await asyncio.sleep(LOOK_SECONDS)

    async def _beat(self, install_id: str, now: float) -> None:
        worker = self._worker(install_id)
        said, at = self._said.get(install_id, (None, 0.0))
        if worker is None or (worker == said and now < at + BEAT_SECONDS):
            return
        try:
            await made(self._projects.Heartbeat(psvc.HeartbeatRequest(worker=worker), timeout=CALL_SECONDS))
        except HopperError as error:
            log.info("the registry does not hear of a peer", install_id=install_id, reason=error.reason)
        else:
            self._said[install_id] = (worker, now)

    def _worker(self, install_id: str) -> Worker | None:
        """What there is to say of a peer; None: it has no place, or nothing has been heard of it."""
        heard = self._statuses.ago(self._statuses.of(install_id).heard)
        project = self._places.project_of(install_id)
        if heard is None or heard > HEARD_WITHIN or project is None or not self._places.working(install_id):
            return None
        running = self._open_with(install_id)
        return Worker(
            name=f"{project.name}/workers/{WORKER}",
            slots=max(1, running + self._credit.of(install_id)),
            running=running,
            time_to_live=to_proto(TIME_TO_LIVE),
        )


_AT_WORK: Final = frozenset({Instance.STATE_STARTING, Instance.STATE_RUNNING})
_TO_START: Final = frozenset({Instance.STATE_CREATED, Instance.STATE_STOPPED, Instance.STATE_ERROR})
_TO_STOP: Final = frozenset({Instance.STATE_STARTING, Instance.STATE_RUNNING, Instance.STATE_PAUSED})


def _endings() -> Iterator[str]:
    yield ""
    for number in range(2, 1000):
        yield f"-{number}"


def _differing(project: Project, place: Place) -> Iterator[str]:
    for path in place.paths:
        is_, wanted = getattr(project, path), getattr(place.project, path)
        same = is_ == wanted if isinstance(wanted, Message | str | float) else list(is_) == list(wanted)
        if not same:
            yield path
