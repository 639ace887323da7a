"""
What a method declares about itself, by the option `hopper.common.v1.access`: who may call it, what its
calls count against, and how large they may be.

A server refuses to start with a method that declares no rate class or nobody who may call: forgetting is
loud.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from hopper.common.v1 import options_pb2
from hopper.common.v1.options_pb2 import RateClass, Role, Service, TrustLevel
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


@dataclass(frozen=True, slots=True)
class Access:
    """
    What one method declares.

    Attributes:
        roles: The least roles of people and agents that may call.
        services: The services of this Hopper that may call in their own name.
        peers: The least level of another Hopper that may call; unspecified: none may.
        strangers: Whoever reaches the pairing port may call.
        local: Only through the owner's own socket, whatever the role.
        max_request_bytes: Of the encoded message; of each one, in a stream.
    """

    roles: Collection[Role.ValueType]
    services: Collection[Service.ValueType]
    peers: TrustLevel.ValueType
    strangers: bool
    local: bool
    rate_class: RateClass.ValueType
    max_request_bytes: int


def access_of(method: MethodDescriptor) -> Access:
    """Read what a method declares."""
    declared = method.GetOptions().Extensions[options_pb2.access]
    return Access(
        roles=frozenset(declared.roles),
        services=frozenset(declared.services),
        peers=declared.peers,
        strangers=declared.strangers,
        local=declared.local,
        rate_class=declared.rate_class,
        max_request_bytes=(declared.max_request_kib or DEFAULT_MAX_REQUEST_KIB) * 1024,
    )


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
        if (lacks := _lacks(access_of(method)))
    ]
    if lacking:
        raise UndeclaredMethods(f"set the option hopper.common.v1.access: {'; '.join(lacking)}")


def _lacks(access: Access) -> list[str]:
    lacks = []
    if access.rate_class == RateClass.RATE_CLASS_UNSPECIFIED:
        lacks.append("a rate class")
    if not (access.roles or access.services or access.peers or access.strangers):
        lacks.append("anybody who may call")
    if Role.ROLE_UNSPECIFIED in access.roles or Service.SERVICE_UNSPECIFIED in access.services:
        lacks.append("a name for a role or service left unspecified")
    return lacks
