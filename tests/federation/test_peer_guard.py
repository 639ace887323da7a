"""Who is let in at the peer port, of those whom TLS lets in."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from hopper_common.auth.model import TrustLevel
from hopper_common.errors import HopperError, LeafExpired
from hopper_common.identity.certificates import Leaf, install_id_of, spiffe_uris, to_der, to_pem
from hopper_federation.errors import PeerRevoked
from hopper_federation.model import Revocation
from hopper_federation.peer_guard import Peers, PeerSession
from hopper_federation.trust import Alert, Level
from hopper_federation.trust_snapshot import STALE_AFTER, TrustedPeer, TrustSnapshots
from hopper_testing.certificates import Authority, attacks
from hopper_testing.clock import ManualClock

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
Auth = Mapping[str, Sequence[bytes]]
BOB, CAROL = Authority.new(NOW), Authority.new(NOW)


def peer_of(authority: Authority, name: str, **fields: Any) -> TrustedPeer:
    root = authority.root.certificate
    known = TrustedPeer(f"peers/{name}", install_id_of(root), Level.KNOWN, roots=(to_der(root),))
    return replace(known, **fields)


def shown(leaf: Leaf, **changes: list[bytes]) -> Auth:
    """What gRPC says of a connection with that leaf, in which gRPC's own reading is that of the certificate."""
    uris = spiffe_uris(leaf.certificate)
    auth: dict[str, list[bytes]] = {
        "ssl_tls_version": [b"TLSv1.3"],
        "x509_pem_cert": [to_pem([leaf.certificate])],
        "peer_uri": [uri.encode() for uri in uris],
    }
    if len(uris) == 1:
        auth["peer_spiffe_id"] = [uris[0].encode()]
    return auth | changes


class Connection(SimpleNamespace):
    """What a guard reads of a call's context."""

    auth: Auth

    def auth_context(self) -> Auth:
        return self.auth

    def peer(self) -> str:
        return "ipv4:192.168.1.7:4711"


class Door:
    """A guard, with what it goes by in the test's hand."""

    def __init__(self, *peers: TrustedPeer) -> None:
        self.clock = ManualClock(NOW)
        self.alarms: list[tuple[str, Alert]] = []
        self.snapshots = TrustSnapshots()
        self.trust(peers)
        self.peers = Peers(self.snapshots, self.clock, lambda *alarm: self.alarms.append(alarm))

    def trust(self, peers: Iterable[TrustedPeer]) -> None:
        self.snapshots.replace(peers, self.clock.monotonic())

    def admit(self, auth: Auth) -> PeerSession:
        return self.peers.session(Connection(auth=auth))

    def refusal(self, auth: Auth) -> str:
        """The reason, the same when it is asked again."""
        reasons = set()
        for _ in range(2):
            with pytest.raises(HopperError) as caught:
                self.admit(auth)
            reasons.add(caught.value.reason)
        (reason,) = reasons
        return reason


def test_a_peer_is_let_in_by_its_own_name() -> None:
    door = Door(peer_of(BOB, "bob"), peer_of(CAROL, "carol"))
    for _ in range(2):  # the second time from what is remembered
        session = door.admit(shown(BOB.leaf()))
        assert session.peer.name == "peers/bob"
        assert session.principal.name == f"spiffe://{BOB.trust_domain}/svc/federation"
        assert (session.principal.level, session.principal.source) == (TrustLevel.KNOWN, "192.168.1.7")
    assert not door.alarms


REFUSALS = {
    "unknown CA": "PEER_UNKNOWN",
    "another's name": "ISSUER_MISMATCH",
    "another's name and DNS name": "ISSUER_MISMATCH",
    "another's name through an intermediate": "ISSUER_MISMATCH",
    "own name through an intermediate": "ISSUER_MISMATCH",
    "same-name CA": "ISSUER_MISMATCH",
    "two URIs": "BAD_SAN",
    "own URI twice": "BAD_SAN",
    "no URI": "BAD_SAN",
    "no names": "BAD_SAN",
    "agent": "PATH_DENIED",
    "no path": "PATH_DENIED",
    "expired": "LEAF_EXPIRED",
    "not yet valid": "LEAF_EXPIRED",
    "its own root": "BAD_SAN",
    "root as leaf": "BAD_SAN",
}
# What the handshake has to see: names that TLS checks and this guard never looks at, and purposes.
LEFT_TO_TLS = {"another's DNS name", "another's SPIFFE id as a DNS name", "server only"}


@pytest.mark.parametrize(
    "kind", sorted(attacks(BOB, CAROL.root.certificate, CAROL.trust_domain).keys() - LEFT_TO_TLS)
)
def test_certificates_that_no_hopper_issues(kind: str) -> None:
    leaf = attacks(BOB, CAROL.root.certificate, CAROL.trust_domain)[kind]
    door = Door(peer_of(BOB, "bob"), peer_of(CAROL, "carol"))
    expected = "BAD_SAN" if kind.startswith("malformed") else REFUSALS[kind]
    assert door.refusal(shown(leaf)) == expected


def test_whoever_issues_in_anothers_name_is_reported_and_nobody_else() -> None:
    door = Door(peer_of(BOB, "bob"), peer_of(CAROL, "carol"))
    for domain in (CAROL.trust_domain, Authority.new(NOW).trust_domain):  # paired or not
        forged = BOB.leaf(uris=[f"spiffe://{domain}/svc/federation"])
        assert door.refusal(shown(forged)) == "ISSUER_MISMATCH"
    assert set(door.alarms) == {(install_id_of(BOB.root.certificate), Alert.IMPERSONATION)}


