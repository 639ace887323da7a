"""What methods declare about themselves."""

import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from hopper_common.auth.model import RateClass, Role, Service
from hopper_common.rpc.access import UndeclaredMethods, access_of, require_declared
from hopper_common.rpc.server import Registered, build_server
from tests.common.rpc_toy import FORGETFUL, SERVICE, Toy, pb_grpc


def test_a_method_says_who_may_call_and_how_much() -> None:
    access = access_of(SERVICE.methods_by_name["Put"])
    assert access.roles == {Role.MEMBER}
    assert access.services == set()
    assert access.rate_class == RateClass.WRITE
    assert access.max_request_bytes == 256 * 1024
    assert access_of(SERVICE.methods_by_name["Collect"]).services == {Service.ROUTER}
    assert access_of(SERVICE.methods_by_name["Upload"]).max_request_bytes == 8192 * 1024


def test_all_methods_that_declare_too_little_are_named() -> None:
    with pytest.raises(UndeclaredMethods) as caught:
        require_declared([SERVICE, FORGETFUL])
    message = str(caught.value)
    for lack in (
        "ForgetfulService.NoClass lacks a rate class",
        "ForgetfulService.Nobody lacks anybody who may call",
        "ForgetfulService.Nothing lacks a rate class, anybody who may call",
        "ForgetfulService.Unnamed lacks a name for a role",
    ):
        assert lack in message
    assert "Declared" not in message
    assert "ToyService" not in message


def test_health_and_reflection_are_exempt() -> None:
    require_declared(
        [
            health_pb2.DESCRIPTOR.services_by_name["Health"],
            reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
        ]
    )


async def test_a_server_with_an_undeclared_method_does_not_start() -> None:
    forgetful = Registered.of(FORGETFUL, Toy(), pb_grpc.add_ForgetfulServiceServicer_to_server)
    with pytest.raises(UndeclaredMethods, match=r"hopper\.common\.v1\.access"):
        build_server([forgetful])
