"""The policies in force, compiled, by instance: an instance without one uses that of the nearest instance above."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from hopper_router.cascade import Use
from hopper_router.directory import Directory
from hopper_router.model import ROOT_INSTANCE
from hopper_router.policy_yaml import BUILT_IN, load_policy
from hopper_router.rules import OnDuplicate, Policy


@dataclass(frozen=True, slots=True)
class InForce:
    """A policy, whose it is (`instances/i/policy`), and its version; 0: the built-in one."""

    name: str
    version: int
    policy: Policy


_BUILT_IN: Final = InForce(f"{ROOT_INSTANCE}/policy", 0, BUILT_IN)


class Policies:
    """
    Compiled policies; changed from the event loop, in whole values, and read from any thread.

    Attributes:
        ask_for_duplicates: Whether there is one by which new tasks are compared with open ones.
    """

    def __init__(self, stored: Iterable[tuple[str, int, str]]) -> None:
        self._by_instance: dict[str, InForce] = {}
        self.ask_for_duplicates = False
        self._versions: dict[str, int] = {}
        for instance, version, source in stored:
            self.put(instance, version, load_policy(source) if source else None)

    def put(self, instance: str, version: int, policy: Policy | None) -> None:
        """Put a policy in force, or take an instance's own one away; a version that is not newer changes nothing."""
        if version <= self._versions.get(instance, 0):
            return
        self._versions[instance] = version
        changed = dict(self._by_instance)
        changed.pop(instance, None)
        if policy is not None:
            changed[instance] = InForce(f"{instance}/policy", version, policy)
        self._by_instance = changed
        self.ask_for_duplicates = any(_asks_for_duplicates(own.policy) for own in changed.values())

    @property
    def strategies(self) -> set[str]:
        """The strategies that policies judge by in memory."""
        own = [in_force.policy for in_force in (_BUILT_IN, *self._by_instance.values())]
        shadows = [policy.shadow for policy in own if policy.shadow is not None]
        return {judge for policy in (*own, *shadows) for judge in policy.judges}

    @property
    def have_shadows(self) -> bool:
        """Whether a policy has a shadow."""
        return any(own.policy.shadow is not None for own in self._by_instance.values())

    @property
    def consults(self) -> bool:
        """Whether there is a policy by which anybody is asked for advice."""
        return any(own.policy.stages for own in self._by_instance.values())

    @property
    def sages(self) -> set[str]:
        """The addresses of the Sages that policies name; "": the operator's."""
        stages = (stage for own in self._by_instance.values() for stage in own.policy.stages)
        return {stage.address for stage in stages if stage.use is Use.SAGE}

    @property
    def order_queues(self) -> bool:
        """Whether there is a policy by which a Sage orders what waits."""
        stages = (stage for own in self._by_instance.values() for stage in own.policy.stages)
        return any(stage.prioritize for stage in stages)

    def in_force(self, instance: str, directory: Directory) -> InForce:
        """The policy that decides for an instance."""
        if not self._by_instance:
            return _BUILT_IN
        for name in (instance, *directory.ancestors(instance)):
            found = self._by_instance.get(name)
            if found is not None:
                return found
        return _BUILT_IN

    def about_duplicates(self, instance: str, directory: Directory) -> Policy | None:
        """The policy by which new tasks of an instance are compared with open ones; None: they are not."""
        if not self.ask_for_duplicates:
            return None
        policy = self.in_force(instance, directory).policy
        return policy if _asks_for_duplicates(policy) else None


def _asks_for_duplicates(policy: Policy) -> bool:
    return policy.duplicates is not OnDuplicate.OFF
