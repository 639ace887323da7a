"""
Who somebody with a key or a token is: the text of an `authorization` header made into a principal.

Checking a signature takes longer than everything else together, so what was checked once is kept, under a hash of the
text, and made into a principal again only when the directory has changed. What runs out is looked at with every call.
"""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from hopper_common.auth import api_keys, tokens
from hopper_common.auth.decide import Session
from hopper_common.auth.directory import Directory
from hopper_common.auth.model import KeyRecord, Kind, Principal, PrincipalRecord
from hopper_common.auth.tokens import Claims
from hopper_common.clock import Clock
from hopper_common.errors import (
    CredentialsExpired,
    CredentialsRevoked,
    PermissionDenied,
    TrustStoreStale,
    Unauthenticated,
)

_SCHEME: Final = "bearer "
_MOST_KEPT: Final = 10_000
_MINUTE: Final = timedelta(minutes=1)


@dataclass(slots=True)
class Proof(Session):
    """
    A key or a token that was checked, and who it is of while the directory stays as it is.

    Attributes:
        key: The id of the key; of a token, of the one it was got with; empty: none.
        claims: Of a token.
    """

    expires: datetime
    key: str
    claims: Claims | None
    generation: int
    used: datetime
    valid_until: float = -math.inf
    """When to look at the time of day again, and whether the directory is fresh; on the clock that never steps."""


