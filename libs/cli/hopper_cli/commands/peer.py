"""`hopper peer`: pair with other Hoppers, and see who they are."""

from typing import TYPE_CHECKING, Annotated, Final

import typer

from hopper_cli import complete
from hopper_cli.cli import Cli, command
from hopper_cli.commands import peer_trust
from hopper_cli.commands.options import SET_UP, PeerArgument

if TYPE_CHECKING:
    from hopper.federation.v1.peer_pb2 import Pairing, Peer

PATIENCE: Final = 60.0
"""Seconds that pairing may take: the other Hopper is called, perhaps at several addresses."""

PairingArgument = Annotated[
    str,
    typer.Argument(
        metavar="PAIRING", help="The end of its id, as `pairings` shows.", autocompletion=complete.pairings
    ),
]
NameOption = Annotated[
    str, typer.Option("--name", metavar="NAME", help="What to call the other Hopper here.")
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    group = typer.Typer(no_args_is_help=True, help="Other Hoppers: pair with them, and see who they are.")
    app.add_typer(group, name="peer", rich_help_panel=SET_UP)
    command(
        group,
        "invite",
        examples=(
            "hopper peer invite bob",
            "hopper peer invite bob --expires 1h --qr --wait",
            "hopper peer invite bob | ssh bobs-machine hopper peer join --name alice",
        ),
    )(invite)
    command(
        group,
        "join",
        examples=(
            "hopper peer join hopper1:... --name alice",
            "hopper peer join --name alice < token.txt",
        ),
    )(join)
    command(
        group, "invitations", examples=("hopper peer invitations", "hopper peer invitations --end 8f2k1m")
    )(invitations)
    command(group, "open", examples=("hopper peer open", "hopper peer open --for 15m"))(open_)
    command(group, "close", examples=("hopper peer close",))(close)
    command(group, "request", examples=("hopper peer request 192.168.1.7:8471 --name alice",))(request)
    command(group, "pairings", examples=("hopper peer pairings",))(pairings)
    command(
        group,
        "approve",
        examples=("hopper peer approve 8f2k1m 739454 --name bob", 'hopper peer approve 8f2k1m "739 454"'),
    )(approve)
    command(group, "decline", examples=("hopper peer decline 8f2k1m",))(decline)
    command(group, "list", examples=("hopper peer list", "hopper peer list --all --json"))(list_peers)
    command(group, "show", examples=("hopper peer show bob",))(show)
    command(group, "rename", examples=("hopper peer rename bob robert",))(rename)
    command(
        group,
        "address",
        examples=("hopper peer address bob 192.168.1.7:8470", "hopper peer address bob [2001:db8::7]:8470"),
    )(address)
    peer_trust.register(group)


# By invitation.


def invite(
    cli: Cli,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call the other Hopper here.")],
    expires: Annotated[
        str, typer.Option("--expires", metavar="TIME", help="How long it can be used, at most a day.")
    ] = "10m",
    host: Annotated[
        list[str] | None,
        typer.Option(
            "--host",
            metavar="HOST",
            help="Where the other reaches this machine. Repeatable. Default: its addresses.",
        ),
    ] = None,
    qr: Annotated[bool, typer.Option("--qr", help="Show it as a QR code too.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it is used, and show the words.")] = False,
) -> None:
    """
    Invite another Hopper: print a token that its owner can use once.

    Give it to them over a channel you both trust: whoever has it first is paired. Then compare the six words that both
    of you see.
    """
    from hopper.federation.v1.peer_admin_service_pb2 import CreateInvitationRequest
    from hopper_cli.peering import qr_code
    from hopper_cli.times import format_duration, parse_duration
    from hopper_common.timestamps import to_proto

    lifetime = parse_duration(expires)
    asked = CreateInvitationRequest(peer_id=name, lifetime=to_proto(lifetime), hosts=host or ())
    response = cli.hopper.peers.CreateInvitation(asked)
    if cli.json and not wait:
        cli.out.document(response)
        return
    if cli.json:
        cli.out.record(response)
    else:
        cli.out.say(response.token)
        if qr:
            cli.out.say(qr_code(response.token))
        cli.out.note(
            f"for {name}'s owner alone; good once, for {format_duration(lifetime)}. They type:\n"
            f"  hopper peer join TOKEN --name NAME"
        )
    if not wait:
        cli.out.note(f"then compare the six words that both of you see: hopper peer show {name}")
        return
    peer = _joined(cli, name, lifetime.total_seconds())
    if cli.json:
        cli.out.record(peer)
    else:
        _say_words(cli, peer)


def _joined(cli: Cli, name: str, seconds: float) -> "Peer":
    """Wait until the invited one is there."""
    from hopper.common.v1.options_pb2 import TRUST_LEVEL_BLOCKED
    from hopper.federation.v1.peer_admin_service_pb2 import WatchPeersRequest
    from hopper_cli.names import peer_name
    from hopper_cli.problems import CommandError
    from hopper_client import DeadlineExceeded

    wanted = peer_name(name)
    try:
        for change in cli.hopper.peers.WatchPeers(WatchPeersRequest(), timeout=seconds):
            if change.peer.name == wanted and change.peer.level != TRUST_LEVEL_BLOCKED:
                return change.peer
    except DeadlineExceeded:
        pass
    raise CommandError(
        f"the invitation for {name} was not used in time",
        remedy=f"`hopper peer invite {name}` makes another",
        reason="INVITATION_EXPIRED",
    )


def join(
    cli: Cli,
    name: NameOption,
    token: Annotated[
        str | None,
        typer.Argument(
            metavar="TOKEN",
            help="hopper1:..., from the other owner. Left out, it is asked for, or read from standard input: so `ps` "
            "does not show it.",
        ),
    ] = None,
) -> None:
    """
    Use another Hopper's invitation: afterwards both know each other.

    It may be repeated if it is not clear whether it was done.
    """
    from hopper.federation.v1.peer_admin_service_pb2 import JoinRequest

    asked = JoinRequest(token=_token(token), peer_id=name)
    response = cli.hopper.peers.Join(asked, timeout=max(cli.timeout, PATIENCE))
    if cli.json:
        cli.out.document(response)
    else:
        _say_words(cli, response.peer)


def _token(given: str | None) -> str:
    import sys

    from hopper_cli.inputs import read_text

    if given is None and sys.stdin.isatty():
        return str(typer.prompt("token", hide_input=True)).strip()
    return read_text(given or "-").strip()


def _say_words(cli: Cli, peer: "Peer") -> None:
    from hopper_cli.names import bare
    from hopper_cli.peering import alert_text, words_line

    cli.out.say(f"paired with {bare(peer.name)}:  {words_line(peer)}")
    if peer.alert:
        cli.out.say(alert_text(peer), style="red")
    cli.out.note(
        "the other owner sees the same six words, or somebody is in between: compare them, best by voice;\n"
        f"then say what may cross:  hopper peer trust {bare(peer.name)} --policy FILE"
    )


def invitations(
    cli: Cli,
    end: Annotated[
        str | None,
        typer.Option(
            "--end", metavar="INVITATION", help="End this one.", autocompletion=complete.invitations
        ),
    ] = None,
) -> None:
    """List the invitations that were made here, newest first; or end one."""
    from hopper.federation.v1.peer_admin_service_pb2 import ListInvitationsRequest, RevokeInvitationRequest
    from hopper_cli.names import only_suffix, short
    from hopper_cli.peering import invitation_table

    found = cli.hopper.peers.ListInvitations(ListInvitationsRequest())
    if end is not None:
        name = only_suffix(end, "invitations", [each.name for each in found.invitations])
        ended = cli.hopper.peers.RevokeInvitation(RevokeInvitationRequest(name=name))
        if cli.json:
            cli.out.document(ended)
        else:
            cli.out.say(f"{short(name)} is over")
    elif cli.json:
        cli.out.document(found)
    elif not found.invitations:
        cli.out.note("no invitation; `hopper peer invite NAME` makes one")
    else:
        cli.out.say(invitation_table(found.invitations, cli.now))


# By digits.


def open_(
    cli: Cli,
    lifetime: Annotated[str, typer.Option("--for", metavar="TIME", help="How long, at most an hour.")] = "5m",
) -> None:
    """Let other Hoppers ask to pair for some minutes. Nothing comes of that unless you approve it."""
    from hopper.federation.v1.peer_admin_service_pb2 import OpenPairingRequest
    from hopper_cli.times import format_time, parse_duration
    from hopper_common.timestamps import from_proto, to_proto

    asked = OpenPairingRequest(lifetime=to_proto(parse_duration(lifetime)))
    response = cli.hopper.peers.OpenPairing(asked)
    if cli.json:
        cli.out.document(response)
        return
    cli.out.say(f"open at {response.address} until {format_time(from_proto(response.close_time), cli.now)}")
    cli.out.note(
        f"the other owner types:  hopper peer request {response.address} --name NAME\n"
        "then `hopper peer pairings` shows the digits here"
    )


def close(cli: Cli) -> None:
    """No longer let other Hoppers ask to pair."""
    from google.protobuf.duration_pb2 import Duration

    from hopper.federation.v1.peer_admin_service_pb2 import OpenPairingRequest

    response = cli.hopper.peers.OpenPairing(OpenPairingRequest(lifetime=Duration()))
    if cli.json:
        cli.out.document(response)
    else:
        cli.out.say("nobody can ask to pair now")


def request(
    cli: Cli,
    address: Annotated[
        str, typer.Argument(metavar="ADDRESS", help="The other's pairing port, host:port, as its owner says.")
    ],
    name: NameOption,
) -> None:
    """Ask the Hopper at an address to pair: then both of you see the same six digits."""
    from hopper.federation.v1.peer_admin_service_pb2 import RequestPairingRequest
    from hopper_cli.names import short
    from hopper_cli.peering import digits

    asked = RequestPairingRequest(address=address, peer_id=name)
    response = cli.hopper.peers.RequestPairing(asked, timeout=max(cli.timeout, PATIENCE))
    pairing = response.pairing
    if cli.json:
        cli.out.document(response)
        return
    cli.out.say(f"{short(pairing.name)}  {digits(pairing.code)}")
    cli.out.note(
        "tell the other owner these digits, best by voice, and ask for those that they see. Both type the other's:\n"
        f"  hopper peer approve {short(pairing.name)} DIGITS"
    )


def pairings(cli: Cli) -> None:
    """List pairings that are under way, with their digits, and those that ended within the hour."""
    from hopper.federation.v1.peer_admin_service_pb2 import ListPairingsRequest
    from hopper_cli.peering import pairing_table

    found = cli.hopper.peers.ListPairings(ListPairingsRequest())
    if cli.json:
        cli.out.document(found)
    elif not found.pairings:
        cli.out.note(
            "nobody asks to pair; `hopper peer open` lets others ask, `hopper peer request` asks them"
        )
    else:
        cli.out.say(pairing_table(found.pairings, cli.now))


def approve(
    cli: Cli,
    pairing: PairingArgument,
    code: Annotated[
        str, typer.Argument(metavar="DIGITS", help="What the other owner sees: they tell you, you type.")
    ],
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="What to call the other Hopper here, if it asked.")
    ] = "",
) -> None:
    """
    Approve a pairing, with the digits from the other owner's screen.

    Digits that differ end the pairing: somebody may be in between.
    """
    from hopper.federation.v1.peer_admin_service_pb2 import ApprovePairingRequest

    asked = ApprovePairingRequest(name=_pairing(cli, pairing), code=code, peer_id=name)
    response = cli.hopper.peers.ApprovePairing(asked, timeout=max(cli.timeout, PATIENCE))
    if cli.json:
        cli.out.document(response)
    else:
        _say_pairing(cli, response.pairing)


