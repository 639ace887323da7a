"""What the shell offers where people, agents, keys and roles are named; in the manner of `hopper_cli.complete`."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer

from hopper_cli.complete import Offer, offers

if TYPE_CHECKING:
    from hopper.registry.v1.principal_pb2 import Principal
    from hopper_client import Hopper

_MOST = 200


def principals(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """Those that the command is about, `hopper auth person` or `hopper auth agent`; all of them elsewhere."""
    words = ctx.command_path.split()
    kind = next((word for word in ("person", "agent") if word in words), "")
    return offers(ctx, lambda hopper: _principals(hopper, kind, full=incomplete.startswith("principals/")))


def people(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """People: ids, and what they are called."""
    full = incomplete.startswith("principals/")
    return offers(ctx, lambda hopper: _principals(hopper, "person", full=full))


def keys(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """Keys in use: of everybody, or once it is known whose, of them."""

    def ask(hopper: "Hopper") -> Iterable[Offer]:
        from hopper.registry.v1.access_service_pb2 import ListApiKeysRequest
        from hopper_cli.access_names import shown_key
        from hopper_cli.output import one_line

        who, slash, _ = incomplete.removeprefix("principals/").partition("/")
        if not slash:
            return [(f"{name}/", text) for name, text in _principals(hopper, "", full=False)]
        found = hopper.access.ListApiKeys(ListApiKeysRequest(parent=f"principals/{who}")).keys
        in_use = (key for key in found if not key.HasField("revoke_time"))
        return [(shown_key(key.name), one_line(key.description)) for key in in_use]

    return offers(ctx, ask)


def grants(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """Roles, and after the @ places."""
    from hopper_cli.access_names import ROLES

    role, at, _ = incomplete.partition("@")
    if not at:
        return [(f"{each}@", "") for each in ROLES]

    def ask(hopper: "Hopper") -> Iterable[Offer]:
        from hopper.registry.v1.instance_service_pb2 import ListInstancesRequest
        from hopper.registry.v1.project_service_pb2 import ListProjectsRequest
        from hopper_cli.names import bare

        instances = hopper.instances.ListInstances(ListInstancesRequest(page_size=_MOST)).instances
        projects = hopper.projects.ListProjects(ListProjectsRequest(page_size=_MOST)).projects
        places = [bare(each.name) for each in instances] + [each.name for each in projects]
        return [(f"{role}@{place}", "") for place in places]

    return offers(ctx, ask)


def services(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """The services that a token may be for."""
    return [(name, "") for name in ("router", "registry", "memory", "federation", "gateway")]


def _principals(hopper: "Hopper", kind: str, *, full: bool) -> list[Offer]:
    from hopper.registry.v1.access_service_pb2 import ListPrincipalsRequest
    from hopper_cli.names import bare
    from hopper_cli.output import one_line

    found = hopper.access.ListPrincipals(ListPrincipalsRequest(page_size=_MOST)).principals
    return [
        (each.name if full else bare(each.name), one_line(each.display_name))
        for each in found
        if not kind or _is(each, kind)
    ]


def _is(principal: "Principal", kind: str) -> bool:
    from hopper.registry.v1.principal_pb2 import Principal

    return principal.kind == Principal.Kind.Value(f"KIND_{kind.upper()}")
