"""The rows of principals, their roles and their keys: an `AccessStore` over SQLAlchemy Core."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Row, delete, insert, or_, select, update

from hopper_common.auth.model import Binding, Role, TokenKey
from hopper_common.timestamps import from_micros, to_micros
from hopper_registry.access_convert import (
    key_from_stored,
    key_record,
    principal_from_stored,
    principal_to_proto,
    stored_key,
    stored_principal,
    token_key_to_proto,
)
from hopper_registry.access_model import ApiKey, Principal
from hopper_registry.sql_rows import Rows
from hopper_registry.tables import API_KEYS, FIRST_ADMIN, PRINCIPALS, ROLE_BINDINGS, TOKEN_KEYS

# The log's topics. Bodies are messages of `hopper.registry.v1`, named beside them.
PRINCIPAL_CHANGED: Final = "principal"  # Principal
PRINCIPAL_REMOVED: Final = "principal_removed"  # no body
KEY_CHANGED: Final = "api_key"  # KeyRecord
TOKEN_KEY_CHANGED: Final = "token_key"  # noqa: S105 - a topic; TokenKey
ACCESS_TOPICS: Final = (PRINCIPAL_CHANGED, PRINCIPAL_REMOVED, KEY_CHANGED, TOKEN_KEY_CHANGED)

_FIRST: Final = 1
_MOST_PARAMETERS: Final = 500


@dataclass(frozen=True, slots=True)
class SigningKey:
    """The public part of a key that signs tokens, and from when on it does."""

    key: TokenKey
    sign_time: datetime


class AccessRows(Rows):
    """One transaction; see `hopper_registry.ports.AccessStore`."""

    # Principals.

    def principal(self, name: str) -> Principal | None:
        row = self._conn.execute(select(PRINCIPALS).where(PRINCIPALS.c.name == name)).one_or_none()
        return None if row is None else self._principals([row])[0]

    def principals(self, *, after: str = "", limit: int | None = None) -> list[Principal]:
        query = select(PRINCIPALS).where(PRINCIPALS.c.name > after).order_by(PRINCIPALS.c.name)
        return self._principals(self._conn.execute(query.limit(limit)).all())

    def agents_of(self, person: str) -> list[Principal]:
        query = select(PRINCIPALS).where(PRINCIPALS.c.acts_for == person).order_by(PRINCIPALS.c.name)
        return self._principals(self._conn.execute(query).all())

    def bound_to(self, resource: str) -> list[Principal]:
        bound = select(ROLE_BINDINGS.c.principal).where(ROLE_BINDINGS.c.resource == resource)
        query = select(PRINCIPALS).where(PRINCIPALS.c.name.in_(bound)).order_by(PRINCIPALS.c.name)
        return self._principals(self._conn.execute(query).all())

    def _principals(self, rows: Sequence[Row[Any]]) -> list[Principal]:
        bindings = self._bindings([row.name for row in rows])
        return [principal_from_stored(row.body, row.revision, bindings.get(row.name, ())) for row in rows]

    def _bindings(self, names: Sequence[str]) -> Mapping[str, Sequence[Binding]]:
        found: dict[str, list[Binding]] = {}
        columns = ROLE_BINDINGS.c
        for some in _parts(names):
            for row in self._conn.execute(select(ROLE_BINDINGS).where(columns.principal.in_(some))):
                found.setdefault(row.principal, []).append(Binding(Role[row.role], row.resource))
        return found

    def save_principal(self, principal: Principal) -> None:
        row = {
            "name": principal.name,
            "revision": principal.revision,
            "acts_for": principal.spec.acts_for or None,
            "body": stored_principal(principal),
        }
        self._put(PRINCIPALS, row)
        self._put_bindings(principal)
        body = principal_to_proto(principal).SerializeToString()
        self._tell(PRINCIPAL_CHANGED, principal.name, body)

    def _put_bindings(self, principal: Principal) -> None:
        self._conn.execute(delete(ROLE_BINDINGS).where(ROLE_BINDINGS.c.principal == principal.name))
        rows = [
            {"principal": principal.name, "role": binding.role.name, "resource": binding.resource}
            for binding in principal.spec.bindings
        ]
        if rows:
            self._conn.execute(insert(ROLE_BINDINGS), rows)

    def delete_principal(self, name: str) -> None:
        self._conn.execute(delete(API_KEYS).where(API_KEYS.c.principal == name))
        self._conn.execute(delete(ROLE_BINDINGS).where(ROLE_BINDINGS.c.principal == name))
        self._conn.execute(delete(PRINCIPALS).where(PRINCIPALS.c.name == name))
        self._tell(PRINCIPAL_REMOVED, name, b"")

    # The first admin.

    def first_admin(self) -> str:
        return self._conn.scalar(select(FIRST_ADMIN.c.principal)) or ""

    def save_first_admin(self, name: str) -> None:
        row = {"id": _FIRST, "principal": name, "create_time": to_micros(self._now)}
        self._conn.execute(insert(FIRST_ADMIN), row)

    # Keys.

    def key(self, name: str) -> ApiKey | None:
        row = self._conn.execute(select(API_KEYS).where(API_KEYS.c.name == name)).one_or_none()
        return None if row is None else _key(row)

    def keys(self, principal: str) -> list[ApiKey]:
        columns = API_KEYS.c
        query = select(API_KEYS).where(columns.principal == principal)
        return [
            _key(row) for row in self._conn.execute(query.order_by(columns.create_time.desc(), columns.name))
        ]

    def all_keys(self) -> list[ApiKey]:
        """Everybody's, those that ended too."""
        return [_key(row) for row in self._conn.execute(select(API_KEYS).order_by(API_KEYS.c.name))]

    def save_key(self, key: ApiKey) -> None:
        row = {
            "name": key.name,
            "id": key.id,
            "principal": key.principal,
            "hash": key.hash,
            "create_time": to_micros(key.create_time),
            "expire_time": to_micros(key.expire_time),
            "last_use_time": to_micros(key.last_use_time),
            "revoke_time": to_micros(key.revoke_time),
            "body": stored_key(key),
        }
        self._put(API_KEYS, row)
        self._tell(KEY_CHANGED, key.name, key_record(key).SerializeToString())

    def forget_keys(self, names: Sequence[str]) -> None:
        for some in _parts(names):
            self._conn.execute(delete(API_KEYS).where(API_KEYS.c.name.in_(some)))

    def note_uses(self, uses: Mapping[str, datetime]) -> None:
        columns = API_KEYS.c
        for key_id, time in sorted(uses.items()):
            used = to_micros(time)
            newer = or_(columns.last_use_time.is_(None), columns.last_use_time < used)
            self._conn.execute(update(API_KEYS).where(columns.id == key_id, newer).values(last_use_time=used))

    # Keys that sign tokens.

    def signing_keys(self) -> list[SigningKey]:
        """Those that have not run out, by when they begin to sign."""
        columns = TOKEN_KEYS.c
        query = select(TOKEN_KEYS).where(columns.expire_time > to_micros(self._now))
        return [
            _signing_key(row) for row in self._conn.execute(query.order_by(columns.sign_time, columns.kid))
        ]

    def add_signing_key(self, key: SigningKey) -> None:
        """Add one, and tell."""
        row = {
            "kid": key.key.kid,
            "public_key": key.key.public_key,
            "sign_time": to_micros(key.sign_time),
            "expire_time": to_micros(key.key.expires),
        }
        self._conn.execute(insert(TOKEN_KEYS), row)
        self._tell(TOKEN_KEY_CHANGED, key.key.kid, token_key_to_proto(key.key).SerializeToString())

    def forget_signing_keys(self) -> int:
        """Drop those that have run out; how many."""
        old = TOKEN_KEYS.c.expire_time <= to_micros(self._now)
        return self._conn.execute(delete(TOKEN_KEYS).where(old)).rowcount


def _key(row: Row[Any]) -> ApiKey:
    return key_from_stored(
        row.body,
        hash=row.hash,
        create_time=from_micros(row.create_time),
        expire_time=from_micros(row.expire_time),
        last_use_time=from_micros(row.last_use_time),
        revoke_time=from_micros(row.revoke_time),
    )


def _signing_key(row: Row[Any]) -> SigningKey:
    key = TokenKey(row.kid, row.public_key, from_micros(row.expire_time))
    return SigningKey(key, from_micros(row.sign_time))


def _parts(names: Sequence[str]) -> Iterable[Collection[str]]:
    """Names in lists that every database takes as parameters."""
    return (names[at : at + _MOST_PARAMETERS] for at in range(0, len(names), _MOST_PARAMETERS))
