"""The checker finds what is planted: one task that crossed and is right, and everything that may be wrong with it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from hopper.router.v1.task_pb2 import Task, TaskSpec, Wait
from tests.faults.federation import checking
from tests.faults.federation.asking import NOBODY, Asked
from tests.faults.federation.checking import Seen, There, late, written
from tests.faults.federation.planting import PLANTS, blind, copy_of
from tests.faults.federation.stage import Member, Stage
from tests.faults.federation.working import Entry, Job
from tests.faults.stepping import SteppedProcess

_ROOT: Final = "instances/global/tasks/1"
_CHILD: Final = "instances/peer-bob/tasks/1"
_JOB: Final = Job("ann-0")
_DONE: Final = Entry("ann-0", "bob", "5f", "done", 2.0)
_BEGUN: Final = Entry("ann-0", "bob", "5f", "begin", 1.0)


def _task(name: str, path: str = "") -> Task:
    spec = TaskSpec(payload=_JOB.payload(), labels={"hopper.path": path} if path else {})
    return Task(name=name, spec=spec, state=Task.STATE_SUCCEEDED, result=_DONE.result)


def _hand_over(role: str, peer: str, task: str) -> dict[str, Any]:
    return {
        "role": role,
        "id": "d1",
        "peer": peer,
        "task_uid": f"i-ann/{_ROOT}",
        "epoch": 1,
        "task": task,
        "state": "COMPLETED",
        "settled": True,
        "reason": "",
        "late": False,
    }


@pytest.fixture
def seen(tmp_path: Path) -> Seen:
    """ann has asked for something, bob has done it, and both know."""
    members = [
        Member(
            name,
            SteppedProcess(tmp_path / name, tmp_path / f"{name}.wrong_by"),
            tmp_path / f"{name}.jsonl",
            install_id=f"i-{name}",
        )
        for name in ("ann", "bob")
    ]
    ann, bob = members
    there = {
        "ann": There(ann, [_task(_ROOT), _task(_CHILD)], [_hand_over("OUT", "i-bob", _CHILD)], [], []),
        "bob": There(bob, [_task(_ROOT, "i-ann")], [_hand_over("IN", "i-ann", _ROOT)], [], []),
    }
    asked = [Asked(_JOB, "ann", "bob", exclusive=True, name=_ROOT)]
    return Seen(Stage(tmp_path, members), asked, there, [_BEGUN, _DONE])


def _open(seen: Seen) -> None:
    seen.there["bob"].tasks[0].state = Task.STATE_RUNNING


def _lost(seen: Seen) -> None:
    del seen.there["ann"].tasks[0]


def _hand_over_open(seen: Seen) -> None:
    seen.there["ann"].hand_overs[0]["state"] = "RUNNING"


def _router_does_not_know(seen: Seen) -> None:
    seen.there["ann"].hand_overs[0]["settled"] = False


def _unsaid(seen: Seen) -> None:
    seen.there["bob"].outbox.append({"id": "m1", "kind": "result"})


def _two_results(seen: Seen) -> None:
    seen.there["ann"].hand_overs.append({**_hand_over("OUT", "i-bob", _CHILD), "id": "d2"})


def _result_of_nobody(seen: Seen) -> None:
    seen.there["ann"].tasks[0].result = b"ann-0/bob/66"


def _ran_twice(seen: Seen) -> None:
    seen.ledger.append(Entry("ann-0", "cid", "66", "begin", 3.0))


def _nobodys(seen: Seen) -> None:
    seen.asked[0].of = NOBODY


def _in_a_circle(seen: Seen) -> None:
    seen.there["bob"].tasks[0].spec.labels["hopper.path"] = "i-ann,i-bob"


def _ends_differ(seen: Seen) -> None:
    seen.there["bob"].hand_overs[0]["state"] = "FAILED"


def _not_told(seen: Seen) -> None:
    seen.there["ann"].hand_overs[0]["state"] = "RECLAIMED"


PLANTED: Final[dict[str, tuple[Callable[[Seen], None], str]]] = {
    "open": (_open, "I1"),
    "lost": (_lost, "I1"),
    "hand-over open": (_hand_over_open, "I1"),
    "router does not know": (_router_does_not_know, "I1"),
    "unsaid": (_unsaid, "I5"),
    "two results": (_two_results, "I2"),
    "result of nobody": (_result_of_nobody, "I2"),
    "ran twice": (_ran_twice, "I3"),
    "nobody's": (_nobodys, "I3"),
    "in a circle": (_in_a_circle, "I6"),
    "ends differ": (_ends_differ, "I7"),
    "not told": (_not_told, "I7"),
}


def test_what_is_right_is_right(seen: Seen) -> None:
    assert written(seen) == []


@pytest.mark.parametrize("planted", sorted(PLANTED))
def test_what_is_wrong_is_found(seen: Seen, planted: str) -> None:
    plant, rule = PLANTED[planted]
    plant(seen)
    found = written(seen)
    assert found
    assert {line.split()[0] for line in found} == {rule}, found


def test_the_checker_is_not_blind(seen: Seen) -> None:
    """What is done at the end of each round of the nemesis; nothing of it stays."""
    before = written(seen)
    assert list(blind(seen)) == []
    assert all(plant(copy_of(seen)) for plant, _ in PLANTS.values())
    assert written(seen) == before


@pytest.mark.parametrize(
    ("check", "rule"), [("_kept", "I1"), ("_one_result", "I2"), ("_runs", "I3"), ("_agreed", "I7")]
)
def test_a_checker_that_looks_away_is_found_out(
    seen: Seen, monkeypatch: pytest.MonkeyPatch, check: str, rule: str
) -> None:
    monkeypatch.setattr(checking, check, lambda _: ())
    assert {line.split()[5].rstrip(":") for line in blind(seen)} == {rule}


def test_what_had_ended_before_it_was_stopped_does_not_count(seen: Seen) -> None:
    """Found in seed 7004: called off here and overtaken there, and done meanwhile."""
    seen.there["bob"].hand_overs[0]["state"] = "RECLAIMED"
    assert written(seen)
    seen.there["ann"].hand_overs[0]["late"] = True
    assert written(seen) == []


def test_what_waits_for_a_person_has_been_done_with(seen: Seen) -> None:
    seen.there["ann"].hand_overs[0]["state"] = "SUSPECT"
    for task in seen.there["ann"].tasks:
        task.state = Task.STATE_RUNNING
    assert written(seen) == []


def test_what_is_for_a_peer_that_is_away_for_good_waits_for_a_person(seen: Seen) -> None:
    ann = seen.there["ann"]
    ann.hand_overs[0]["state"], ann.tasks[1].state = "OFFERED", Task.STATE_RUNNING
    assert written(seen)
    ann.member.shut_out.add("bob")
    assert written(seen) == []
    ann.hand_overs.clear()  # not even offered
    assert written(seen)
    ann.tasks[1].state, ann.tasks[1].wait.reason = Task.STATE_QUEUED, Wait.REASON_WORKER
    assert written(seen) == []


def test_what_nobody_can_do_waits_for_a_person(seen: Seen) -> None:
    task = seen.there["bob"].tasks[0]
    task.state, task.wait.reason = Task.STATE_SUBMITTED, Wait.REASON_NO_ELIGIBLE_EXECUTOR
    assert written(seen) == []


def test_what_came_about_after_the_last_fault_is_not_late(seen: Seen) -> None:
    healed = copy_of(seen)
    healed.there["bob"].outbox = []
    _unsaid(seen)
    assert list(late(seen, healed)) == []
    assert len(list(late(seen, seen))) == 1
