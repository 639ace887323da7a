"""`hopper auth`: who may call this Hopper, and with what."""

from typing import TYPE_CHECKING, Annotated

import typer

from hopper_cli import access_complete
from hopper_cli.cli import Cli, command
from hopper_cli.commands import auth_keys, auth_people
from hopper_cli.commands.options import SET_UP

if TYPE_CHECKING:
    from hopper.registry.v1.access_service_pb2 import WhoAmIResponse

_FORM = (
    "A grant is ROLE@PLACE. Roles: admin, operator, member, viewer, each of which may what those after it may; and "
    "agent, auditor. A place is an instance and everything under it (moodle, global), or projects/ID, that queue alone."
)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    group = typer.Typer(
        no_args_is_help=True, help="Who may call this Hopper: people, agents and their keys.", epilog=_FORM
    )
    app.add_typer(group, name="auth", rich_help_panel=SET_UP)
    command(
        group,
        "init",
        examples=("hopper auth init", "hopper auth init ada --save ~/.hopper/ada.key"),
        epilog="Once in a Hopper's life, and only through this machine's own socket.",
    )(init)
    command(group, "whoami", examples=("hopper auth whoami",))(whoami)
    command(
        group,
        "token",
        examples=("hopper auth token", "hopper auth token --for memory --json | jq -r .token"),
    )(token)
    auth_people.register(group)
    auth_keys.register(group)


def init(
    cli: Cli,
    who: Annotated[str, typer.Argument(metavar="ID", help="The id of the first admin.")] = "admin",
    save: auth_keys.SaveOption = None,
) -> None:
    """Make the first admin, with a key, which is shown this once."""
    from hopper.registry.v1.access_service_pb2 import BootstrapAdminRequest
    from hopper_cli.access_names import principal_name
    from hopper_cli.names import bare
    from hopper_cli.secret_files import KeyFile

    with KeyFile(save) as file:
        answer = cli.hopper.access.BootstrapAdmin(
            BootstrapAdminRequest(principal_id=bare(principal_name(who)))
        )
        auth_keys.hand_over(
            cli, answer, file, done=f"{bare(answer.principal.name)} is the first admin of this Hopper"
        )


def whoami(cli: Cli) -> None:
    """Say who you are to this Hopper, how you proved it, and what you may do."""
    from hopper.registry.v1.access_service_pb2 import WhoAmIRequest

    answer = cli.hopper.access.WhoAmI(WhoAmIRequest())
    if cli.json:
        cli.out.document(answer)
    else:
        _tell_who(cli, answer)


def _tell_who(cli: Cli, answer: "WhoAmIResponse") -> None:
    from hopper_cli.access_names import grants_text
    from hopper_cli.render import facts
    from hopper_cli.times import format_time
    from hopper_common.timestamps import time_field

    expires = time_field(answer, "expire_time")
    may = "everything" if answer.principal == "owner" else grants_text(answer.bindings) or "nothing"
    cli.out.say(answer.principal.removeprefix("principals/"), style="bold")
    cli.out.say(
        facts(
            [
                ("for", answer.acts_for.removeprefix("principals/")),
                ("by", answer.credential),
                ("may", may),
                ("until", "" if expires is None else format_time(expires, cli.now)),
            ]
        )
    )


def token(
    cli: Cli,
    audience: Annotated[
        str,
        typer.Option(
            "--for",
            metavar="SERVICE",
            help="The service it is for: router, memory, ..., or a SPIFFE id.",
            autocompletion=access_complete.services,
        ),
    ] = "router",
) -> None:
    """
    Print a token of five minutes, by which a service may pass a call on in your name.

    It is made from the key you call with; the owner, on this machine's own socket, needs none.
    """
    from hopper.registry.v1.access_service_pb2 import IssueTokenRequest
    from hopper_cli.times import format_time
    from hopper_common.timestamps import from_proto

    answer = cli.hopper.access.IssueToken(IssueTokenRequest(audience=audience))
    if cli.json:
        cli.out.document(answer)
    else:
        cli.out.say(answer.token)
        cli.out.note(f"good until {format_time(from_proto(answer.expire_time), cli.now)}")
