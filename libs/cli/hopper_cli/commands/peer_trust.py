"""`hopper peer`, the other half: trust them, see how they are, end that, and look for others."""

from typing import TYPE_CHECKING, Annotated

import typer

from hopper_cli import complete
from hopper_cli.cli import Cli, command
from hopper_cli.commands.options import PeerArgument

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hopper.federation.v1.peer_admin_service_pb2 import (
        CheckPeerResponse,
        ExplainPolicyResponse,
        GetPeerResponse,
    )

_CHECK_SECONDS = 60.0

LevelOption = Annotated[
    str,
    typer.Option(
        "--level",
        metavar="LEVEL",
        help="known, trusted or verified. Default: as the rest needs.",
        autocompletion=complete.trust_levels,
    ),
]


def register(group: typer.Typer) -> None:
    """Add the commands of this module to `hopper peer`."""
    command(
        group,
        "trust",
        examples=(
            "hopper peer trust bob --policy bob.toml --dry-run",
            "hopper peer trust bob --policy bob.toml",
            'hopper peer trust bob --level verified --compared "by phone"',
        ),
    )(trust)
    command(
        group, "policy", examples=("hopper peer policy bob > bob.toml", "hopper peer policy bob --version 2")
    )(policy)
    command(group, "status", examples=("hopper peer status", "hopper peer status bob"))(status)
    command(group, "audit", examples=("hopper peer audit", "hopper peer audit bob"))(audit)
    command(group, "block", examples=("hopper peer block bob",))(block)
    command(
        group,
        "revoke",
        examples=(
            "hopper peer revoke bob",
            "hopper peer revoke bob --drain 24h",
            "hopper peer revoke bob --compromised yesterday",
        ),
    )(revoke)
    command(
        group,
        "discover",
        examples=("hopper peer discover", "hopper peer discover --domain example.org --wait 5s"),
    )(discover)


# How far.


