"""Every method of the contract, and who may call it as its options say: read without any code of the guard's."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from google.protobuf.descriptor import MethodDescriptor

import hopper
from hopper.common.v1 import options_pb2
from hopper.common.v1.options_pb2 import MethodAccess, Role, Service

ROLES: Final = [role for role in Role.values() if role != Role.ROLE_UNSPECIFIED]
SERVICES: Final = [service for service in Service.values() if service != Service.SERVICE_UNSPECIFIED]
LINE: Final = [Role.ROLE_OWNER, Role.ROLE_ADMIN, Role.ROLE_OPERATOR, Role.ROLE_MEMBER, Role.ROLE_VIEWER]


def methods() -> Iterator[MethodDescriptor]:
    """Every method of every service below `hopper`."""
    for name in sorted(_modules()):
        for service in importlib.import_module(name).DESCRIPTOR.services_by_name.values():
            yield from service.methods


def _modules() -> Iterator[str]:
    for root in map(Path, hopper.__path__):  # its packages have no __init__.py, so nothing else lists them
        for file in root.rglob("*_pb2.py"):
            yield ".".join(file.relative_to(root.parent).with_suffix("").parts)


def declared(method: MethodDescriptor) -> MethodAccess:
    """What a method says about who may call it."""
    return method.GetOptions().Extensions[options_pb2.access]


def path(method: MethodDescriptor) -> str:
    """As on the wire."""
    return f"/{method.containing_service.full_name}/{method.name}"


def role_may(access: MethodAccess, role: "Role.ValueType") -> bool:
    """Whether a person who has that one role, everywhere, may call."""
    if role == Role.ROLE_OWNER:
        return True
    if access.local:
        return False
    if role in LINE:
        return any(named in LINE[LINE.index(role) :] for named in access.roles)
    return role in access.roles


def agent_may(access: MethodAccess, person: "Role.ValueType") -> bool:
    """Whether an agent may, that acts for a person who has that role everywhere."""
    return Role.ROLE_AGENT in access.roles and role_may(access, person)
