"""
People, agents and their keys, as the registry keeps them, and the rules that hold for them whoever asks.

What the caller says about a principal is its *spec*; the registry adds the rest (revision, times). The roles and
bindings are those of `hopper_common.auth`, which decides about calls; here they are kept.

A key *ends* when it runs out or is revoked. Ended keys are kept for a while, so that people can see what there was.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from hopper_common.auth.model import Binding, Kind, Role
from hopper_common.errors import EtagMismatch, FieldViolation, InvalidArgument
from hopper_registry.model import etag_of

DEFAULT_KEY_LIFETIME: Final = timedelta(days=90)
LONGEST_KEY_LIFETIME: Final = timedelta(days=366)
DEFAULT_OVERLAP: Final = timedelta(days=1)
MOST_KEYS_IN_USE: Final = 2
"""One, and one more while it is replaced."""
MOST_KEYS_KEPT: Final = 100

_PLACES: Final = ("instances/", "projects/")


@dataclass(frozen=True, slots=True)
class PrincipalSpec:
    """
    What an admin says about somebody. `kind` never changes.

    Attributes:
        bindings: Sorted, each once: see `ordered`.
        acts_for: Of an agent: the person it works for.
    """

    kind: Kind
    display_name: str = ""
    bindings: tuple[Binding, ...] = ()
    acts_for: str = ""
    disabled: bool = False


@dataclass(frozen=True, slots=True)
class Principal:
    """A person or an agent. `name` is `principals/{id}`; `revision` counts from 1."""

    name: str
    spec: PrincipalSpec
    revision: int
    create_time: datetime
    update_time: datetime

    @property
    def etag(self) -> str:
        """See `hopper_registry.model.etag_of`."""
        return etag_of(self.name, self.create_time, self.revision)

    @property
    def places(self) -> Sequence[str]:
        """The instances and projects it is bound to."""
        return [binding.resource for binding in self.spec.bindings]

    def updated(self, spec: PrincipalSpec, now: datetime) -> "Principal":
        """The principal with another spec; itself if it is the same one."""
        if spec == self.spec:
            return self
        return replace(self, spec=spec, revision=self.revision + 1, update_time=now)

    def check_etag(self, etag: str) -> None:
        """
        Refuse a change by somebody who has not seen it as it is.

        Raises:
            EtagMismatch: With the etag of now.
        """
        if etag and etag != self.etag:
            raise EtagMismatch(resource=self.name, etag=self.etag)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """
    What somebody proves themselves with; the key itself is not here.

    Attributes:
        name: `principals/{principal}/keys/{id}`; the id is part of the key.
        hash: SHA-256 of the key. Recognises it and cannot be used, but has no business in a log either.
        scopes: What it is cut down to; empty: to nothing.
    """

    name: str
    hash: bytes = field(repr=False)
    create_time: datetime
    expire_time: datetime
    description: str = ""
    scopes: tuple[Binding, ...] = ()
    last_use_time: datetime | None = None
    revoke_time: datetime | None = None

    @property
    def id(self) -> str:
        """The last segment of the name."""
        return self.name.rpartition("/")[2]

    @property
    def principal(self) -> str:
        """Whose it is: `principals/{principal}`."""
        return self.name.rsplit("/", 2)[0]

    def in_use(self, now: datetime) -> bool:
        """Whether it lets anybody in."""
        return self.revoke_time is None and now < self.expire_time

    def revoked(self, now: datetime) -> "ApiKey":
        """The key, ended. The first end counts."""
        return self if self.revoke_time is not None else replace(self, revoke_time=now)

    def replaced(self, overlap: timedelta, now: datetime) -> "ApiKey":
        """The key, to end after *overlap*, or before, if it would have anyway."""
        if not overlap:
            return self.revoked(now)
        return replace(self, expire_time=min(self.expire_time, now + overlap))


@dataclass(frozen=True, slots=True)
class KeySpec:
    """What is asked for with a new key. None: the default lifetime."""

    description: str = ""
    scopes: tuple[Binding, ...] = ()
    expire_time: datetime | None = None

    def expiry(self, now: datetime) -> datetime:
        """When the key runs out."""
        return now + DEFAULT_KEY_LIFETIME if self.expire_time is None else self.expire_time


def ordered(bindings: Iterable[Binding]) -> tuple[Binding, ...]:
    """The same bindings, each once, by place and role: equal sets are equal tuples."""
    return tuple(sorted(set(bindings), key=lambda binding: (binding.resource, binding.role)))


def check_spec(spec: PrincipalSpec) -> None:
    """
    Check what is said about a principal, as far as that goes without looking at others.

    Raises:
        InvalidArgument: Every violation, with its path in a request that has the field `principal`.
    """
    if violations := list(_violations(spec)):
        raise InvalidArgument(violations=violations)


def _violations(spec: PrincipalSpec) -> Iterator[FieldViolation]:
    if spec.kind is Kind.AGENT and not spec.acts_for:
        yield FieldViolation("principal.acts_for", "is required for an agent: the person it works for")
    if spec.kind is Kind.PERSON and spec.acts_for:
        yield FieldViolation("principal.acts_for", "is for agents only: leave it out")
    yield from _wrong_bindings(spec.bindings, "principal.bindings")


def check_key_spec(spec: KeySpec, now: datetime) -> None:
    """
    Check what is asked for with a new key.

    Raises:
        InvalidArgument: Every violation, with its path in a request that has the field `key`.
    """
    if violations := list(_key_violations(spec, now)):
        raise InvalidArgument(violations=violations)


def _key_violations(spec: KeySpec, now: datetime) -> Iterator[FieldViolation]:
    if spec.expire_time is not None and not now < spec.expire_time <= now + LONGEST_KEY_LIFETIME:
        yield FieldViolation(
            "key.expire_time", f"must be in the future, at most {LONGEST_KEY_LIFETIME.days} days from now"
        )
    yield from _wrong_bindings(spec.scopes, "key.scopes")


def _wrong_bindings(bindings: Sequence[Binding], path: str) -> Iterator[FieldViolation]:
    for binding in bindings:
        if binding.role is Role.OWNER:
            yield FieldViolation(
                path, "OWNER cannot be given: that is who can open this machine's socket; give ADMIN"
            )
        if not binding.resource.startswith(_PLACES):
            yield FieldViolation(path, "must name instances/{instance} or projects/{project}")