def test_a_stranger_who_names_a_peer_gets_that_peer_into_no_trouble() -> None:
    door = Door(peer_of(BOB, "bob"), peer_of(CAROL, "carol"))
    stranger = Authority.new(NOW).leaf(uris=[f"spiffe://{CAROL.trust_domain}/svc/federation"])
    assert door.refusal(shown(stranger)) == "ISSUER_MISMATCH"
    assert not door.alarms


def test_a_dns_name_that_spells_a_spiffe_id_is_not_read() -> None:
    forged = BOB.leaf(dns=[f"spiffe://{CAROL.trust_domain}/svc/federation"])
    assert Door(peer_of(BOB, "bob"), peer_of(CAROL, "carol")).admit(shown(forged)).peer.name == "peers/bob"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ssl_tls_version": [b"TLSv1.2"]}, "TLS_TOO_OLD"),
        ({"ssl_tls_version": []}, "TLS_TOO_OLD"),
        ({"x509_pem_cert": []}, "UNAUTHENTICATED"),
        ({"peer_spiffe_id": []}, "BAD_SAN"),
        ({"peer_spiffe_id": [b"spiffe://other/svc/federation"]}, "ISSUER_MISMATCH"),
    ],
)
def test_what_grpc_says_must_add_up(changes: dict[str, list[bytes]], reason: str) -> None:
    assert Door(peer_of(BOB, "bob")).refusal(shown(BOB.leaf(), **changes)) == reason


def test_a_leaf_runs_out_on_an_open_connection() -> None:
    door = Door(peer_of(BOB, "bob"))
    auth = shown(BOB.leaf(ends=timedelta(seconds=3)))
    door.admit(auth)
    door.clock.advance(timedelta(seconds=4))
    assert door.refusal(auth) == "LEAF_EXPIRED"


def test_a_revocation_holds_at_the_next_call() -> None:
    bob = peer_of(BOB, "bob")
    door = Door(bob)
    auth = shown(BOB.leaf())
    door.admit(auth)
    door.trust([replace(bob, level=Level.BLOCKED, revocation=Revocation.NOW, revoke_time=NOW)])
    with pytest.raises(HopperError) as caught:
        door.admit(auth)
    assert (caught.value.reason, caught.value.metadata["mode"]) == ("PEER_REVOKED", "NOW")


def test_a_peer_that_is_drained_may_finish_until_its_time() -> None:
    drained = peer_of(
        BOB, "bob", level=Level.BLOCKED, revocation=Revocation.DRAIN, drain_time=NOW + timedelta(hours=1)
    )
    door = Door(drained)
    door.admit(shown(BOB.leaf()))
    door.clock.time += timedelta(hours=1)
    assert door.refusal(shown(BOB.leaf())) == "PEER_REVOKED"


def test_a_root_that_is_gone_vouches_for_nobody() -> None:
    bob = peer_of(BOB, "bob")
    door = Door(bob)
    auth = shown(BOB.leaf())
    door.admit(auth)
    door.trust([replace(bob, roots=(to_der(CAROL.root.certificate),))])
    assert door.refusal(auth) == "ISSUER_MISMATCH"


@pytest.mark.parametrize("level", [level for level in Level if level is not Level.BLOCKED])
def test_a_peer_has_its_level(level: Level) -> None:
    door = Door(peer_of(BOB, "bob", level=level))
    assert door.admit(shown(BOB.leaf())).principal.level is TrustLevel[level.name]


def test_a_blocked_peer_is_told_so() -> None:
    assert Door(peer_of(BOB, "bob", level=Level.BLOCKED)).refusal(shown(BOB.leaf())) == "PEER_REVOKED"


def test_a_call_under_way_is_the_same_until_something_changes() -> None:
    bob = peer_of(BOB, "bob")
    door = Door(bob)
    session = door.admit(shown(BOB.leaf(ends=timedelta(minutes=1))))
    assert door.peers.again(session) is session
    door.trust([replace(bob, level=Level.TRUSTED)])
    risen = door.peers.again(session)
    assert risen.principal.level is TrustLevel.TRUSTED
    door.clock.advance(timedelta(seconds=20))
    assert door.peers.again(risen) is risen
    door.trust([replace(bob, level=Level.BLOCKED)])
    with pytest.raises(PeerRevoked):
        door.peers.again(risen)


def test_a_call_under_way_ends_with_its_leaf() -> None:
    door = Door(peer_of(BOB, "bob"))
    session = door.admit(shown(BOB.leaf(ends=timedelta(seconds=3))))
    door.clock.advance(timedelta(seconds=4))
    with pytest.raises(LeafExpired):
        door.peers.again(session)


def test_nobody_is_let_in_on_old_knowledge() -> None:
    door = Door(peer_of(BOB, "bob"))
    auth = shown(BOB.leaf())
    door.clock.advance(STALE_AFTER)
    door.admit(auth)
    door.clock.advance(timedelta(milliseconds=1))
    assert door.refusal(auth) == "TRUST_STORE_STALE"
    door.trust([peer_of(BOB, "bob")])
    door.admit(auth)


def test_before_anything_is_known_nobody_is_let_in() -> None:
    door = Door()
    door.peers = Peers(TrustSnapshots(), door.clock, lambda *_: None)
    assert door.refusal(shown(BOB.leaf())) == "TRUST_STORE_STALE"
