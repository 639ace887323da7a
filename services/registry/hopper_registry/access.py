"""
What can be done with principals and their keys, each inside one transaction of a store.

Pure of gRPC and SQL, like `access_model`: the store is a port, and brings the time with it. Who may do it is in
`granting`; every operation here asks first, and says what does not exist only afterwards.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import timedelta

from hopper_common.auth.api_keys import NewKey
from hopper_common.auth.model import ROOT, Binding, Kind, Role
from hopper_common.auth.model import Principal as Caller
from hopper_common.errors import FieldViolation, InvalidArgument
from hopper_registry.access_model import (
    MOST_KEYS_IN_USE,
    MOST_KEYS_KEPT,
    ApiKey,
    KeySpec,
    Principal,
    PrincipalSpec,
    check_key_spec,
    check_spec,
)
from hopper_registry.errors import (
    AlreadyBootstrapped,
    ApiKeyNotFound,
    InstanceNotFound,
    PrincipalExists,
    PrincipalNotFound,
    ProjectNotFound,
    TooManyApiKeys,
)
from hopper_registry.granting import check_manages, check_manages_key, check_reads
from hopper_registry.ports import AccessStore

FIRST_ADMIN_KEY = "made together with the first admin"


class StoredTree:
    """The tree of instances as it is in a store's transaction: see `hopper_common.auth.model.Tree`."""

    def __init__(self, store: AccessStore) -> None:
        self._store = store

    def ancestors(self, instance: str) -> Sequence[str]:
        above: list[str] = []
        found = self._store.instance(instance)
        while found is not None and found.spec.parent:
            above.append(found.spec.parent)
            found = self._store.instance(found.spec.parent)
        return above


# Principals.


def create(store: AccessStore, caller: Caller, name: str, spec: PrincipalSpec) -> Principal:
    """
    Add somebody.

    Raises:
        InvalidArgument: See `access_model.check_spec`.
        PermissionDenied: The caller is not an admin of every place in the bindings.
        PrincipalExists: The name is taken. PrincipalNotFound: Nobody of that name to act for.
        InstanceNotFound, ProjectNotFound: There is no such place.
    """
    check_spec(spec)
    check_grants(store, caller, spec.bindings)
    if store.principal(name):
        raise PrincipalExists(f"the id of {name} is taken: choose another", principal=name)
    _check_person(store, spec)
    _check_places(store, spec.bindings)
    return _add(store, name, spec)


def check_grants(store: AccessStore, caller: Caller, bindings: Iterable[Binding]) -> None:
    """
    Refuse a caller who may not give these roles to somebody new.

    Raises:
        PermissionDenied: The caller is not an admin of every place in them; without any, of the root.
    """
    check_manages(caller, _places(bindings), StoredTree(store))


def _add(store: AccessStore, name: str, spec: PrincipalSpec) -> Principal:
    principal = Principal(name, spec, revision=1, create_time=store.now, update_time=store.now)
    store.save_principal(principal)
    return principal


def get(store: AccessStore, name: str) -> Principal:
    """
    The principal of that name.

    Raises:
        PrincipalNotFound: There is none.
    """
    principal = store.principal(name)
    if principal is None:
        raise PrincipalNotFound(f"there is nobody called {name}: add them first", principal=name)
    return principal


def see(store: AccessStore, caller: Caller, name: str) -> Principal:
    """
    The principal of that name, for somebody.

    Raises:
        PermissionDenied: The caller is neither an admin nor an auditor of every place it is bound to.
        PrincipalNotFound: There is none.
    """
    principal = store.principal(name)
    check_reads(caller, [] if principal is None else principal.places, StoredTree(store))
    return get(store, name)


def check_changes(store: AccessStore, caller: Caller, name: str, bindings: Iterable[Binding] = ()) -> None:
    """
    Refuse a caller who may not change a principal. One that does not exist may be changed by an admin of the root.

    Args:
        bindings: What it is to have afterwards, if that is what changes.

    Raises:
        PermissionDenied: The caller is not an admin of every place that is bound before or after.
    """
    principal = store.principal(name)
    before = [] if principal is None else principal.places
    check_manages(caller, [*before, *_places(bindings)], StoredTree(store))