def decline(cli: Cli, pairing: PairingArgument) -> None:
    """Turn a pairing down."""
    from hopper.federation.v1.peer_admin_service_pb2 import DeclinePairingRequest

    response = cli.hopper.peers.DeclinePairing(DeclinePairingRequest(name=_pairing(cli, pairing)))
    if cli.json:
        cli.out.document(response)
    else:
        _say_pairing(cli, response.pairing)


def _pairing(cli: Cli, text: str) -> str:
    from hopper.federation.v1.peer_admin_service_pb2 import ListPairingsRequest
    from hopper_cli.names import only_suffix

    found = cli.hopper.peers.ListPairings(ListPairingsRequest())
    return only_suffix(text, "pairings", [each.name for each in found.pairings])


def _say_pairing(cli: Cli, pairing: "Pairing") -> None:
    from hopper.federation.v1.peer_pb2 import Pairing
    from hopper_cli.names import bare, short
    from hopper_cli.render import word

    cli.out.say(f"{short(pairing.name)} {word(Pairing.State, pairing.state, 'STATE_')}")
    if pairing.state == Pairing.STATE_DONE:
        cli.out.note(f"paired: hopper peer show {bare(pairing.peer)}")
    elif pairing.state == Pairing.STATE_APPROVED_HERE:
        cli.out.note("once the other owner approves too, `hopper peer list` shows it")


