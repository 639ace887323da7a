"""Peers, invitations and pairings, as people read them."""

import io
from collections.abc import Iterable
from datetime import datetime

from rich.table import Table
from rich.text import Text

from hopper.common.v1.options_pb2 import TrustLevel
from hopper.federation.v1.peer_pb2 import Invitation, Pairing, Peer
from hopper_cli.names import bare, short
from hopper_cli.output import one_line
from hopper_cli.render import facts, grid, plain, word
from hopper_cli.times import format_time
from hopper_common.identity.spiffe import SpiffeInvalid, shown
from hopper_common.timestamps import time_field

_LEVEL_STYLES = {"known": "yellow", "trusted": "green", "verified": "bold green", "blocked": "red"}
_ALERTS = {
    "key_changed": "its keys changed without a word",
    "signature_failed": "a signature of it did not verify",
    "policy_breach": "it broke the policy",
    "impersonation": "it claimed to be another Hopper",
    "invitation_contested": "somebody else had the same invitation: compare the words",
}


def level_text(level: TrustLevel.ValueType) -> Text:
    """How far a peer is trusted, coloured."""
    name = word(TrustLevel, level, "TRUST_LEVEL_")
    return Text(name, style=_LEVEL_STYLES.get(name, ""))


def words_line(peer: Peer) -> str:
    """The six words in one line."""
    return " ".join(one_line(each) for each in peer.words)


def alert_text(peer: Peer) -> str:
    """Why to look at a peer; empty: nothing is amiss."""
    return _ALERTS.get(peer.alert, one_line(peer.alert))


def install_text(install_id: str) -> str:
    """An install id as people compare it."""
    try:
        return shown(install_id)
    except SpiffeInvalid:
        return one_line(install_id)


def peer_table(peers: Iterable[Peer]) -> Table:
    """Peers, one a line."""
    table = grid("peer", "level", "words", "address", "")
    for peer in peers:
        where = peer.addresses[0] if peer.addresses else ""
        table.add_row(
            plain(bare(peer.name)),
            level_text(peer.level),
            words_line(peer),
            plain(where),
            Text(alert_text(peer), style="red"),
        )
    return table


def peer_facts(peer: Peer, now: datetime) -> Table:
    """Everything about a peer."""
    rows: list[tuple[str, str | Text]] = [
        ("level", level_text(peer.level)),
        ("words", words_line(peer)),
        ("compared by", one_line(peer.verified_by)),
        ("install id", install_text(peer.install_id)),
        ("addresses", ", ".join(map(one_line, peer.addresses))),
        ("alert", Text(alert_text(peer), style="red")),
        ("policy", f"version {peer.policy_version}" if peer.policy_version else ""),
        ("revoked", word(Peer.Revocation, peer.revocation, "REVOCATION_") if peer.revocation else ""),
        ("paired", _time(time_field(peer, "create_time"), now)),
    ]
    return facts(rows)


def _time(time: datetime | None, now: datetime) -> str:
    return "" if time is None else format_time(time, now)


def invitation_table(invitations: Iterable[Invitation], now: datetime) -> Table:
    """Invitations, one a line."""
    table = grid("invitation", "for", "state", "until", "wrong proofs", "")
    for each in invitations:
        until = time_field(each, "expire_time")
        others = f"{each.contested} others had it" if each.contested else ""
        table.add_row(
            short(each.name),
            plain(bare(each.peer)),
            word(Invitation.State, each.state, "STATE_"),
            "" if until is None else format_time(until, now),
            str(each.wrong_proofs or ""),
            Text(others, style="red"),
        )
    return table


def pairing_table(pairings: Iterable[Pairing], now: datetime) -> Table:
    """Pairings by digits, one a line; the other's name is what it claims."""
    table = grid("pairing", "digits", "state", "claims to be", "address", "until", "")
    for each in pairings:
        until = time_field(each, "expire_time")
        table.add_row(
            short(each.name),
            digits(each.code),
            word(Pairing.State, each.state, "STATE_"),
            plain(each.claimed_name),
            plain(each.address),
            "" if until is None else format_time(until, now),
            Text(each.failure.lower().replace("_", " "), style="red"),
        )
    return table


def digits(code: str) -> str:
    """Six digits in two groups."""
    return f"{code[:3]} {code[3:]}" if code else ""


def qr_code(text: str) -> str:
    """A QR code of half blocks, for a terminal."""
    import segno

    drawn = io.StringIO()
    segno.make_qr(text, error="l").terminal(out=drawn, border=2, compact=True)
    return drawn.getvalue()
