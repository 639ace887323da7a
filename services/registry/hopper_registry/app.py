"""
Builds the registry from what its host gives it, in order, and closes it in reverse. The one place that knows
everything.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from hopper.registry.v1 import access_service_pb2, instance_service_pb2, project_service_pb2
from hopper.registry.v1.access_service_pb2_grpc import add_AccessServiceServicer_to_server
from hopper.registry.v1.instance_service_pb2_grpc import add_InstanceServiceServicer_to_server
from hopper.registry.v1.project_service_pb2_grpc import add_ProjectServiceServicer_to_server
from hopper_common.database import Database
from hopper_common.host import HostContext, Running, Service
from hopper_common.pagination import PageTokens
from hopper_common.rpc.server import Registered
from hopper_registry import instances
from hopper_registry.access_servicer import AccessServicer
from hopper_registry.own_feed import OwnFeed
from hopper_registry.servicer import InstanceServicer, ProjectServicer
from hopper_registry.store_sql import Registry
from hopper_registry.sweep import Sweeper
from hopper_registry.tables import METADATA, MIGRATIONS
from hopper_registry.token_keys import TokenSigner

NAME = "registry"


@asynccontextmanager
async def open_registry(context: HostContext) -> AsyncIterator[Running]:
    """Open the database, make the root at first start, and catch up with time before anybody calls."""
    db = await Database.open(context.database(NAME), metadata=METADATA, migrations=MIGRATIONS, service=NAME)
    try:
        registry = Registry(db, context.clock)
        await registry.write(instances.ensure_root)
        sweeper = Sweeper(registry, context.clock)
        await sweeper.sweep()  # workers that went silent while nobody listened
        issuer = context.identity.trust_domain
        signer = TokenSigner(registry, context.clock, context.data_dir / "token_keys", issuer)
        await signer.open()
        feed = OwnFeed(registry, context.directory)
        await feed.load()
        registry.after_change = feed.after_change
        access = AccessServicer(registry, PageTokens(), signer, context.clock, issuer=issuer)
        yield Running(
            registered=_registered(registry, access),
            tasks=[sweeper.run, signer.run, feed.run, feed.write_uses_forever],
        )
        await feed.write_uses()
    finally:
        await db.close()


def _registered(registry: Registry, access: AccessServicer) -> Sequence[Registered]:
    tokens = PageTokens()
    return [
        Registered.of(
            project_service_pb2.DESCRIPTOR.services_by_name["ProjectService"],
            ProjectServicer(registry, tokens),
            add_ProjectServiceServicer_to_server,
        ),
        Registered.of(
            instance_service_pb2.DESCRIPTOR.services_by_name["InstanceService"],
            InstanceServicer(registry, tokens),
            add_InstanceServiceServicer_to_server,
        ),
        Registered.of(
            access_service_pb2.DESCRIPTOR.services_by_name["AccessService"],
            access,
            add_AccessServiceServicer_to_server,
        ),
    ]


SERVICE = Service(name=NAME, open=open_registry)
