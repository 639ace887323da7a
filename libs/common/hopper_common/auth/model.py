"""
Principals, roles, credentials, and what is known of them.

The numbers of `Role`, `Service`, `TrustLevel` and `RateClass` are those of `hopper.common.v1`, so that a decision needs
no generated code. Names are resource names: `principals/ada`, `instances/global`, `projects/web`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Final, Protocol

ROOT: Final = "instances/global"
"""The instance above all others; a call that names no place is about it."""

OWNER_NAME: Final = "owner"


class Role(IntEnum):
    """OWNER > ADMIN > OPERATOR > MEMBER > VIEWER; AGENT and AUDITOR stand beside that line."""

    OWNER = 1
    ADMIN = 2
    OPERATOR = 3
    MEMBER = 4
    VIEWER = 5
    AGENT = 6
    AUDITOR = 7


class Service(IntEnum):
    """A service of this Hopper that calls another."""

    REGISTRY = 1
    ROUTER = 2
    MEMORY = 3
    FEDERATION = 4
    GATEWAY = 5

    @property
    def path(self) -> str:
        """The path of its SPIFFE id: `/svc/router`."""
        return f"/svc/{self.name.lower()}"


class TrustLevel(IntEnum):
    """How far another Hopper is trusted. BLOCKED stands beside the line of the others."""

    UNTRUSTED = 1
    KNOWN = 2
    TRUSTED = 3
    VERIFIED = 4
    BLOCKED = 5


class RateClass(IntEnum):
    """Calls of one class share one rate limit per principal."""

    READ = 1
    WRITE = 2
    WORK = 3
    WATCH = 4
    ADMIN = 5
    STRANGER = 6


class Kind(StrEnum):
    """
    What a caller is.

    OWNER is whoever can open this machine's own socket; STRANGER is known by an address alone.
    """

    OWNER = "owner"
    PERSON = "person"
    AGENT = "agent"
    SERVICE = "service"
    PEER = "peer"
    STRANGER = "stranger"


@dataclass(frozen=True, slots=True)
class Binding:
    """A role on `instances/{instance}` and everything under it, or on `projects/{project}` alone."""

    role: Role
    resource: str


@dataclass(frozen=True, slots=True)
class Principal:
    """
    Who makes a call, as proved.

    Attributes:
        name: `owner`, `principals/{principal}`, a SPIFFE id, or a stranger's address.
        bindings: Of a person or an agent.
        acting_for: Of an agent: the person, without whom it may do nothing.
        credential: How it was proved: `socket`, `key:{id}`, `token`, `certificate`, `none`.
        source: Where the call came from: `unix`, or an address.
        scopes: What its key is cut down to; None: to nothing.
        service: Of a service of this Hopper.
        level: Of a peer.
        expires: When the credential runs out; None: it does not.
    """

    name: str
    kind: Kind
    bindings: tuple[Binding, ...] = ()
    acting_for: "Principal | None" = None
    credential: str = "none"
    source: str = ""
    scopes: tuple[Binding, ...] | None = None
    service: Service | None = None
    level: TrustLevel | None = None
    expires: datetime | None = None


# What the registry keeps, as every process knows it.


@dataclass(frozen=True, slots=True)
class PrincipalRecord:
    """A person or an agent. *acts_for* is the person an agent works for; empty for a person."""

    name: str
    kind: Kind
    bindings: tuple[Binding, ...] = ()
    acts_for: str = ""
    disabled: bool = False


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """
    An API key: enough to recognise it, not enough to use it.

    Attributes:
        id: As in the key itself, `hop_{id}_...`.
        principal: Whose: `principals/{principal}`.
        hash: SHA-256 of the whole key.
        expires: From then on it is refused.
        scopes: What it is cut down to; None: to nothing.
        revoked: When it was revoked; None: it is not.
    """

    id: str
    principal: str
    hash: bytes
    expires: datetime
    scopes: tuple[Binding, ...] | None = None
    revoked: datetime | None = None

    @property
    def name(self) -> str:
        """`principals/{principal}/keys/{key}`."""
        return f"{self.principal}/keys/{self.id}"


@dataclass(frozen=True, slots=True)
class TokenKey:
    """A public key of P-256 (SubjectPublicKeyInfo, DER) whose tokens are ES256, and nothing else."""

    kid: str
    public_key: bytes
    expires: datetime


@dataclass(frozen=True, slots=True)
class Access:
    """
    What one method declares, as in `hopper.common.v1.MethodAccess`.

    Attributes:
        roles: The least roles of people and agents that may call.
        services: The services of this Hopper that may call in their own name.
        peers: The least level of another Hopper that may call; None: none may.
        strangers: Whoever reaches the pairing port may call.
        local: Only through the owner's own socket, whatever the role.
        anywhere: Where the call names no place, a role anywhere is enough.
        rate_class: None of the methods that are not ours, such as health.
        max_request_bytes: Of the encoded message; of each one, in a stream.
    """

    roles: frozenset[Role] = frozenset()
    services: frozenset[Service] = frozenset()
    peers: TrustLevel | None = None
    strangers: bool = False
    local: bool = False
    anywhere: bool = False
    rate_class: RateClass | None = None
    max_request_bytes: int = 256 * 1024


class Tree(Protocol):
    """Which instance stands under which."""

    def ancestors(self, instance: str) -> Sequence[str]:
        """
        The instances above one, nearest first, up to the root. Empty for the root and for one that is not known.
        """
        ...