# Peers.


def list_peers(
    cli: Cli,
    blocked: Annotated[bool, typer.Option("--all", "-a", help="Blocked ones too.")] = False,
) -> None:
    """List the Hoppers that this one is paired with."""
    from hopper.federation.v1.peer_admin_service_pb2 import ListPeersRequest, ListPeersResponse
    from hopper_cli.peering import peer_table

    asked = ListPeersRequest(include_blocked=blocked, page_size=1000)
    found = ListPeersResponse()
    while True:
        page = cli.hopper.peers.ListPeers(asked)
        found.peers.extend(page.peers)
        asked.page_token = page.next_page_token
        if not page.next_page_token:
            break
    if cli.json:
        cli.out.document(found)
    elif not found.peers:
        others = "" if blocked else "; `--all` lists blocked ones too"
        cli.out.note(f"no peer; `hopper peer invite NAME` invites one{others}")
    else:
        cli.out.say(peer_table(found.peers))


def show(cli: Cli, peer: PeerArgument) -> None:
    """Show everything about a peer, with the six words that its owner sees too."""
    from rich.text import Text

    from hopper.common.v1.options_pb2 import TRUST_LEVEL_KNOWN
    from hopper.federation.v1.peer_admin_service_pb2 import GetPeerRequest
    from hopper_cli.names import bare, peer_name
    from hopper_cli.peering import peer_facts

    response = cli.hopper.peers.GetPeer(GetPeerRequest(name=peer_name(peer)))
    if cli.json:
        cli.out.document(response)
        return
    cli.out.say(Text(bare(response.peer.name), style="bold"))
    cli.out.say(peer_facts(response.peer, cli.now))
    if response.peer.level == TRUST_LEVEL_KNOWN:
        cli.out.note(
            "nothing goes there by itself, and what it offers waits for you, until you say what may cross:\n"
            f"  hopper peer trust {bare(response.peer.name)} --policy FILE"
        )


