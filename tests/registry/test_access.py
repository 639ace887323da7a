"""Principals and keys, through the service: one for all tests, emptied after each."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from google.protobuf.field_mask_pb2 import FieldMask

from hopper.common.v1 import options_pb2
from hopper.registry.v1 import access_service_pb2 as asvc
from hopper.registry.v1.instance_pb2 import Instance, Scope
from hopper.registry.v1.instance_service_pb2 import CreateInstanceRequest
from hopper.registry.v1.principal_pb2 import ApiKey, Principal, RoleBinding
from hopper.registry.v1.project_pb2 import Project
from hopper.registry.v1.project_service_pb2 import (
    ListProjectsRequest,
    RegisterProjectRequest,
    UnregisterProjectRequest,
)
from hopper_common.auth import api_keys
from hopper_common.timestamps import from_proto, to_proto
from hopper_testing.clock import ManualClock
from tests.registry.conftest import ENGINES, empty_database
from tests.registry.harness import RunningRegistry, refusal, violations

pytestmark = pytest.mark.asyncio(loop_scope="module")

CODE = grpc.StatusCode
REQUEST_ID = "0e6a1e0c-1f3f-4c8e-9a3b-0d5b8a0e7b11"
ROOT = "instances/global"


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=ENGINES)
async def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RunningRegistry]:
    """A registry on each engine."""
    directory = tmp_path_factory.mktemp("hopper")
    running = RunningRegistry(directory, ManualClock(), empty_database(request.param, directory))
    await running.start()
    yield running
    await running.close()


@pytest_asyncio.fixture(loop_scope="module")
async def registry(running: RunningRegistry) -> AsyncIterator[RunningRegistry]:
    """The same, with nobody in it."""
    yield running
    everybody = await running.access.ListPrincipals(asvc.ListPrincipalsRequest(page_size=1000))
    people = [each.name for each in everybody.principals if each.kind == Principal.KIND_PERSON]
    for name in people:
        await running.access.DeletePrincipal(asvc.DeletePrincipalRequest(name=name))
    found = await running.projects.ListProjects(ListProjectsRequest())
    for project in found.projects:
        await running.projects.UnregisterProject(UnregisterProjectRequest(name=project.name))


def role(name: str, resource: str = ROOT) -> RoleBinding:
    return RoleBinding(role=options_pb2.Role.Value(f"ROLE_{name}"), resource=resource)


async def add(registry: RunningRegistry, who: str = "ada", request_id: str = "", **fields: Any) -> Principal:
    fields = {"kind": Principal.KIND_PERSON, **fields}
    request = asvc.CreatePrincipalRequest(
        principal_id=who, principal=Principal(**fields), request_id=request_id
    )
    return (await registry.access.CreatePrincipal(request)).principal


async def add_agent(registry: RunningRegistry, who: str = "bot", acts_for: str = "ada") -> Principal:
    return await add(registry, who, kind=Principal.KIND_AGENT, acts_for=f"principals/{acts_for}")


async def update(registry: RunningRegistry, *paths: str, **fields: Any) -> Principal:
    request = asvc.UpdatePrincipalRequest(
        principal=Principal(**{"name": "principals/ada", **fields}), update_mask=FieldMask(paths=paths)
    )
    return (await registry.access.UpdatePrincipal(request)).principal


async def get(registry: RunningRegistry, who: str = "ada") -> Principal:
    request = asvc.GetPrincipalRequest(name=f"principals/{who}")
    return (await registry.access.GetPrincipal(request)).principal


async def make_key(registry: RunningRegistry, who: str = "ada", **fields: Any) -> asvc.CreateApiKeyResponse:
    request = asvc.CreateApiKeyRequest(parent=f"principals/{who}", key=ApiKey(**fields))
    return await registry.access.CreateApiKey(request)


async def keys(registry: RunningRegistry, who: str = "ada") -> list[ApiKey]:
    return list((await registry.access.ListApiKeys(asvc.ListApiKeysRequest(parent=f"principals/{who}"))).keys)


async def rotate(
    registry: RunningRegistry, name: str, overlap: int | None = None
) -> asvc.RotateApiKeyResponse:
    request = asvc.RotateApiKeyRequest(name=name, overlap_seconds=overlap)
    return await registry.access.RotateApiKey(request)


async def revoke(registry: RunningRegistry, name: str) -> ApiKey:
    return (await registry.access.RevokeApiKey(asvc.RevokeApiKeyRequest(name=name))).key


async def register(registry: RunningRegistry, project: str = "web") -> None:
    request = RegisterProjectRequest(project_id=project, project=Project())
    await registry.projects.RegisterProject(request)


# Principals.


async def test_somebody_comes_back_as_they_were_added(registry: RunningRegistry) -> None:
    await register(registry)
    given = [role("VIEWER"), role("MEMBER", "projects/web"), role("VIEWER")]
    added = await add(registry, display_name="Ada", bindings=given)
    assert added.name == "principals/ada"
    assert list(added.bindings) == [role("VIEWER"), role("MEMBER", "projects/web")]  # each once
    assert from_proto(added.create_time) == registry.clock.now()
    assert added.etag
    assert await get(registry) == added
    await registry.restart()
    assert await get(registry) == added


async def test_an_id_is_taken_once(registry: RunningRegistry) -> None:
    await add(registry)
    await refusal(add(registry), CODE.ALREADY_EXISTS, "PRINCIPAL_EXISTS", principal="principals/ada")


async def test_an_agent_acts_for_a_person_that_there_is(registry: RunningRegistry) -> None:
    kind = Principal.KIND_AGENT
    assert "principal.acts_for" in await violations(add(registry, "bot", kind=kind))
    await refusal(add_agent(registry), CODE.NOT_FOUND, "PRINCIPAL_NOT_FOUND", principal="principals/ada")
    await add(registry)
    assert (await add_agent(registry)).acts_for == "principals/ada"
    assert "principal.acts_for" in await violations(add_agent(registry, "bot-2", "bot"))
    assert "principal.acts_for" in await violations(add(registry, "bo", acts_for="principals/ada"))


async def test_roles_are_on_places_that_there_are(registry: RunningRegistry) -> None:
    await refusal(
        add(registry, bindings=[role("VIEWER", "projects/web")]),
        CODE.NOT_FOUND,
        "PROJECT_NOT_FOUND",
        project="projects/web",
    )
    await refusal(
        add(registry, bindings=[role("VIEWER", "instances/team")]),
        CODE.NOT_FOUND,
        "INSTANCE_NOT_FOUND",
        instance="instances/team",
    )


async def test_nobody_becomes_the_owner(registry: RunningRegistry) -> None:
    assert "principal.bindings" in await violations(add(registry, bindings=[role("OWNER")]))
    assert "principal.bindings[0].role" in await violations(add(registry, bindings=[role("UNSPECIFIED")]))
    assert "principal.kind" in await violations(add(registry, kind=Principal.KIND_UNSPECIFIED))


async def test_an_update_changes_what_its_mask_names(registry: RunningRegistry) -> None:
    added = await add(registry, display_name="Ada", bindings=[role("VIEWER")])
    registry.clock.advance(timedelta(seconds=1))
    updated = await update(registry, "disabled", disabled=True, display_name="not this")
    assert (updated.display_name, updated.disabled, list(updated.bindings)) == (
        "Ada",
        True,
        [role("VIEWER")],
    )
    assert from_proto(updated.update_time) == registry.clock.now()
    assert updated.etag != added.etag
    again = await update(registry, "disabled", disabled=True)
    assert again == updated  # nothing changed, so nothing is new
    assert list((await update(registry, "bindings")).bindings) == []


async def test_a_kind_never_changes(registry: RunningRegistry) -> None:
    await add(registry)
    assert "update_mask" in await violations(update(registry, "kind", kind=Principal.KIND_AGENT))
    assert "principal.acts_for" in await violations(update(registry, "acts_for", acts_for="principals/ada"))


async def test_an_edit_of_a_stale_read_is_refused(registry: RunningRegistry) -> None:
    added = await add(registry)
    changed = await update(registry, "display_name", display_name="Ada", etag=added.etag)
    await refusal(
        update(registry, "display_name", display_name="A", etag=added.etag),
        CODE.ABORTED,
        "ETAG_MISMATCH",
        resource="principals/ada",
        etag=changed.etag,
    )


async def test_nobody_of_that_name_is_said_so(registry: RunningRegistry) -> None:
    missing = {"principal": "principals/ada"}
    name = "principals/ada"
    for call in (
        get(registry),
        update(registry, "disabled", disabled=True),
        registry.access.DeletePrincipal(asvc.DeletePrincipalRequest(name=name)),
        make_key(registry),
        keys(registry),
    ):
        await refusal(call, CODE.NOT_FOUND, "PRINCIPAL_NOT_FOUND", **missing)


async def test_whoever_is_removed_takes_their_keys_and_agents_along(registry: RunningRegistry) -> None:
    await add(registry)
    await add_agent(registry)
    await add(registry, "bo")
    ended = (await make_key(registry)).key.name
    await revoke(registry, ended)
    await make_key(registry)
    await make_key(registry, "bot")
    await make_key(registry, "bo")
    gone = await registry.access.DeletePrincipal(asvc.DeletePrincipalRequest(name="principals/ada"))
    assert gone.revoked_keys == 2
    for who in ("ada", "bot"):
        await refusal(
            get(registry, who), CODE.NOT_FOUND, "PRINCIPAL_NOT_FOUND", principal=f"principals/{who}"
        )
    assert len(await keys(registry, "bo")) == 1
    await add(registry)
    assert await keys(registry) == []  # another one of the same name begins with nothing


async def test_roles_on_a_project_go_with_it(registry: RunningRegistry) -> None:
    """Or they would hold for the next one that is given its name."""
    await register(registry)
    await add(registry, bindings=[role("ADMIN", "projects/web"), role("VIEWER")])
    await registry.projects.UnregisterProject(UnregisterProjectRequest(name="projects/web"))
    assert list((await get(registry)).bindings) == [role("VIEWER")]
    await register(registry)
    assert list((await get(registry)).bindings) == [role("VIEWER")]


async def test_a_list_has_everybody_once_whatever_the_page(registry: RunningRegistry) -> None:
    for who in ("c", "a", "e", "b", "d"):
        await add(registry, who)
    seen, request = [], asvc.ListPrincipalsRequest(page_size=2)
    while True:
        page = await registry.access.ListPrincipals(request)
        assert len(page.principals) <= 2
        seen += [principal.name for principal in page.principals]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert seen == [f"principals/{who}" for who in "abcde"]
    broken = asvc.ListPrincipalsRequest(page_token="x")
    await refusal(registry.access.ListPrincipals(broken), CODE.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")


async def test_a_repeat_gets_the_first_answer(registry: RunningRegistry) -> None:
    first = await add(registry, display_name="Ada", request_id=REQUEST_ID)
    await update(registry, "display_name", display_name="A.")
    assert await add(registry, display_name="Ada", request_id=REQUEST_ID) == first
    await refusal(
        add(registry, display_name="other", request_id=REQUEST_ID),
        CODE.ALREADY_EXISTS,
        "IDEMPOTENCY_CONFLICT",
        request_id=REQUEST_ID,
        method="CreatePrincipal",
    )


# Keys.


async def test_a_key_is_shown_once_and_lasts_ninety_days(registry: RunningRegistry) -> None:
    await add(registry)
    made = await make_key(registry, description="laptop", scopes=[role("VIEWER")])
    assert made.secret.startswith("hop_")
    assert from_proto(made.key.expire_time) - registry.clock.now() == timedelta(days=90)
    assert await keys(registry) == [made.key]
    assert made.secret not in str(await keys(registry))


async def test_a_key_lasts_a_year_and_a_day_at_most(registry: RunningRegistry) -> None:
    await add(registry)
    now = registry.clock.now()
    for wrong in (now, now + timedelta(days=366, seconds=1)):
        assert "key.expire_time" in await violations(make_key(registry, expire_time=to_proto(wrong)))
    made = await make_key(registry, expire_time=to_proto(now + timedelta(days=366)))
    assert from_proto(made.key.expire_time) == now + timedelta(days=366)


async def test_scopes_name_roles_and_places_that_there_are(registry: RunningRegistry) -> None:
    await add(registry)
    assert "key.scopes" in await violations(make_key(registry, scopes=[role("OWNER")]))
    await refusal(
        make_key(registry, scopes=[role("VIEWER", "projects/web")]),
        CODE.NOT_FOUND,
        "PROJECT_NOT_FOUND",
        project="projects/web",
    )


async def test_two_keys_are_in_use_at_most(registry: RunningRegistry) -> None:
    await add(registry)
    first = (await make_key(registry, expire_time=to_proto(registry.clock.now() + timedelta(days=1)))).key
    second = (await make_key(registry)).key
    full = {"principal": "principals/ada"}
    await refusal(make_key(registry), CODE.FAILED_PRECONDITION, "TOO_MANY_API_KEYS", **full)
    await refusal(rotate(registry, first.name), CODE.FAILED_PRECONDITION, "TOO_MANY_API_KEYS", **full)
    registry.clock.advance(timedelta(days=1))  # one runs out
    third = (await make_key(registry)).key
    await revoke(registry, second.name)  # one is revoked
    fourth = (await make_key(registry)).key
    listed = await keys(registry)
    assert {key.name for key in listed} == {first.name, second.name, third.name, fourth.name}
    assert [from_proto(key.create_time) for key in listed] == sorted(
        (from_proto(key.create_time) for key in listed), reverse=True
    )


async def test_a_rotated_key_goes_on_for_the_overlap(registry: RunningRegistry) -> None:
    await add(registry)
    old = (await make_key(registry, description="laptop", scopes=[role("VIEWER")])).key
    registry.clock.advance(timedelta(days=10))
    rotated = await rotate(registry, old.name)
    now = registry.clock.now()
    assert rotated.replaced.name == old.name
    assert from_proto(rotated.replaced.expire_time) == now + timedelta(days=1)
    assert (rotated.key.description, list(rotated.key.scopes)) == ("laptop", [role("VIEWER")])
    assert from_proto(rotated.key.expire_time) == now + timedelta(days=90)
    assert api_keys.id_of(rotated.secret) == rotated.key.name.rpartition("/")[2]


async def test_a_key_never_lives_longer_for_being_replaced(registry: RunningRegistry) -> None:
    await add(registry)
    ends = registry.clock.now() + timedelta(minutes=5)
    key = (await make_key(registry, expire_time=to_proto(ends))).key
    assert from_proto((await rotate(registry, key.name)).replaced.expire_time) == ends


async def test_a_rotation_without_overlap_ends_the_old_key_now(registry: RunningRegistry) -> None:
    await add(registry)
    await make_key(registry)
    old = (await make_key(registry)).key  # the second: there is room, because it goes
    rotated = await rotate(registry, old.name, overlap=0)
    assert from_proto(rotated.replaced.revoke_time) == registry.clock.now()
    await refusal(rotate(registry, old.name), CODE.NOT_FOUND, "API_KEY_NOT_FOUND", key=old.name)


async def test_of_rotations_at_once_one_wins(registry: RunningRegistry) -> None:
    await add(registry)
    key = (await make_key(registry)).key
    calls = [rotate(registry, key.name) for _ in range(10)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
    assert len(refused) == 9
    assert {error.code() for error in refused} == {CODE.FAILED_PRECONDITION}
    assert len(await keys(registry)) == 2


async def test_a_key_is_revoked_once(registry: RunningRegistry) -> None:
    await add(registry)
    key = (await make_key(registry)).key
    revoked = await revoke(registry, key.name)
    assert from_proto(revoked.revoke_time) == registry.clock.now()
    registry.clock.advance(timedelta(seconds=5))
    assert await revoke(registry, key.name) == revoked
    missing = "principals/ada/keys/none"
    for call in (revoke(registry, missing), rotate(registry, missing)):
        await refusal(call, CODE.NOT_FOUND, "API_KEY_NOT_FOUND", key=missing)


async def test_uses_are_noted_to_the_minute_and_never_go_back(registry: RunningRegistry) -> None:
    await add(registry)
    key = (await make_key(registry)).key
    assert not key.HasField("last_use_time")
    now = registry.clock.now()

    async def used(at: Any) -> Any:
        use = asvc.KeyUse(key_id=key.name.rpartition("/")[2], use_time=to_proto(at))
        gone = asvc.KeyUse(key_id="gone", use_time=to_proto(at))
        await registry.access.RecordKeyUses(asvc.RecordKeyUsesRequest(uses=[use, gone]))
        return from_proto((await keys(registry))[0].last_use_time)

    minute = now.replace(second=0, microsecond=0)
    assert await used(now) == minute
    assert await used(now - timedelta(hours=1)) == minute
    assert await used(now + timedelta(hours=1)) == minute  # of a process whose clock is wrong
    registry.clock.advance(timedelta(minutes=1))
    assert await used(registry.clock.now()) == minute + timedelta(minutes=1)


# About the caller.


async def test_the_owner_is_told_so(registry: RunningRegistry) -> None:
    me = await registry.access.WhoAmI(asvc.WhoAmIRequest())
    assert (me.principal, me.credential, me.acts_for) == ("owner", "socket", "")
    assert not me.HasField("expire_time")


async def test_the_owner_gets_no_token(registry: RunningRegistry) -> None:
    """It would be a token for everything."""
    call = registry.access.IssueToken(asvc.IssueTokenRequest(audience="router"))
    await refusal(call, CODE.PERMISSION_DENIED, "PERMISSION_DENIED", rule="only people and agents")
    for audience in ("spiffe://elsewhere.hopper/svc/router", "nobody", "http://x", "a b"):
        wrong = registry.access.IssueToken(asvc.IssueTokenRequest(audience=audience))
        assert "audience" in await violations(wrong)


async def test_instances_can_be_bound_as_soon_as_they_are(registry: RunningRegistry) -> None:
    instance = Instance(scope=Scope.SCOPE_EVENT, parent=ROOT)
    await registry.instances.CreateInstance(CreateInstanceRequest(instance_id="party", instance=instance))
    added = await add(registry, bindings=[role("ADMIN", "instances/party")])
    assert list(added.bindings) == [role("ADMIN", "instances/party")]
