"""Builds a Sage from its settings, in order, and closes it in reverse; the reference Sage is one of them."""

import importlib.metadata
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from hopper.sage.v1 import sage_service_pb2, sage_service_pb2_grpc
from hopper_common.database import Database
from hopper_common.host import HostContext, Running, Service
from hopper_common.rpc.server import Registered
from hopper_sage.journal import SqlJournal
from hopper_sage.language_models import installed_model
from hopper_sage.mind import ReferenceMind
from hopper_sage.ports import Mind
from hopper_sage.servicer import SageServicer
from hopper_sage.settings import SageSettings
from hopper_sage.tables import METADATA

NAME: Final = "sage"
MIGRATIONS: Final = "hopper_sage.migrations"


def sage_service(make_mind: Callable[[SageSettings], Mind]) -> Service:
    """
    A Sage as a program: `sys.exit(hopper_common.host.main(sage_service(make_mind)))`.

    Args:
        make_mind: Called once, when the Sage is opened.
    """

    @asynccontextmanager
    async def open_(context: HostContext) -> AsyncIterator[Running]:
        settings = SageSettings()
        mind = make_mind(settings)
        file = settings.journal or context.data_dir / f"{NAME}.db"
        database = await Database.open(file, metadata=METADATA, migrations=MIGRATIONS, service=NAME)
        try:
            servicer = SageServicer(mind, SqlJournal(database), context.clock)
            try:
                yield Running([registered(servicer)])
            finally:
                await servicer.close()
        finally:
            await database.close()

    return Service(NAME, open_)


def registered(servicer: SageServicer) -> Registered:
    """A Sage's service as a gRPC server takes it."""
    return Registered.of(
        sage_service_pb2.DESCRIPTOR.services_by_name["SageService"],
        servicer,
        sage_service_pb2_grpc.add_SageServiceServicer_to_server,
    )


def reference_mind(settings: SageSettings) -> Mind:
    """
    The mind of the reference Sage.

    Raises:
        NoLanguageModel: One is asked for, and none is installed.
    """
    return ReferenceMind(_version(), installed_model() if settings.llm_url else None)


def _version() -> str:
    try:
        return importlib.metadata.version("hopper-mesh")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return "0"


SERVICE = sage_service(reference_mind)
