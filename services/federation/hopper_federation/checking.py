"""
What is wrong between here and another Hopper, found step by step, and said with what to do about it.

TLS tells a client nothing: whoever is refused in the handshake reads "socket closed", be it unknown, revoked, out of
date or by a wrong clock. So each step looks at one thing by itself, and the first that fails ends what depends on it:

    own identity ─► address ─► port, TLS ─► whose certificate ─► in time ─► a call ─► clocks, version ─► policy
                                                    │
                                                    └ of nobody who is a peer here ─► is it a pairing port?
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from hopper.federation.v1.pairing_service_pb2 import IntroduceRequest, Introduction
from hopper_common.clock import Clock, WallClock
from hopper_common.errors import HopperError
from hopper_common.identity.certificates import issued_by, spiffe_id_of
from hopper_common.identity.spiffe import SpiffeInvalid, install_id_of_domain, shown
from hopper_common.identity.store import Identity
from hopper_common.timestamps import from_proto
from hopper_federation import dialling
from hopper_federation.convert import versions_from_proto
from hopper_federation.errors import UnsupportedVersion
from hopper_federation.model import MOST_SKEW, Revocation, agreed_version
from hopper_federation.peer_guard import PATH
from hopper_federation.peer_links import PeerLink, PeerLinks
from hopper_federation.probe import Found, Sight, look_at
from hopper_federation.statuses import Statuses
from hopper_federation.trust import Level
from hopper_federation.trust_snapshot import TrustedPeer

WARN_SKEW: Final = timedelta(seconds=30)
INTRODUCE_SECONDS: Final = 5.0


class Outcome(StrEnum):
    """What came of one look."""

    OK = "OK"
    WARNING = "WARNING"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Check:
    """
    One thing that was looked at.

    Attributes:
        remedy: What to do; empty: nothing.
        reason: Of the catalogue, where one fits.
    """

    title: str
    outcome: Outcome
    finding: str
    remedy: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Seen:
    """Who is at an address, by what it showed."""

    address: str
    leaf: x509.Certificate
    install_id: str


_REMEDIES: Final = {
    Found.NO_SUCH_HOST: "look at the host's name, or give an IP address: `hopper peer address`",
    Found.NO_ROUTE: "look at the network between the two: cable, VPN, routes",
    Found.PORT_CLOSED: "start the other Hopper with HOPPER_FEDERATION=1, or mend the address: `hopper peer address`",
    Found.SILENT: "look for a firewall between the two that swallows packets, and whether the other is suspended",
    Found.NO_TLS: "something else listens there: mend the address with `hopper peer address`",
}


class Checker:
    """
    Looks.

    Args:
        listens: Whether peers can call here.
    """

    def __init__(
        self, identity: Identity, links: PeerLinks, statuses: Statuses, clock: Clock, *, listens: bool
    ) -> None:
        self._identity = identity
        self._links = links
        self._statuses = statuses
        self._clock = WallClock(clock)
        self._listens = listens

    async def check(self, peer: TrustedPeer | None, address: str = "") -> list[Check]:
        """
        Look, as far as it goes.

        Args:
            peer: Whom; None: whoever is at the address.
            address: Where; empty: where the peer is said to be.
        """
        return [check async for check in self._checks(peer, address)]

    async def _checks(self, peer: TrustedPeer | None, address: str) -> AsyncIterator[Check]:
        own = self._own_identity()
        yield own
        if own.outcome is Outcome.FAILED:
            return
        if not self._listens:
            finding = "federation is off here: no peer can call this Hopper, and none is called by itself"
            yield Check("federation", Outcome.WARNING, finding, "restart it with HOPPER_FEDERATION=1")
        where = [address] if address else list(peer.addresses if peer else ())
        if not where:
            finding, remedy = "nobody has said where it is", "`hopper peer address PEER host:port`"
            yield Check("address", Outcome.FAILED, finding, remedy, "PEER_UNREACHABLE")
        for each in where:
            sight = await look_at(each)
            yield _port(each, sight)
            if sight.found is Found.TLS:
                async for check in self._beyond(sight, peer, each):
                    yield check
                return

    async def _beyond(self, sight: Sight, peer: TrustedPeer | None, address: str) -> AsyncIterator[Check]:
        """What is behind a port that answers."""
        seen = _read(sight, address)
        if isinstance(seen, Check):
            yield seen
            return
        known = peer or self._links.snapshots.current.peers.get(seen.install_id)
        name = self._name(seen, known)
        yield name
        if name.outcome is Outcome.FAILED:
            return
        in_time = self._time_of(seen.leaf)
        yield in_time
        if in_time.outcome is Outcome.FAILED:
            return
        further = self._introduce(seen) if known is None else self._call(known, address)
        async for check in further:
            yield check

    def _own_identity(self) -> Check:
        if self._identity.problem:
            remedy = "mend what it names: `hopper identity show`"
            return Check("identity", Outcome.FAILED, self._identity.problem, remedy)
        leaf, now = self._identity.leaf(PATH), self._clock.now()
        if not leaf.valid_at(now):
            finding = (
                f"this Hopper's certificate is valid from {_time(leaf.not_before)} to {_time(leaf.not_after)}, "
                f"and its clock says {_time(now)}"
            )
            remedy = "if that clock is wrong, set it; else restart this Hopper"
            return Check("identity", Outcome.FAILED, finding, remedy, "LEAF_EXPIRED")
        return Check("identity", Outcome.OK, f"this is {shown(self._identity.install_id)}")

    # Who it is.

    def _name(self, seen: _Seen, peer: TrustedPeer | None) -> Check:
        where, found = seen.address, shown(seen.install_id)
        if seen.install_id == self._identity.install_id:
            remedy = "say where the other is: `hopper peer address PEER host:port`"
            return Check("name", Outcome.FAILED, f"{where} is this Hopper itself", remedy)
        if peer is None:
            return Check("name", Outcome.OK, f"{where} says it is {found} (unverified)")
        if seen.install_id != peer.install_id:
            finding = f"{where} is {found}, and {_bare(peer)} is {shown(peer.install_id)}"
            remedy = "another Hopper has that address now: mend it with `hopper peer address`; nothing was said to it"
            return Check("name", Outcome.FAILED, finding, remedy, "PEER_IMPOSTOR")
        roots = [x509.load_der_x509_certificate(root) for root in peer.roots]
        if roots and not issued_by(seen.leaf, roots):
            finding = f"{where} says it is {_bare(peer)}, by a root that is not known here"
            remedy = "if it changed its root while it was away, pair again; else somebody poses as it"
            return Check("name", Outcome.FAILED, finding, remedy, "ISSUER_MISMATCH")
        return Check("name", Outcome.OK, f"{where} is {_bare(peer)}, {found}")

    def _time_of(self, leaf: x509.Certificate) -> Check:
        now, begin, end = self._clock.now(), leaf.not_valid_before_utc, leaf.not_valid_after_utc
        if begin <= now < end:
            return Check("certificate", Outcome.OK, f"its certificate is valid until {_time(end)}")
        finding = f"its certificate is valid from {_time(begin)} to {_time(end)}, and here it is {_time(now)}"
        if now < begin:
            remedy = "this machine's clock is behind, or the other's ahead: set the one that is wrong"
            return Check("certificate", Outcome.FAILED, finding, remedy, "CLOCK_SKEW")
        remedy = "restart the other Hopper, which renews it; or this machine's clock is ahead: set it"
        return Check("certificate", Outcome.FAILED, finding, remedy, "LEAF_EXPIRED")

    # What it says.

    async def _call(self, peer: TrustedPeer, address: str) -> AsyncIterator[Check]:
        if peer.revocation is not Revocation.NONE or peer.level is Level.BLOCKED:
            how = "" if peer.revocation is Revocation.NONE else f", revoked: {peer.revocation.lower()}"
            finding = f"{_bare(peer)} is blocked here{how}; nothing is said to it"
            yield Check("pairing", Outcome.FAILED, finding, "pair again to let it in", "PEER_REVOKED")
            return
        async with self._links.at(peer.install_id, address) as link:
            problem = await _greet(link)
        if problem is not None:
            yield _refused(problem)
            return
        yield Check("pairing", Outcome.OK, "it knows this Hopper, and has proved that it holds its keys")
        status = self._statuses.of(peer.install_id)
        yield _clocks(status.offset or timedelta())
        yield Check("version", Outcome.OK, f"both speak {status.version}")
        yield _policy(peer)

    async def _introduce(self, seen: _Seen) -> AsyncIterator[Check]:
        """Who is no peer here may let others ask to pair; then it says what time it has, and what it speaks."""
        answer = await _introduction(seen)
        if answer is None:
            finding = "no peer here has that install id, and its pairing port is closed or elsewhere"
            remedy = (
                "pair first: `hopper peer invite NAME`, or `hopper peer join` with an invitation of its owner"
            )
            yield Check("pairing", Outcome.FAILED, finding, remedy, "PEER_UNKNOWN")
            return
        finding = "no peer here has that install id; its pairing port is open"
        remedy = f"`hopper peer request {seen.address} --name NAME`, or `hopper peer join` with an invitation"
        yield Check("pairing", Outcome.WARNING, finding, remedy, "PEER_UNKNOWN")
        yield _clocks(from_proto(answer.now) - self._clock.now())
        yield _version(answer)


async def _greet(link: PeerLink) -> HopperError | None:
    """Say hello; returns what went wrong."""
    try:
        await link.greet()
    except HopperError as error:
        return error
    return None


async def _introduction(seen: _Seen) -> Introduction | None:
    """What it says of itself to strangers; None: nothing, there."""
    certificate = dialling.Shown(
        seen.address, seen.leaf.public_bytes(Encoding.DER), seen.leaf, seen.install_id
    )
    async with dialling.pinned(certificate) as stub:
        request = IntroduceRequest()
        try:
            answer = await dialling.called(
                seen.address, lambda: stub.Introduce(request, timeout=INTRODUCE_SECONDS)
            )
            return answer.introduction
        except HopperError:
            return None


def _read(sight: Sight, address: str) -> _Seen | Check:
    if sight.leaf is None:
        return Check("name", Outcome.FAILED, f"{address} shows no certificate", _REMEDIES[Found.NO_TLS])
    try:
        install_id = install_id_of_domain(spiffe_id_of(sight.leaf).trust_domain)
    except SpiffeInvalid:
        finding = f"{address} shows a certificate that is no Hopper's"
        return Check("name", Outcome.FAILED, finding, _REMEDIES[Found.NO_TLS], "BAD_SAN")
    return _Seen(address, sight.leaf, install_id)


def _port(address: str, sight: Sight) -> Check:
    if sight.found is Found.TLS:
        return Check("port", Outcome.OK, f"{address} answers with {sight.version}")
    detail = f" ({sight.detail})" if sight.detail else ""
    finding = f"{address}: {sight.found}{detail}"
    return Check("port", Outcome.FAILED, finding, _REMEDIES[sight.found], "PEER_UNREACHABLE")


_BY_REASON: Final = {
    "PEER_UNREACHABLE": (
        "it takes the connection, and ends it in the handshake: it does not know this Hopper, or no longer",
        "ask its owner for `hopper peer list`: if this Hopper is not there, pair again; if it is, compare the clocks "
        "and look at this Hopper's certificate (`hopper identity show`)",
    ),
    "PEER_REVOKED": ("it has revoked this Hopper", "talk to its owner; pairing again lets this Hopper in"),
    "PEER_UNKNOWN": ("it does not know this Hopper", "pair again"),
    "ISSUER_MISMATCH": (
        "it knows another root of this Hopper than the one in use",
        "pair again, or restore the identity",
    ),
    "LEAF_EXPIRED": ("by its clock this Hopper's certificate is not valid", "set the clock that is wrong"),
    "TRUST_STORE_STALE": ("it cannot look up whom it trusts", "its owner should look at its database"),
    "TRUST_LEVEL_TOO_LOW": (
        "it does not trust this Hopper far enough to talk",
        "its owner says how far: `hopper peer trust`",
    ),
    "PEER_IMPOSTOR": (
        "who answers has not got its signing key",
        "somebody may pose as it: talk to its owner",
    ),
}
# Of these, the error says itself what was found.
_ELSEWHERE: Final = {
    "CLOCK_SKEW": ("clock", "set the one that is wrong"),
    "UNSUPPORTED_VERSION": ("version", "upgrade the older"),
}


def _refused(error: HopperError) -> Check:
    title, remedy = _ELSEWHERE.get(error.reason, ("pairing", "see the logs of both Hoppers"))
    finding, remedy = _BY_REASON.get(error.reason, (error.message, remedy))
    return Check(title, Outcome.FAILED, finding, remedy, error.reason)


def _clocks(offset: timedelta) -> Check:
    seconds = round(offset.total_seconds(), 1)
    if abs(offset) <= WARN_SKEW:
        return Check("clock", Outcome.OK, f"the clocks are {abs(seconds)} s apart")
    finding = f"its clock is {abs(seconds)} s {'ahead of' if seconds > 0 else 'behind'} this one"
    remedy = "set the one that is wrong"
    if abs(offset) > MOST_SKEW:
        finding += f", and more than {MOST_SKEW.total_seconds():g} s is not accepted"
        return Check("clock", Outcome.FAILED, finding, remedy, "CLOCK_SKEW")
    return Check("clock", Outcome.WARNING, finding, f"{remedy}, before TLS fails by it", "CLOCK_SKEW")


def _version(answer: Introduction) -> Check:
    try:
        version = agreed_version(versions_from_proto(answer.versions))
    except UnsupportedVersion as error:
        return Check("version", Outcome.FAILED, error.message, "upgrade the older", error.reason)
    return Check("version", Outcome.OK, f"both speak {version}")


def _policy(peer: TrustedPeer) -> Check:
    remedy = f"grant a policy: `hopper peer trust {_bare(peer)} --policy FILE`"
    if peer.alert:
        finding = f"it is {peer.level.lower()} since an alert: {peer.alert}"
        return Check("policy", Outcome.WARNING, finding, f"talk to its owner, then {remedy}")
    if peer.level is Level.KNOWN:
        finding = "it is known: what it offers waits for a person, and nothing goes there by itself"
        return Check("policy", Outcome.WARNING, finding, remedy)
    if not peer.policy_version:
        return Check("policy", Outcome.WARNING, "it has no policy: nothing crosses", remedy)
    finding = f"it is {peer.level.lower()}, by version {peer.policy_version} of its policy"
    return Check("policy", Outcome.OK, finding)


def _bare(peer: TrustedPeer) -> str:
    return peer.name.removeprefix("peers/")


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
