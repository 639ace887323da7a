"""People, agents, roles and keys as they are typed, and as they are shown."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from hopper_cli.problems import UsageProblem

if TYPE_CHECKING:
    from hopper.registry.v1.principal_pb2 import RoleBinding

ROLES: Final = ("admin", "operator", "member", "viewer", "agent", "auditor")
"""Those that can be given, the highest first; the last two stand beside that line."""

_GRANTS: Final = "write ROLE@PLACE, such as member@moodle, viewer@global or member@projects/web"


def principal_name(text: str) -> str:
    """`principals/ada` of `ada`; a full name stays."""
    text = text.strip()
    who = text.removeprefix("principals/")
    if not who or "/" in who:
        raise UsageProblem(f"{text!r} is nobody", remedy="write their id, or principals/ID")
    return f"principals/{who}"


def key_name(text: str) -> str:
    """`principals/ada/keys/4f..` of `ada/4f..`; a full name stays."""
    parts = text.strip().removeprefix("principals/").replace("/keys/", "/").split("/")
    if len(parts) != 2 or not all(parts):
        raise UsageProblem(
            f"{text!r} is no key", remedy="write WHO/KEY, as `hopper auth key list WHO` shows them"
        )
    return f"principals/{parts[0]}/keys/{parts[1]}"


def shown_key(name: str) -> str:
    """`ada/4f..`: a key as it is shown and typed."""
    return name.removeprefix("principals/").replace("/keys/", "/")


def place_name(text: str) -> str:
    """`instances/moodle` of `moodle`; `instances/i` and `projects/p` are what they say."""
    if text.startswith(("instances/", "projects/")):
        return text
    if not text or "/" in text:
        raise UsageProblem(f"{text!r} is no place", remedy="write an instance's id, or projects/ID")
    return f"instances/{text}"


def bindings_of(grants: Iterable[str]) -> "list[RoleBinding]":
    """
    Roles on places, of `member@moodle`.

    Raises:
        UsageProblem: One of another form, or a role that there is not.
    """
    from hopper.common.v1.options_pb2 import Role
    from hopper.registry.v1.principal_pb2 import RoleBinding

    made = []
    for text in grants:
        role, at, place = text.strip().partition("@")
        if not at:
            raise UsageProblem(f"{text!r} is no role on a place", remedy=_GRANTS)
        if role.lower() not in ROLES:
            raise UsageProblem(f"{role!r} is no role", remedy=f"the roles are {', '.join(ROLES)}")
        made.append(RoleBinding(role=Role.Value(f"ROLE_{role.upper()}"), resource=place_name(place)))
    return made


def grant_text(binding: "RoleBinding") -> str:
    """`member@moodle`: the other way."""
    from hopper.common.v1.options_pb2 import Role
    from hopper_cli.render import word

    return f"{word(Role, binding.role, 'ROLE_')}@{binding.resource.removeprefix('instances/')}"


def grants_text(bindings: "Iterable[RoleBinding]") -> str:
    """All of them on a line."""
    return ", ".join(map(grant_text, bindings))
