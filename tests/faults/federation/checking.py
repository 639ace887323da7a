"""
What must hold when all is healed and done: read from the databases of all Hoppers and from the ledgers of those who
worked.

The numbers are those of the catalogue of faults. The same task is known everywhere by what the run itself wrote into
its payload, not by what Hoppers say of it.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from hopper.common.v1.audit_service_pb2 import VerifyAuditRequest
from hopper.router.v1.task_pb2 import Task, TaskView, Wait
from hopper.router.v1.task_service_pb2 import ListTasksRequest
from hopper_testing.dump import EVERY_STATE
from tests.faults.federation.asking import NOBODY, Asked
from tests.faults.federation.stage import Member, Stage
from tests.faults.federation.working import Entry, Job, read_ledgers

ENDED: Final = {Task.STATE_SUCCEEDED, Task.STATE_FAILED, Task.STATE_REJECTED, Task.STATE_CANCELLED}
DRAIN_SECONDS: Final = 60.0
MOST_MORE_FILES: Final = 64
MOST_MORE_BYTES: Final = 128 * 2**20
MOST_HOPPERS: Final = 8

_WAITS_FOR_A_PERSON: Final = {
    Wait.REASON_NO_ELIGIBLE_EXECUTOR,
    Wait.REASON_PERSON,
    Wait.REASON_UNSURE,
    Wait.REASON_APPROVAL,
}
_PERSON: Final = {"SUSPECT", "ORPHANED", "DISPUTED", "QUARANTINED"}
_OPEN: Final = {"OFFERED", "ACCEPTED", "RUNNING", "CANCELLING"}
_AGREE: Final = {
    "COMPLETED": {"COMPLETED"},
    "FAILED": {"FAILED"},
    "REJECTED": {"REJECTED", "CANCELLED", "EXPIRED", "RECLAIMED", "ORPHANED"},
}
_KEPT: Final = {"result", "appraisal"}
_WRONG: Final = ("Traceback", "this is a defect", "never retrieved")
_CALLER_GONE: Final = "ExecuteBatchError raised in core by servicer method"

_HAND_OVERS: Final = "SELECT role, id, peer, task_uid, epoch, task, state, settled, body FROM {s}delegations"
_OUTBOX: Final = "SELECT id, peer, role, kind, delegation, create_time, attempts FROM {s}outbox"
_ERRANDS: Final = "SELECT position, task, role, delegation, create_time, attempts, body FROM {s}errands"

Row = dict[str, Any]


@dataclass(slots=True)
class There:
    """What one Hopper has."""

    member: Member
    tasks: list[Task]
    hand_overs: list[Row]
    outbox: list[Row]
    errands: list[Row]
    uids: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.uids = {task.name: Job.of(task.spec.payload).uid for task in self.tasks}


@dataclass(slots=True)
class Seen:
    """Everything that is there, and everything that has happened."""

    stage: Stage
    asked: Sequence[Asked]
    there: dict[str, There]
    ledger: list[Entry]

    @property
    def revocations(self) -> bool:
        return any(member.revoked for member in self.stage.members)


async def look(stage: Stage, asked: Sequence[Asked]) -> Seen:
    """
    Everything, as it is now.

    Raises:
        AssertionError: A Hopper has ended by itself.
    """
    there = {}
    for member in stage.members:
        if not member.process.running:
            raise AssertionError(f"{member.name} has ended: {member.process.complaint()[-500:]}")
        tasks = await _tasks(member)
        outbox, errands, hand_overs = [
            await asyncio.to_thread(member.rows, query, stage.server)
            for query in (_OUTBOX, _ERRANDS, _HAND_OVERS)
        ]
        hand_overs = [row | json.loads(row["body"]) for row in hand_overs]
        there[member.name] = There(member, tasks, hand_overs, outbox, errands)
    _without_what_is_kept(stage, there)
    return Seen(stage, asked, there, list(read_ledgers(member.ledger for member in stage.members)))


def _without_what_is_kept(stage: Stage, there: dict[str, There]) -> None:
    """
    How it ended is kept for a peer that is revoked, for when it is one again; and everything for one that is silent: it
    may be back.
    """
    for each in there.values():
        gone, away = [
            {stage.member(name).install_id for name in names}
            for names in (each.member.revoked, each.member.shut_out)
        ]
        each.outbox = [
            row
            for row in each.outbox
            if row["peer"] not in away and (row["peer"] not in gone or row["kind"] not in _KEPT)
        ]


async def _tasks(member: Member) -> list[Task]:
    request = ListTasksRequest(page_size=500, states=EVERY_STATE, view=TaskView.TASK_VIEW_FULL)
    found: list[Task] = []
    while True:
        page = await member.client.tasks.ListTasks(request, timeout=60)
        found += page.tasks
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


def late(seen: Seen, healed: Seen) -> Iterator[str]:
    """I5: what was to be said or done when the last fault was over has been. When that was, no clock can tell."""
    for name, there in seen.there.items():
        before = {_which(row) for row in _unsaid(healed.there[name])}
        for row in _unsaid(there):
            if _which(row) in before:
                yield f"I5 {name} still has {row}"


def _unsaid(there: There) -> list[Row]:
    return [*there.outbox, *there.errands]


def _which(row: Row) -> tuple[str, Any]:
    """A message, or an errand."""
    return ("message", row["id"]) if "id" in row else ("errand", row["position"])


def unfinished(seen: Seen) -> Iterator[str]:
    """I1: each task has ended or waits for a person, everywhere, and nothing is left to be said or done."""
    waiting = _waiting_for_people(seen)
    for there in seen.there.values():
        name = there.member.name
        for task in there.tasks:
            if task.state not in ENDED and there.uids[task.name] not in waiting and not _waits(task):
                state = Task.State.Name(task.state)
                yield f"I1 {there.uids[task.name]} at {name} is {state}: {task.name} {str(task.wait)[:200]!r}"
        for row in there.hand_overs:
            if row["state"] in _OPEN and there.uids.get(row["task"]) not in waiting:
                yield f"I1 {row['role']} {row['id']} at {name} is {row['state']}: {row['task']}"
            if row["role"] == "OUT" and row["state"] not in _OPEN | _PERSON and not row["settled"]:
                yield f"I1 OUT {row['id']} at {name} is {row['state']}, and the router does not know"
        for row in _unsaid(there):
            yield f"I5 {name} has {row}"


def _waiting_for_people(seen: Seen) -> set[str]:
    """Tasks of which some Hopper shows a hand-over that a person has to decide about, or that wait for who is away."""
    decided = {
        there.uids[row["task"]]
        for there in seen.there.values()
        for row in there.hand_overs
        if row["state"] in _PERSON and row["task"] in there.uids
    }
    return decided.union(*(_waiting_for_who_is_away(seen, there) for there in seen.there.values()))


def _waiting_for_who_is_away(seen: Seen, there: There) -> Iterator[str]:
    """What is for a peer that has revoked this one without a word, and was not sent: it may be begun for a week."""
    names = there.member.shut_out
    away = {seen.stage.member(name).install_id for name in names}
    for row in there.hand_overs:
        if row["role"] == "OUT" and row["state"] == "OFFERED" and row["peer"] in away:
            yield there.uids.get(row["task"], "")
    places = {f"instances/peer-{name}" for name in names}
    for task in there.tasks:
        waits = task.state == Task.STATE_QUEUED and task.wait.reason == Wait.REASON_WORKER
        if waits and task.name.partition("/tasks/")[0] in places:
            yield there.uids[task.name]


def _waits(task: Task) -> bool:
    return task.wait.reason in _WAITS_FOR_A_PERSON


async def violations(seen: Seen) -> list[str]:
    """Everything that is wrong; of a stage on which nothing goes on any more."""
    found = [*written(seen), *_usage(seen), *_defects(seen)]
    for member in seen.stage.members:
        verified = await member.client.audit.VerifyAudit(VerifyAuditRequest(), timeout=60)
        if not verified.intact:
            found.append(f"I8 {member.name}: {verified.broken_sequence} {verified.problem}")
    return found


def written(seen: Seen) -> list[str]:
    """What is wrong with what is written down: I1 to I7."""
    checks = (unfinished, _kept, _one_result, _runs, _paths, _agreed)
    return [line for check in checks for line in check(seen)]


def _kept(seen: Seen) -> Iterator[str]:
    """I1: what was acknowledged is there, once; and one task comes to life once, wherever it was asked for."""
    for asked in seen.asked:
        there = seen.there[asked.home]
        named = [task.name for task in there.tasks if there.uids[task.name] == asked.job.uid]
        roots = [name for name in named if name.startswith("instances/global/")]
        if asked.name and asked.name not in roots:
            yield f"I1 {asked.job.uid} of {asked.home} is lost: {asked.name}"


def _one_result(seen: Seen) -> Iterator[str]:
    """I2: one hand-over of a task at most has a result that counts, and it is one that somebody came to."""
    known = {entry.result: entry.uid for entry in seen.ledger if entry.what == "done"}
    for there in seen.there.values():
        name = there.member.name
        counts = [
            row
            for row in there.hand_overs
            if row["role"] == "OUT" and row["state"] == "COMPLETED" and not row.get("late")
        ]
        done = Counter(row["task"] for row in counts)
        own = there.member.install_id
        roots = Counter(row["task_uid"] for row in counts if row["task_uid"].startswith(own))
        for what, count in (*done.items(), *roots.items()):
            if count > 1:
                yield f"I2 {what} at {name} has {count} results that count"
        for task in there.tasks:
            if task.state == Task.STATE_SUCCEEDED and known.get(task.result) != there.uids[task.name]:
                yield f"I2 {there.uids[task.name]} at {name} has a result of nobody: {task.result!r}"


def _runs(seen: Seen) -> Iterator[str]:
    """I3: what is exclusive began once at most; what nobody can do never did."""
    begun: dict[str, list[str]] = defaultdict(list)
    for entry in seen.ledger:
        if entry.what == "begin":
            begun[entry.uid].append(f"{entry.hopper} at {entry.time:.1f}")
    for asked in seen.asked:
        uid, runs = asked.job.uid, begun[asked.job.uid]
        if asked.exclusive and len(runs) > 1:
            yield f"I3 {uid} is exclusive and ran {len(runs)} times: {', '.join(runs)}"
        if asked.of == NOBODY and runs:
            yield f"I3 {uid} ran, which nobody can do: {runs}"


def _paths(seen: Seen) -> Iterator[str]:
    """I6: no Hopper twice in a path, and no more than may be."""
    for there in seen.there.values():
        for task in there.tasks:
            came = [each for each in task.spec.labels.get("hopper.path", "").split(",") if each]
            path = [*came, there.member.install_id]
            if len(set(path)) != len(path) or len(path) > MOST_HOPPERS:
                yield f"I6 {there.uids[task.name]} went {' > '.join(path)}"


def _agreed(seen: Seen) -> Iterator[str]:
    """I7: both sides of a hand-over agree on how it ended, and so do hand-over and task."""
    by_install = {there.member.install_id: there for there in seen.there.values()}
    taken = {
        (there.member.install_id, row["peer"], row["id"]): row
        for there in seen.there.values()
        for row in there.hand_overs
        if row["role"] == "IN"
    }
    for there in seen.there.values():
        states = {task.name: task.state for task in there.tasks}
        for out in there.hand_overs:
            if out["role"] != "OUT":
                continue
            peer = by_install[out["peer"]].member
            other = taken.get((out["peer"], there.member.install_id, out["id"]))
            where = f"{out['id']} from {there.member.name} to {peer.name}"
            if out["state"] == "COMPLETED" and states.get(out["task"]) not in ENDED:
                yield f"I7 {where}: done, and its task {out['task']} goes on"
            if other is not None:
                yield from _agreed_on(where, out, other, revoked=peer.name in there.member.revoked)


def _agreed_on(where: str, out: Row, other: Row, *, revoked: bool) -> Iterator[str]:
    if {out["state"], other["state"]} & (_OPEN | _PERSON) or (out["state"] == "FAILED" and out.get("reason")):
        return  # said elsewhere, or a person has decided
    allowed = _AGREE.get(out["state"])
    if out["state"] == "COMPLETED" and out.get("late"):
        allowed = {"COMPLETED", "RECLAIMED"}  # it was stopped, had ended before, and does not count
    if allowed is not None and other["state"] not in allowed:
        yield f"I7 {where}: {out['state']} there, {other['state']} here"
    known = other["state"] == "COMPLETED" and other["settled"]
    if known and out["state"] != "COMPLETED" and not out.get("late") and not revoked:
        yield f"I7 {where}: done, and {out['state']} at who handed over"


def _usage(seen: Seen) -> Iterator[str]:
    """I9: memory and open files are about what they were at the beginning."""
    for member in seen.stage.members:
        (memory, files), (memory_before, files_before) = member.usage(), member.baseline
        if files > files_before + MOST_MORE_FILES:
            yield f"I9 {member.name} has {files} files open, and had {files_before}"
        if memory > memory_before + MOST_MORE_BYTES:
            yield f"I9 {member.name} has {memory >> 20} MiB in use, and had {memory_before >> 20}"


def _defects(seen: Seen) -> Iterator[str]:
    """What no log may say, whatever goes wrong."""
    for member in seen.stage.members:
        for line in member.process.log_text().splitlines():
            if any(each in line for each in _WRONG) and _CALLER_GONE not in line:
                yield f"log of {member.name}: {line[:1500]}"
