"""
The run: set up, submit, work, wait until everything is joined.

```
   samples ──► SubmitTask ──► router ──► a worker of each project ──► CompleteTasks
                                              └──► SubmitFeedback: right, or where it should have gone
   GetEpisode of every decision: has an outcome, and what was said of it
```

A task that Hopper does not place by itself waits for a person; the demo is that person, and pins it to its
right project. Such a decision counts as not right.

The first half of the tasks is placed by hand-written rules. What the workers say of them is learned from all the
while; then the policy is changed, and the second half is placed by what was learned, which goes on being learned.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Final, TypeVar

from google.protobuf.field_mask_pb2 import FieldMask

from hopper.memory.v1.episode_pb2 import Episode, Feedback
from hopper.memory.v1.episodic_service_pb2 import GetEpisodeRequest
from hopper.memory.v1.feedback_service_pb2 import GetStatsRequest, GetStatsResponse, SubmitFeedbackRequest
from hopper.registry.v1.project_service_pb2 import RegisterProjectRequest
from hopper.router.v1.decision_pb2 import Decision, Policy
from hopper.router.v1.routing_service_pb2 import UpdatePolicyRequest
from hopper.router.v1.task_pb2 import Task, TaskSpec
from hopper.router.v1.task_service_pb2 import ExplainTaskRequest, GetTaskRequest, UpdateTaskRequest
from hopper_cli.demo.data import DemoData, Sample
from hopper_client import AsyncHopper, TaskContext, Worker
from hopper_common.errors import NotFound
from hopper_common.timestamps import duration_field, from_proto

T = TypeVar("T")

SUBMITTERS: Final = 2
SLOTS: Final = 4
_ROOT: Final = "instances/global"
_PATIENCE: Final = 60.0
_POLL: Final = 0.05


@dataclass(slots=True)
class Progress:
    """How far the run is. Written by the run, read by whoever shows it."""

    total: int
    submitted: int = 0
    worked: int = 0
    judged: int = 0
    joined: int = 0


@dataclass(frozen=True, slots=True)
class Routed:
    """
    What Hopper made of one task.

    Attributes:
        project: The id it was sent to by itself, empty for none.
        learned: Whether the policy in force was to go by what was learned.
    """

    sample: Sample
    task: str
    decision: Decision
    project: str
    submit_seconds: float
    learned: bool = False

    @property
    def right(self) -> bool:
        """Whether it went where it belongs."""
        return self.project == self.sample.target


@dataclass(frozen=True, slots=True)
class Explained:
    """A task, and Hopper's own words for why it is where it is."""

    routed: Routed
    sentences: tuple[str, ...]


@dataclass(slots=True)
class Outcome:
    """
    Everything that was measured.

    Attributes:
        queue_seconds: From being placed to being claimed, by the server's clock, of joined tasks.
        total_seconds: From being submitted to being done, likewise.
        lost: Tasks that did not end well, with what was seen last.
        unjoined: Decisions that memory has no outcome of, or no feedback, with what is missing.
    """

    routed: list[Routed]
    stats: GetStatsResponse
    seconds: float
    queue_seconds: list[float] = field(default_factory=list)
    total_seconds: list[float] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)
    unjoined: dict[str, str] = field(default_factory=dict)
    examples: list[Explained] = field(default_factory=list)


