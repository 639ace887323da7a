"""
A Hopper that is killed at any moment keeps what it has acknowledged.

Several threads submit, claim and complete against one process, which is killed (SIGKILL) at a random moment and
started again on the same data, round after round. Each caller writes down what it asked and what it was told;
`history.problems` compares that with what is there.

`HOPPER_CRASH_ROUNDS` rounds (8) from the seed `HOPPER_CRASH_SEED` (a new one for each run; printed).
"""

import os
import random
import secrets
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import grpc
import pytest

from hopper.memory.v1.episode_pb2 import Episode
from hopper.router.v1.task_pb2 import Task
from hopper.router.v1.task_service_pb2 import SubmitTaskResponse, WatchTasksRequest
from hopper.router.v1.work_service_pb2 import (
    ClaimRef,
    ClaimTasksRequest,
    ClaimTasksResponse,
    CompleteTasksRequest,
)
from hopper.router.v1.work_service_pb2 import (
    Completion as CompletionItem,
)
from hopper_testing.processes import HopperProcess
from tests.e2e.calls import (
    Stubs,
    all_decisions,
    all_tasks,
    claim_request,
    connected,
    crew_episodes,
    eventually,
    register_crew,
    submit_request,
)
from tests.e2e.conftest import Figure
from tests.e2e.history import Claim, Completion, History, Submission, problems

ROUNDS = int(os.environ.get("HOPPER_CRASH_ROUNDS", "8"))
SEED = int(os.environ.get("HOPPER_CRASH_SEED", "0")) or secrets.randbelow(2**32)

LEASE_SECONDS = 1.0
BACK_WITHIN = timedelta(seconds=1)  # after the lease's end: the promise
LOOKING = timedelta(
    seconds=10
)  # what finding out may add on a busy machine, which may be held up for seconds
GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)  # what a caller sees of a process that dies