def trust(
    cli: Cli,
    peer: PeerArgument,
    policy: Annotated[
        str,
        typer.Option(
            "--policy", "-p", metavar="FILE", help="What may cross, as TOML; - reads standard input."
        ),
    ] = "",
    level: LevelOption = "",
    compared: Annotated[
        str, typer.Option("--compared", metavar="HOW", help='How you compared the six words: "by phone".')
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
) -> None:
    """
    Trust a peer as far as a policy says: it is in force for the next call.

    Compare the six words of `hopper peer show` with its owner first. Nothing crosses that no rule allows.
    """
    from hopper.federation.v1.peer_admin_service_pb2 import SetTrustRequest
    from hopper_cli.inputs import read_file_text
    from hopper_cli.names import bare, peer_name
    from hopper_cli.output import clean
    from hopper_cli.peer_text import parse_level
    from hopper_cli.peering import level_text

    response = cli.hopper.peers.SetTrust(
        SetTrustRequest(
            name=peer_name(peer),
            level=parse_level(level),
            policy=read_file_text(policy) if policy else "",
            compared=compared,
            dry_run=dry_run,
        )
    )
    if cli.json:
        cli.out.document(response)
        return
    for change in response.changes:
        cli.out.say(clean(change))
    if not response.changes:
        cli.out.say("nothing changes")
    would = "would be" if dry_run else "is"
    cli.out.note(f"{bare(response.peer.name)} {would} {level_text(response.peer.level).plain}")


def policy(
    cli: Cli,
    peer: PeerArgument,
    version: Annotated[
        int | None,
        typer.Option("--version", "-v", metavar="N", min=1, help="That version. Default: the one in force."),
    ] = None,
) -> None:
    """Print the policy of a peer, as it was written."""
    from hopper.federation.v1.peer_admin_service_pb2 import GetPeerPolicyRequest
    from hopper_cli.names import bare, peer_name
    from hopper_cli.output import clean
    from hopper_cli.problems import CommandError
    from hopper_cli.times import format_time
    from hopper_common.timestamps import from_proto

    response = cli.hopper.peers.GetPeerPolicy(
        GetPeerPolicyRequest(name=peer_name(peer), version=version or 0)
    )
    if cli.json:
        cli.out.document(response)
        return
    name = bare(peer_name(peer))
    if not response.version:
        raise CommandError(
            f"{name} has no version {version} of a policy" if version else f"{name} has no policy",
            remedy=f"`hopper peer trust {name} --policy FILE` gives it one",
            reason="POLICY_VERSION_NOT_FOUND",
        )
    cli.out.say(clean(response.policy).rstrip())
    since = format_time(from_proto(response.set_time), cli.now)
    cli.out.note(f"version {response.version}, by {response.set_by}, {since}")


# How it is.


def status(
    cli: Cli,
    peer: Annotated[
        str, typer.Argument(metavar="[PEER]", help="One peer. Default: all.", autocompletion=complete.peers)
    ] = "",
) -> None:
    """Show when peers were last heard and reached, and what is in the way."""
    from hopper.federation.v1.peer_admin_service_pb2 import GetPeerRequest
    from hopper_cli.names import bare, peer_name
    from hopper_cli.peer_text import status_facts, status_table

    if peer:
        found = cli.hopper.peers.GetPeer(GetPeerRequest(name=peer_name(peer)))
        if cli.json:
            cli.out.document(found)
        else:
            cli.out.say(status_facts(found, cli.now))
            if found.status.last_failure:
                cli.out.note(f"`hopper doctor {bare(found.peer.name)}` looks for what is wrong")
        return
    all_of_them = list(all_peers(cli))
    if cli.json:
        from hopper_cli.output import to_json

        cli.out.document({"peers": [to_json(each) for each in all_of_them]})
    elif not all_of_them:
        cli.out.note("no peer; `hopper peer invite NAME` invites one")
    else:
        cli.out.say(status_table(all_of_them))


def audit(
    cli: Cli,
    peer: Annotated[
        str, typer.Argument(metavar="[PEER]", help="One peer. Default: all.", autocompletion=complete.peers)
    ] = "",
) -> None:
    """
    Verify again what was signed of every hand-over that is kept: the task, each step, the result.

    Fails if anything is not what was signed. What is signed by Hoppers that are not known here is counted apart: it is
    the word of whoever passed it on.
    """
    from hopper.federation.v1.delegation_service_pb2 import ListRemoteDelegationsRequest
    from hopper_cli.commands.hand_overs import every_hand_over
    from hopper_cli.exits import Exit
    from hopper_cli.hand_over_text import Audit, audit_lines
    from hopper_cli.names import peer_name

    asked = ListRemoteDelegationsRequest(peer=peer_name(peer) if peer else "")
    audited = Audit()
    for each in every_hand_over(cli, asked):
        audited.add(each)
    if cli.json:
        cli.out.document(audited.as_json())
    else:
        for line in audit_lines(audited, cli.now):
            cli.out.say(line)
    if audited.refused:
        raise typer.Exit(Exit.FAILED)


def all_peers(cli: Cli) -> "Iterator[GetPeerResponse]":
    """Every peer, blocked ones too, and how it is."""
    from hopper.federation.v1.peer_admin_service_pb2 import GetPeerRequest, ListPeersRequest

    asked = ListPeersRequest(include_blocked=True, page_size=1000)
    while True:
        page = cli.hopper.peers.ListPeers(asked)
        for each in page.peers:
            yield cli.hopper.peers.GetPeer(GetPeerRequest(name=each.name))
        asked.page_token = page.next_page_token
        if not page.next_page_token:
            return


# No longer.


def block(cli: Cli, peer: PeerArgument) -> None:
    """Block a peer: nothing crosses, in either direction. Only pairing again ends that."""
    from hopper.common.v1.options_pb2 import TRUST_LEVEL_BLOCKED
    from hopper.federation.v1.peer_admin_service_pb2 import SetTrustRequest
    from hopper_cli.names import bare, peer_name

    response = cli.hopper.peers.SetTrust(SetTrustRequest(name=peer_name(peer), level=TRUST_LEVEL_BLOCKED))
    if cli.json:
        cli.out.document(response)
    else:
        name = bare(response.peer.name)
        cli.out.say(f"{name} is blocked")
        cli.out.note(f"what becomes of the work between you: `hopper delegation list --peer {name}`")


def revoke(
    cli: Cli,
    peer: PeerArgument,
    now: Annotated[bool, typer.Option("--now", help="End everything under way. The default.")] = False,
    drain: Annotated[
        str, typer.Option("--drain", metavar="TIME", help="Let what is under way finish, that long at most.")
    ] = "",
    compromised: Annotated[
        str,
        typer.Option(
            "--compromised",
            metavar="TIME",
            help="Its keys are in other hands, since then: `yesterday`, `3d`, `now`.",
        ),
    ] = "",
) -> None:
    """
    End a peer: its open calls within a second. Only pairing again lets it in.

    It is told that it was revoked; one whose keys are in other hands is not even let through the handshake.
    """
    from hopper.federation.v1.peer_admin_service_pb2 import RevokePeerRequest
    from hopper.federation.v1.peer_pb2 import Peer
    from hopper_cli.names import bare, peer_name
    from hopper_cli.problems import UsageProblem
    from hopper_cli.times import parse_duration, parse_past
    from hopper_common.timestamps import to_proto

    if sum(map(bool, (now, drain, compromised))) > 1:
        raise UsageProblem("name one of: --now, --drain, --compromised")
    asked = RevokePeerRequest(name=peer_name(peer), mode=Peer.REVOCATION_NOW)
    if drain:
        asked.mode = Peer.REVOCATION_DRAIN
        asked.drain.CopyFrom(to_proto(parse_duration(drain)))
    elif compromised:
        asked.mode = Peer.REVOCATION_COMPROMISED
        if compromised.strip().lower() != "now":
            asked.since_time.CopyFrom(to_proto(parse_past(compromised, now=cli.now)))
    response = cli.hopper.peers.RevokePeer(asked)
    if cli.json:
        cli.out.document(response)
    else:
        name = bare(response.peer.name)
        cli.out.say(f"{name} is revoked; {response.ended_calls} of its calls were ended")
        cli.out.note(f"what becomes of the work between you: `hopper delegation list --peer {name}`")


# Others.


def discover(
    cli: Cli,
    domain: Annotated[
        str, typer.Option("--domain", "-d", metavar="DOMAIN", help="Ask this domain's records too.")
    ] = "",
    wait: Annotated[
        str,
        typer.Option("--wait", "-w", metavar="TIME", help="How long to listen on the network, at most 30s."),
    ] = "2s",
) -> None:
    """
    Look for other Hoppers: on the network, in a domain's records, and where settings say.

    All of it is hearsay: anybody can announce anything, so nothing comes of it until you pair.
    """
    from hopper.federation.v1.peer_admin_service_pb2 import DiscoverRequest
    from hopper_cli.output import one_line
    from hopper_cli.peer_text import sighting_table
    from hopper_cli.times import parse_duration
    from hopper_common.timestamps import to_proto

    length = parse_duration(wait)
    response = cli.hopper.peers.Discover(
        DiscoverRequest(domain=domain, wait=to_proto(length)),
        timeout=cli.timeout + length.total_seconds() + 10,
    )
    if cli.json:
        cli.out.document(response)
        return
    for problem in response.problems:
        cli.out.note(f"not looked everywhere: {one_line(problem)}")
    if not response.sightings:
        cli.out.note("nobody was found")
        return
    cli.out.say(sighting_table(response.sightings))
    if response.left_out:
        cli.out.note(f"{response.left_out} more were left out")
    cli.out.note("unverified: `hopper peer request ADDRESS --name NAME` asks one to pair")


# What may cross, and what is wrong.


def explain(
    cli: Cli,
    peer: PeerArgument,
    task: Annotated[
        str, typer.Argument(metavar="[TASK]", help="A task of this Hopper.", autocompletion=complete.tasks)
    ] = "",
    direction: Annotated[
        str, typer.Option("--direction", metavar="WAY", help="in: from the peer; out: to it.")
    ] = "out",
    capability: Annotated[
        list[str] | None,
        typer.Option("--capability", "-c", metavar="NAME", help="What the work would need. Repeatable."),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", "-l", metavar="LABEL", help="A tag, or KEY=VALUE. Repeatable."),
    ] = None,
    priority: Annotated[str, typer.Option("--priority", metavar="PRIORITY", help="0 to 100.")] = "normal",
    size: Annotated[int, typer.Option("--bytes", metavar="N", min=0, help="How large it would be.")] = 0,
) -> None:
    """Say whether a task may go to a peer, or work come from it, and which rule of its policy decides."""
    from hopper.federation.v1.peer_admin_service_pb2 import Crossing, ExplainPolicyRequest
    from hopper_cli.inputs import parse_priority
    from hopper_cli.names import peer_name
    from hopper_cli.problems import UsageProblem

    ways = {"in": Crossing.DIRECTION_IN, "out": Crossing.DIRECTION_OUT}
    if direction not in ways:
        raise UsageProblem(f"--direction {direction!r} is neither in nor out")
    if task and (capability or label or size):
        raise UsageProblem("say either a task, or what one would be")
    asked = ExplainPolicyRequest(
        name=peer_name(peer),
        crossing=Crossing(
            direction=ways[direction],
            capabilities=capability or (),
            labels=label or (),
            priority=parse_priority(priority),
            bytes=size,
        ),
        task=cli.task(task) if task else "",
    )
    response = cli.hopper.peers.ExplainPolicy(asked)
    if cli.json:
        cli.out.document(response)
    else:
        _say_ruling(cli, response)


def _say_ruling(cli: Cli, ruling: "ExplainPolicyResponse") -> None:
    from rich.text import Text

    from hopper_cli.output import one_line

    if not ruling.allowed:
        said, style = "refused", "red"
    elif ruling.quarantined:
        said, style = "waits for a person", "yellow"
    else:
        said, style = "allowed", "green"
    reason = f"  ({ruling.reason})" if ruling.reason else ""
    cli.out.say(Text.assemble((said, style), f" by {one_line(ruling.rule)}{reason}"))
    for step in ruling.steps:
        cli.out.say(Text(f"  {one_line(step)}", style="dim"))


def check(cli: Cli, target: str) -> None:
    """Look for what is wrong between here and a peer, or whoever is at an address."""
    from hopper.federation.v1.peer_admin_service_pb2 import CheckPeerRequest
    from hopper_cli.exits import Exit
    from hopper_cli.names import peer_name

    asked = CheckPeerRequest(address=target) if ":" in target else CheckPeerRequest(name=peer_name(target))
    response = cli.hopper.peers.CheckPeer(asked, timeout=max(cli.timeout, _CHECK_SECONDS))
    if cli.json:
        cli.out.document(response)
    else:
        _say_checks(cli, response)
    if any(each.outcome == each.OUTCOME_FAILED for each in response.checks):
        raise typer.Exit(Exit.FAILED)


def _say_checks(cli: Cli, response: "CheckPeerResponse") -> None:
    from hopper_cli.peer_text import check_lines

    for line in check_lines(response.checks):
        cli.out.say(line)
