"""How peers are doing, who else there is, and what is wrong, as people read it."""

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Final

from rich.table import Table
from rich.text import Text

from hopper.common.v1.options_pb2 import TrustLevel
from hopper.federation.v1.peer_admin_service_pb2 import Check, GetPeerResponse
from hopper.federation.v1.peer_pb2 import PeerStatus, Sighting
from hopper_cli.names import bare
from hopper_cli.output import one_line
from hopper_cli.peering import alert_text, install_text, level_text
from hopper_cli.problems import UsageProblem
from hopper_cli.render import facts, grid, plain, word
from hopper_cli.times import format_duration, format_time
from hopper_common.timestamps import duration_field, time_field

LEVELS: Final = ("known", "trusted", "verified")
_OUTCOMES: Final = {
    Check.OUTCOME_OK: ("ok", "green"),
    Check.OUTCOME_WARNING: ("warn", "yellow"),
    Check.OUTCOME_FAILED: ("fail", "red"),
}
_LITTLE_SKEW: Final = timedelta(seconds=1)


def parse_level(text: str) -> TrustLevel.ValueType:
    """A level as typed; empty: none."""
    plain_text = text.strip().lower()
    if not plain_text:
        return TrustLevel.TRUST_LEVEL_UNSPECIFIED
    if plain_text not in LEVELS:
        raise UsageProblem(
            f"--level {text!r} is none of {', '.join(LEVELS)}", remedy="`hopper peer block` blocks one"
        )
    return TrustLevel.Value(f"TRUST_LEVEL_{plain_text.upper()}")


def status_table(peers: Iterable[GetPeerResponse]) -> Table:
    """How peers are doing, one a line."""
    table = grid(
        "peer", "level", "heard", "reached", "clock", "speaks", "#out", "#in", "#outbox", "#slots", ""
    )
    for each in peers:
        status = each.status
        table.add_row(
            plain(bare(each.peer.name)),
            level_text(each.peer.level),
            _ago(status, "last_heard"),
            _ago(status, "last_reached"),
            _skew(status),
            plain(status.protocol_version),
            _count(status.handed_over),
            _count(status.taken_over),
            _count(status.outbox),
            _count(status.free_slots),
            Text(trouble(each), style="red"),
        )
    return table


def status_facts(found: GetPeerResponse, now: datetime) -> Table:
    """How one peer is doing."""
    peer, status = found.peer, found.status
    until = time_field(status, "leaf_expire_time")
    held = time_field(status, "held_until")
    drained, since = time_field(peer, "drain_time"), time_field(peer, "compromise_time")
    rows: list[tuple[str, str | Text]] = [
        ("level", level_text(peer.level)),
        ("alert", Text(alert_text(peer), style="red")),
        ("may finish until", "" if drained is None else format_time(drained, now)),
        ("compromised since", "" if since is None else format_time(since, now)),
        ("heard", _ago(status, "last_heard")),
        ("reached", _ago(status, "last_reached")),
        ("last call", Text(_failure(status), style="red")),
        ("held back until", "" if held is None else format_time(held, now)),
        ("clock", _skew(status)),
        ("speaks", status.protocol_version),
        ("certificate until", "" if until is None else format_time(until, now)),
        ("outbox", _outbox(status)),
        ("handed over", _count(status.handed_over)),
        ("taken over", _count(status.taken_over)),
        ("waits for you", _count(status.quarantined)),
        ("would take", f"{status.free_slots} more" if status.free_slots else ""),
    ]
    return facts(rows)


def _count(number: int) -> str:
    return str(number) if number else ""


def _outbox(status: PeerStatus) -> str:
    oldest = duration_field(status, "oldest")
    if not status.outbox or oldest is None:
        return _count(status.outbox)
    return f"{status.outbox}, the oldest {format_duration(oldest)} ago"


def _ago(status: PeerStatus, field: str) -> str:
    length = duration_field(status, field)
    return "never" if length is None else f"{format_duration(length)} ago"


def _skew(status: PeerStatus) -> str:
    offset = duration_field(status, "clock_offset")
    if offset is None:
        return ""
    if abs(offset) < _LITTLE_SKEW:
        return "same"
    return f"{format_duration(abs(offset))} {'ahead' if offset > timedelta() else 'behind'}"


def trouble(found: GetPeerResponse) -> str:
    """What is amiss with a peer, in a few words; empty: nothing is."""
    return alert_text(found.peer) or _failure(found.status)


def _failure(status: PeerStatus) -> str:
    return status.last_failure.lower().replace("_", " ")


def sighting_table(sightings: Iterable[Sighting]) -> Table:
    """Who may be where, one a line; all of it unverified."""
    table = grid("says it is", "pairing", "peer port", "heard of by", "peer here")
    for each in sightings:
        table.add_row(
            plain(install_text(each.claimed_install_id) if each.claimed_install_id else "?"),
            plain(each.pairing_address),
            plain(each.peer_address),
            word(Sighting.Source, each.source, "SOURCE_"),
            plain(f"{bare(each.peer)}?" if each.peer else ""),
        )
    return table


def check_lines(checks: Iterable[Check]) -> Iterator[Text]:
    """What was looked at, each with its remedy under it."""
    for check in checks:
        said, style = _OUTCOMES.get(check.outcome, ("?", ""))
        yield Text.assemble((f"{said:<5}", style), f"{check.title:<12} {one_line(check.finding)}")
        if check.remedy:
            yield Text(f"{'':<18}{one_line(check.remedy)}", style="dim")
