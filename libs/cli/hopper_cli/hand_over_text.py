"""Hand-overs to and from peers, and their chains of custody, as people read them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from rich.table import Table
from rich.text import Text

from hopper.federation.v1 import delegation_pb2 as dpb
from hopper.federation.v1.delegation_service_pb2 import (
    CustodyLink,
    GetRemoteDelegationResponse,
    RemoteDelegation,
)
from hopper_cli.names import bare, short
from hopper_cli.output import clean, one_line, to_json
from hopper_cli.problems import UsageProblem
from hopper_cli.render import facts, grid, plain, word
from hopper_cli.times import format_age, format_time
from hopper_common.timestamps import from_proto, time_field

_PREFIX: Final = "DELEGATION_STATE_"
_STYLES: Final = {
    dpb.DELEGATION_STATE_QUARANTINED: "yellow",
    dpb.DELEGATION_STATE_SUSPECT: "red",
    dpb.DELEGATION_STATE_ORPHANED: "red",
    dpb.DELEGATION_STATE_DISPUTED: "red",
    dpb.DELEGATION_STATE_COMPLETED: "green",
    dpb.DELEGATION_STATE_FAILED: "red",
}
_VERDICTS: Final = {
    dpb.DELEGATION_STATE_QUARANTINED: {
        "accept": "it is taken, and goes where this Hopper sends such work",
        "discard": "it is not; -m tells its owner why",
    },
    dpb.DELEGATION_STATE_SUSPECT: {
        "retry": "it has not run there, or may run again: it is decided about anew",
        "give-up": "it may have run there: it fails",
    },
    dpb.DELEGATION_STATE_ORPHANED: {
        "keep": "it goes on as this Hopper's own",
        "discard": "what there is of it goes away",
    },
    dpb.DELEGATION_STATE_DISPUTED: {"keep": "the result that came counts", "give-up": "it fails"},
}
"""What a person may say, and what comes of it."""


def parse_state(text: str) -> dpb.DelegationState.ValueType:
    """A state as typed: `running`."""
    state = text.strip().lower()
    if state not in states():
        raise UsageProblem(f"{text!r} is no state of a hand-over", remedy=f"there are {', '.join(states())}")
    return dpb.DelegationState.Value(f"{_PREFIX}{state.upper()}")


def states() -> list[str]:
    """Every state, as it is typed."""
    return [name.removeprefix(_PREFIX).lower() for name in dpb.DelegationState.keys()[1:]]


def state_text(hand_over: RemoteDelegation) -> Text:
    """Where it is, coloured."""
    said = word(dpb.DelegationState, hand_over.state, _PREFIX)
    return Text(said, style=_STYLES.get(hand_over.state, ""))


def way(hand_over: RemoteDelegation) -> str:
    """To or from whom."""
    peer = bare(hand_over.peer) or "a peer that is gone"
    return f"to {peer}" if hand_over.handed_over else f"from {peer}"


def hand_over_table(hand_overs: Iterable[RemoteDelegation], now: datetime) -> Table:
    """One a line."""
    table = grid("id", "with", "state", "task", "#age", "title", "")
    for each in hand_overs:
        table.add_row(
            Text(short(each.id), style="bold"),
            plain(way(each)),
            state_text(each),
            short(each.task) if each.task else "",
            format_age(from_proto(each.create_time), now),
            plain(each.title),
            Text(one_line(_why(each)), style="dim"),
        )
    return table


def _why(hand_over: RemoteDelegation) -> str:
    reason = hand_over.reason.lower().replace("_", " ")
    return ": ".join(part for part in (reason, hand_over.detail) if part)


def hand_over_facts(found: GetRemoteDelegationResponse, now: datetime) -> Table:
    """Everything about one but its chain; of an offer that waits here, what it asks for."""
    hand_over = found.delegation
    lease = time_field(hand_over, "lease_expire_time")
    rows: list[tuple[str, str | Text]] = [
        ("with", way(hand_over)),
        ("state", state_text(hand_over)),
        ("why", _why(hand_over)),
        ("done", f"{hand_over.fraction:.0%}" if hand_over.fraction else ""),
        ("task", hand_over.task),
        ("everywhere", hand_over.task_uid),
        ("epoch", str(hand_over.epoch)),
        ("exclusive", "it must not run twice" if hand_over.exclusive else ""),
        ("rule", hand_over.rule),
        ("lease until", "" if lease is None else format_time(lease, now)),
        ("unanswered", _counted(hand_over.unanswered, "message") if hand_over.unanswered else ""),
        ("late", "a result came too late, and was not applied" if hand_over.late_result else ""),
        ("files", ", ".join(one_line(artifact.name) for artifact in hand_over.artifacts)),
        ("made", format_time(from_proto(hand_over.create_time), now)),
        ("changed", format_time(from_proto(hand_over.update_time), now)),
        *(_asked(found.body) if found.HasField("body") else ()),
    ]
    return facts(rows)


def next_steps(hand_over: RemoteDelegation) -> list[str]:
    """What a person may do about it now; none: it goes on by itself, or is over."""
    peer, short_id = bare(hand_over.peer), short(hand_over.id)
    if hand_over.state == dpb.DELEGATION_STATE_QUARANTINED and hand_over.handed_over:
        return [f"{peer}'s owner has to accept it there; `hopper delegation cancel {short_id}` takes it back"]
    verdicts = _VERDICTS.get(hand_over.state)
    if verdicts is not None:
        typed = {f"hopper delegation {verb} {short_id}": end for verb, end in verdicts.items()}
        width = max(map(len, typed))
        return ["it waits for you:", *(f"  {each:<{width}}  # {end}" for each, end in typed.items())]
    if hand_over.unanswered and peer:
        return [f"{peer} has not answered yet: `hopper doctor {peer}` looks for what is in the way"]
    return []


def waits_here(hand_over: RemoteDelegation) -> bool:
    """Whether a person of this Hopper has to decide about it."""
    there = hand_over.state == dpb.DELEGATION_STATE_QUARANTINED and hand_over.handed_over
    return hand_over.state in _VERDICTS and not there


def _asked(body: dpb.TaskBody) -> list[tuple[str, str | Text]]:
    """What an offer asks for, in the words of whoever made it."""
    return [
        ("asks for", clean(body.description).strip()),
        ("needs", ", ".join(map(one_line, body.required_capabilities))),
        ("tags", ", ".join(map(one_line, body.tags))),
        ("labels", ", ".join(one_line(f"{key}={value}") for key, value in sorted(body.labels.items()))),
        ("priority", str(body.priority)),
        ("requester", one_line(body.requester)),
        ("kept back", ", ".join(map(one_line, body.redacted))),
    ]


def custody_lines(links: Iterable[CustodyLink], now: datetime) -> Iterator[Text]:
    """A chain of custody, oldest first: verified, claimed by whoever passed it on, or not what was signed."""
    for link in links:
        said, style = _finding(link)
        time = time_field(link, "time")
        when = "" if time is None else f"  {format_time(time, now)}"
        yield Text.assemble((f"  {said:<10}", style), one_line(link.text), (when, "dim"))


def _finding(link: CustodyLink) -> tuple[str, str]:
    if link.problem:
        return "refused", "red"
    return ("verified", "green") if link.verified else ("claimed", "yellow")


@dataclass
class Audit:
    """
    What was found in the chains of custody of many hand-overs.

    Attributes:
        verified: How many signatures hold.
        claimed: How many are by Hoppers that are not known here.
        refused: Hand-overs of which something is not what was signed.
    """

    hand_overs: int = 0
    verified: int = 0
    claimed: int = 0
    refused: list[GetRemoteDelegationResponse] = field(default_factory=list)

    def add(self, found: GetRemoteDelegationResponse) -> None:
        """Count one."""
        self.hand_overs += 1
        said = [_finding(link)[0] for link in found.custody]
        self.verified += said.count("verified")
        self.claimed += said.count("claimed")
        if "refused" in said:
            self.refused.append(found)

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "hand_overs": self.hand_overs,
            "verified": self.verified,
            "claimed": self.claimed,
            "refused": [to_json(each) for each in self.refused],
        }


def audit_lines(audit: Audit, now: datetime) -> Iterator[Text]:
    """The same for people: what does not hold, and the sums."""
    for found in audit.refused:
        each = found.delegation
        yield Text.assemble((short(each.id), "bold"), f" {way(each)}  ", (one_line(each.title), "dim"))
        yield from custody_lines(found.custody, now)
    claimed = f", {audit.claimed} claimed by who passed them on" if audit.claimed else ""
    some = len(audit.refused)
    bad = f", {_counted(some, 'hand-over')} {'does' if some == 1 else 'do'} not hold" if some else ""
    yield Text(
        f"{_counted(audit.hand_overs, 'hand-over')}: {_counted(audit.verified, 'signature')} verified{claimed}{bad}",
        style="red" if some else "",
    )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
