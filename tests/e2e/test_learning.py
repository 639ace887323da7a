"""Learning through everything: decisions, episodes, feedback, lessons and decisions again, in real processes."""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from operator import eq
from pathlib import Path
from typing import Final, NamedTuple

import grpc
import pytest

from hopper.memory.v1.episode_pb2 import Feedback
from hopper.memory.v1.feedback_service_pb2 import SubmitFeedbackRequest
from hopper.memory.v1.feedback_service_pb2_grpc import FeedbackServiceStub
from hopper.registry.v1.project_pb2 import Project
from hopper.registry.v1.project_service_pb2 import RegisterProjectRequest, UnregisterProjectRequest
from hopper.registry.v1.project_service_pb2_grpc import ProjectServiceStub
from hopper.router.v1.decision_pb2 import Decision, Policy
from hopper.router.v1.routing_service_pb2 import SuggestRouteRequest, UpdatePolicyRequest
from hopper.router.v1.routing_service_pb2_grpc import RoutingServiceStub
from hopper.router.v1.task_pb2 import TaskSpec
from hopper.router.v1.task_service_pb2 import SubmitTaskRequest
from hopper.router.v1.task_service_pb2_grpc import TaskServiceStub
from hopper_testing.postgres import postgres_server
from hopper_testing.processes import HopperProcess
from tests.e2e.calls import ROOT, eventually
from tests.e2e.conftest import Figure

TEAMS: Final = ("amber", "birch", "cedar", "delta")
Answer = Sequence[tuple[str, float]]


class Item(NamedTuple):
    title: str
    team: str


def stream(count: int, seed: int) -> list[Item]:
    """Tasks of four teams that speak of different things, in words that their names do not tell."""
    chance = random.Random(seed)
    own = {
        team: [f"{team[0]}{word}" for word in ("lorin", "pastel", "quiver", "sonder", "tulip")]
        for team in TEAMS
    }
    common = [f"word{number}" for number in range(30)]
    items = []
    for _ in range(count):
        team = chance.choice(TEAMS)
        words = [*chance.sample(own[team], 2), *chance.sample(common, 4)]
        chance.shuffle(words)
        items.append(Item(" ".join(words), team))
    return items


class Router:
    """One router, with the memory that teaches it."""

    def __init__(self, process: HopperProcess, memory: HopperProcess, stack: ExitStack) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channel = stack.enter_context(grpc.insecure_channel(process.address, options=options))
        self.tasks, self.routing = TaskServiceStub(channel), RoutingServiceStub(channel)
        taught = stack.enter_context(grpc.insecure_channel(memory.address, options=options))
        self.feedback = FeedbackServiceStub(taught)
        self._marks = 0

    def decide_by(self, source: str) -> None:
        policy = Policy(name=f"{ROOT}/policy", source=source)
        self.routing.UpdatePolicy(UpdatePolicyRequest(policy=policy), timeout=60)

    def submit(self, title: str) -> Decision:
        request = SubmitTaskRequest(parent=ROOT, spec=TaskSpec(title=title))
        return self.tasks.SubmitTask(request, timeout=60).decision

    def suggest(self, title: str) -> Decision:
        request = SuggestRouteRequest(parent=ROOT, spec=TaskSpec(title=title))
        return self.routing.SuggestRoute(request, timeout=60).decision

    def answers(self, items: Sequence[Item]) -> list[Answer]:
        """What it would decide about some tasks."""
        return [
            [(each.project, each.confidence) for each in self.suggest(item.title).candidates]
            for item in items
        ]

    def mark(self) -> str:
        """Teach it one thing more; returns the title by which `caught_up` tells that all before has been learned."""
        self._marks += 1
        title = f"yonder{self._marks} yak{self._marks}"
        self.teach(self.submit(title), TEAMS[0])
        return title

    def caught_up(self, mark: str) -> None:
        """Wait until it knows all up to a mark: memory waits for a moment only for a router that is held up."""
        right = f"projects/{TEAMS[0]}"
        assert eventually(lambda: self.suggest(mark).project, lambda project: project == right) == right

    def settled(self, items: Sequence[Item]) -> list[Answer]:
        """What it would decide about some tasks, by all that it was taught."""
        self.caught_up(self.mark())
        return self.answers(items)

    def right(self, items: Sequence[Item]) -> float:
        """The share of tasks that it would send where they belong."""
        return sum(self.suggest(item.title).project == f"projects/{item.team}" for item in items) / len(items)

    def teach(self, decision: Decision, team: str, author: str = "ann") -> None:
        """Say where the task of a decision belongs, as soon as memory has heard of it."""
        right = f"projects/{team}"
        said = Feedback(match=Feedback.MATCH_GOOD, author=author)
        if decision.project != right:
            said = Feedback(match=Feedback.MATCH_BAD, better_project=right, author=author)
        request = SubmitFeedbackRequest(decision=decision.name, feedback=said)

        def told() -> bool:
            try:
                self.feedback.SubmitFeedback(request, timeout=60)
            except grpc.RpcError as error:
                if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE):
                    return False
                raise
            return True

        assert eventually(told, bool)

    def live(self, items: Sequence[Item]) -> list[bool]:
        """Decide about tasks and be told the truth, one by one; which were right."""
        right = []
        for item in items:
            decision = self.submit(item.title)
            right.append(decision.project == f"projects/{item.team}")
            self.teach(decision, item.team)
        return right


