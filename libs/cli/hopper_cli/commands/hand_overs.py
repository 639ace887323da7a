"""`hopper delegation`: what crosses between this Hopper and its peers."""

from typing import TYPE_CHECKING, Annotated, Final

import typer

from hopper_cli import complete
from hopper_cli.cli import Cli, command
from hopper_cli.commands.options import HAND_OVER, ReasonOption

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hopper.federation.v1.delegation_service_pb2 import (
        GetRemoteDelegationResponse,
        ListRemoteDelegationsRequest,
        RemoteDelegation,
    )

_ID_LENGTH: Final = 26
_NEWEST: Final = 1_000

HandOverArgument = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="The end of its id, as `list` shows.", autocompletion=complete.hand_overs
    ),
]
WaitingArgument = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="The end of its id, as `list` shows.", autocompletion=complete.waiting_hand_overs
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    group = typer.Typer(
        no_args_is_help=True,
        help="Tasks handed to other Hoppers, and taken from them. (Within this one: `hopper delegations TASK`.)",
    )
    app.add_typer(group, name="delegation", rich_help_panel=HAND_OVER)
    command(
        group,
        "list",
        examples=(
            "hopper delegation list",
            "hopper delegation list --waiting",
            "hopper delegation list --peer bob --state running --state suspect",
        ),
    )(list_hand_overs)
    command(group, "show", examples=("hopper delegation show 8f2k1m",))(show)
    command(group, "cancel", examples=('hopper delegation cancel 8f2k1m -m "done by hand"',))(cancel)
    command(group, "accept", examples=("hopper delegation accept 8f2k1m",))(accept)
    command(group, "discard", examples=('hopper delegation discard 8f2k1m -m "not our trade"',))(discard)
    command(group, "retry", examples=("hopper delegation retry 8f2k1m",))(retry)
    command(group, "give-up", examples=('hopper delegation give-up 8f2k1m -m "nobody knows"',))(give_up)
    command(group, "keep", examples=("hopper delegation keep 8f2k1m",))(keep)


def list_hand_overs(
    cli: Cli,
    peer: Annotated[
        str,
        typer.Option("--peer", metavar="PEER", help="Only with that one.", autocompletion=complete.peers),
    ] = "",
    state: Annotated[
        list[str] | None,
        typer.Option(
            "--state",
            "-s",
            metavar="STATE",
            help="Only in this one. Repeatable.",
            autocompletion=complete.hand_over_states,
        ),
    ] = None,
    waiting: Annotated[
        bool, typer.Option("--waiting", help="Only those that you have to decide about.")
    ] = False,
    limit: Annotated[
        int, typer.Option("--limit", "-n", metavar="N", min=1, max=1000, help="At most so many.")
    ] = 50,
) -> None:
    """List hand-overs to and from peers, newest first."""
    from hopper.federation.v1.delegation_service_pb2 import ListRemoteDelegationsRequest
    from hopper_cli.hand_over_text import hand_over_table, parse_state, waits_here
    from hopper_cli.names import peer_name

    asked = ListRemoteDelegationsRequest(
        peer=peer_name(peer) if peer else "",
        states=[parse_state(each) for each in state or ()],
        waiting=waiting,
        page_size=limit,
    )
    found = cli.hopper.remote_delegations.ListRemoteDelegations(asked)
    if cli.json:
        cli.out.document(found)
    elif not found.delegations:
        cli.out.note("nothing waits for you" if waiting else "nothing has crossed")
    else:
        cli.out.say(hand_over_table(found.delegations, cli.now))
        if any(map(waits_here, found.delegations)):
            cli.out.note("`hopper delegation show ID` shows what waits for you, and what you can do")
        if found.next_page_token:
            cli.out.note(f"there are more: `--limit {2 * limit}`")


def show(cli: Cli, hand_over: HandOverArgument) -> None:
    """Show everything about a hand-over, and who has signed for what."""
    from hopper.federation.v1.delegation_service_pb2 import GetRemoteDelegationRequest

    request = GetRemoteDelegationRequest(id=_id(cli, hand_over))
    found = cli.hopper.remote_delegations.GetRemoteDelegation(request)
    if cli.json:
        cli.out.document(found)
    else:
        _say(cli, found)


