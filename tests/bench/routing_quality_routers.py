"""
What `routing_quality` replays streams through, from the inside out.

    model     hopper_learning.Model
    router    + hopper_router: candidates, load, rules and circumstances, `decide`; lessons cut as memory cuts them
    grpc      + processes: registry, memory, router; SubmitTask decides, SubmitFeedback teaches
    suggest   the same, but SuggestRoute decides, and the task is submitted only to be judged

All tasks stay open: nobody works them off, so that a target's load is every task that it was ever sent.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

import grpc

from hopper.memory.v1.episode_pb2 import Feedback
from hopper.memory.v1.feedback_service_pb2 import SubmitFeedbackRequest
from hopper.memory.v1.feedback_service_pb2_grpc import FeedbackServiceStub
from hopper.registry.v1.project_pb2 import Project as ProjectMessage
from hopper.registry.v1.project_service_pb2 import RegisterProjectRequest, UnregisterProjectRequest
from hopper.registry.v1.project_service_pb2_grpc import ProjectServiceStub
from hopper.router.v1.decision_pb2 import Decision, Policy
from hopper.router.v1.routing_service_pb2 import SuggestRouteRequest, UpdatePolicyRequest
from hopper.router.v1.routing_service_pb2_grpc import RoutingServiceStub
from hopper.router.v1.task_pb2 import TaskSpec as TaskSpecMessage
from hopper.router.v1.task_service_pb2 import SubmitTaskRequest
from hopper.router.v1.task_service_pb2_grpc import TaskServiceStub
from hopper_learning import Model, Target, Text, WordLlamaEncoder
from hopper_router import routing
from hopper_router.candidates import Candidates
from hopper_router.learned import Learned
from hopper_router.load import Load
from hopper_router.model import Basis, Lesson, Project, TaskSpec, Truth
from hopper_router.policy_yaml import load_policy
from hopper_testing.processes import HopperProcess, temporary_directory

SERVICES: Final = ("registry", "memory", "router")
PATIENCE: Final = 10.0
_ROOT: Final = "instances/global"
_POLICY: Final = "strategy: learned"
_SHOWN: Final = 3
_POLL: Final = 0.002
_TITLE_BYTES: Final = 300
_DESCRIPTION_BYTES: Final = 4000

Task = Mapping[str, Any]


class Router(Protocol):
    """What the harness asks of a router; see the README beside it."""

    def add_target(self, id: str, name: str, description: str) -> None: ...
    def remove_target(self, id: str) -> None: ...
    def decide(self, task: Task) -> list[tuple[str, float]]: ...
    def feedback(self, task: Task, target: str | None) -> None: ...
    def close(self) -> None: ...


class TheModel:
    """The model alone."""

    encoder = WordLlamaEncoder()

    def __init__(self) -> None:
        self.model = Model(self.encoder)

    def add_target(self, id: str, name: str, description: str) -> None:
        self.model.add(Target(id, name, description))

    def remove_target(self, id: str) -> None:
        self.model.remove(id)

    def decide(self, task: Task) -> list[tuple[str, float]]:
        return self.model.predict(_text(task)).top(_SHOWN)

    def feedback(self, task: Task, target: str | None) -> None:
        self.model.learn(_text(task), target)

    def close(self) -> None:
        """Nothing is open."""


class TheRouter:
    """The router's way of deciding and learning, in this process."""

    def __init__(self) -> None:
        self._learned = Learned(lambda: TheModel.encoder)
        asyncio.run(self._learned.wake())
        self._policy = load_policy(_POLICY)
        self._projects: dict[str, Project] = {}
        self._candidates = Candidates.compile(())
        self._load = Load()
        self._lessons = 0
        self.names = Names()

    def add_target(self, id: str, name: str, description: str) -> None:
        project = f"projects/{self.names.give(id)}"
        self._projects[project] = Project(project, display_name=name, description=description)
        self._compile()

    def remove_target(self, id: str) -> None:
        del self._projects[self.names.project(id)]
        self._compile()

    def _compile(self) -> None:
        self._candidates = Candidates.compile(self._projects.values(), previous=self._candidates)

    def decide(self, task: Task) -> list[tuple[str, float]]:
        decision = routing.decide(
            TaskSpec(task["title"], task["description"], tuple(task["tags"])),
            self._candidates,
            self._policy,
            load=self._load,
            refused={},
            basis=_NOWHERE,
            strategies=self._learned.strategies(_ROOT),
        )
        self._load.add(decision.project)
        return [(self.names.target(each.project), each.confidence) for each in decision.candidates]

    def feedback(self, task: Task, target: str | None) -> None:
        self._lessons += 1
        lesson = Lesson(
            position=self._lessons,
            instance=_ROOT,
            decision=f"decisions/{self._lessons}",
            title=_cut(task["title"], _TITLE_BYTES),
            description=_cut(task["description"], _DESCRIPTION_BYTES),
            tags=tuple(task["tags"]),
            truth=Truth.NONE if target is None else Truth.RIGHT,
            project="" if target is None else self.names.project(target),
            source="bench",
            weight=1.0,
            create_time=_LONG_AGO,
        )
        self._learned.apply([lesson])

    def close(self) -> None:
        """Nothing is open."""