class Demo:
    """
    One run against one Hopper.

    Args:
        hopper: An empty one.
    """

    def __init__(self, hopper: AsyncHopper, data: DemoData) -> None:
        self._hopper = hopper
        self._data = data
        self._by_id = {sample.id: sample for sample in data.samples}
        self._known = {project_id for project_id, _ in data.projects}
        self._judgements: set[asyncio.Task[None]] = set()
        self.progress = Progress(len(data.samples))

    async def run(self) -> Outcome:
        """
        Do all of it.

        Raises:
            HopperError: A call failed that should not.
        """
        await self._set_up()
        began = time.monotonic()
        async with AsyncExitStack() as stack:
            group = await stack.enter_async_context(asyncio.TaskGroup())
            workers = [self._worker(project_id) for project_id, _ in self._data.projects]
            running = [group.create_task(worker.run()) for worker in workers]
            try:
                routed = await self._submit_all()
            finally:
                for worker in workers:
                    worker.stop()
            await asyncio.gather(*running)
        await asyncio.gather(*self._judgements)
        seconds = time.monotonic() - began
        return await self._outcome(routed, seconds)

    # Setting up.

    async def _set_up(self) -> None:
        for project_id, project in self._data.projects:
            await self._hopper.projects.RegisterProject(
                RegisterProjectRequest(project_id=project_id, project=project)
            )
        await self._decide_by(self._data.rules)

    async def _decide_by(self, source: str) -> None:
        policy = Policy(name=f"{_ROOT}/policy", source=source)
        await self._hopper.routing.UpdatePolicy(UpdatePolicyRequest(policy=policy))

    # Submitting.

    async def _submit_all(self) -> list[Routed]:
        """The first half by rules; when all of it is judged, the second by what was learned."""
        samples = self._data.samples
        half = (len(samples) + 1) // 2
        routed = await self._submit_some(samples[:half], learned=False)
        await self._decide_by(self._data.learned)
        return routed + await self._submit_some(samples[half:], learned=True)

    async def _submit_some(self, samples: Sequence[Sample], *, learned: bool) -> list[Routed]:
        routed = await _gather((self._submit(sample, learned) for sample in samples), SUBMITTERS)
        await _while_progress(lambda: self.progress.judged, self.progress.submitted)
        return routed

    async def _submit(self, sample: Sample, learned: bool) -> Routed:
        began = time.perf_counter()
        response = await self._hopper.submit(
            sample.title,
            description=sample.description,
            tags=sample.tags,
            payload=sample.id.encode(),  # for the worker; Hopper does not read it
            requester="demo",
        )
        seconds = time.perf_counter() - began
        self.progress.submitted += 1
        routed = response.decision.outcome == Decision.OUTCOME_ROUTED
        if not routed:
            await self._decide_by_hand(response.task, sample)
        return Routed(
            sample=sample,
            task=response.task.name,
            decision=response.decision,
            project=response.decision.project.removeprefix("projects/") if routed else "",
            submit_seconds=seconds,
            learned=learned,
        )

    async def _decide_by_hand(self, task: Task, sample: Sample) -> None:
        # A target that is no team of ours: somebody has to do it all the same.
        project = sample.target if sample.target in self._known else min(self._known)
        pinned = Task(name=task.name, spec=TaskSpec(project=f"projects/{project}"))
        await self._hopper.tasks.UpdateTask(
            UpdateTaskRequest(task=pinned, update_mask=FieldMask(paths=["spec.project"]))
        )

    # Working.

    def _worker(self, project_id: str) -> Worker:
        async def handle(context: TaskContext) -> str:
            sample = self._by_id[context.task.spec.payload.decode()]
            self._judge(context.task.decision, project_id, sample)
            self.progress.worked += 1
            return f"done by {project_id}"

        return Worker(
            self._hopper, f"projects/{project_id}", handle, worker_id=f"{project_id}-1", concurrency=SLOTS
        )

    def _judge(self, decision: str, project_id: str, sample: Sample) -> None:
        judgement = asyncio.create_task(self._give_feedback(decision, project_id, sample))
        self._judgements.add(judgement)

    async def _give_feedback(self, decision: str, project_id: str, sample: Sample) -> None:
        request = SubmitFeedbackRequest(decision=decision, feedback=self._feedback(project_id, sample))
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                await self._hopper.feedback.SubmitFeedback(request)
                break
            except NotFound:  # memory hears of a decision a moment after it was made
                if time.monotonic() > deadline:
                    return  # and the check of all episodes tells
                await asyncio.sleep(_POLL)
        self.progress.judged += 1

    def _feedback(self, project_id: str, sample: Sample) -> Feedback:
        if project_id == sample.target:
            return Feedback(match=Feedback.MATCH_GOOD, author="demo")
        if sample.target not in self._known:
            return Feedback(match=Feedback.MATCH_NONE, author="demo")
        return Feedback(match=Feedback.MATCH_BAD, better_project=f"projects/{sample.target}", author="demo")

    # Looking at what came of it.

    async def _outcome(self, routed: list[Routed], seconds: float) -> Outcome:
        began = time.monotonic()
        outcome = Outcome(routed=routed, stats=GetStatsResponse(), seconds=0.0)
        tasks = await _gather((self._task(each.task) for each in routed), SUBMITTERS)
        for task in tasks:
            self._read_task(task, outcome)
        by_task = {task.name: task for task in tasks}
        await _gather((self._join(each, by_task[each.task], outcome) for each in routed), SUBMITTERS)
        outcome.stats = await self._hopper.feedback.GetStats(GetStatsRequest())
        outcome.examples = await self._explain(routed)
        outcome.seconds = seconds + time.monotonic() - began
        return outcome

    async def _task(self, name: str) -> Task:
        return (await self._hopper.tasks.GetTask(GetTaskRequest(name=name))).task

    def _read_task(self, task: Task, outcome: Outcome) -> None:
        if task.state != Task.STATE_SUCCEEDED:
            state = Task.State.Name(task.state).removeprefix("STATE_")
            outcome.lost[task.name] = f"{state} {task.failure.reason or task.wait.message}".rstrip()
            return
        taken = from_proto(task.finish_time) - from_proto(task.create_time)
        outcome.total_seconds.append(taken.total_seconds())

    async def _join(self, routed: Routed, task: Task, outcome: Outcome) -> None:
        """Look whether memory has what came of a task's decisions: the first, and the one in force."""
        for decision in dict.fromkeys((routed.decision.name, task.decision)):
            episode, missing = await self._episode(decision, judged=decision == task.decision)
            if missing:
                outcome.unjoined[decision] = missing
            if episode is not None and episode.outcome == Episode.OUTCOME_SUCCEEDED:
                queued = duration_field(episode, "queue_duration")
                if queued is not None:
                    outcome.queue_seconds.append(queued.total_seconds())
        self.progress.joined += 1

    async def _episode(self, decision: str, *, judged: bool) -> tuple[Episode | None, str]:
        deadline = time.monotonic() + _PATIENCE
        while True:
            episode, missing = await self._look(decision, judged)
            if not missing or time.monotonic() > deadline:
                return episode, missing
            await asyncio.sleep(_POLL)

    async def _look(self, decision: str, judged: bool) -> tuple[Episode | None, str]:
        try:
            episode = (await self._hopper.episodes.GetEpisode(GetEpisodeRequest(decision=decision))).episode
        except NotFound:
            return None, "memory has no episode of it"
        if episode.outcome == Episode.OUTCOME_UNSPECIFIED:
            return episode, "it has no outcome"
        if judged and not episode.feedback:
            return episode, "it has no feedback"
        return episode, ""

    async def _explain(self, routed: list[Routed]) -> list[Explained]:
        return [await self._ask_why(each) for each in examples(routed)]

    async def _ask_why(self, routed: Routed) -> Explained:
        answer = await self._hopper.tasks.ExplainTask(ExplainTaskRequest(name=routed.task))
        return Explained(routed, tuple(answer.sentences))


