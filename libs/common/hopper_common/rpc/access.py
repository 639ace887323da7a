"""
What a method declares about itself, by the option `hopper.common.v1.access`: who may call it, what its
calls count against, and how large they may be.

A server refuses to start with a method that declares no rate class or nobody who may call: forgetting is
loud.
"""

from collections.abc import Iterable

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from hopper.common.v1 import options_pb2
from hopper.common.v1.options_pb2 import MethodAccess
from hopper_common.auth.model import Access, RateClass, Role, Service, TrustLevel
from hopper_common.startup import StartupError

DEFAULT_MAX_REQUEST_KIB = 256

# Open to whoever reaches the port, by their nature; and not ours to put options into.
EXEMPT = frozenset(
    {
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }
)


class UndeclaredMethods(StartupError):
    """Methods do not say who may call them, or what their calls count against."""

    exit_code = 5


def access_of(method: MethodDescriptor) -> Access:
    """Read what a method declares."""
    declared = _declared(method)
    return Access(
        roles=frozenset(Role(role) for role in declared.roles if role),
        services=frozenset(Service(service) for service in declared.services if service),
        peers=TrustLevel(declared.peers) if declared.peers else None,
        strangers=declared.strangers,
        local=declared.local,
        anywhere=declared.anywhere,
        rate_class=RateClass(declared.rate_class) if declared.rate_class else None,
        max_request_bytes=(declared.max_request_kib or DEFAULT_MAX_REQUEST_KIB) * 1024,
    )


def _declared(method: MethodDescriptor) -> MethodAccess:
    return method.GetOptions().Extensions[options_pb2.access]


def require_declared(services: Iterable[ServiceDescriptor]) -> None:
    """
    Refuse services with a method that declares too little. Health and reflection need not.

    Raises:
        UndeclaredMethods: Names every such method and what it lacks.
    """
    lacking = [
        f"{method.full_name} lacks {', '.join(lacks)}"
        for service in services
        if service.full_name not in EXEMPT
        for method in service.methods
        if (lacks := _lacks(_declared(method)))
    ]
    if lacking:
        raise UndeclaredMethods(f"set the option hopper.common.v1.access: {'; '.join(lacking)}")


def _lacks(declared: MethodAccess) -> list[str]:
    lacks = []
    if not declared.rate_class:
        lacks.append("a rate class")
    if not (declared.roles or declared.services or declared.peers or declared.strangers):
        lacks.append("anybody who may call")
    if 0 in declared.roles or 0 in declared.services:
        lacks.append("a name for a role or service left unspecified")
    return lacks
