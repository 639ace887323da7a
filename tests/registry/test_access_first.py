"""The first admin, of whom a Hopper has one in its life; and what else takes a registry of its own."""

import asyncio

import grpc
import grpc.aio

from hopper.common.v1.options_pb2 import Role
from hopper.registry.v1 import access_service_pb2 as asvc
from hopper.registry.v1.principal_pb2 import RoleBinding
from hopper_common.auth import api_keys
from tests.registry.harness import RunningRegistry, refusal

CODE = grpc.StatusCode
ADMIN = RoleBinding(role=Role.ROLE_ADMIN, resource="instances/global")


async def test_the_first_admin_is_made_once_in_a_life(registry: RunningRegistry) -> None:
    """Also when that admin is gone, and after a restart."""
    made = await registry.access.BootstrapAdmin(asvc.BootstrapAdminRequest())
    assert made.principal.name == "principals/admin"
    assert list(made.principal.bindings) == [ADMIN]
    assert api_keys.id_of(made.secret) == made.key.name.rpartition("/")[2]
    await registry.access.DeletePrincipal(asvc.DeletePrincipalRequest(name="principals/admin"))
    await registry.restart()
    await refusal(
        registry.access.BootstrapAdmin(asvc.BootstrapAdminRequest(principal_id="eve")),
        CODE.FAILED_PRECONDITION,
        "ALREADY_BOOTSTRAPPED",
        principal="principals/admin",
    )


async def test_of_many_first_admins_at_once_there_is_one(registry: RunningRegistry) -> None:
    calls = [
        registry.access.BootstrapAdmin(asvc.BootstrapAdminRequest(principal_id=f"a{number}"))
        for number in range(10)
    ]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
    assert len(refused) == 9
    assert {error.code() for error in refused} == {CODE.FAILED_PRECONDITION}
    everybody = await registry.access.ListPrincipals(asvc.ListPrincipalsRequest())
    assert len(everybody.principals) == 1
