"""
Whether the checker would have seen it. One that finds nothing may be blind: so at the end of each round faults are put
into a copy of what was seen in it, and the checker has to find each of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from hopper.router.v1.task_pb2 import Task
from tests.faults.federation.checking import Row, Seen, There, written


def blind(seen: Seen) -> Iterator[str]:
    """Each fault that the checker does not find, though it is there."""
    before = set(written(seen))
    for what, (plant, rule) in PLANTS.items():
        planted = copy_of(seen)
        if plant(planted) and not any(
            line.startswith(rule) for line in written(planted) if line not in before
        ):
            yield f"the checker does not see {rule}: {what}"


def copy_of(seen: Seen) -> Seen:
    """The same, to be spoilt."""
    there = {
        name: There(
            each.member, list(each.tasks), [dict(row) for row in each.hand_overs], each.outbox, each.errands
        )
        for name, each in seen.there.items()
    }
    return Seen(seen.stage, [replace(asked) for asked in seen.asked], there, list(seen.ledger))


# Each returns whether there was anything to do it to.


def _lose(seen: Seen) -> bool:
    for asked in seen.asked:
        for task in seen.there[asked.home].tasks:
            if task.name == asked.name:
                seen.there[asked.home].tasks.remove(task)
                return True
    return False


def _run_twice(seen: Seen) -> bool:
    begun = Counter(entry.uid for entry in seen.ledger if entry.what == "begin")
    exclusive = {asked.job.uid for asked in seen.asked if asked.exclusive}
    for entry in seen.ledger:
        if entry.what == "begin" and entry.uid in exclusive and begun[entry.uid] == 1:
            seen.ledger.append(replace(entry, run="again"))
            return True
    return False


def _count_twice(seen: Seen) -> bool:
    for there in seen.there.values():
        for row in _completed(there):
            there.hand_overs.append({**row, "id": f"{row['id']}-again"})
            return True
    return False


def _forge(seen: Seen) -> bool:
    for there in seen.there.values():
        for at, task in enumerate(there.tasks):
            if task.state == Task.STATE_SUCCEEDED:
                forged = Task()
                forged.CopyFrom(task)
                forged.result += b"-forged"
                there.tasks[at] = forged
                return True
    return False


def _contradict(seen: Seen) -> bool:
    completed = {row["id"] for there in seen.there.values() for row in _completed(there)}
    for there in seen.there.values():
        for row in there.hand_overs:
            if row["role"] == "IN" and row["state"] == "COMPLETED" and row["id"] in completed:
                row["state"] = "FAILED"
                return True
    return False


def _completed(there: There) -> list[Row]:
    return [
        row
        for row in there.hand_overs
        if row["role"] == "OUT" and row["state"] == "COMPLETED" and not row.get("late")
    ]


PLANTS: Final[dict[str, tuple[Callable[[Seen], bool], str]]] = {
    "a task that was acknowledged is not there": (_lose, "I1"),
    "a result counts twice": (_count_twice, "I2"),
    "a result is of nobody": (_forge, "I2"),
    "what is exclusive ran twice": (_run_twice, "I3"),
    "both ends say something else": (_contradict, "I7"),
}
