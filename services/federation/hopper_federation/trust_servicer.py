"""
The rest of what the owner does with peers: trusting them, ending that, looking for others, and finding out what is
wrong. One method per RPC: convert, call, convert, answer.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import grpc.aio

from hopper.federation.v1 import peer_admin_service_pb2 as svc
from hopper.federation.v1 import peer_pb2 as ppb
from hopper.router.v1 import task_service_pb2 as tsvc
from hopper.router.v1.task_pb2 import TASK_VIEW_FULL, Task
from hopper.router.v1.task_service_pb2_grpc import TaskServiceStub
from hopper_common.auth.current import current
from hopper_common.border.grants import Crossing, Direction, Usage
from hopper_common.clock import Clock
from hopper_common.errors import FieldViolation, InvalidArgument, ServiceUnavailable, Unavailable
from hopper_common.pagination import PageTokens
from hopper_common.rpc.errors import DeadlineExceeded, from_rpc_error
from hopper_common.timestamps import duration_field, time_field, to_proto
from hopper_federation import addresses, grant_store
from hopper_federation.admin_servicer import PeerAdminServicer
from hopper_federation.asking import Asker
from hopper_federation.checking import Check, Checker
from hopper_federation.convert import level_from_proto, peer_to_proto, revocation_from_proto
from hopper_federation.delegation.store_sql import Counts, SqlDelegations
from hopper_federation.discovery.finding import Finder
from hopper_federation.discovery.sightings import Sighting
from hopper_federation.errors import PeerNotFound
from hopper_federation.introductions import Introductions
from hopper_federation.joining import Joiner
from hopper_federation.keeping import TrustKeeper
from hopper_federation.model import Peer, Revocation
from hopper_federation.pairing_port import PairingPort
from hopper_federation.peering import Peering
from hopper_federation.store_sql import Federation, SqlStore
from hopper_federation.trust import Level
from hopper_federation.trust_admin import DEFAULT_DRAIN, Ending, TrustAdmin, Wish, revoke
from hopper_federation.trust_snapshot import TrustedPeer, TrustSnapshots

if TYPE_CHECKING:  # it is in the type stubs only
    from hopper.router.v1.task_service_pb2_grpc import TaskServiceAsyncStub

TASK_SECONDS: Final = 5.0

_Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class Trusting:
    """What trusting peers takes, beside what pairing with them does."""

    admin: TrustAdmin
    keeper: TrustKeeper
    snapshots: TrustSnapshots
    peering: Peering
    finder: Finder
    checker: Checker
    router: grpc.aio.Channel


class PeerAdmin(PeerAdminServicer):
    """`hopper.federation.v1.PeerAdminService`, whole."""

    def __init__(
        self,
        federation: Federation,
        introductions: Introductions,
        clock: Clock,
        port: PairingPort,
        joiner: Joiner,
        asker: Asker,
        page_tokens: PageTokens,
        trusting: Trusting,
    ) -> None:
        super().__init__(federation, introductions, clock, port, joiner, asker, page_tokens)
        self._trust = trusting.admin
        self._keeper = trusting.keeper
        self._snapshots = trusting.snapshots
        self._peering = trusting.peering
        self._finder = trusting.finder
        self._checker = trusting.checker
        self._tasks: TaskServiceAsyncStub = TaskServiceStub(trusting.router)

    # How far.

    async def SetTrust(self, request: svc.SetTrustRequest, context: _Context) -> svc.SetTrustResponse:
        wish = Wish(
            level=level_from_proto(request.level, Level.UNTRUSTED) if request.level else None,
            policy=request.policy,
            compared=request.compared,
            by=current().name,
        )

        def effect(store: SqlStore) -> svc.SetTrustResponse:
            peer = _named(store, request.name)
            peer.check_etag(request.etag)
            granted = self._trust.grant(store, peer, wish, dry_run=request.dry_run)
            return svc.SetTrustResponse(peer=peer_to_proto(granted.peer), changes=granted.changes)

        if request.dry_run:
            return await self._federation.read(effect)
        response = await self._federation.answer(request, svc.SetTrustResponse, effect)
        await self._in_force()
        return response

    async def GetPeerPolicy(
        self, request: svc.GetPeerPolicyRequest, context: _Context
    ) -> svc.GetPeerPolicyResponse:
        def find(store: SqlStore) -> grant_store.SignedGrant | None:
            install_id = _named(store, request.name).install_id
            if request.version:
                return grant_store.version_of(store, install_id, request.version)
            return grant_store.latest(store, install_id)

        found = await self._federation.read(find)
        if found is None:
            return svc.GetPeerPolicyResponse()
        return svc.GetPeerPolicyResponse(
            policy=found.text,
            version=found.version,
            set_by=found.set_by,
            set_time=to_proto(found.set_time),
            signature=found.signature.signature,
            key_id=found.signature.key_id,
        )

    async def ExplainPolicy(
        self, request: svc.ExplainPolicyRequest, context: _Context
    ) -> svc.ExplainPolicyResponse:
        if not request.crossing.direction:
            raise InvalidArgument(violations=[FieldViolation("crossing.direction", "must be IN or OUT")])
        if request.task:
            crossing = _crossing_of(await self._task(request.task), _direction(request.crossing))
        else:
            crossing = _crossing(request.crossing)
        # Nothing crosses yet that would count against a limit on what is open.
        ruling = await self._federation.read(
            lambda store: self._trust.explain(store, _named(store, request.name), crossing, Usage())
        )
        detail = f": {ruling.detail}" if ruling.detail else ""
        return svc.ExplainPolicyResponse(
            allowed=ruling.allowed,
            quarantined=ruling.quarantined,
            rule=f"{ruling.rule}{detail}",
            reason=ruling.reason,
            steps=ruling.steps,
        )

    async def _task(self, name: str) -> Task:
        """
        A task, as the router has it.

        Raises:
            HopperError: What the router answers instead.
        """
        request = tsvc.GetTaskRequest(name=name, view=TASK_VIEW_FULL)
        try:
            return (await self._tasks.GetTask(request, timeout=TASK_SECONDS)).task
        except grpc.aio.AioRpcError as error:
            problem = from_rpc_error(error)
            if isinstance(problem, Unavailable | DeadlineExceeded):
                raise ServiceUnavailable(service="router") from error
            raise problem from error

    # No longer.

    async def RevokePeer(self, request: svc.RevokePeerRequest, context: _Context) -> svc.RevokePeerResponse:
        ending = _ending(request)

        def find(store: SqlStore) -> str:
            return _named(store, request.name).install_id

        def effect(store: SqlStore) -> svc.RevokePeerResponse:
            peer = revoke(store, _named(store, request.name), ending)
            return svc.RevokePeerResponse(peer=peer_to_proto(peer))

        install_id = await self._federation.read(find)
        before = self._peering.ended_calls(install_id)
        response = await self._federation.answer(request, svc.RevokePeerResponse, effect)
        await self._in_force()
        response.ended_calls = self._peering.ended_calls(install_id) - before
        return response

    async def _in_force(self) -> None:
        """Let what was written count for every call from now on, and for those under way."""
        await self._keeper.look()
        self._peering.end_calls()

    # How it is.

    async def GetPeer(self, request: svc.GetPeerRequest, context: _Context) -> svc.GetPeerResponse:
        def find(store: SqlStore) -> tuple[Peer, Counts, float]:
            peer = _named(store, request.name)
            rows = SqlDelegations(store.conn)
            return peer, rows.counts(peer.install_id), rows.hold(peer.install_id).until

        peer, counts, held = await self._federation.read(find)
        return svc.GetPeerResponse(peer=peer_to_proto(peer), status=self._status(peer, counts, held))

    def _status(self, peer: Peer, counts: Counts, held: float) -> ppb.PeerStatus:
        statuses = self._peering.statuses
        status = statuses.of(peer.install_id)
        now = self._clock.now().timestamp()
        waited = None if counts.oldest is None else timedelta(seconds=max(0.0, now - counts.oldest))
        return ppb.PeerStatus(
            last_heard=to_proto(statuses.ago(status.heard)),
            last_reached=to_proto(statuses.ago(status.reached)),
            last_failure=status.failure,
            clock_offset=to_proto(status.offset),
            protocol_version=status.version,
            leaf_expire_time=to_proto(status.leaf_end),
            held_until=to_proto(datetime.fromtimestamp(held, UTC) if held > now else None),
            outbox=counts.outbox,
            oldest=to_proto(waited),
            handed_over=counts.handed_over,
            taken_over=counts.taken_over,
            quarantined=counts.quarantined,
            free_slots=status.free_slots,
        )

    async def CheckPeer(self, request: svc.CheckPeerRequest, context: _Context) -> svc.CheckPeerResponse:
        if not (request.name or request.address):
            raise InvalidArgument(violations=[FieldViolation("name", "say a peer, or an address")])
        where = addresses.check_all([request.address], "address") if request.address else ("",)
        await self._keeper.look()
        peer = self._trusted(request.name) if request.name else None
        checks = await self._checker.check(peer, where[0])
        return svc.CheckPeerResponse(checks=[_check_to_proto(check) for check in checks])

    def _trusted(self, name: str) -> TrustedPeer:
        for peer in self._snapshots.current.peers.values():
            if peer.name == name:
                return peer
        raise _not_found(name)

    # Who else there is.

    async def Discover(self, request: svc.DiscoverRequest, context: _Context) -> svc.DiscoverResponse:
        findings = await self._finder.find(duration_field(request, "wait"), request.domain)
        return svc.DiscoverResponse(
            sightings=[self._sighting_to_proto(sighting) for sighting in findings.sightings],
            left_out=findings.left_out,
            problems=findings.problems,
        )

    def _sighting_to_proto(self, sighting: Sighting) -> ppb.Sighting:
        peer = self._snapshots.current.peers.get(sighting.claimed_install_id)
        return ppb.Sighting(
            claimed_install_id=sighting.claimed_install_id,
            peer_address=sighting.peer_address,
            pairing_address=sighting.pairing_address,
            source=ppb.Sighting.Source.Value(f"SOURCE_{sighting.source}"),
            see_time=to_proto(sighting.seen),
            peer="" if peer is None else peer.name,
        )


def _named(store: SqlStore, name: str) -> Peer:
    peer = store.peer(name)
    if peer is None:
        raise _not_found(name)
    return peer


def _not_found(name: str) -> PeerNotFound:
    return PeerNotFound(f"there is no {name}", peer=name)


def _ending(request: svc.RevokePeerRequest) -> Ending:
    mode = revocation_from_proto(request.mode)
    drain = duration_field(request, "drain")
    since = time_field(request, "since_time")
    violations = []
    if drain is not None and mode is not Revocation.DRAIN:
        violations.append(FieldViolation("drain", "goes with mode DRAIN"))
    if since is not None and mode is not Revocation.COMPROMISED:
        violations.append(FieldViolation("since_time", "goes with mode COMPROMISED"))
    if violations:
        raise InvalidArgument(violations=violations)
    return Ending(
        mode=Revocation.NOW if mode is Revocation.NONE else mode,
        drain=DEFAULT_DRAIN if drain is None else drain,
        since=since,
    )


def _direction(crossing: svc.Crossing) -> Direction:
    return Direction.IN if crossing.direction == svc.Crossing.DIRECTION_IN else Direction.OUT


def _crossing(proto: svc.Crossing) -> Crossing:
    return Crossing(
        direction=_direction(proto),
        capabilities=tuple(proto.capabilities),
        labels=tuple(proto.labels),
        priority=proto.priority,
        bytes=proto.bytes,
        exclusive=proto.exclusive,
        origin=proto.origin,
    )


def _crossing_of(task: Task, direction: Direction) -> Crossing:
    """A task as it would cross: its tags are labels, and each of its labels is `key=value`."""
    spec = task.spec
    labels = [f"{key}={value}" for key, value in sorted(spec.labels.items())]
    return Crossing(
        direction=direction,
        capabilities=tuple(spec.required_capabilities),
        labels=(*spec.tags, *labels),
        priority=spec.priority,
        bytes=spec.ByteSize(),
    )


def _check_to_proto(check: Check) -> svc.Check:
    return svc.Check(
        title=check.title,
        outcome=svc.Check.Outcome.Value(f"OUTCOME_{check.outcome}"),
        finding=check.finding,
        remedy=check.remedy,
        reason=check.reason,
    )
