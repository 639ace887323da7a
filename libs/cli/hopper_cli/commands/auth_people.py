"""`hopper auth person` and `hopper auth agent`: who may call. The same commands, each for its kind."""

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from hopper_cli import access_complete
from hopper_cli.cli import Cli, command
from hopper_cli.commands.options import YesOption

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from rich.table import Table

    from hopper.registry.v1.principal_pb2 import Principal

_KINDS: Final = {
    "person": "People: what they may do, and where.",
    "agent": "Agents: software that acts for a person, and never may more than that person.",
}

Who = Annotated[str, typer.Argument(metavar="ID", help="Who.", autocompletion=access_complete.principals)]
NewId = Annotated[str, typer.Argument(metavar="ID", help="Chosen by you: a-z, 0-9, dots, dashes.")]
Name = Annotated[str, typer.Option("--name", metavar="TEXT", help="What people call it.")]
RoleOption = Annotated[
    list[str] | None,
    typer.Option(
        "--role",
        "-r",
        metavar="ROLE@PLACE",
        help="What it may do there, such as member@moodle. Repeatable.",
        autocompletion=access_complete.grants,
    ),
]
Grants = Annotated[
    list[str],
    typer.Argument(
        metavar="ROLE@PLACE...", help="Such as member@moodle.", autocompletion=access_complete.grants
    ),
]
ForOption = Annotated[
    str,
    typer.Option("--for", metavar="PERSON", help="Whom it acts for.", autocompletion=access_complete.people),
]

_Command = Callable[..., None]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for kind, about in _KINDS.items():
        group = typer.Typer(no_args_is_help=True, help=about)
        app.add_typer(group, name=kind)
        _register(group, kind)


def _register(group: typer.Typer, kind: str) -> None:
    who = "ada" if kind == "person" else "build-bot"

    def add_command(name: str, function: _Command, *examples: str) -> None:
        shown = [f"hopper auth {kind} {name} {each}".rstrip() for each in examples]
        command(group, name, examples=shown)(_of_kind(function, kind))

    if kind == "person":
        add_command("add", add_person, "ada --name Ada --role admin@global", "bo -r member@moodle")
    else:
        add_command("add", add_agent, "build-bot --for ada --role agent@projects/web")
    add_command("list", list_all, "")
    add_command("show", show, who)
    add_command("grant", grant, f"{who} member@moodle viewer@global")
    add_command("revoke-role", revoke_role, f"{who} member@moodle")
    add_command("disable", disable, who)
    add_command("enable", enable, who)
    add_command("remove", remove, f"{who} --yes")


def _of_kind(function: _Command, kind: str) -> _Command:
    """The command for one kind: *kind* is filled in, and `KIND` in its help."""

    @functools.wraps(function)
    def run(cli: Cli, **given: Any) -> None:
        function(cli, kind, **given)

    signature = inspect.signature(function)
    left = [parameter for name, parameter in signature.parameters.items() if name != "kind"]
    run.__signature__ = signature.replace(parameters=left)  # type: ignore[attr-defined]  # what `command` reads
    run.__doc__ = (inspect.getdoc(function) or "").replace(
        "KIND", "a person" if kind == "person" else "an agent"
    )
    return run


def add_person(cli: Cli, kind: str, who: NewId, name: Name = "", role: RoleOption = None) -> None:
    """Add KIND, who may do nothing but what you say here or grant later."""
    _add(cli, kind, who, name, role, acts_for="")


def add_agent(
    cli: Cli, kind: str, who: NewId, acts_for: ForOption, name: Name = "", role: RoleOption = None
) -> None:
    """Add KIND. It may do what both its own roles and those of the person it acts for allow."""
    from hopper_cli.access_names import principal_name

    _add(cli, kind, who, name, role, acts_for=principal_name(acts_for))


def _add(cli: Cli, kind: str, who: str, name: str, role: list[str] | None, *, acts_for: str) -> None:
    from hopper.registry.v1.access_service_pb2 import CreatePrincipalRequest
    from hopper.registry.v1.principal_pb2 import Principal
    from hopper_cli.access_names import bindings_of, principal_name
    from hopper_cli.names import bare

    principal = Principal(
        kind=_number(kind), display_name=name, bindings=bindings_of(role or ()), acts_for=acts_for
    )
    answer = cli.hopper.access.CreatePrincipal(
        CreatePrincipalRequest(principal_id=bare(principal_name(who)), principal=principal)
    )
    _tell(cli, answer, answer.principal, "added")


def list_all(cli: Cli, kind: str) -> None:
    """List all of the kind by id."""
    from hopper.registry.v1.access_service_pb2 import ListPrincipalsResponse

    found = [principal for principal in _all(cli) if principal.kind == _number(kind)]
    if cli.json:
        cli.out.document(ListPrincipalsResponse(principals=found))
    else:
        cli.out.say(_table(found, kind))


