"""What the registry knows and the guard cannot: whom a caller may change, by what is stored."""

from datetime import timedelta
from functools import partial
from itertools import product

import pytest

from hopper_common.auth.api_keys import new_key
from hopper_common.auth.model import OWNER_NAME, ROOT, Binding, Kind, Role
from hopper_common.auth.model import Principal as Caller
from hopper_common.errors import PermissionDenied, StorageFull
from hopper_registry import access, instances
from hopper_registry.access_model import KeySpec, PrincipalSpec, ordered
from hopper_registry.model import InstanceSpec, Scope
from hopper_registry.store_sql import Registry, SqlStore
from hopper_testing.clock import ManualClock
from hopper_testing.database import FaultyDatabase

TEAM, OTHER = "instances/team", "instances/other"
OWNER = Caller(OWNER_NAME, Kind.OWNER, credential="socket")
LEAD = Caller("principals/lead", Kind.PERSON, bindings=(Binding(Role.ADMIN, TEAM),), credential="key:lead-1")


def _always(spec: PrincipalSpec, _: PrincipalSpec) -> PrincipalSpec:
    return spec


def person(*bindings: Binding) -> PrincipalSpec:
    return PrincipalSpec(Kind.PERSON, bindings=ordered(bindings))


@pytest.fixture
async def registry(db: FaultyDatabase) -> Registry:
    """With two teams, their leads, and somebody who is in both."""
    registry = Registry(db, ManualClock())

    def prepare(store: SqlStore) -> None:
        instances.ensure_root(store)
        for team in (TEAM, OTHER):
            instances.create(store, team, InstanceSpec(Scope.EVENT, ROOT))
        for name, spec in (
            ("lead", person(Binding(Role.ADMIN, TEAM))),
            ("boss", person(Binding(Role.ADMIN, ROOT))),
            ("bo", person(Binding(Role.MEMBER, TEAM))),
            ("cy", person(Binding(Role.MEMBER, TEAM), Binding(Role.MEMBER, OTHER))),
        ):
            access.create(store, OWNER, f"principals/{name}", spec)

    await registry.write(prepare)
    return registry


async def test_an_admin_of_a_team_manages_who_is_only_in_it(registry: Registry) -> None:
    """Adds, changes, gives keys, removes."""

    def work(store: SqlStore) -> int:
        access.create(store, LEAD, "principals/new", person(Binding(Role.ADMIN, TEAM)))
        access.create_key(store, LEAD, "principals/new", KeySpec(), new_key())
        access.update(store, LEAD, "principals/bo", "", lambda spec: person(Binding(Role.VIEWER, TEAM)))
        assert access.see(store, LEAD, "principals/bo").places == [TEAM]
        assert len(access.keys(store, LEAD, "principals/new")) == 1
        return access.delete(store, LEAD, "principals/new")

    assert await registry.write(work) == 1


@pytest.mark.parametrize("who", ["boss", "cy"])
async def test_nobody_takes_what_is_above_or_beside_them(registry: Registry, who: str) -> None:
    """Not by disabling, not by a key in their name, not by taking roles away, not by an agent."""
    name = f"principals/{who}"
    attempts = (
        lambda store: access.update(store, LEAD, name, "", lambda spec: person()),
        lambda store: access.create_key(store, LEAD, name, KeySpec(), new_key()),
        lambda store: access.delete(store, LEAD, name),
        lambda store: access.see(store, LEAD, name),
        lambda store: access.keys(store, LEAD, name),
    )
    for attempt in attempts:
        with pytest.raises(PermissionDenied):
            await registry.write(attempt)


async def test_an_auditor_sees_and_changes_nothing(registry: Registry) -> None:
    """Of the places they audit."""
    auditor = Caller("principals/au", Kind.PERSON, bindings=(Binding(Role.AUDITOR, TEAM),))
    await registry.read(lambda store: access.keys(store, auditor, "principals/bo"))
    with pytest.raises(PermissionDenied):
        await registry.read(lambda store: access.see(store, auditor, "principals/cy"))
    with pytest.raises(PermissionDenied):
        await registry.write(lambda store: access.delete(store, auditor, "principals/bo"))


async def test_nobody_grants_beyond_their_place(registry: Registry) -> None:
    """Neither to others nor to themselves."""
    for name, place in product(("principals/bo", "principals/lead"), (ROOT, OTHER)):
        spec = person(Binding(Role.VIEWER, place))
        with pytest.raises(PermissionDenied):
            await registry.write(
                partial(access.update, caller=LEAD, name=name, etag="", change=partial(_always, spec))
            )
    with pytest.raises(PermissionDenied):
        await registry.write(
            lambda store: access.create(store, LEAD, "principals/x", person(Binding(Role.VIEWER, OTHER)))
        )


async def test_whoever_has_agents_elsewhere_is_removed_by_an_admin_of_there(registry: Registry) -> None:
    """Agents go with whom they act for."""
    bot = PrincipalSpec(Kind.AGENT, bindings=(Binding(Role.AGENT, OTHER),), acts_for="principals/bo")
    await registry.write(lambda store: access.create(store, OWNER, "principals/bot", bot))
    with pytest.raises(PermissionDenied):
        await registry.write(lambda store: access.delete(store, LEAD, "principals/bo"))


async def test_people_rotate_and_revoke_their_own_keys_alone(registry: Registry) -> None:
    """Whatever their roles."""
    bo = Caller("principals/bo", Kind.PERSON, credential="token")

    def make(store: SqlStore, who: str) -> str:
        return access.create_key(store, OWNER, f"principals/{who}", KeySpec(), new_key()).name

    own = await registry.write(lambda store: make(store, "bo"))
    other = await registry.write(lambda store: make(store, "cy"))
    new, _ = await registry.write(
        lambda store: access.rotate_key(store, bo, own, timedelta(hours=1), new_key())
    )
    await registry.write(lambda store: access.revoke_key(store, bo, new.name))
    with pytest.raises(PermissionDenied):
        await registry.write(lambda store: access.revoke_key(store, bo, other))
    with pytest.raises(PermissionDenied):  # not: there is no such key
        await registry.write(lambda store: access.revoke_key(store, bo, "principals/cy/keys/none"))


async def test_old_keys_are_forgotten_and_those_in_use_never(registry: Registry) -> None:
    """A hundred are kept."""

    def wear_out(store: SqlStore) -> str:
        kept = access.create_key(store, OWNER, "principals/bo", KeySpec(), new_key())
        for _ in range(105):
            key = access.create_key(store, OWNER, "principals/bo", KeySpec(), new_key())
            access.revoke_key(store, OWNER, key.name)
        return kept.name

    kept = await registry.write(wear_out)
    listed = await registry.read(lambda store: access.keys(store, OWNER, "principals/bo"))
    assert len(listed) <= 100
    assert kept in {key.name for key in listed}


async def test_a_change_is_there_whole_or_not_at_all(registry: Registry, db: FaultyDatabase) -> None:
    """Principal, bindings, keys and what is told of them."""
    before = await registry.read(lambda store: (store.version, store.principals()))
    for work in (
        lambda store: access.bootstrap(store, "principals/admin", new_key()),
        lambda store: access.delete(store, OWNER, "principals/bo"),
    ):
        db.set_next_error(StorageFull(service="registry"))
        with pytest.raises(StorageFull):
            await registry.write(work)
        assert await registry.read(lambda store: (store.version, store.principals())) == before
    assert await registry.read(lambda store: store.first_admin()) == ""