class School(NamedTuple):
    parts: Mapping[str, HopperProcess]
    router: Router
    registry: ProjectServiceStub


@pytest.fixture
def school(directory: Path, processes: list[HopperProcess]) -> Iterator[School]:
    """A whole Hopper of three processes with four teams, that decides by what it learns."""
    parts = {
        service: HopperProcess(directory / "data", service=service)
        for service in ("registry", "memory", "router")
    }
    processes += parts.values()
    for process in parts.values():
        process.launch()
    for process in parts.values():
        process.wait_ready()
    with ExitStack() as stack:
        registry = ProjectServiceStub(stack.enter_context(grpc.insecure_channel(parts["registry"].address)))
        register(registry)
        router = Router(parts["router"], parts["memory"], stack)
        known(router)
        yield School(parts, router, registry)


def register(registry: ProjectServiceStub) -> None:
    for team in TEAMS:
        registry.RegisterProject(RegisterProjectRequest(project_id=team, project=Project()), timeout=60)


def known(router: Router) -> None:
    """Wait until a router has heard of all teams."""
    heard = eventually(lambda: router.suggest("anything").eligible_count, lambda count: count == len(TEAMS))
    assert heard == len(TEAMS)


def test_accuracy_rises_with_feedback_and_what_was_said_is_known_at_once(
    school: School, figure: Figure
) -> None:
    school.router.decide_by("strategy: learned")
    right = school.router.live(stream(80, seed=1))
    first, last = sum(right[:10]) / 10, sum(right[40:]) / 40
    figure("learning: right among the first 10, the last 40", (first, last))
    assert last >= max(0.85, first + 0.2)
    # Whoever was told so, says so: no waiting in between, unless memory could not wait for a router that was held up.
    at_once = 0
    for number in range(10):
        title, right_one = f"zebra{number} zonk{number}", f"projects/{TEAMS[number % 4]}"
        school.router.teach(school.router.submit(title), TEAMS[number % 4])
        at_once += school.router.suggest(title).project == right_one
        known_as = partial(lambda title: school.router.suggest(title).project, title)
        assert eventually(known_as, partial(eq, right_one)) == right_one
    assert at_once >= 5


