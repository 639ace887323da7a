"""`hopper auth key`: what people and agents prove themselves with."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hopper_cli import access_complete
from hopper_cli.cli import Cli, command
from hopper_cli.commands.options import YesOption

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from hopper.registry.v1.principal_pb2 import ApiKey
    from hopper_cli.secret_files import KeyFile

WhoseArgument = Annotated[
    str, typer.Argument(metavar="WHO", help="Whose.", autocompletion=access_complete.principals)
]
KeyArgument = Annotated[
    str,
    typer.Argument(
        metavar="KEY", help="WHO/KEY, as `key list` shows them.", autocompletion=access_complete.keys
    ),
]
SaveOption = Annotated[
    str | None,
    typer.Option("--save", metavar="FILE", help="Write the key to a new file, for you alone (0600)."),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    group = typer.Typer(
        no_args_is_help=True, help="Keys: shown once, kept as a hash, for 90 days unless you say otherwise."
    )
    app.add_typer(group, name="key")
    command(
        group,
        "create",
        examples=(
            'hopper auth key create ada -d "her laptop" --expires 30d',
            "hopper auth key create build-bot --scope agent@projects/web --save bot.key",
        ),
        epilog="Two may be in use at a time, so that one can replace the other.",
    )(create)
    command(group, "list", examples=("hopper auth key list ada",))(list_keys)
    command(
        group,
        "rotate",
        examples=(
            "hopper auth key rotate ada/0z4k9w2m7c1x",
            "hopper auth key rotate ada/0z4k9w2m7c1x --overlap 1h",
        ),
    )(rotate)
    command(group, "revoke", examples=("hopper auth key revoke ada/0z4k9w2m7c1x --yes",))(revoke)


def create(
    cli: Cli,
    who: WhoseArgument,
    description: Annotated[
        str, typer.Option("--description", "-d", metavar="TEXT", help="What it is for.")
    ] = "",
    expires: Annotated[
        str | None,
        typer.Option("--expires", metavar="TIME", help="How long it is good, at most 366d. Default: 90d."),
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            "--scope",
            metavar="ROLE@PLACE",
            help="It may do no more than this. Repeatable.",
            autocompletion=access_complete.grants,
        ),
    ] = None,
    save: SaveOption = None,
) -> None:
    """Make a key. It is shown this once: what is kept is a hash."""
    from hopper.registry.v1.access_service_pb2 import CreateApiKeyRequest
    from hopper.registry.v1.principal_pb2 import ApiKey
    from hopper_cli.access_names import bindings_of, principal_name, shown_key
    from hopper_cli.secret_files import KeyFile
    from hopper_cli.times import parse_duration
    from hopper_common.timestamps import to_proto

    key = ApiKey(description=description, scopes=bindings_of(scope or ()))
    if expires is not None:
        key.expire_time.CopyFrom(to_proto(cli.now + parse_duration(expires)))
    with KeyFile(save) as file:
        answer = cli.hopper.access.CreateApiKey(CreateApiKeyRequest(parent=principal_name(who), key=key))
        hand_over(cli, answer, file, done=f"{shown_key(answer.key.name)} made")


def hand_over(cli: Cli, answer: Any, file: "KeyFile", *, done: str) -> None:
    """
    Show a new key, this once: the key alone on standard output, so that it can be piped, and all else beside it. Or
    write it to a file, if one was named, or somebody is there to say that they want one.

    Args:
        answer: Has the key's record and the secret.
    """
    from hopper_cli.times import format_time
    from hopper_common.timestamps import from_proto

    if file.path is not None:
        file.write(answer.secret)
    if cli.json:
        cli.out.document(answer)
        return
    until = format_time(from_proto(answer.key.expire_time), cli.now)
    if file.path is not None:
        cli.out.say(f"{done}; its key is in {file.path}, good until {until}")
        return
    cli.out.note(f"{done}; its key, shown this once, good until {until}:")
    cli.out.say(answer.secret)
    _offer_file(cli, answer)


def _offer_file(cli: Cli, answer: Any) -> None:
    """Ask whether to write the key down, where there is somebody to ask."""
    from hopper_cli.access_names import shown_key
    from hopper_cli.secret_files import KeyFile

    path = cli.data_dir / f"{shown_key(answer.key.name).replace('/', '-')}.key"
    if not (somebody_is_there() and path.parent.is_dir()):
        return
    if typer.confirm(f"write it to {path}, for you alone?", default=False, err=True):
        with KeyFile(str(path)) as file:
            file.write(answer.secret)
        cli.out.note(f"written to {path}")


def somebody_is_there() -> bool:
    """Whether a person types and reads."""
    import sys

    return sys.stdin.isatty() and sys.stdout.isatty()


def list_keys(cli: Cli, who: WhoseArgument) -> None:
    """List somebody's keys, newest first; those that ended too."""
    from hopper.registry.v1.access_service_pb2 import ListApiKeysRequest
    from hopper_cli.access_names import principal_name

    answer = cli.hopper.access.ListApiKeys(ListApiKeysRequest(parent=principal_name(who)))
    if cli.json:
        cli.out.document(answer)
    else:
        cli.out.say(_table(cli, list(answer.keys)))


