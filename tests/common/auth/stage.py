"""The toy service behind every kind of door, with everybody who may knock, on a clock that the test moves."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from hopper.common.v1.audit_service_pb2 import AuditRecord, ListAuditRecordsRequest
from hopper.common.v1.audit_service_pb2_grpc import AuditServiceStub
from hopper_common.audit.app import MIGRATIONS, open_chain
from hopper_common.audit.tables import METADATA
from hopper_common.auth import api_keys
from hopper_common.auth.bearer import Bearers
from hopper_common.auth.current import current
from hopper_common.auth.directory import Directory
from hopper_common.auth.model import ROOT, Binding, KeyRecord, Kind, PrincipalRecord, Role
from hopper_common.auth.rates import Limiter, Rates
from hopper_common.clock import SystemClock
from hopper_common.database import Database
from hopper_common.identity.certificates import Leaf
from hopper_common.rpc.address import listen_tcp, listen_unix
from hopper_common.rpc.channel import OPTIONS, open_channel
from hopper_common.rpc.guard import CallerGuard, Callers, OwnerGuard, People, Services
from hopper_common.rpc.presented import Certificates
from hopper_common.rpc.server import build_server
from hopper_testing.certificates import Authority
from hopper_testing.clock import ManualClock
from tests.common.rpc_toy import Toy, Unary, pb, pb_grpc, registered

ADA, BOT, EVE = "principals/ada", "principals/bot", "principals/eve"


async def whoever(request: Any, context: Any) -> Any:
    """Answer with the name of the caller."""
    return pb.Response(text=current().name)


def new_directory(clock: ManualClock) -> Directory:
    """Team a and team b under the root, and squad under a; nobody yet."""
    directory = Directory(clock.monotonic)
    directory.load([], [], [])
    directory.load_instances(
        {ROOT: "", "instances/a": ROOT, "instances/b": ROOT, "instances/squad": "instances/a"}
    )
    return directory


def add_person(directory: Directory, name: str, *bindings: tuple[Role, str]) -> None:
    directory.put_principal(PrincipalRecord(name, Kind.PERSON, tuple(Binding(*each) for each in bindings)))


def add_agent(directory: Directory, name: str, acts_for: str, *bindings: tuple[Role, str]) -> None:
    bound = tuple(Binding(*each) for each in bindings)
    directory.put_principal(PrincipalRecord(name, Kind.AGENT, bound, acts_for))


def add_key(
    directory: Directory,
    principal: str,
    now: datetime,
    *,
    lifetime: timedelta = timedelta(days=90),
    scopes: tuple[Binding, ...] | None = None,
) -> api_keys.NewKey:
    key = api_keys.new_key()
    directory.put_key(KeyRecord(key.id, principal, key.hash, now + lifetime, scopes))
    return key


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    """The metadata of a call with that key."""
    return (("authorization", f"Bearer {key}"),)


@dataclass
class Stage:
    """
    Attributes:
        clock: The guards' own; handshakes go by the real one, so it starts at the real time.
        authority: This Hopper's root.
        roots: What the guard trusts of this Hopper's trust domain; say so with `changed_roots`.
        owner: A stub on the owner's socket.
        people: A stub on the port for people. Give `metadata=bearer(key)`.
    """

    clock: ManualClock
    directory: Directory
    authority: Authority
    roots: list[Any]
    owner: Any
    people: Any
    people_channel: grpc.aio.Channel
    people_guard: CallerGuard
    services_address: str
    audit: Any
    changes: list[None]
    stack: AsyncExitStack

    def key(self, principal: str, **given: Any) -> str:
        """A new key of somebody."""
        return add_key(self.directory, principal, self.clock.now(), **given).key

    def changed_roots(self) -> None:
        """The roots have changed."""
        self.changes.append(None)

    async def service(self, path: str = "/svc/router", leaf: Leaf | None = None) -> Any:
        """A stub with a certificate of that path, or with that one, on the port for services."""
        leaf = leaf or self.authority.leaf(path=path)
        credentials = grpc.ssl_channel_credentials(self.authority.pem, leaf.key_pem, leaf.chain_pem)
        options = (*OPTIONS, ("grpc.ssl_target_name_override", f"registry.{self.authority.trust_domain}"))
        channel = grpc.aio.secure_channel(self.services_address, credentials, options)
        return pb_grpc.ToyServiceStub(await self.stack.enter_async_context(channel))

    async def records(self) -> list[AuditRecord]:
        """What the audit log says of calls of the toy, oldest first."""
        request = ListAuditRecordsRequest(page_size=1000, method_prefix="/toy")
        return list(reversed((await self.audit.ListAuditRecords(request)).records))


@asynccontextmanager
async def stage(directory: Path, answer: Unary = whoever, rates: Rates | None = None) -> AsyncIterator[Stage]:
    """A server with all its doors open."""
    async with AsyncExitStack() as stack:
        clock, changes = ManualClock(datetime.now(UTC)), list[None]()
        known = new_directory(clock)
        database = await Database.open(
            directory / "audit.db", metadata=METADATA, migrations=MIGRATIONS, service="audit"
        )
        stack.push_async_callback(database.close)
        audit = await stack.enter_async_context(open_chain(database, "test", SystemClock()))
        keeping = asyncio.create_task(audit.sink.keep())
        stack.callback(keeping.cancel)
        authority = Authority.new(clock.now())
        trust_domain, roots = authority.trust_domain, [authority.root.certificate]
        certificates = Certificates(
            lambda domain: roots if domain == trust_domain else [],
            lambda: len(changes),
            clock.now,
            clock.monotonic,
        )
        bearers = Bearers(known, clock, audiences=[registry_of(authority)], issuer=trust_domain)
        limiter = Limiter(rates or Rates())

        def guard(callers: Callers) -> CallerGuard:
            return CallerGuard(callers, known, limiter, audit.sink, clock)

        server = build_server([registered(Toy(answer)), audit.registered], owner=OwnerGuard(audit.sink))
        owner = await stack.enter_async_context(open_channel(listen_unix(server, directory / "s")))
        people_guard = guard(People(bearers))
        people_port = listen_tcp(server.door(people_guard), "127.0.0.1:0")
        people = await stack.enter_async_context(open_channel(people_port))
        shown = authority.leaf(path="/svc/registry")
        credentials = grpc.ssl_server_credentials(
            [(shown.key_pem, shown.chain_pem)], authority.pem, require_client_auth=True
        )
        door = server.door(guard(Services(certificates, bearers, trust_domain)))
        port = door.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        stack.push_async_callback(server.stop, 0)
        yield Stage(
            clock=clock,
            directory=known,
            authority=authority,
            roots=roots,
            owner=pb_grpc.ToyServiceStub(owner),
            people=pb_grpc.ToyServiceStub(people),
            people_channel=people,
            people_guard=people_guard,
            services_address=f"127.0.0.1:{port}",
            audit=AuditServiceStub(owner),
            changes=changes,
            stack=stack,
        )


def registry_of(authority: Authority) -> str:
    """The SPIFFE id of the service that is called."""
    return f"spiffe://{authority.trust_domain}/svc/registry"
