"""
The policies that this Hopper's owner has signed off, every version of every peer's: kept as they were written, with the
owner's signature over them, so that a row that somebody else has put there grants nothing.

A signing key is good for some months, and a policy for as long as its owner likes. So policies in force are signed anew
when the key that signed them is no longer the one in use (`sign_anew`).
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Row, bindparam, func, select, tuple_

from hopper.common.v1.identity_pb2 import SigningKey
from hopper_common.border.grant_toml import read_grant
from hopper_common.border.grants import Grant
from hopper_common.identity.errors import SignatureInvalid
from hopper_common.identity.signing import Signature, in_use, verify_signature
from hopper_common.identity.store import Identity
from hopper_common.timestamps import from_micros, to_micros
from hopper_federation.store_sql import SqlStore
from hopper_federation.tables import GRANTS

_LABEL: Final = b"hopper policy 1\0"


@dataclass(frozen=True, slots=True)
class SignedGrant:
    """
    One version of a peer's policy.

    Attributes:
        text: TOML, as it was written.
        sign_time: When it was signed last; by whom and when it was set stays.
        signature: Of this Hopper's envelope-signing key over all of the above.
    """

    install_id: str
    version: int
    text: str
    set_by: str
    set_time: datetime
    sign_time: datetime
    signature: Signature

    def read(self) -> Grant:
        """
        The policy.

        Raises:
            PolicyInvalid: It was written by a newer Hopper, which knew more keys.
        """
        return read_grant(self.text)

    def verify(self, owner: str, keys: Iterable[SigningKey]) -> None:
        """
        Check that it is what the owner signed.

        Args:
            owner: This Hopper's install id.
            keys: This Hopper's signing keys.

        Raises:
            SignatureInvalid: It is not.
        """
        verify_signature(keys, self.signature, _signed_bytes(owner, self), at=self.sign_time)


def signed(
    identity: Identity, install_id: str, version: int, text: str, set_by: str, now: datetime
) -> SignedGrant:
    """
    A policy, signed.

    Raises:
        IdentityWrongState: This process has no signing key.
    """
    draft = SignedGrant(install_id, version, text, set_by, now, now, Signature("", b""))
    return _signed_anew(identity, draft, now)


def _signed_anew(identity: Identity, grant: SignedGrant, now: datetime) -> SignedGrant:
    timed = replace(grant, sign_time=now)
    return replace(timed, signature=identity.sign(_signed_bytes(identity.install_id, timed)))


def _signed_bytes(owner: str, grant: SignedGrant) -> bytes:
    """What is signed: each part with its length before it, so that no two policies have the same bytes."""
    times = (str(to_micros(grant.set_time)), str(to_micros(grant.sign_time)))
    parts = [owner, grant.install_id, str(grant.version), grant.text, grant.set_by, *times]
    encoded = [part.encode() for part in parts]
    return _LABEL + b"".join(len(part).to_bytes(4, "big") + part for part in encoded)


# Asked for with each offer: it is made once.
_LATEST: Final = (
    select(GRANTS)
    .where(GRANTS.c.install_id == bindparam("install_id"))
    .order_by(GRANTS.c.version.desc())
    .limit(1)
)


def latest(store: SqlStore, install_id: str) -> SignedGrant | None:
    """A peer's policy; None: it has none."""
    return _first(store, install_id, None)


def version_of(store: SqlStore, install_id: str, version: int) -> SignedGrant | None:
    """A certain version of it; None: there is none."""
    return _first(store, install_id, version)


def _first(store: SqlStore, install_id: str, version: int | None) -> SignedGrant | None:
    query = _LATEST if version is None else _LATEST.where(GRANTS.c.version == version)
    row = store.conn.execute(query, {"install_id": install_id}).one_or_none()
    return None if row is None else _grant(row)


def _grant(row: Row[Any]) -> SignedGrant:
    return SignedGrant(
        install_id=row.install_id,
        version=row.version,
        text=row.policy,
        set_by=row.set_by,
        set_time=from_micros(row.set_time),
        sign_time=from_micros(row.sign_time),
        signature=Signature(row.key_id, bytes(row.signature)),
    )


def add(store: SqlStore, grant: SignedGrant) -> None:
    """Keep a further version."""
    store.conn.execute(GRANTS.insert().values(_row(grant)))


def _row(grant: SignedGrant) -> dict[str, Any]:
    return {
        "install_id": grant.install_id,
        "version": grant.version,
        "policy": grant.text,
        "set_by": grant.set_by,
        "set_time": to_micros(grant.set_time),
        "sign_time": to_micros(grant.sign_time),
        "signature": grant.signature.signature,
        "key_id": grant.signature.key_id,
    }


def sign_anew(store: SqlStore, identity: Identity) -> list[str]:
    """
    Sign the policies in force by the key that is in use now.

    Returns:
        The install ids of peers whose policy is not what the owner signed; those stay as they are, and grant nothing.
    """
    listed = identity.trust_bundle().signing_keys
    key = in_use(listed, store.now)
    newest = select(GRANTS.c.install_id, func.max(GRANTS.c.version)).group_by(GRANTS.c.install_id)
    spoilt = []
    for row in store.conn.execute(
        select(GRANTS).where(tuple_(GRANTS.c.install_id, GRANTS.c.version).in_(newest))
    ).all():
        grant = _grant(row)
        try:
            grant.verify(identity.install_id, listed)
        except SignatureInvalid:
            spoilt.append(grant.install_id)
            continue
        if key is None or key.key_id == grant.signature.key_id:
            continue
        renewed = _signed_anew(identity, grant, store.now)
        which = (GRANTS.c.install_id == grant.install_id) & (GRANTS.c.version == grant.version)
        store.conn.execute(GRANTS.update().where(which).values(_row(renewed)))
    return spoilt


def in_force(signed: SignedGrant, owner: str, keys: Iterable[SigningKey]) -> Grant:
    """
    The policy, if it is what its owner signed.

    Raises:
        SignatureInvalid: It is not: nothing may cross by it.
        PolicyInvalid: See `SignedGrant.read`.
    """
    signed.verify(owner, keys)
    return signed.read()
