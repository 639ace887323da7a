"""
What the parts of one SubmitTask cost the processor: `python -m tests.bench.costs [part ...]`.

Each part is run many times over different tasks; of each task the best of several rounds counts, and of these the
median and the 99th percentile are shown: what the code costs, not what else the machine was doing.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, cast

from hopper.router.v1 import task_pb2 as pb
from hopper.router.v1 import task_service_pb2 as svc
from hopper_common.audit import chain
from hopper_common.audit.model import Decision, Handling, Happened, cleaned
from hopper_common.audit.sink import AuditSink
from hopper_common.audit.store import AuditStore
from hopper_common.clock import SystemClock
from hopper_common.ids import Ids
from hopper_common.rpc.interceptor import Method
from hopper_router import convert, routing
from hopper_router import unit as state
from hopper_router.candidates import Candidates
from hopper_router.directory import EMPTY_DIRECTORY
from hopper_router.fairness import Turns
from hopper_router.model import Basis, Instance, InstanceState, Project, Scope, Task, TaskSpec, TaskState
from hopper_router.planning import plan
from hopper_router.policies import Policies
from hopper_router.policy_yaml import BUILT_IN, load_policy
from hopper_router.rules import Policy
from hopper_router.store_sql import OpenCounts
from tests.bench import message

TASKS = 200
ROUNDS = 15
_COMMON = ["the", "a", "of", "to", "and", "in", "is", "it", "for", "on", "that", "with", "as", "at", "by"]


class World:
    """Projects, rules and tasks of some vocabulary, the same in every run."""

    def __init__(self, projects: int, *, alike: bool = False) -> None:
        self.chance = random.Random(7)
        self.alike = alike
        letters, parts = "bdfghklmnprstvz", ("ar", "el", "in", "os", "un", "ay", "ect", "ing")
        words = [f"{a}{p}{b}{q}" for a in letters for p in parts for b in letters for q in parts[:3]]
        self.chance.shuffle(words)
        self.words = words[:320] if alike else words[:4000]
        self.tags = [f"area:{word}" for word in self.words[:200]]
        self.candidates = Candidates.compile(self._project(number) for number in range(projects))
        self.rules = load_policy(self._rules(projects))

    def _words(self, count: int) -> list[str]:
        if self.alike:
            return self.chance.choices(self.words, k=count)
        # As in real prose: half of it says nothing, and some words are much more common than others.
        return [
            self.chance.choice(_COMMON)
            if self.chance.random() < 0.45
            else self.words[int(len(self.words) * self.chance.random() ** 2.5)]
            for _ in range(count)
        ]

    def _project(self, number: int) -> Project:
        chance = self.chance
        return Project(
            name=f"projects/p{number}",
            description=" ".join(self._words(25)),
            capabilities=frozenset(chance.sample(("py", "js", "sql", "ops"), 2)),
            tags=frozenset(chance.sample(self.tags, 3)),
            velocity=chance.choice((0.0, 1.0, 2.0, 8.0)),
            cost=chance.choice((0.0, 1.0, 3.0)),
        )

    def _rules(self, projects: int) -> str:
        lines = [
            f"  - name: r{number}-{part}\n"
            f"    when: {{keyword: [{', '.join(self.chance.sample(self.words, 3))}]}}\n"
            f"    then: {{project: p{number}, weight: {self.chance.uniform(0.5, 2):.2f}}}"
            for number in range(projects)
            for part in range(2)
        ]
        return "rules:\n" + "\n".join(lines) + "\n"

    def spec(self) -> pb.TaskSpec:
        """A task of about 1,000 bytes."""
        description = ""
        while len(description) < 790:
            description += " ".join(self._words(12)).capitalize() + ". "
        return pb.TaskSpec(
            title=" ".join(self._words(8)),
            description=description,
            tags=self.chance.sample(self.tags, 6),
            labels={f"key{part}": "value" for part in range(6)},
        )


def cost(parts: Sequence[Callable[[], Any]]) -> tuple[float, float]:
    """The median and the 99th percentile, over *parts*, of the best time of each, in microseconds."""
    best = [float("inf")] * len(parts)
    for _ in range(ROUNDS):
        for number, part in enumerate(parts):
            start = time.perf_counter_ns()
            part()
            best[number] = min(best[number], time.perf_counter_ns() - start)
    ordered = sorted(best)
    return statistics.median(ordered) / 1000, ordered[int(0.99 * (len(ordered) - 1))] / 1000


def say(name: str, parts: Sequence[Callable[[], Any]]) -> None:
    """Measure and print one line."""
    median, worst = cost(parts)
    print(f"{name:58} p50 {median:8.1f}   p99 {worst:8.1f} us", flush=True)


def deciding() -> None:
    """Decisions, by number of projects and policy."""
    for kind, alike in (("prose", False), ("all words shared", True)):
        for projects in (10, 1000):
            world = World(projects, alike=alike)
            specs = [convert.spec_from_proto(world.spec()) for _ in range(TASKS)]
            policies: dict[str, Policy] = {"built-in": BUILT_IN, f"{2 * projects} rules": world.rules}
            for name, policy in policies.items():
                say(
                    f"decide, {kind}, {projects} projects, {name}",
                    [lambda s=spec, p=policy, w=world: _decide(s, p, w) for spec in specs],  # type: ignore[misc]
                )
                say(
                    "  and its message, as bytes",
                    [
                        lambda s=spec, p=policy, w=world: convert.decision_to_bytes(_decide(s, p, w))  # type: ignore[misc]
                        for spec in specs
                    ],
                )


def _decide(spec: Any, policy: Policy, world: World) -> Any:
    return routing.decide(spec, world.candidates, policy, load={}, refused={}, basis=Basis())


def planning() -> None:
    """What the router does with each task of the bars: decide and plan, count, make the record; one after the other."""
    now = datetime.now(UTC)
    root = Instance(message.ROOT, Scope.GLOBAL, InstanceState.RUNNING, start_time=now)
    projects = [
        Project(
            f"projects/p{number}",
            description=message.project(number).description,
            tags=frozenset(message.project(number).tags),
        )
        for number in range(message.PROJECTS)
    ]
    directory = EMPTY_DIRECTORY.with_projects(projects, 1).with_instances([root], 1).completed()
    world = state.World(directory, Policies(()), OpenCounts(), Ids(), Turns())
    specs = [convert.spec_from_proto(message.spec(number)) for number in range(TASKS)]
    say("plan, count, record", [lambda s=spec: _planned(s, world, root, now) for spec in specs])  # type: ignore[misc]


def _planned(spec: TaskSpec, world: state.World, root: Instance, now: datetime) -> bytes:
    planned = plan(world, root, spec, _CLOCK, now)
    assert planned is not None
    world.load.add(planned.task.project, planned.task.instance, 1)
    return convert.decision_to_bytes(planned.decision)


_CLOCK = SystemClock()


def converting() -> None:
    """Specs and tasks between messages, values and bytes."""
    world = World(10)
    messages = [world.spec() for _ in range(TASKS)]
    specs = [convert.spec_from_proto(message) for message in messages]
    say("spec_from_proto", [lambda m=m: convert.spec_from_proto(m) for m in messages])  # type: ignore[misc]
    say("spec_to_bytes", [lambda s=s: convert.spec_to_bytes(s) for s in specs])  # type: ignore[misc]
    now = datetime(2026, 1, 1, tzinfo=UTC)
    tasks = [
        Task(
            name="instances/global/tasks/01jd0000000000000000000000",
            instance="instances/global",
            spec=spec,
            state=TaskState.QUEUED,
            create_time=now,
            update_time=now,
            ready_time=now,
            project="projects/p1",
            decision="decisions/01jd0000000000000000000000",
        )
        for spec in specs
    ]
    for name, view in (("FULL", convert.FULL), ("BASIC", convert.BASIC)):
        say(
            f"task_to_proto {name}",
            [lambda t=t, v=view: convert.task_to_proto(t, view=v, wait=None) for t in tasks],  # type: ignore[misc]
        )


def receiving() -> None:
    """Parsing and checking a request."""
    world = World(10)
    method = Method.of(svc.DESCRIPTOR.services_by_name["TaskService"].methods_by_name["SubmitTask"])
    request_id = "0b6f1f4e-6a53-4d3a-9c57-0d7f2f3c6a11"
    requests = [
        svc.SubmitTaskRequest(parent="instances/global", spec=world.spec(), request_id=request_id)
        for _ in range(TASKS)
    ]
    raws = [request.SerializeToString() for request in requests]
    say("FromString alone", [lambda r=r: svc.SubmitTaskRequest.FromString(r) for r in raws])  # type: ignore[misc]
    say("parse and check limits", [lambda r=r: method.parse(r) for r in raws])  # type: ignore[misc]


def recording() -> None:
    """What the audit log costs: a decision as it is taken in, which every call waits for, and as it is written."""
    sink = AuditSink(AuditStore(cast("Any", None), "bench"), _CLOCK, head=chain.START)
    made = [
        Decision(
            f"principals/p{n % 20}",
            "",
            "key:7k2m9q",
            "10.0.0.1",
            "/hopper.router.v1.WorkService/ClaimTasks",
            True,
        )
        for n in range(TASKS)
    ]
    refused = [decision._replace(allowed=False) for decision in made]
    say("record, counted", [lambda d=d: sink.record(d, Handling.COUNTED) for d in made])  # type: ignore[misc]
    say("record, refused", [lambda d=d: sink.record(d, Handling.AWAITED) for d in refused])  # type: ignore[misc]
    say("record, kept", [lambda d=d: sink.record(d, Handling.KEPT) for d in made])  # type: ignore[misc]
    happened = [Happened(_CLOCK.now(), decision) for decision in made]
    say("clean", [lambda d=d: cleaned(d) for d in made])  # type: ignore[misc]
    say("link", [lambda h=h: chain.link(chain.START, h) for h in happened])  # type: ignore[misc]


PARTS = {
    "deciding": deciding,
    "planning": planning,
    "converting": converting,
    "receiving": receiving,
    "recording": recording,
}

if __name__ == "__main__":
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()