def _table(cli: Cli, keys: "list[ApiKey]") -> "Table":
    from hopper_cli.access_names import grants_text, shown_key
    from hopper_cli.render import grid, plain

    table = grid("key", "state", "ends", "last use", "may", "for")
    for key in keys:
        table.add_row(
            shown_key(key.name),
            _state(cli, key),
            _time(cli, key, "revoke_time") or _time(cli, key, "expire_time"),
            _time(cli, key, "last_use_time") or "never",
            grants_text(key.scopes) or "all that they may",
            plain(key.description),
        )
    return table


def _state(cli: Cli, key: "ApiKey") -> "Text":
    from rich.text import Text

    from hopper_common.timestamps import from_proto

    if key.HasField("revoke_time"):
        return Text("revoked", style="dim")
    if from_proto(key.expire_time) <= cli.now:
        return Text("expired", style="dim")
    return Text("in use", style="green")


def _time(cli: Cli, key: "ApiKey", field: str) -> str:
    from hopper_cli.times import format_time
    from hopper_common.timestamps import time_field

    time = time_field(key, field)
    return "" if time is None else format_time(time, cli.now)


def rotate(
    cli: Cli,
    key: KeyArgument,
    overlap: Annotated[
        str | None,
        typer.Option(
            "--overlap",
            metavar="TIME",
            help="How long the old key goes on working, at most 30d. Default: 1d.",
        ),
    ] = None,
    save: SaveOption = None,
) -> None:
    """Make a key like another one, which goes on working for a while."""
    from hopper.registry.v1.access_service_pb2 import RotateApiKeyRequest
    from hopper_cli.access_names import key_name, shown_key
    from hopper_cli.secret_files import KeyFile
    from hopper_cli.times import parse_duration

    request = RotateApiKeyRequest(name=key_name(key))
    if overlap is not None:
        request.overlap_seconds = int(parse_duration(overlap).total_seconds())
    with KeyFile(save) as file:
        answer = cli.hopper.access.RotateApiKey(request)
        ends = _time(cli, answer.replaced, "revoke_time") or _time(cli, answer.replaced, "expire_time")
        hand_over(
            cli, answer, file, done=f"{shown_key(answer.key.name)} made; the one it replaces ends {ends}"
        )


def revoke(cli: Cli, key: KeyArgument, yes: YesOption = False) -> None:
    """End a key, everywhere, within a second."""
    from hopper.registry.v1.access_service_pb2 import RevokeApiKeyRequest
    from hopper_cli.access_names import key_name, shown_key
    from hopper_cli.commands.projects import confirm

    name = key_name(key)
    confirm(cli, f"end the key {shown_key(name)} now?", yes)
    answer = cli.hopper.access.RevokeApiKey(RevokeApiKeyRequest(name=name))
    if cli.json:
        cli.out.document(answer)
    else:
        cli.out.say(f"{shown_key(answer.key.name)} revoked")
