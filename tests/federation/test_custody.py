"""The chain of custody of what is kept: verified, claimed, or not what was signed."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from hopper.federation.v1 import delegation_pb2 as dpb
from hopper.federation.v1.delegation_service_pb2 import CustodyLink
from hopper_common.timestamps import to_proto
from hopper_federation.delegation.custody import custody_of
from hopper_federation.delegation.model import Delegation, Outcome, Role, State
from tests.federation.seals import (
    EVERYBODY,
    FIRST,
    NOW,
    SECOND,
    Hoppers,
    made_hoppers,
    offer_to_bob,
    offer_to_carol,
    result_of_carol,
)


@pytest.fixture(scope="module")
def hoppers(tmp_path_factory: pytest.TempPathFactory) -> Hoppers:
    return made_hoppers(tmp_path_factory.mktemp("hoppers"))


def handed_over(hoppers: Hoppers, **different: Any) -> Delegation:
    """As alice keeps it: bob had it done by carol."""
    result, offer = result_of_carol(hoppers)
    kept: dict[str, Any] = {
        "id": FIRST,
        "role": Role.OUT,
        "peer": hoppers.bob.install_id,
        "task_uid": f"{hoppers.alice.install_id}/01k",
        "epoch": 1,
        "state": State.COMPLETED,
        "lease": 900.0,
        "outcome": Outcome.SUCCEEDED,
        "offer": offer.SerializeToString(),
        "result": result.SerializeToString(),
    }
    return Delegation(**{**kept, **different})


def explained(
    hoppers: Hoppers, delegation: Delegation, known: Sequence[str] = EVERYBODY, own: str = "alice"
) -> list[CustodyLink]:
    names = {getattr(hoppers, name).install_id: f"peers/{name}" for name in known if name != own}
    return custody_of(
        delegation,
        own=getattr(hoppers, own).install_id,
        keys_of=hoppers.named(known),
        name_of=lambda install_id: names.get(install_id, ""),
    )


def findings(links: Sequence[CustodyLink]) -> list[tuple[str, bool, str]]:
    return [(link.kind, link.verified, link.problem) for link in links]


def test_the_whole_way_there_and_back_is_told(hoppers: Hoppers) -> None:
    links = explained(hoppers, handed_over(hoppers))
    assert [(link.kind, link.text) for link in links] == [
        ("task", "this Hopper says what is to be done"),
        ("hop", "this Hopper hands it over to bob"),
        ("result", "carol has done it"),
        ("countersign", "bob passes the result on to this Hopper"),
    ]
    assert all(link.verified and link.time == to_proto(NOW) for link in links)
    assert [link.peer for link in links] == ["", "", "peers/carol", "peers/bob"]
    assert links[1].to == hoppers.bob.install_id


def test_whoever_is_not_known_is_quoted(hoppers: Hoppers) -> None:
    links = explained(hoppers, handed_over(hoppers), known=("alice", "bob"))
    assert findings(links)[2] == ("result", False, "")
    assert links[2].text == f"a Hopper that is not known here ({hoppers.carol.install_id[:8]}) has done it"


def test_what_came_is_told_as_what_went(hoppers: Hoppers) -> None:
    offer = offer_to_carol(hoppers)
    came = handed_over(
        hoppers,
        id=SECOND,
        role=Role.IN,
        state=State.RUNNING,
        outcome=None,
        offer=offer.SerializeToString(),
        result=b"",
    )
    links = explained(hoppers, came, own="carol")
    assert [link.text for link in links] == [
        "alice says what is to be done",
        "alice hands it over to bob",
        "bob hands it over to this Hopper",
    ]
    assert all(link.verified for link in links)


@pytest.mark.parametrize(("outcome", "text"), [(Outcome.FAILED, "failed at"), (Outcome.CANCELLED, "called")])
def test_every_end_has_its_words(hoppers: Hoppers, outcome: Outcome, text: str) -> None:
    result, _ = result_of_carol(hoppers, outcome)
    links = explained(hoppers, handed_over(hoppers, outcome=outcome, result=result.SerializeToString()))
    assert text in links[2].text
    assert all(link.verified for link in links)


def test_nothing_was_signed_of_what_was_called_off_before_it_came(hoppers: Hoppers) -> None:
    assert explained(hoppers, handed_over(hoppers, offer=b"", result=b"")) == []


def edited_body(delegation: Delegation) -> Delegation:
    offer = dpb.Offer.FromString(delegation.offer)
    offer.body = dpb.TaskBody(title="something else").SerializeToString()
    return replace(delegation, offer=offer.SerializeToString())


def edited_output(delegation: Delegation) -> Delegation:
    result = dpb.Result.FromString(delegation.result)
    result.output = b"something else"
    return replace(delegation, result=result.SerializeToString())


def without_way(delegation: Delegation) -> Delegation:
    offer = dpb.Offer.FromString(delegation.offer)
    offer.ClearField("hops")
    return replace(delegation, offer=offer.SerializeToString())


CHANGES: dict[str, tuple[Callable[[Delegation], Delegation], int]] = {
    "another body": (edited_body, 0),
    "another output": (edited_output, 2),
    "another epoch": (lambda kept: replace(kept, epoch=2), 1),
    "another peer": (lambda kept: replace(kept, peer="x" * 32), 1),
    "another task": (lambda kept: replace(kept, task_uid="x/y"), 1),
    "another outcome": (lambda kept: replace(kept, outcome=Outcome.FAILED), 3),
    "not exclusive": (lambda kept: replace(kept, exclusive=True), 1),
    "the way it came gone": (without_way, 1),
    "no bytes that can be read": (lambda kept: replace(kept, offer=b"\xff"), 0),
}


@pytest.mark.parametrize("change", sorted(CHANGES))
def test_what_somebody_has_changed_in_the_database_is_found(hoppers: Hoppers, change: str) -> None:
    edit, place = CHANGES[change]
    links = explained(hoppers, edit(handed_over(hoppers)))
    assert links[place].problem == "SIGNATURE_INVALID"
    assert not links[place].verified
    assert links[place].text


def test_a_result_without_the_offer_that_it_answers_proves_nothing(hoppers: Hoppers) -> None:
    links = explained(hoppers, without_way(handed_over(hoppers)))
    assert any(link.problem for link in links)
    assert not [link for link in links if link.kind == "result" and link.verified]


def test_an_offer_alone_is_whole(hoppers: Hoppers) -> None:
    offered = handed_over(
        hoppers,
        state=State.OFFERED,
        outcome=None,
        offer=offer_to_bob(hoppers).SerializeToString(),
        result=b"",
    )
    assert findings(explained(hoppers, offered)) == [("task", True, ""), ("hop", True, "")]