def _say(cli: Cli, found: "GetRemoteDelegationResponse") -> None:
    """Facts, the chain of custody, and what a person may do now."""
    from rich.text import Text

    from hopper_cli.artifact_text import missing_lines
    from hopper_cli.hand_over_text import custody_lines, hand_over_facts, next_steps
    from hopper_cli.names import short
    from hopper_cli.output import one_line

    delegation = found.delegation
    cli.out.say(Text.assemble((short(delegation.id), "bold"), "  ", (one_line(delegation.title), "bold")))
    cli.out.say(hand_over_facts(found, cli.now))
    for line in custody_lines(found.custody, cli.now):
        cli.out.say(line)
    if delegation.task and delegation.artifacts:
        for line in missing_lines(cli, delegation.task):
            cli.out.say(line)
    for step in next_steps(delegation):
        cli.out.note(step)


def cancel(cli: Cli, hand_over: HandOverArgument, reason: ReasonOption = "") -> None:
    """
    Call a hand-over off.

    A task that was handed over comes back to the router here, which decides anew; one that was taken over is stopped,
    and whoever handed it over is told.
    """
    from hopper.federation.v1.delegation_service_pb2 import CancelRemoteDelegationRequest

    request = CancelRemoteDelegationRequest(id=_id(cli, hand_over), reason=reason)
    response = cli.hopper.remote_delegations.CancelRemoteDelegation(request)
    if cli.json:
        cli.out.document(response)
    else:
        _tell(cli, response.delegation)


def accept(cli: Cli, hand_over: WaitingArgument, reason: ReasonOption = "") -> None:
    """Take a task that waits in quarantine."""
    _decide(cli, hand_over, "ACCEPT", reason)


def discard(cli: Cli, hand_over: WaitingArgument, reason: ReasonOption = "") -> None:
    """Do not take a task that waits in quarantine; or drop one whose Hopper was revoked."""
    _decide(cli, hand_over, "DISCARD", reason)


def retry(cli: Cli, hand_over: WaitingArgument, reason: ReasonOption = "") -> None:
    """
    Have a task done again that must not run twice, and of which nothing is heard: you know that it has not run.

    It goes back to the router here.
    """
    _decide(cli, hand_over, "RETRY", reason)


def give_up(cli: Cli, hand_over: WaitingArgument, reason: ReasonOption = "") -> None:
    """Let a task fail of which nothing is heard, or of which the two sides say different things."""
    _decide(cli, hand_over, "GIVE_UP", reason)


def keep(cli: Cli, hand_over: WaitingArgument, reason: ReasonOption = "") -> None:
    """Go on with a task whose Hopper was revoked, as this Hopper's own; or have a disputed result count."""
    _decide(cli, hand_over, "KEEP", reason)


def _decide(cli: Cli, text: str, verdict: str, reason: str) -> None:
    from hopper.federation.v1.delegation_service_pb2 import DecideRemoteDelegationRequest

    said = DecideRemoteDelegationRequest.Verdict.Value(f"VERDICT_{verdict}")
    request = DecideRemoteDelegationRequest(id=_id(cli, text), verdict=said, reason=reason)
    response = cli.hopper.remote_delegations.DecideRemoteDelegation(request)
    if cli.json:
        cli.out.document(response)
    else:
        _tell(cli, response.delegation)


def _tell(cli: Cli, delegation: "RemoteDelegation") -> None:
    from rich.text import Text

    from hopper_cli.hand_over_text import state_text, way
    from hopper_cli.names import short

    cli.out.say(
        Text.assemble((short(delegation.id), "bold"), f" {way(delegation)}: ", state_text(delegation))
    )


def _id(cli: Cli, text: str) -> str:
    """
    The whole id of the hand-over that is meant by the end of it.

    Raises:
        UsageProblem: None of the newest ends so, or several do.
    """
    from hopper.federation.v1.delegation_service_pb2 import ListRemoteDelegationsRequest
    from hopper_cli.names import only_end

    if len(text) == _ID_LENGTH:
        return text.lower()
    request = ListRemoteDelegationsRequest(page_size=_NEWEST)
    found = cli.hopper.remote_delegations.ListRemoteDelegations(request).delegations
    return only_end(text, [each.id for each in found], "hand-overs", "hopper delegation list")


def every_hand_over(
    cli: Cli, asked: "ListRemoteDelegationsRequest"
) -> "Iterator[GetRemoteDelegationResponse]":
    """All of a list, each with its chain of custody."""
    from hopper.federation.v1.delegation_service_pb2 import GetRemoteDelegationRequest

    asked.page_size = _NEWEST
    while True:
        page = cli.hopper.remote_delegations.ListRemoteDelegations(asked)
        for each in page.delegations:
            yield cli.hopper.remote_delegations.GetRemoteDelegation(GetRemoteDelegationRequest(id=each.id))
        asked.page_token = page.next_page_token
        if not page.next_page_token:
            return