class TheService:
    """
    A whole Hopper of three processes, asked through gRPC.

    Args:
        suggest: Decide by SuggestRoute.
        policy: What is decided by.
        environment: More variables for the processes.

    Attributes:
        data: The directory of its databases.
        names: The projects that stand for targets.
    """

    data: Path

    def __init__(
        self, *, suggest: bool = False, policy: str = _POLICY, environment: Mapping[str, str] | None = None
    ) -> None:
        self._suggest = suggest
        self._policy = policy
        self._environment = environment or {}
        self.names = Names()
        self._news: list[str] = []
        self._decisions: dict[str, Decision] = {}
        self._stack = ExitStack()
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self.data = Path(self._stack.enter_context(temporary_directory())) / "data"
        channels = {}
        for service in SERVICES:
            environment = {"HOPPER_LOG_LEVEL": "warning", **self._environment}
            process = HopperProcess(self.data, service=service, environment=environment)
            address = self._stack.enter_context(process).address
            channels[service] = self._stack.enter_context(grpc.insecure_channel(address))
        self._projects = ProjectServiceStub(channels["registry"])
        self._feedback = FeedbackServiceStub(channels["memory"])
        self._routing = RoutingServiceStub(channels["router"])
        self._tasks = TaskServiceStub(channels["router"])
        self.follow(self._policy)

    def follow(self, policy: str) -> None:
        """Decide by this policy from now on."""
        message = Policy(name=f"{_ROOT}/policy", source=policy)
        self._routing.UpdatePolicy(UpdatePolicyRequest(policy=message), timeout=PATIENCE)

    def suggest(self, spec: TaskSpecMessage) -> Decision:
        """Where a task would go."""
        request = SuggestRouteRequest(parent=_ROOT, spec=spec)
        return self._routing.SuggestRoute(request, timeout=PATIENCE).decision

    def add_target(self, id: str, name: str, description: str) -> None:
        project = self.names.give(id)
        message = ProjectMessage(display_name=name, description=description)
        request = RegisterProjectRequest(project_id=project, project=message)
        self._projects.RegisterProject(request, timeout=PATIENCE)
        self._news.append(f"projects/{project}")

    def remove_target(self, id: str) -> None:
        project = self.names.project(id)
        self._projects.UnregisterProject(UnregisterProjectRequest(name=project), timeout=PATIENCE)
        until(lambda: not self._knows(project), f"the router to hear that {project} is gone")

    def decide(self, task: Task) -> list[tuple[str, float]]:
        self.hear_news()
        spec = spec_of(task)
        decision = self.suggest(spec) if self._suggest else self.submit(task["id"], spec)
        return [(self.names.target(each.project), each.confidence) for each in decision.candidates]

    def hear_news(self) -> None:
        while self._news:
            project = self._news.pop()
            until(lambda: self._knows(project), f"the router to hear of {project}")  # noqa: B023

    def submit(self, id: str, spec: TaskSpecMessage) -> Decision:
        decision = self._tasks.SubmitTask(
            SubmitTaskRequest(parent=_ROOT, spec=spec), timeout=PATIENCE
        ).decision
        self._decisions[id] = decision
        return decision

    def _knows(self, project: str) -> bool:
        """Whether the router can place a task with it."""
        spec = TaskSpecMessage(title="are you there", project=project)
        try:
            self.suggest(spec)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return False
            raise
        return True

    def feedback(self, task: Task, target: str | None) -> None:
        if self._suggest:
            self.submit(task["id"], spec_of(task))
        decision = self._decisions.pop(task["id"])
        said = Feedback(author="bench")
        if target is None:
            said.match = Feedback.MATCH_NONE
        elif (project := self.names.project(target)) == decision.project:
            said.match = Feedback.MATCH_GOOD
        else:
            said.match, said.better_project = Feedback.MATCH_BAD, project
        request = SubmitFeedbackRequest(decision=decision.name, feedback=said)
        until(lambda: self._told(request), f"memory to hear of {decision.name}")

    def _told(self, request: SubmitFeedbackRequest) -> bool:
        try:
            self._feedback.SubmitFeedback(request, timeout=PATIENCE)
        except grpc.RpcError as error:
            if (
                error.code() is grpc.StatusCode.NOT_FOUND
            ):  # it hears of decisions a moment after they are made
                return False
            raise
        return True

    def close(self) -> None:
        """End the processes."""
        self._stack.close()


class Names:
    """Targets as projects: their ids are cut to what ids may be."""

    def __init__(self) -> None:
        self._project: dict[str, str] = {}
        self._target: dict[str, str] = {}

    def give(self, target: str) -> str:
        """The id of a new target's project."""
        plain = re.sub(r"[^a-z0-9]+", "-", target.lower()).strip("-")[:50] or "target"
        project = plain if f"projects/{plain}" not in self._target else f"{plain}-{len(self._target)}"
        self._project[target] = f"projects/{project}"
        self._target[f"projects/{project}"] = target
        return project

    def project(self, target: str) -> str:
        """The name of its project."""
        return self._project[target]

    def target(self, project: str) -> str:
        """The target that a project stands for."""
        return self._target[project]


def until(done: Callable[[], bool], what: str, *, patience: float = PATIENCE) -> None:
    """
    Wait for something that nobody tells.

    Raises:
        TimeoutError: It did not come.
    """
    deadline = time.monotonic() + patience
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {patience:g} s for {what}")
        time.sleep(_POLL)


def _text(task: Task) -> Text:
    return Text(task["title"], task["description"], tuple(task["tags"]))


def spec_of(task: Task) -> TaskSpecMessage:
    """A task of a stream as Hopper has it."""
    tags = ["-".join(tag.split()) for tag in task["tags"]]  # a tag is one word
    return TaskSpecMessage(title=task["title"], description=task["description"], tags=tags)


def _cut(text: str, most: int) -> str:
    return text.encode()[:most].decode(errors="ignore")


_LONG_AGO: Final = datetime(2026, 1, 1, tzinfo=UTC)
_NOWHERE: Final = Basis(0, 0, "", 0)