def update(
    store: AccessStore, caller: Caller, name: str, etag: str, change: Callable[[PrincipalSpec], PrincipalSpec]
) -> Principal:
    """
    Change what is said about somebody. A change that changes nothing leaves them as they are, etag and all.

    Args:
        etag: What the caller has seen; empty: whatever it is now.
        change: From the spec as it is to the one wanted, of the same kind; may raise.

    Raises:
        PermissionDenied: The caller is not an admin of every place that is bound before or after.
        PrincipalNotFound: There is nobody of that name, or to act for. EtagMismatch: Somebody else changed it.
        InvalidArgument, InstanceNotFound, ProjectNotFound: As for `create`.
    """
    check_changes(store, caller, name)
    principal = get(store, name)
    principal.check_etag(etag)
    updated = principal.updated(change(principal.spec), store.now)
    if updated is not principal:
        check_spec(updated.spec)
        check_changes(store, caller, name, updated.spec.bindings)
        _check_person(store, updated.spec)
        # Those it has already may have lost their place since; that is no reason to refuse another change.
        _check_places(store, set(updated.spec.bindings) - set(principal.spec.bindings))
        store.save_principal(updated)
    return updated


def delete(store: AccessStore, caller: Caller, name: str) -> int:
    """
    Remove somebody, their keys, and the agents that act for them.

    Returns:
        How many keys ended with them.

    Raises:
        PermissionDenied: The caller is not an admin of every place they are bound to, agents and all.
        PrincipalNotFound: There is nobody of that name.
    """
    check_changes(store, caller, name)
    gone = [get(store, name), *store.agents_of(name)]
    check_manages(caller, [place for each in gone for place in each.places], StoredTree(store))
    ended = sum(len(_in_use(store, each.name)) for each in gone)
    for each in reversed(gone):
        store.delete_principal(each.name)
    return ended


def unbind(store: AccessStore, resource: str) -> None:
    """
    Take everybody's roles on a place away, because it is gone: they are not to have them on the next of its name.
    """
    for principal in store.bound_to(resource):
        left = tuple(binding for binding in principal.spec.bindings if binding.resource != resource)
        store.save_principal(principal.updated(replace(principal.spec, bindings=left), store.now))


def _check_person(store: AccessStore, spec: PrincipalSpec) -> None:
    if not spec.acts_for:
        return
    if get(store, spec.acts_for).spec.kind is not Kind.PERSON:
        violation = FieldViolation("principal.acts_for", "must be a person: agents act for people only")
        raise InvalidArgument(violations=[violation])


def _check_places(store: AccessStore, bindings: Iterable[Binding]) -> None:
    for place in sorted(_places(bindings)):
        if place.startswith("projects/"):
            if not store.has_project(place):
                raise ProjectNotFound(f"there is no project {place}: register it first", project=place)
        elif store.instance(place) is None:
            raise InstanceNotFound(f"there is no instance {place}", instance=place)


def _places(bindings: Iterable[Binding]) -> set[str]:
    return {binding.resource for binding in bindings}


# The first admin.


def bootstrap(store: AccessStore, name: str, new: NewKey) -> tuple[Principal, ApiKey]:
    """
    Make the first admin, with a key. Once for ever, also when that admin is removed later.

    Raises:
        AlreadyBootstrapped: There was one. PrincipalExists: The name is taken.
    """
    if first := store.first_admin():
        raise AlreadyBootstrapped(
            f"this Hopper had its first admin, {first}, already: an admin adds further ones", principal=first
        )
    if store.principal(name):
        raise PrincipalExists(f"the id of {name} is taken: choose another", principal=name)
    store.save_first_admin(name)
    principal = _add(store, name, PrincipalSpec(Kind.PERSON, bindings=(Binding(Role.ADMIN, ROOT),)))
    return principal, _add_key(store, name, KeySpec(FIRST_ADMIN_KEY), new)


# Keys.