def examples(routed: list[Routed]) -> list[Routed]:
    """Three decisions worth reading: the surest right one, the least sure right one, the surest wrong one."""
    by_confidence = sorted(routed, key=lambda each: -each.decision.confidence)
    right = [each for each in by_confidence if each.right]
    wrong = [each for each in by_confidence if not each.right]
    chosen = [*right[:1], *right[1:][-1:], *wrong[:1]]
    rest = (each for each in by_confidence if each not in chosen)
    return [*chosen, *rest][:3]


async def _while_progress(count: Callable[[], int], total: int) -> None:
    seen, since = count(), time.monotonic()
    while count() < total:
        await asyncio.sleep(_POLL)
        if count() != seen:
            seen, since = count(), time.monotonic()
        elif time.monotonic() - since > _PATIENCE:
            return  # what is missing is told by name, once all tasks have been looked at


async def _gather(work: Iterable[Awaitable[T]], most: int) -> list[T]:
    """The results of *work* in its order, at most so many at once."""
    slots = asyncio.Semaphore(most)

    async def one(each: Awaitable[T]) -> T:
        async with slots:
            return await each

    return list(await asyncio.gather(*map(one, work)))


def failures(outcome: Outcome, total: int) -> Mapping[str, str]:
    """What was lost, and what was not joined; empty when all is well."""
    found = {**outcome.lost, **outcome.unjoined}
    if len(outcome.routed) != total:
        found["tasks"] = f"{total - len(outcome.routed)} were never submitted"
    if outcome.stats.with_outcome != outcome.stats.decisions:
        found["memory"] = (
            f"{outcome.stats.with_outcome} of {outcome.stats.decisions} decisions have an outcome"
        )
    return found