class Callers:
    """Threads that work with one Hopper until it is killed, and what they know in the end."""

    def __init__(self, seed: int) -> None:
        self.history = History()
        self.unclaimed: list[ClaimTasksRequest] = []  # claims that were asked for and not answered
        self.unexpected: list[str] = []
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._address = ""

    @contextmanager
    def at_work(self, address: str) -> Iterator[None]:
        """Three that submit and three that work, until the end of the block."""
        self._address = address
        self._stop.clear()
        seeds = [self._random.getrandbits(32) for _ in range(6)]
        behaviours = [self._submit, self._submit, self._submit, self._work, self._work, self._work]
        threads = [
            threading.Thread(target=self._until_gone, args=(behaviour, random.Random(seed)))
            for behaviour, seed in zip(behaviours, seeds, strict=True)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _until_gone(self, behave: Callable[[Stubs, random.Random], None], chance: random.Random) -> None:
        try:
            with connected(self._address) as stubs:
                while not self._stop.is_set():
                    behave(stubs, chance)
        except grpc.RpcError as error:
            if error.code() not in GONE:
                self.unexpected.append(f"{error.code()}: {error.details()}")

    # What they do. Each writes down what it asks before it asks.

    def _submit(self, stubs: Stubs, chance: random.Random) -> None:
        submission = Submission(f"task {uuid.UUID(int=chance.getrandbits(128))}", str(uuid.uuid4()))
        self.history.submissions.append(submission)
        self.submit_again(stubs, submission)

    def _work(self, stubs: Stubs, chance: random.Random) -> None:
        request = claim_request(
            f"worker-{threading.get_ident()}",
            chance.randint(1, 4),
            lease=LEASE_SECONDS,
            wait=0.2,
            request_id=str(uuid.uuid4()),
        )
        self.unclaimed.append(request)
        tasks = self.claim_again(stubs, request).tasks
        # Some are left to their leases, like those of a worker that has died.
        finished = [task for task in tasks if chance.random() < 0.8]
        if finished:
            self._complete(stubs, finished)

    def _complete(self, stubs: Stubs, tasks: list[Task]) -> None:
        request_id = str(uuid.uuid4())
        completions = [
            Completion(task.name, task.claim.fencing_token, secrets.token_bytes(8), request_id)
            for task in tasks
        ]
        self.history.completions += completions
        self.complete_again(stubs, completions)

    # The same once more, with the same request_id.

    def submit_again(self, stubs: Stubs, submission: Submission) -> None:
        """Submit, and note the name that is answered; it must be the one that was answered before."""
        request = submit_request(submission.title, submission.request_id)
        answer: SubmitTaskResponse = stubs.tasks.SubmitTask(request, timeout=60)
        if submission.task not in ("", answer.task.name):
            self.unexpected.append(f"{submission.task} was answered as {answer.task.name} to a retry")
        submission.task = answer.task.name

    def claim_again(self, stubs: Stubs, request: ClaimTasksRequest) -> ClaimTasksResponse:
        """Claim, and note what is answered."""
        answer = stubs.work.ClaimTasks(request, timeout=60)
        self.history.claims += [
            Claim(
                task.name,
                request.worker,
                task.claim.fencing_token,
                task.claim.start_time.ToDatetime(UTC),
                task.claim.lease_expire_time.ToDatetime(UTC),
            )
            for task in answer.tasks
        ]
        self.unclaimed.remove(request)
        return answer

    def complete_again(self, stubs: Stubs, completions: list[Completion]) -> None:
        """Complete, and note what is answered."""
        items = [
            CompletionItem(claim=ClaimRef(task=one.task, fencing_token=one.token), result=one.result)
            for one in completions
        ]
        request = CompleteTasksRequest(completions=items, request_id=completions[0].request_id)
        answer = stubs.work.CompleteTasks(request, timeout=60)
        for completion, result in zip(completions, answer.results, strict=True):
            completion.done = result.HasField("updated")
            completion.refused = result.HasField("error")
            if completion.refused and result.error.reason != "STALE_TOKEN":
                self.unexpected.append(f"{completion.task} could not be completed: {result.error.reason}")

    def ask_again(self, stubs: Stubs) -> None:
        """Repeat everything that was not answered, and a few things that were."""
        for submission in self.history.submissions:
            if not submission.task or self._random.random() < 0.02:
                self.submit_again(stubs, submission)
        for request in list(self.unclaimed):
            self.claim_again(stubs, request)
        unanswered: dict[str, list[Completion]] = {}
        for completion in self.history.completions:
            if not (completion.done or completion.refused):
                unanswered.setdefault(completion.request_id, []).append(completion)
        for completions in unanswered.values():
            self.complete_again(stubs, completions)


def late_leases(stubs: Stubs, ready: datetime) -> list[str]:
    """Follow until every claim's lease has run out; those that did not come back in time."""
    held: dict[str, datetime] = {}
    late: list[str] = []
    whole = False
    for response in stubs.tasks.WatchTasks(WatchTasksRequest(), timeout=60):
        seen = datetime.now(UTC)
        whole = whole or response.HasField("snapshot_complete")
        if response.HasField("task") and response.task.state == Task.STATE_RUNNING:
            held[response.task.name] = response.task.claim.lease_expire_time.ToDatetime(UTC)
        task = response.change.task
        if task.name in held and task.state != Task.STATE_RUNNING:
            delay = seen - max(held.pop(task.name), ready)
            if task.state != Task.STATE_QUEUED or delay > BACK_WITHIN + LOOKING:
                late.append(f"{task.name} is {Task.State.Name(task.state)} after {delay}")
        if whole and not held:
            break
    return late


def finish_everything(stubs: Stubs, callers: Callers) -> None:
    """Work until nothing is left."""
    while True:
        request = claim_request("finisher", 100, request_id=str(uuid.uuid4()))
        callers.unclaimed.append(request)
        tasks = callers.claim_again(stubs, request).tasks
        if not tasks:
            return
        callers._complete(stubs, list(tasks))


@pytest.mark.timeout(1200 + 60 * ROUNDS)
def test_what_was_acknowledged_survives_every_kill(hopper: HopperProcess, figure: Figure) -> None:
    figure("crash seed", SEED)
    chance = random.Random(SEED)
    callers = Callers(SEED)
    hopper.start()
    with connected(hopper.address) as stubs:
        register_crew(stubs)
    for _ in range(ROUNDS):
        with callers.at_work(hopper.address):
            time.sleep(chance.uniform(0.1, 0.9))  # the random moment
            hopper.kill()
        hopper.start()
        ready = datetime.now(UTC)
        with connected(hopper.address) as stubs:
            assert problems(callers.history, all_tasks(stubs)) == []
            callers.ask_again(stubs)
            assert late_leases(stubs, ready) == []
            assert problems(callers.history, all_tasks(stubs)) == []
            assert callers.unexpected == []
    with connected(hopper.address) as stubs:
        finish_everything(stubs, callers)
        tasks = all_tasks(stubs)
        assert problems(callers.history, tasks) == []
        assert len(tasks) == len(callers.history.submissions)
        assert {task.state for task in tasks} == {Task.STATE_SUCCEEDED}
        assert_remembered(stubs)
    history = callers.history
    figure("crash rounds", ROUNDS)
    figure(
        "crash: submitted, claimed, completed",
        (len(history.submissions), len(history.claims), len(history.completions)),
    )


def assert_remembered(stubs: Stubs) -> None:
    """Every decision has become one episode, joined to how its task ended."""
    decided = sorted(decision.name for decision in all_decisions(stubs))

    def joined(episodes: list[Episode]) -> bool:
        ended = [episode for episode in episodes if episode.outcome == Episode.OUTCOME_SUCCEEDED]
        return len(ended) >= len(decided)

    episodes = eventually(lambda: crew_episodes(stubs), joined)
    assert sorted(episode.decision for episode in episodes) == decided
    assert {episode.outcome for episode in episodes} == {Episode.OUTCOME_SUCCEEDED}


def test_a_start_that_was_killed_is_no_obstacle_to_the_next(hopper: HopperProcess, figure: Figure) -> None:
    figure("interrupted start seed", SEED)
    chance = random.Random(SEED)
    for _ in range(6):
        hopper.launch()
        time.sleep(chance.uniform(0.2, 0.9))  # the random moment
        hopper.kill()
    hopper.start()
    with connected(hopper.address) as stubs:
        register_crew(stubs)
        assert stubs.tasks.SubmitTask(submit_request("after all"), timeout=60).task.state == Task.STATE_QUEUED
