"""Case F60, without servers: every method by every role, service and level, as decided, and as its options say."""

import pytest
from google.protobuf.descriptor import MethodDescriptor

from hopper.common.v1.options_pb2 import Role as RoleNumber
from hopper.common.v1.options_pb2 import TrustLevel as LevelNumber
from hopper_common.auth.decide import decide
from hopper_common.auth.directory import Directory
from hopper_common.auth.model import ROOT, Binding, Kind, Principal, Role, Service, TrustLevel
from hopper_common.rpc.access import access_of, require_declared
from tests.common.auth.contract import ROLES, SERVICES, agent_may, declared, methods, path, role_may

METHODS = list(methods())
NOWHERE = Directory(lambda: 0.0)


def person(role: int) -> Principal:
    return Principal("principals/p", Kind.PERSON, (Binding(Role(role), ROOT),))


def allowed(method: MethodDescriptor, principal: Principal) -> bool:
    return decide(principal, access_of(method), (), NOWHERE).allowed


def test_there_are_methods_and_all_declare_who_may_call() -> None:
    assert len(METHODS) > 100
    require_declared(
        {method.containing_service.full_name: method.containing_service for method in METHODS}.values()
    )


@pytest.mark.parametrize("method", METHODS, ids=path)
def test_who_may_call_is_what_the_options_say(method: MethodDescriptor) -> None:
    access = declared(method)
    assert allowed(method, Principal("owner", Kind.OWNER))
    for role in ROLES:
        if role != RoleNumber.ROLE_OWNER:  # no binding is that
            assert allowed(method, person(role)) == role_may(access, role), RoleNumber.Name(role)
            agent = Principal(
                "principals/a", Kind.AGENT, (Binding(Role.AGENT, ROOT),), acting_for=person(role)
            )
            assert allowed(method, agent) == agent_may(access, role), f"agent of {RoleNumber.Name(role)}"
    for service in SERVICES:
        principal = Principal("spiffe://x/svc/y", Kind.SERVICE, service=Service(service))
        assert allowed(method, principal) == (service in access.services)
    for level in TrustLevel:
        principal = Principal("spiffe://x/svc/federation", Kind.PEER, level=level)
        reaches = (
            bool(access.peers)
            and level is not TrustLevel.BLOCKED
            and access.peers != LevelNumber.TRUST_LEVEL_BLOCKED
            and level >= access.peers
        )
        assert allowed(method, principal) == reaches
    assert allowed(method, Principal("192.0.2.1", Kind.STRANGER)) == access.strangers
    assert not allowed(method, Principal("principals/p", Kind.PERSON))


NEVER_BY_AGENTS = (
    "/hopper.registry.v1.AccessService/Create",
    "/hopper.registry.v1.AccessService/Update",
    "/hopper.registry.v1.AccessService/Delete",
    "/hopper.registry.v1.AccessService/Rotate",
    "/hopper.registry.v1.AccessService/Revoke",
    "/hopper.registry.v1.AccessService/Bootstrap",
    "/hopper.federation.v1.PeerAdminService/",
    "/hopper.federation.v1.RemoteDelegationService/Cancel",
    "/hopper.federation.v1.RemoteDelegationService/Decide",
    "/hopper.common.v1.AuditService/",
    "/hopper.router.v1.RoutingService/UpdatePolicy",
)


def test_agents_never_pair_trust_export_or_hand_out_keys_whoever_they_act_for() -> None:
    far_reaching = [method for method in METHODS if path(method).startswith(NEVER_BY_AGENTS)]
    assert len(far_reaching) > 20
    for method in far_reaching:
        for role in ROLES:
            bound = (Binding(Role.AGENT, ROOT), Binding(Role.ADMIN, ROOT))
            agent = Principal("principals/a", Kind.AGENT, bound, acting_for=person(role))
            assert not allowed(method, agent), path(method)


def test_the_first_admin_is_made_on_this_machines_own_socket_alone() -> None:
    local = [path(method) for method in METHODS if declared(method).local]
    assert local == ["/hopper.registry.v1.AccessService/BootstrapAdmin"]