def rename(
    cli: Cli,
    peer: PeerArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call it from now on.")],
) -> None:
    """Call a peer something else. It does not hear of that."""
    from hopper.federation.v1.peer_admin_service_pb2 import RenamePeerRequest
    from hopper_cli.names import bare, peer_name

    response = cli.hopper.peers.RenamePeer(RenamePeerRequest(name=peer_name(peer), peer_id=name))
    if cli.json:
        cli.out.document(response)
    else:
        cli.out.say(f"{bare(peer)} is {bare(response.peer.name)} now")


def address(
    cli: Cli,
    peer: PeerArgument,
    addresses: Annotated[
        list[str],
        typer.Argument(metavar="ADDRESS...", help="Its peer port, host:port; the first is tried first."),
    ],
) -> None:
    """Say where a peer is. Who answers there must still prove that it is the peer."""
    from hopper.federation.v1.peer_admin_service_pb2 import SetPeerAddressesRequest
    from hopper_cli.names import bare, peer_name
    from hopper_cli.output import one_line

    asked = SetPeerAddressesRequest(name=peer_name(peer), addresses=addresses)
    response = cli.hopper.peers.SetPeerAddresses(asked)
    if cli.json:
        cli.out.document(response)
    else:
        where = ", ".join(map(one_line, response.peer.addresses))
        cli.out.say(f"{bare(response.peer.name)} is at {where or 'no address'}")