class Bearers:
    """
    Everybody with a key or a token.

    Args:
        audiences: The SPIFFE ids that tokens may be for: of the services called here.
        issuer: The trust domain of this Hopper; empty: no tokens are taken.
    """

    def __init__(
        self, directory: Directory, clock: Clock, *, audiences: Collection[str], issuer: str
    ) -> None:
        self._directory = directory
        self._clock = clock
        self._monotonic = clock.monotonic
        self._audiences = frozenset(audiences)
        self._issuer = issuer
        self._kept: OrderedDict[tuple[bytes, str], Proof] = OrderedDict()
        self._spent: dict[str, datetime] = {}

    def proof_of(self, header: str, source: str, *, keys: bool = True) -> Proof:
        """
        Check what a caller shows.

        Args:
            header: `Bearer` and a key or a token.
            keys: Whether keys are taken, or tokens only.

        Raises:
            TrustStoreStale: It cannot be known.
            Unauthenticated: It is neither, or not one of ours.
            CredentialsExpired: It was good once.
            CredentialsRevoked: Nor is it, or whose it is, any more.
        """
        known = (hashlib.blake2b(header.encode(), digest_size=32).digest(), source)
        proof = self._kept.get(known)
        if proof is None or proof.generation != self._directory.generation:
            proof = self._keep(known, self._checked(header, source, proof))
        if proof.claims is None and not keys:
            raise Unauthenticated("between services only tokens are taken, not keys")
        if self._monotonic() >= proof.valid_until:
            self._require_fresh()
            self._look_at_time(proof)
        return proof

    def again(self, proof: Proof) -> Proof:
        """
        The same as it is now, for calls that are under way.

        Raises:
            The same as `proof_of`.
        """
        self._require_fresh()
        if proof.generation != self._directory.generation:
            proof = self._made(proof.key, proof.claims, proof.principal.source)
        if self._monotonic() >= proof.valid_until:
            self._look_at_time(proof)
        return proof

    def spend(self, proof: Proof) -> None:
        """
        Use up a token: for calls that are far-reaching, each is good once.

        Raises:
            Unauthenticated: It was used for one before.
        """
        claims = proof.claims
        if claims is None:
            return
        now = self._clock.now()
        if claims.id in self._spent:
            raise Unauthenticated("the token was used for such a call before: get another", problem="jti")
        if len(self._spent) >= _MOST_KEPT:
            self._spent = {used: until for used, until in self._spent.items() if until > now}
        if len(self._spent) >= _MOST_KEPT:
            raise TrustStoreStale("too many tokens were used at once: try again in a minute")
        self._spent[claims.id] = claims.expires

    def _require_fresh(self) -> None:
        if not self._directory.fresh:
            age = self._directory.age
            shown = "never" if age is None else str(int(age.total_seconds()))
            raise TrustStoreStale(age_seconds=shown)

    def _look_at_time(self, proof: Proof) -> None:
        now = self._clock.now()
        if proof.expires <= now:
            raise CredentialsExpired(expire_time=proof.expires.isoformat())
        left = (proof.expires - now).total_seconds()
        soon = self._monotonic() + min(1.0, left)  # the time of day may step
        proof.valid_until = min(soon, self._directory.fresh_until)
        if proof.key and now - proof.used >= _MINUTE:
            proof.used = now
            self._directory.used(proof.key, now)

    def _keep(self, known: tuple[bytes, str], proof: Proof) -> Proof:
        if len(self._kept) >= _MOST_KEPT:
            self._kept.popitem(last=False)
        self._kept[known] = proof
        return proof

    def _checked(self, header: str, source: str, before: Proof | None) -> Proof:
        self._require_fresh()
        if header[: len(_SCHEME)].lower() != _SCHEME:
            raise Unauthenticated("the authorization header must be: Bearer, a space, and a key or token")
        return self._check(header[len(_SCHEME) :].strip(), source, before)

    def _check(self, text: str, source: str, before: Proof | None) -> Proof:
        if before is not None and before.claims is None:  # the text is the same, so it is the same key's
            return self._made(before.key, None, source)
        if text.startswith(api_keys.PREFIX):
            return self._check_key(text, source)
        if not tokens.looks_like_one(text) or not self._issuer:
            raise Unauthenticated("that is neither a key nor a token of this Hopper")
        claims = tokens.verify(
            text,
            self._directory.token_keys,
            audiences=self._audiences,
            issuer=self._issuer,
            now=self._clock.now(),
        )
        return self._made(claims.key, claims, source)

    def _check_key(self, text: str, source: str) -> Proof:
        key_id = api_keys.id_of(text)
        known = None if key_id is None else self._directory.key(key_id)
        # An unknown id takes as long as a wrong secret.
        right = api_keys.matches(text, known.hash if known is not None else bytes(32))
        if known is None or not right:
            raise Unauthenticated("there is no such key")
        return self._made(known.id, None, source)

    def _made(self, key_id: str, claims: Claims | None, source: str) -> Proof:
        """The principal, from the directory as it is now."""
        key = self._live_key(key_id) if key_id else None
        if claims is not None:
            principal = self._of_claims(claims, key, source)
            expires = claims.expires if key is None else min(claims.expires, key.expires)
        elif key is not None:
            principal = self._principal(key.principal, f"key:{key.id}", source, key)
            expires = key.expires
        else:
            raise AssertionError("a proof is a key or a token")
        unused = self._clock.now() - _MINUTE
        return Proof(principal, expires, key_id, claims, self._directory.generation, unused)

    def _live_key(self, key_id: str) -> KeyRecord:
        key = self._directory.key(key_id)
        if key is None or key.revoked is not None:
            raise CredentialsRevoked
        return key

    def _of_claims(self, claims: Claims, key: KeyRecord | None, source: str) -> Principal:
        name = claims.actor or claims.subject
        principal = self._principal(name, "token", source, key, expires=claims.expires)
        person = principal.acting_for
        if claims.actor and (person is None or person.name != claims.subject):
            raise CredentialsRevoked("the agent acts for somebody else now: get another token")
        if not claims.actor and principal.kind is not Kind.PERSON:
            raise Unauthenticated("the token does not say for whom the agent acts")
        if key is not None and key.principal != name:
            raise CredentialsRevoked
        return principal

    def _principal(
        self,
        name: str,
        credential: str,
        source: str,
        key: KeyRecord | None,
        *,
        expires: datetime | None = None,
    ) -> Principal:
        record = self._live(name)
        person = None
        if record.kind is Kind.AGENT:
            theirs = self._live(record.acts_for)
            if theirs.kind is not Kind.PERSON:
                raise PermissionDenied(f"{name} acts for nobody who is a person", rule="an agent of an agent")
            person = Principal(theirs.name, theirs.kind, theirs.bindings)
        ends = [time for time in (expires, key.expires if key is not None else None) if time is not None]
        return Principal(
            name=record.name,
            kind=record.kind,
            bindings=record.bindings,
            acting_for=person,
            credential=credential,
            source=source,
            scopes=None if key is None else key.scopes,
            expires=min(ends, default=None),
        )

    def _live(self, name: str) -> PrincipalRecord:
        record = self._directory.principal(name)
        if record is None or record.disabled:
            raise CredentialsRevoked
        return record