def _all(cli: Cli) -> "Iterator[Principal]":
    from hopper.registry.v1.access_service_pb2 import ListPrincipalsRequest

    request = ListPrincipalsRequest(page_size=1000)
    while True:
        page = cli.hopper.access.ListPrincipals(request)
        yield from page.principals
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def _table(principals: "list[Principal]", kind: str) -> "Table":
    from hopper_cli.access_names import grants_text
    from hopper_cli.names import bare
    from hopper_cli.render import grid, plain

    table = grid(kind, *(["for"] if kind == "agent" else []), "state", "may", "name")
    for each in principals:
        table.add_row(
            bare(each.name),
            *([bare(each.acts_for)] if kind == "agent" else []),
            "disabled" if each.disabled else "active",
            grants_text(each.bindings) or "nothing",
            plain(each.display_name),
        )
    return table


def show(cli: Cli, kind: str, who: Who) -> None:
    """Show everything about KIND."""
    from hopper.registry.v1.access_service_pb2 import GetPrincipalResponse
    from hopper_cli.access_names import grants_text
    from hopper_cli.names import bare
    from hopper_cli.render import facts
    from hopper_cli.times import format_time
    from hopper_common.timestamps import from_proto

    principal = _get(cli, kind, who)
    if cli.json:
        cli.out.document(GetPrincipalResponse(principal=principal))
        return
    cli.out.say(bare(principal.name), style="bold")
    cli.out.say(
        facts(
            [
                ("name", principal.display_name),
                ("for", bare(principal.acts_for)),
                ("state", "disabled" if principal.disabled else "active"),
                ("may", grants_text(principal.bindings) or "nothing"),
                ("changed", format_time(from_proto(principal.update_time), cli.now)),
            ]
        )
    )


def grant(cli: Cli, kind: str, who: Who, grants: Grants) -> None:
    """Give KIND more roles. You can give those only on places you are an admin of."""
    from hopper_cli.access_names import bindings_of

    principal = _get(cli, kind, who)
    given = [each for each in bindings_of(grants) if each not in principal.bindings]
    principal.bindings.extend(given)
    _update(cli, principal, "bindings")


def revoke_role(cli: Cli, kind: str, who: Who, grants: Grants) -> None:
    """Take roles of KIND away."""
    from hopper_cli.access_names import bindings_of, grant_text
    from hopper_cli.names import bare
    from hopper_cli.problems import UsageProblem

    principal = _get(cli, kind, who)
    for each in bindings_of(grants):
        if each not in principal.bindings:
            raise UsageProblem(
                f"{bare(principal.name)} is not {grant_text(each)}",
                remedy=f"`hopper auth {kind} show {bare(principal.name)}` shows what they are",
            )
        principal.bindings.remove(each)
    _update(cli, principal, "bindings")


def disable(cli: Cli, kind: str, who: Who) -> None:
    """Let KIND in no more, with none of their keys, from now on."""
    principal = _get(cli, kind, who)
    principal.disabled = True
    _update(cli, principal, "disabled")


def enable(cli: Cli, kind: str, who: Who) -> None:
    """Let KIND in again."""
    principal = _get(cli, kind, who)
    principal.disabled = False
    _update(cli, principal, "disabled")


def remove(cli: Cli, kind: str, who: Who, yes: YesOption = False) -> None:
    """Remove KIND, their keys, and the agents that act for them."""
    from hopper.registry.v1.access_service_pb2 import DeletePrincipalRequest
    from hopper_cli.commands.projects import confirm
    from hopper_cli.names import bare

    name = _get(cli, kind, who).name
    confirm(cli, f"remove {bare(name)}, with keys and agents?", yes)
    answer = cli.hopper.access.DeletePrincipal(DeletePrincipalRequest(name=name))
    if cli.json:
        cli.out.document(answer)
    else:
        cli.out.say(f"{bare(name)} removed; keys ended: {answer.revoked_keys}")


def _get(cli: Cli, kind: str, who: str) -> "Principal":
    """The one that is meant, if it is of that kind."""
    from hopper.registry.v1.access_service_pb2 import GetPrincipalRequest
    from hopper_cli.access_names import principal_name
    from hopper_cli.names import bare
    from hopper_cli.problems import UsageProblem

    found = cli.hopper.access.GetPrincipal(GetPrincipalRequest(name=principal_name(who))).principal
    if found.kind != _number(kind):
        other = "agent" if kind == "person" else "person"
        raise UsageProblem(
            f"{bare(found.name)} is not of the kind {kind}", remedy=f"say `hopper auth {other}`"
        )
    return found


def _update(cli: Cli, principal: "Principal", path: str) -> None:
    from google.protobuf.field_mask_pb2 import FieldMask

    from hopper.registry.v1.access_service_pb2 import UpdatePrincipalRequest
    from hopper_cli.access_names import grants_text

    answer = cli.hopper.access.UpdatePrincipal(
        UpdatePrincipalRequest(principal=principal, update_mask=FieldMask(paths=[path]))
    )
    state = "is disabled" if answer.principal.disabled else "may: "
    may = "" if answer.principal.disabled else grants_text(answer.principal.bindings) or "nothing"
    _tell(cli, answer, answer.principal, f"{state}{may}")


def _tell(cli: Cli, answer: "Message", principal: "Principal", done: str) -> None:
    from hopper_cli.names import bare

    if cli.json:
        cli.out.document(answer)
    else:
        cli.out.say(f"{bare(principal.name)} {done}")


def _number(kind: str) -> "Principal.Kind.ValueType":
    from hopper.registry.v1.principal_pb2 import Principal

    return Principal.Kind.Value(f"KIND_{kind.upper()}")
