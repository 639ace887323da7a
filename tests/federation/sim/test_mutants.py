"""Bugs made by hand are found, each within a few worlds: an invariant that sees nothing is none."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from hopper_federation.delegation import delegatee, delegator
from hopper_federation.delegation.desk import Desk
from hopper_federation.delegation.model import Delegation, Errand, Message, Receipt, State
from tests.federation import test_delegation_core as core
from tests.federation.sim.memory_store import MemoryDelegations
from tests.federation.sim.mutants import MUTANTS, Mutant, alive, always, found_by, without

WORLDS = 40
"""How many worlds are tried from the seed that is noted. A change of the simulator moves which one it is."""


def _any_epoch(original: Any) -> Any:
    def do(desk: Any, peer: str, message: Message) -> Any:
        known = [each for each in desk._store.tables.delegations.values() if each.id == message.delegation]
        return original(desk, peer, replace(message, epoch=known[0].epoch) if known else message)

    return do


def _no_tombstone(original: Any) -> Any:
    def save(store: MemoryDelegations, each: Delegation) -> None:
        if each.task_uid:
            original(store, each)

    return save


def _final(original: Any) -> Any:
    def answered(desk: Any, message: str, receipt: Receipt, sent_at: float) -> None:
        original(desk, message, replace(receipt, retry_after=None), sent_at)

    return answered


def _from_the_answer(original: Any) -> Any:
    def answered(desk: Any, message: str, receipt: Receipt, sent_at: float) -> None:
        original(desk, message, receipt, desk._now)

    return answered


def _hasty(original: Any) -> Any:
    return lambda was, note, now, *, offer_unanswered: original(was, note, now, offer_unanswered=False)


def _unheard() -> None:
    core.test_whoever_hears_that_it_is_over_there_stops(Receipt("", State.RECLAIMED))


UNIT: Mapping[str, tuple[Mutant, Callable[[], None]]] = {
    "any-epoch": (
        Mutant("epochs are not compared", ((Desk, "_do", _any_epoch),)),
        core.test_a_message_of_another_epoch_changes_nothing,
    ),
    "no-tombstone": (
        Mutant(
            "what was called off before it came is forgotten", ((MemoryDelegations, "save", _no_tombstone),)
        ),
        core.test_what_is_no_longer_wanted_before_it_came_is_not_taken,
    ),
    "deaf-to-receipts": (
        Mutant("what a receipt says is ignored", ((delegatee, "_OVER_THERE", lambda _: frozenset()),)),
        _unheard,
    ),
    "overtaken-goes-on": (
        Mutant("what was overtaken is not stopped", ((delegatee, "_overtaken", without(Errand)),)),
        _unheard,
    ),
    "lease-not-restarted": (
        Mutant(
            "a lease runs on while nobody could hear of it",
            ((delegator, "restarted", lambda _: lambda was, now: was),),
        ),
        core.test_f36_swapped_who_handed_over_was_away_and_takes_the_result,
    ),
    "from-the-answer": (
        Mutant("a lease counts from the answer", ((Desk, "answered", _from_the_answer),)),
        core.test_an_answer_that_comes_late_makes_no_lease_longer,
    ),
    "hasty-sync": (
        Mutant("an offer under way is given up by a comparison", ((delegator, "noted", _hasty),)),
        core.test_an_offer_that_is_under_way_need_not_be_known,
    ),
    "not-overtaken": (
        Mutant("an earlier hand-over stays", ((Desk, "_overtake", always(None)),)),
        core.test_f40_a_later_hand_over_overtakes_an_earlier_one,
    ),
    "final-refusals": (
        Mutant("a refusal that may pass is final", ((Desk, "answered", _final),)),
        core.test_a_refusal_that_may_pass_is_asked_for_again,
    ),
    "nothing-told-again": (
        Mutant("what was lost is not told again", ((delegatee, "_missing", always(None)),)),
        lambda: core.test_a_lost_result_is_told_again(False),
    ),
}
"""Bugs that leases, comparisons of notes and the router's tokens make up for: no world shows them."""


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_a_bug_is_found(name: str) -> None:
    mutant = MUTANTS[name]

    found = found_by(mutant, range(mutant.first, mutant.first + WORLDS))

    assert found is not None, (
        f"{mutant.says}, and no world shows it: python -m tests.federation.sim.mutants {name} says from which"
        " seed on one does; note that in MUTANTS"
    )


@pytest.mark.parametrize("name", sorted(UNIT))
def test_a_bug_that_leases_or_notes_hide_is_found_by_a_unit_test(name: str) -> None:
    mutant, test = UNIT[name]
    test()

    with alive(mutant), pytest.raises(AssertionError):
        test()
