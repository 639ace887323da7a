"""
A gRPC server as every Hopper process runs it: the interceptor, health and reflection around its services.

One may listen for several kinds of callers: each kind has a door of its own, with the guard that knows how such callers
prove who they are. Which door a call has come through is so by construction, and no call has to be asked for it.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from hopper_common.rpc.access import require_declared
from hopper_common.rpc.channel import MAX_MESSAGE_BYTES
from hopper_common.rpc.guard import Guard
from hopper_common.rpc.health import Health
from hopper_common.rpc.interceptor import UNARY_CAP, CallInterceptor, not_offered
from hopper_common.rpc.symbols import Symbols

_OPTIONS = (
    # Far above every method's own limit, so that the typed REQUEST_TOO_LARGE answers first.
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # By default a second process binds the same port without a word, and the kernel splits connections.
    ("grpc.so_reuseport", 0),
    # Calls that wait for the event loop. With the default of 1000, a burst of 2000 loses 200 as CANCELLED.
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 200_000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Our clients ping every 30 s; grpc's default of five minutes would have them sent away.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
)


@dataclass(frozen=True, slots=True)
class Registered:
    """
    A servicer with the service it implements.

    Attributes:
        add: The generated `add_XServicer_to_server`.
    """

    descriptor: ServiceDescriptor
    servicer: object
    add: Callable[[Any, grpc.aio.Server], None]

    @classmethod
    def of(
        cls, descriptor: ServiceDescriptor, servicer: object, add: Callable[[Any, grpc.aio.Server], None]
    ) -> "Registered":
        """
        Name the three parts that belong together:
        `of(pb2.DESCRIPTOR.services_by_name["TaskService"], servicer, add_TaskServiceServicer_to_server)`.
        """
        return cls(descriptor, servicer, add)

    @property
    def full_name(self) -> str:
        """The service's name with its package: `hopper.registry.v1.ProjectService`."""
        return self.descriptor.full_name


# Behind such doors there may be anybody. A connection that is older goes on under what was agreed on long ago.
_REMOTE_OPTIONS = (
    ("grpc.max_connection_age_ms", 3_600_000),
    ("grpc.max_connection_age_grace_ms", 60_000),
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.server_handshake_timeout_ms", 5_000),
)


class Door(grpc.aio.Server):
    """Where callers of one kind come in: what `listen_unix`, `listen_tcp` and credentials are given to."""

    def __init__(
        self,
        calls: CallInterceptor,
        services: Sequence[Registered],
        guard: Guard | None,
        *,
        remote: bool = True,
        options: Mapping[str, int] | None = None,
    ) -> None:
        self._calls = calls
        self._guard = guard
        together = dict(_OPTIONS + _REMOTE_OPTIONS if remote else _OPTIONS) | dict(options or {})
        self._server = grpc.aio.server(handlers=[_NobodyElse()], options=list(together.items()))
        for service in services:
            service.add(service.servicer, self)

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Any) -> None:
        """Generated code registers every method twice; see `add_registered_method_handlers`."""

    def add_registered_method_handlers(self, service_name: str, method_handlers: Any) -> None:
        surrounded = self._calls.surround(service_name, method_handlers, self._guard)
        self._server.add_registered_method_handlers(service_name, surrounded)

    def add_insecure_port(self, address: str) -> int:
        return self._server.add_insecure_port(address)

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        return self._server.add_secure_port(address, server_credentials)

    async def start(self) -> None:
        await self._server.start()

    async def stop(self, grace: float | None) -> None:
        await self._server.stop(grace)

    async def wait_for_termination(self, timeout: float | None = None) -> bool:
        return await self._server.wait_for_termination(timeout)


class HopperServer(Door):
    """
    A `grpc.aio.Server` that keeps its health: SERVING once started, NOT_SERVING from the first moment of a
    stop. Ports that are added to it are for the owner; for others it has doors.

    `stop(grace)` tells health watchers, ends all other streams with SHUTTING_DOWN, takes no new calls, and
    lets unary calls finish for up to *grace* seconds. It may be called again, with less grace.
    """

    def __init__(
        self,
        services: Sequence[Registered],
        *,
        unary_cap: timedelta = UNARY_CAP,
        owner: Guard | None = None,
        options: Mapping[str, int] | None = None,
        described: bool = True,
    ) -> None:
        names = [service.full_name for service in services]
        self._health = Health(names)
        self._every = [*services, *(_own_services(self._health, names) if described else ())]
        self._doors: list[Door] = []
        calls = CallInterceptor([service.descriptor for service in self._every], unary_cap=unary_cap)
        super().__init__(calls, self._every, owner, remote=False, options=options)

    def door(self, guard: Guard) -> Door:
        """A further door. It opens and closes with the server."""
        door = Door(self._calls, self._every, guard)
        self._doors.append(door)
        return door

    async def start(self) -> None:
        await super().start()
        for door in self._doors:
            await door.start()
        self._health.serve()

    def set_ready(self, ready: bool) -> None:
        """Say by its health whether a server that is started can do its work. Calls are answered either way."""
        self._health.serve(ready=ready)

    async def stop(self, grace: float | None) -> None:
        self._health.stop()
        self._calls.drain()
        await asyncio.gather(super().stop(grace), *(door.stop(grace) for door in self._doors))


class _NobodyElse(grpc.GenericRpcHandler):
    """Answers what no service has registered."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return not_offered(handler_call_details.method)


def _own_services(health: Health, names: Sequence[str]) -> list[Registered]:
    health_service = health_pb2.DESCRIPTOR.services_by_name["Health"]
    reflection_service = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
    listed = [*names, health_service.full_name, reflection_service.full_name]
    return [
        Registered.of(health_service, health, health_pb2_grpc.add_HealthServicer_to_server),
        Registered.of(
            reflection_service,
            reflection.aio.ReflectionServicer(listed, pool=Symbols()),
            reflection_pb2_grpc.add_ServerReflectionServicer_to_server,
        ),
    ]


def build_server(
    services: Sequence[Registered],
    *,
    unary_cap: timedelta = UNARY_CAP,
    owner: Guard | None = None,
    options: Mapping[str, int] | None = None,
    described: bool = True,
) -> HopperServer:
    """
    Build a server, not bound and not started, in the running event loop.

    Bind it with `hopper_common.rpc.address.listen_unix` and `listen_tcp`.

    Args:
        unary_cap: How long a unary call may take that comes without a deadline.
        owner: The guard of the ports that are for the owner. Default: nobody is asked anything there.
        options: gRPC's own, for these ports, beside or instead of those that all servers have.
        described: Whether health and reflection are offered: not on ports that are for other Hoppers.

    Raises:
        UndeclaredMethods: A method does not say who may call it, or its rate class.
        ValueError: A field declares a limit that does not fit its type.
    """
    require_declared(service.descriptor for service in services)
    return HopperServer(services, unary_cap=unary_cap, owner=owner, options=options, described=described)