def create_key(store: AccessStore, caller: Caller, parent: str, spec: KeySpec, new: NewKey) -> ApiKey:
    """
    Make a key for somebody.

    Args:
        new: The key itself, made outside of the transaction, which may run twice.

    Raises:
        PermissionDenied: The caller is not an admin of every place the principal is bound to.
        InvalidArgument: See `access_model.check_key_spec`.
        PrincipalNotFound: There is nobody of that name. TooManyApiKeys: Two are in use.
        InstanceNotFound, ProjectNotFound: A scope names a place that is not there.
    """
    check_changes(store, caller, parent)
    check_key_spec(spec, store.now)
    get(store, parent)
    _check_places(store, spec.scopes)
    _check_room(store, parent)
    return _add_key(store, parent, spec, new)


def keys(store: AccessStore, caller: Caller, parent: str) -> Sequence[ApiKey]:
    """
    Somebody's keys, newest first, those that ended too.

    Raises:
        PermissionDenied, PrincipalNotFound: As for `see`.
    """
    see(store, caller, parent)
    return store.keys(parent)


def rotate_key(
    store: AccessStore, caller: Caller, name: str, overlap: timedelta, new: NewKey
) -> tuple[ApiKey, ApiKey]:
    """
    Make a key like another one, which lives as long as that was meant to.

    Args:
        overlap: How long the old key goes on working; none: it ends now.
        new: As for `create_key`.

    Returns:
        The new one, and the old one.

    Raises:
        PermissionDenied: Neither an admin of every place the principal is bound to, nor their own key.
        ApiKeyNotFound: There is no such key, or it has ended. TooManyApiKeys: Two are in use.
    """
    key = _managed_key(store, caller, name)
    if not key.in_use(store.now):
        raise ApiKeyNotFound(f"the key {name} has ended: make another one", key=name)
    replaced = key.replaced(overlap, store.now)
    store.save_key(replaced)
    _check_room(store, key.principal)
    lifetime = key.expire_time - key.create_time
    spec = KeySpec(key.description, key.scopes, store.now + lifetime)
    return _add_key(store, key.principal, spec, new), replaced


def revoke_key(store: AccessStore, caller: Caller, name: str) -> ApiKey:
    """
    End a key. One that was revoked stays as it is.

    Raises:
        PermissionDenied: Neither an admin of every place the principal is bound to, nor their own key.
        ApiKeyNotFound: There is no such key.
    """
    key = _managed_key(store, caller, name)
    revoked = key.revoked(store.now)
    if revoked is not key:
        store.save_key(revoked)
    return revoked


def _managed_key(store: AccessStore, caller: Caller, name: str) -> ApiKey:
    key = store.key(name)
    principal = store.principal(name.rsplit("/", 2)[0])
    places = [] if principal is None else principal.places
    check_manages_key(caller, name, places, StoredTree(store))
    if key is None:
        raise ApiKeyNotFound(f"there is no key {name}", key=name)
    return key


def _in_use(store: AccessStore, principal: str) -> Sequence[ApiKey]:
    return [key for key in store.keys(principal) if key.in_use(store.now)]


def _check_room(store: AccessStore, principal: str) -> None:
    if len(_in_use(store, principal)) >= MOST_KEYS_IN_USE:
        raise TooManyApiKeys(
            f"{principal} has {MOST_KEYS_IN_USE} keys in use already: revoke one", principal=principal
        )


def _add_key(store: AccessStore, principal: str, spec: KeySpec, new: NewKey) -> ApiKey:
    key = ApiKey(
        name=f"{principal}/keys/{new.id}",
        hash=new.hash,
        create_time=store.now,
        expire_time=spec.expiry(store.now),
        description=spec.description,
        scopes=spec.scopes,
    )
    store.save_key(key)
    _forget_old_keys(store, principal)
    return key


def _forget_old_keys(store: AccessStore, principal: str) -> None:
    ended = [key.name for key in store.keys(principal) if not key.in_use(store.now)]
    if too_many := ended[MOST_KEYS_KEPT - MOST_KEYS_IN_USE :]:
        store.forget_keys(too_many)
