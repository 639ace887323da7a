"""The decision: where a role reaches, and where it does not."""

import pytest

from hopper_common.auth.decide import Session, covers, decide, has_role, lets_in, owns_worker, worker_owner
from hopper_common.auth.model import ROOT, Access, Binding, Kind, Principal, Role, Service
from hopper_testing.clock import ManualClock
from tests.common.auth.stage import new_directory

TREE = new_directory(ManualClock())
MEMBERS = Access(roles=frozenset({Role.MEMBER}))
WORKERS = Access(roles=frozenset({Role.MEMBER, Role.AGENT}))


def person(*bindings: tuple[Role, str], scopes: tuple[Binding, ...] | None = None) -> Principal:
    return Principal("principals/p", Kind.PERSON, tuple(Binding(*each) for each in bindings), scopes=scopes)


@pytest.mark.parametrize(
    ("bound", "place", "covered"),
    [
        (ROOT, ROOT, True),
        (ROOT, "instances/squad", True),
        (ROOT, "projects/web", True),
        (ROOT, "instances/unheard", True),
        ("instances/a", "instances/a", True),
        ("instances/a", "instances/squad", True),
        ("instances/squad", "instances/a", False),  # never upward
        ("instances/a", "instances/b", False),  # never sideways
        ("instances/a", ROOT, False),
        ("instances/a", "projects/web", False),
        ("instances/unheard", "instances/unheard", True),
        ("projects/web", "projects/web", True),
        ("projects/web", "projects/webs", False),
        ("projects/web", ROOT, False),
    ],
)
def test_a_role_reaches_down_and_nowhere_else(bound: str, place: str, covered: bool) -> None:
    assert covers(bound, place, TREE) is covered
    assert decide(person((Role.MEMBER, bound)), MEMBERS, [place], TREE).allowed is covered


def test_every_place_must_be_covered() -> None:
    both = person((Role.MEMBER, "instances/a"), (Role.ADMIN, "projects/web"))
    assert decide(both, MEMBERS, ["instances/squad", "projects/web"], TREE).allowed
    refused = decide(both, MEMBERS, ["instances/squad", "instances/b"], TREE)
    assert (refused.allowed, refused.rule) == (False, "no role on instances/b that the method is for")


def test_what_names_no_place_is_of_the_root_unless_anywhere_will_do() -> None:
    somewhere = person((Role.MEMBER, "instances/a"))
    assert not decide(somewhere, MEMBERS, [], TREE).allowed
    assert decide(somewhere, MEMBERS, None, TREE).allowed
    assert not decide(person(), MEMBERS, None, TREE).allowed


def test_a_higher_role_does_for_a_lower_one_and_those_beside_the_line_for_themselves() -> None:
    line = [Role.OWNER, Role.ADMIN, Role.OPERATOR, Role.MEMBER, Role.VIEWER]
    for high, held in enumerate(line):
        for low, named in enumerate(line):
            assert lets_in(held, [named]) is (high <= low)
        for beside in (Role.AGENT, Role.AUDITOR):
            assert not lets_in(held, [beside])
            assert not lets_in(beside, [held])
    assert lets_in(Role.AUDITOR, [Role.AUDITOR])
    assert not lets_in(Role.AUDITOR, [Role.AGENT])


def test_the_deciding_rule_is_told() -> None:
    ada = Principal("principals/ada", Kind.PERSON, (Binding(Role.OPERATOR, "instances/a"),))
    bot = Principal("principals/bot", Kind.AGENT, (Binding(Role.AGENT, ROOT),), acting_for=ada)
    assert decide(bot, WORKERS, ["instances/squad"], TREE).rule == (
        "agent on instances/global; for principals/ada: operator on instances/a"
    )
    assert decide(bot, WORKERS, ["instances/b"], TREE).rule == (
        "for principals/ada: no role on instances/b that the method is for"
    )


def test_an_agent_of_nobody_or_of_an_agent_may_nothing() -> None:
    everywhere = (Binding(Role.AGENT, ROOT), Binding(Role.MEMBER, ROOT))
    alone = Principal("principals/bot", Kind.AGENT, everywhere)
    nested = Principal("principals/bot", Kind.AGENT, everywhere, acting_for=alone)
    for agent in (alone, nested):
        assert decide(agent, WORKERS, None, TREE).rule == "the agent acts for nobody"
        assert not has_role(agent, Role.MEMBER, [], TREE)


def test_a_key_cuts_down_what_its_principal_may() -> None:
    cut = person((Role.ADMIN, ROOT), scopes=(Binding(Role.MEMBER, "instances/a"),))
    assert decide(cut, MEMBERS, ["instances/squad"], TREE).allowed
    assert decide(cut, MEMBERS, ["instances/b"], TREE).rule == "the key is not for that on instances/b"
    assert not has_role(cut, Role.ADMIN, ["instances/a"], TREE)
    raised = person((Role.VIEWER, ROOT), scopes=(Binding(Role.ADMIN, ROOT),))
    assert not decide(raised, MEMBERS, [ROOT], TREE).allowed


def test_what_an_agent_or_a_service_has_is_no_role_of_people() -> None:
    ada = person((Role.ADMIN, ROOT))
    bot = Principal("principals/bot", Kind.AGENT, (Binding(Role.AGENT, ROOT),), acting_for=ada)
    router = Principal("spiffe://x/svc/router", Kind.SERVICE, service=Service.ROUTER)
    assert has_role(ada, Role.OPERATOR, ["instances/a"], TREE)
    assert not has_role(bot, Role.VIEWER, ["instances/a"], TREE)
    assert not has_role(router, Role.VIEWER, ["instances/a"], TREE)


def test_a_worker_belongs_to_the_longest_name_it_begins_with() -> None:
    known = {"principals/ada", "principals/ada-bot"}.__contains__
    for worker, owner in {
        "ada": "principals/ada",
        "ada@laptop": "principals/ada",
        "ada-2": "principals/ada",
        "ada-bot": "principals/ada-bot",
        "ada-bot.1": "principals/ada-bot",
        "ada-bots": "principals/ada",
        "adam": "",
        "bob-ada": "",
        "-ada": "",
        "": "",
    }.items():
        assert worker_owner(worker, known) == owner, worker


def test_people_and_agents_work_as_their_own_workers_and_the_owner_as_anybody() -> None:
    known = {"principals/ada", "principals/bot"}.__contains__
    ada, bot = (Principal(f"principals/{name}", Kind.PERSON) for name in ("ada", "bot"))
    assert owns_worker(ada, "ada-1", known)
    assert not owns_worker(bot, "ada-1", known)
    assert owns_worker(Principal("owner", Kind.OWNER), "ada-1", known)
    assert not owns_worker(Principal("spiffe://x/svc/router", Kind.SERVICE), "ada-1", known)
    service = Principal("spiffe://x/svc/federation", Kind.SERVICE, service=Service.FEDERATION)
    assert owns_worker(service, "federation", known)
    assert not owns_worker(service, "gateway", known)


def test_a_verdict_is_kept_by_method_and_places() -> None:
    session = Session(person((Role.MEMBER, "instances/a")))
    for _ in range(2):
        assert session.decide("/x", MEMBERS, ("instances/a",), TREE).allowed
        assert not session.decide("/x", MEMBERS, ("instances/b",), TREE).allowed
        assert not session.decide("/y", Access(), ("instances/a",), TREE).allowed
    for number in range(3000):
        session.decide("/x", MEMBERS, (f"instances/{number}",), TREE)
    assert len(session.verdicts) <= 500
