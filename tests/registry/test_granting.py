"""Who may give which rights: whatever is tried, nobody gains what the one who gives it had not."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopper_common.auth.decide import has_role
from hopper_common.auth.model import OWNER_NAME, ROOT, Binding, Kind, Principal, Role
from hopper_common.errors import PermissionDenied
from hopper_registry.effective import effective
from hopper_registry.granting import check_manages, check_manages_key, manages

PARENTS = {
    "instances/team": ROOT,
    "instances/team-run": "instances/team",
    "instances/other": ROOT,
}
PLACES = (ROOT, *PARENTS, "projects/web", "projects/app")


class Tree:
    """Root, two teams, and a run under the first."""

    def ancestors(self, instance: str) -> Sequence[str]:
        above = []
        while instance in PARENTS:
            instance = PARENTS[instance]
            above.append(instance)
        return above


TREE = Tree()
OWNER = Principal(OWNER_NAME, Kind.OWNER, credential="socket")
GRANTABLE = tuple(role for role in Role if role is not Role.OWNER)

bindings = st.builds(Binding, st.sampled_from(GRANTABLE), st.sampled_from(PLACES))
some_bindings = st.lists(bindings, max_size=4).map(tuple)
people = st.builds(
    lambda held, scopes: person(*held, scopes=scopes), some_bindings, st.none() | some_bindings
)


def person(*held: Binding, scopes: tuple[Binding, ...] | None = None, name: str = "ada") -> Principal:
    return Principal(
        f"principals/{name}", Kind.PERSON, bindings=held, scopes=scopes, credential=f"key:{name}-1"
    )


def admin(place: str) -> Binding:
    return Binding(Role.ADMIN, place)


@given(people, st.lists(bindings, min_size=1, max_size=4))
def test_whoever_may_give_roles_has_every_one_of_those_on_the_line(
    caller: Principal, given_roles: list[Binding]
) -> None:
    """And is an admin there, for those that stand beside it."""
    if manages(caller, [binding.resource for binding in given_roles], TREE):
        for binding in given_roles:
            assert has_role(caller, Role.ADMIN, [binding.resource], TREE)
            if binding.role < Role.AGENT:
                assert has_role(caller, binding.role, [binding.resource], TREE)


@given(people, st.lists(st.sampled_from(PLACES), min_size=1, max_size=3), st.sampled_from(PLACES))
def test_more_places_never_make_it_easier(caller: Principal, places: list[str], another: str) -> None:
    """Whoever may not manage somebody, may not once that one has a role more."""
    if manages(caller, [*places, another], TREE):
        assert manages(caller, places, TREE)


@given(people, st.lists(st.sampled_from(PLACES), max_size=3), some_bindings)
def test_scopes_only_take_away(caller: Principal, places: list[str], scopes: tuple[Binding, ...]) -> None:
    """A key may do no more than whose it is."""
    if manages(replace(caller, scopes=scopes), places, TREE):
        assert manages(replace(caller, scopes=None), places, TREE)


@given(some_bindings, st.lists(st.sampled_from(PLACES), max_size=3))
def test_agents_and_services_manage_nobody(held: tuple[Binding, ...], places: list[str]) -> None:
    """Whoever they act for."""
    boss = person(admin(ROOT))
    agent = Principal("principals/bot", Kind.AGENT, bindings=held, acting_for=boss)
    service = Principal("spiffe://x.hopper/svc/router", Kind.SERVICE, bindings=held)
    assert not manages(agent, places, TREE)
    assert not manages(service, places, TREE)


@pytest.mark.parametrize(
    ("held", "places", "allowed"),
    [
        ((admin(ROOT),), ["instances/team-run", "projects/web"], True),
        ((admin("instances/team"),), ["instances/team-run"], True),
        ((admin("instances/team"),), ["instances/other"], False),
        ((admin("instances/team-run"),), ["instances/team"], False),
        ((admin("instances/team"),), ["instances/team", "instances/other"], False),
        ((admin("projects/web"),), ["projects/web"], True),
        ((admin("projects/web"),), ["projects/app"], False),
        ((Binding(Role.OPERATOR, ROOT),), ["projects/web"], False),
        ((admin("instances/team"),), [], False),  # nobody who has nothing is of a team
        ((admin(ROOT),), [], True),
    ],
)
def test_an_admin_manages_what_is_under_them(
    held: tuple[Binding, ...], places: list[str], allowed: bool
) -> None:
    """Never what is beside it or above."""
    assert manages(person(*held), places, TREE) is allowed
    assert manages(OWNER, places, TREE)


def test_a_refusal_names_the_place() -> None:
    """So that people know whom to ask."""
    with pytest.raises(PermissionDenied) as refused:
        check_manages(person(admin("instances/team")), ["instances/team", "instances/other"], TREE)
    assert refused.value.metadata["rule"] == "admin of instances/other"


def test_people_manage_their_own_keys() -> None:
    """Agents do not, and nobody those of others."""
    own = "principals/ada/keys/ada-1"
    check_manages_key(person(), own, [ROOT], TREE)
    check_manages_key(person(), "principals/ada/keys/another", [ROOT], TREE)
    with pytest.raises(PermissionDenied):
        check_manages_key(person(), "principals/adam/keys/ada-1", [ROOT], TREE)
    with pytest.raises(PermissionDenied):
        check_manages_key(replace(person(), kind=Kind.AGENT), own, [ROOT], TREE)


def test_with_a_key_of_less_no_key_of_more_can_be_had() -> None:
    """Only the very key that was used is its own to change."""
    cut = person(admin(ROOT), scopes=(Binding(Role.VIEWER, "projects/web"),))
    check_manages_key(cut, "principals/ada/keys/ada-1", [ROOT], TREE)
    with pytest.raises(PermissionDenied):
        check_manages_key(cut, "principals/ada/keys/another", [ROOT], TREE)
    by_token = replace(cut, credential="token")
    with pytest.raises(PermissionDenied):
        check_manages_key(by_token, "principals/ada/keys/ada-1", [ROOT], TREE)


# What somebody is told that they may do.

line_roles = st.sampled_from([role for role in GRANTABLE if role < Role.AGENT])


@given(people, line_roles, st.sampled_from(PLACES))
def test_what_people_are_told_is_what_is_decided(caller: Principal, role: Role, place: str) -> None:
    """No less, and no more."""
    told = replace(caller, bindings=effective(caller, TREE), scopes=None)
    assert has_role(told, role, [place], TREE) is has_role(caller, role, [place], TREE)


def test_what_an_agent_is_told_is_cut_down_to_whom_it_acts_for() -> None:
    """By place: what it may there, each call decides by the role that the person has."""
    agent = Principal(
        "principals/bot",
        Kind.AGENT,
        bindings=(Binding(Role.AGENT, ROOT),),
        acting_for=person(Binding(Role.MEMBER, "instances/team")),
    )
    assert effective(agent, TREE) == (Binding(Role.AGENT, "instances/team"),)
    assert effective(replace(agent, acting_for=None), TREE) == ()
    apart = replace(agent, bindings=(Binding(Role.AGENT, "projects/web"),))
    assert effective(apart, TREE) == ()


def test_scopes_that_stand_beside_the_line_meet_only_themselves() -> None:
    """A key for auditing of somebody who is no auditor is good for nothing."""
    auditing = (Binding(Role.AUDITOR, ROOT),)
    assert effective(person(admin(ROOT), scopes=auditing), TREE) == ()
    assert effective(person(*auditing, scopes=auditing), TREE) == auditing