def test_a_router_started_again_decides_the_same_also_without_memory(school: School) -> None:
    router, probes = school.router, stream(30, seed=3)
    router.decide_by("strategy: learned")
    router.live(stream(40, seed=2))
    before = router.settled(probes)
    # Without memory, what is known is known; what is decided meanwhile is told later.
    school.parts["memory"].kill()
    assert router.answers(probes) == before
    missed = router.submit("zebra crossing")
    school.parts["memory"].start()
    router.teach(missed, "cedar")
    assert eventually(lambda: router.suggest("zebra crossing").project, lambda it: it == "projects/cedar")
    # The lessons are memory's: a router that has lost everything it knew learns it again, and knows the same.
    now, right = router.settled(probes), router.right(probes)
    school.parts["router"].kill()
    school.parts["router"].start()
    with ExitStack() as stack:
        again = Router(school.parts["router"], school.parts["memory"], stack)
        known(again)
        close = pytest.approx
        assert eventually(
            lambda: again.right(probes) == right and names(again.answers(probes)) == names(now), bool
        )
        for one, other in zip(again.answers(probes), now, strict=True):
            assert [share for _, share in one] == close([share for _, share in other], abs=1e-6)


def names(answers: Sequence[Answer]) -> list[list[str]]:
    return [[project for project, _ in answer] for answer in answers]


def test_lessons_from_before_the_policy_asked_for_them_count(school: School) -> None:
    items = stream(60, seed=4)
    school.router.live(items)
    assert school.router.right(items) < 0.6  # rules know nothing of these words
    school.router.decide_by("strategy: learned")
    assert eventually(lambda: school.router.right(items), lambda right: right > 0.85) > 0.85
    assert school.router.suggest(items[0].title).strategy == "learned"
    school.router.decide_by("strategy: rules")
    assert school.router.suggest(items[0].title).strategy != "learned"


def test_feedback_for_a_project_that_is_gone_does_no_harm(school: School) -> None:
    school.router.decide_by("strategy: learned")
    school.router.live(stream(30, seed=5))
    decisions = [school.router.submit(f"walrus {number}") for number in range(3)]
    school.registry.UnregisterProject(UnregisterProjectRequest(name="projects/delta"), timeout=60)
    for decision in decisions:
        school.router.teach(decision, "delta")
    probes = [item for item in stream(40, seed=6) if item.team != "delta"]
    assert eventually(lambda: school.router.suggest("walrus").eligible_count, lambda count: count == 3) == 3
    assert all(school.router.suggest(f"walrus {number}").project != "projects/delta" for number in range(3))
    assert school.router.right(probes) > 0.8


def test_two_routers_on_one_database_know_the_same(directory: Path, processes: list[HopperProcess]) -> None:
    server = postgres_server()
    database = server.create_database()
    same = {"HOPPER_IDENTITY_DIR": str(directory / "identity")}
    registry, memory = (
        HopperProcess(directory / name, service=name, environment=same) for name in ("registry", "memory")
    )
    processes += (registry, memory)
    registry.start()
    memory.start()
    environment = {
        "HOPPER_ROUTER_DATABASE": database,
        "HOPPER_REGISTRY_ADDRESS": registry.services_address(),
        "HOPPER_MEMORY_ADDRESS": memory.services_address(),
    } | same
    both = [HopperProcess(directory / name, service="router", environment=environment) for name in "ab"]
    processes += both
    try:
        with ExitStack() as stack:
            register(ProjectServiceStub(stack.enter_context(grpc.insecure_channel(registry.address))))
            one, other = (Router(process.start(), memory, stack) for process in both)
            known(one)
            known(other)
            one.decide_by("strategy: learned")
            items, probes = stream(60, seed=7), stream(40, seed=8)
            for place, item in enumerate(items):
                (one, other)[place % 2].live([item])
            mark = one.mark()
            one.caught_up(mark)
            other.caught_up(mark)
            first, second = one.answers(probes), other.answers(probes)
            assert [answer[0][0] for answer in first] == [answer[0][0] for answer in second]
            assert one.right(probes) > 0.85
    finally:
        for process in both:
            process.close()
        server.drop(database)
