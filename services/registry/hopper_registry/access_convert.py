"""
Principals and keys between the contract's messages and the model, in the manner of `convert`.

Nothing here ever sees a key itself: what is shown once goes from `hopper_common.auth.api_keys` into the answer.
"""

from collections.abc import Iterable
from typing import Any, Final

from hopper.common.v1 import options_pb2
from hopper.registry.v1 import access_service_pb2 as asvc
from hopper.registry.v1 import principal_pb2 as apb
from hopper_common.auth.model import Binding, Kind, Role, TokenKey
from hopper_common.errors import FieldViolation, InvalidArgument
from hopper_common.timestamps import from_proto, time_field, to_proto
from hopper_registry.access_model import ApiKey, KeySpec, Principal, PrincipalSpec, ordered

_KINDS: Final = {apb.Principal.KIND_PERSON: Kind.PERSON, apb.Principal.KIND_AGENT: Kind.AGENT}
_NUMBERS: Final = {kind: number for number, kind in _KINDS.items()}


# Bindings.


def bindings_from_proto(protos: Iterable[apb.RoleBinding], path: str) -> tuple[Binding, ...]:
    """
    Roles on places, in order, each once.

    Args:
        path: Of the field in its request.

    Raises:
        InvalidArgument: One without a role.
    """
    found = []
    for number, proto in enumerate(protos):
        if not proto.role:
            raise InvalidArgument(violations=[FieldViolation(f"{path}[{number}].role", "is required")])
        found.append(Binding(Role(proto.role), proto.resource))
    return ordered(found)


def bindings_to_proto(bindings: Iterable[Binding]) -> list[apb.RoleBinding]:
    """The same for callers."""
    return [
        apb.RoleBinding(role=options_pb2.Role.ValueType(binding.role), resource=binding.resource)
        for binding in bindings
    ]


# Principals.


def spec_from_proto(proto: apb.Principal) -> PrincipalSpec:
    """
    What a caller says about somebody.

    Raises:
        InvalidArgument: It has no kind, or a binding has no role.
    """
    if proto.kind not in _KINDS:
        raise InvalidArgument(violations=[FieldViolation("principal.kind", "is required: PERSON or AGENT")])
    return PrincipalSpec(
        kind=_KINDS[proto.kind],
        display_name=proto.display_name,
        bindings=bindings_from_proto(proto.bindings, "principal.bindings"),
        acts_for=proto.acts_for,
        disabled=proto.disabled,
    )


def spec_to_proto(spec: PrincipalSpec) -> apb.Principal:
    """The whole spec, for merging updates into."""
    return apb.Principal(
        kind=_NUMBERS[spec.kind],
        display_name=spec.display_name,
        bindings=bindings_to_proto(spec.bindings),
        acts_for=spec.acts_for,
        disabled=spec.disabled,
    )


def principal_to_proto(principal: Principal) -> apb.Principal:
    """A principal as callers see it."""
    proto = spec_to_proto(principal.spec)
    proto.name = principal.name
    proto.etag = principal.etag
    proto.create_time.CopyFrom(to_proto(principal.create_time))
    proto.update_time.CopyFrom(to_proto(principal.update_time))
    return proto


def stored_principal(principal: Principal) -> bytes:
    """A principal as the database keeps it: without what is in other columns and tables."""
    proto = principal_to_proto(principal)
    proto.ClearField("bindings")
    proto.ClearField("etag")
    return proto.SerializeToString()


def principal_from_stored(body: bytes, revision: int, bindings: Iterable[Binding]) -> Principal:
    """What `stored_principal` made."""
    proto = apb.Principal.FromString(body)
    proto.bindings.extend(bindings_to_proto(bindings))
    return Principal(
        name=proto.name,
        spec=spec_from_proto(proto),
        revision=revision,
        create_time=from_proto(proto.create_time),
        update_time=from_proto(proto.update_time),
    )


# Keys.


def key_spec_from_proto(proto: apb.ApiKey) -> KeySpec:
    """
    What a caller asks for with a new key.

    Raises:
        InvalidArgument: A scope has no role.
    """
    return KeySpec(
        description=proto.description,
        scopes=bindings_from_proto(proto.scopes, "key.scopes"),
        expire_time=time_field(proto, "expire_time"),
    )


def key_to_proto(key: ApiKey) -> apb.ApiKey:
    """A key's record as callers see it."""
    return apb.ApiKey(
        name=key.name,
        description=key.description,
        scopes=bindings_to_proto(key.scopes),
        create_time=to_proto(key.create_time),
        expire_time=to_proto(key.expire_time),
        last_use_time=to_proto(key.last_use_time),
        revoke_time=to_proto(key.revoke_time),
    )


def key_record(key: ApiKey) -> asvc.KeyRecord:
    """A key as servers know it. Its last use is no news to them."""
    record = asvc.KeyRecord(key=key_to_proto(key), hash=key.hash)
    record.key.ClearField("last_use_time")
    return record


def stored_key(key: ApiKey) -> bytes:
    """A key's record as the database keeps it: without what is in other columns."""
    return apb.ApiKey(
        name=key.name, description=key.description, scopes=bindings_to_proto(key.scopes)
    ).SerializeToString()


def key_from_stored(body: bytes, **columns: Any) -> ApiKey:
    """What `stored_key` made, with the rest: hash and times."""
    proto = apb.ApiKey.FromString(body)
    return ApiKey(
        name=proto.name,
        description=proto.description,
        scopes=bindings_from_proto(proto.scopes, "scopes"),
        **columns,
    )


def token_key_to_proto(key: TokenKey) -> asvc.TokenKey:
    """A key that verifies tokens."""
    return asvc.TokenKey(kid=key.kid, public_key=key.public_key, expire_time=to_proto(key.expires))
