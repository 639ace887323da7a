"""
Everything it takes to judge a call, in memory: principals, keys, the keys that sign tokens, and the tree of instances.

Each process of a Hopper has one. The registry fills its own from its store, in the call that changed it; everybody else
follows the registry (`WatchAccess`, `WatchInstances`). Whoever fills it says `heard` whenever the source has confirmed
that nothing is missing; when that was too long ago, nobody who needs this knowledge is let in.

All of it happens on the event loop's thread. Listeners hear of a change at once.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Final

from hopper_common.auth.model import ROOT, KeyRecord, PrincipalRecord, TokenKey

FRESH_FOR: Final = timedelta(seconds=30)
"""How long what was heard last may be gone by."""

_FRESH_SECONDS: Final = FRESH_FOR.total_seconds()
_DEEPEST: Final = 64


class Directory:
    """
    What is known of everybody.

    Args:
        monotonic: Seconds, of a clock that never steps.

    Attributes:
        generation: Grows with every change, so that conclusions can be kept as long as it stays.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self.generation = 0
        self._monotonic = monotonic
        self._heard: float | None = None
        self._principals: dict[str, PrincipalRecord] = {}
        self._keys: dict[str, KeyRecord] = {}
        self._token_keys: dict[str, TokenKey] = {}
        self._parents: dict[str, str] = {}
        self._uses: dict[str, datetime] = {}
        self._listeners: list[Callable[[], None]] = []

    # Asked by the guard.

    @property
    def age(self) -> timedelta | None:
        """How long ago the source was heard last; None: never."""
        return None if self._heard is None else timedelta(seconds=self._monotonic() - self._heard)

    @property
    def fresh(self) -> bool:
        """Whether it may be gone by."""
        return self._monotonic() <= self.fresh_until

    @property
    def fresh_until(self) -> float:
        """Until when it may be, on the clock that never steps, should the source not be heard again."""
        return -math.inf if self._heard is None else self._heard + _FRESH_SECONDS

    def principal(self, name: str) -> PrincipalRecord | None:
        """A person or an agent; None: there is none of that name."""
        return self._principals.get(name)

    def key(self, key_id: str) -> KeyRecord | None:
        """The key with that id, revoked ones too."""
        return self._keys.get(key_id)

    @property
    def token_keys(self) -> Mapping[str, TokenKey]:
        """By `kid`."""
        return MappingProxyType(self._token_keys)

    def ancestors(self, instance: str) -> Sequence[str]:
        """The instances above one, nearest first; a `Tree`."""
        above: list[str] = []
        parent = self._parents.get(instance)
        while parent and len(above) < _DEEPEST:
            above.append(parent)
            parent = self._parents.get(parent)
        return above

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call *listener* after every change, on the event loop's thread. It must be quick, and not raise."""
        self._listeners.append(listener)

    # Told by the guard.

    def used(self, key_id: str, time: datetime) -> None:
        """A key was used. Told once a minute and key, not with every call."""
        self._uses[key_id] = time

    def take_uses(self) -> Mapping[str, datetime]:
        """When keys were last used, of those that were since this was asked last."""
        uses, self._uses = self._uses, {}
        return uses

    # Filled from the source.

    def heard(self) -> None:
        """The source has confirmed just now that nothing is missing."""
        self._heard = self._monotonic()

    def load(
        self,
        principals: Iterable[PrincipalRecord],
        keys: Iterable[KeyRecord],
        token_keys: Iterable[TokenKey],
    ) -> None:
        """Put a snapshot in the place of everything but the instances."""
        self._principals = {principal.name: principal for principal in principals}
        self._keys = {key.id: key for key in keys}
        self._token_keys = {key.kid: key for key in token_keys}
        self.heard()
        self._changed()

    def load_instances(self, parents: Mapping[str, str]) -> None:
        """Put a snapshot in the place of the instances: each one's parent; the root has none."""
        self._parents = {instance: parent for instance, parent in parents.items() if instance != ROOT}
        self._changed()

    def put_principal(self, principal: PrincipalRecord) -> None:
        """Add or replace somebody."""
        self._principals[principal.name] = principal
        self._changed()

    def remove_principal(self, name: str) -> None:
        """Forget somebody, and their keys. Agents that act for them can no longer act."""
        self._principals.pop(name, None)
        self._keys = {key.id: key for key in self._keys.values() if key.principal != name}
        self._changed()

    def put_key(self, key: KeyRecord) -> None:
        """Add or replace a key."""
        self._keys[key.id] = key
        self._changed()

    def put_token_key(self, key: TokenKey) -> None:
        """Add or replace a key that signs tokens."""
        self._token_keys[key.kid] = key
        self._changed()

    def put_instance(self, instance: str, parent: str) -> None:
        """Say under which instance another stands; an empty *parent*: under none."""
        if self._parents.get(instance, "") == parent:
            return  # watches repeat themselves, and nothing concluded so far need be doubted for that
        if parent and instance != ROOT:
            self._parents[instance] = parent
        else:
            self._parents.pop(instance, None)
        self._changed()

    def _changed(self) -> None:
        self.generation += 1
        for listener in self._listeners:
            listener()
