"""Advice through everything: a Hopper in a process of its own, and a language model on a port."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from hopper.memory.v1.episode_pb2 import Episode
from hopper.memory.v1.episodic_service_pb2 import GetProjectHistoryRequest
from hopper.memory.v1.feedback_service_pb2 import GetStatsRequest
from hopper.registry.v1.project_pb2 import Project
from hopper.registry.v1.project_service_pb2 import RegisterProjectRequest
from hopper.router.v1.decision_pb2 import Decision, Opinion, Policy
from hopper.router.v1.routing_service_pb2 import GetDecisionRequest, SuggestRouteRequest, UpdatePolicyRequest
from hopper.router.v1.task_pb2 import Task, TaskSpec
from hopper.router.v1.task_service_pb2 import AnswerTaskRequest, GetTaskRequest
from hopper.router.v1.work_service_pb2 import (
    ClaimRef,
    ClaimTasksRequest,
    CompleteTasksRequest,
    Completion,
)
from hopper_client import Hopper
from hopper_testing.processes import HopperProcess
from tests.e2e.calls import ROOT, eventually
from tests.router.llm.published import KEY, MODEL, Sent, check_openai, completion

POLICY = """
strategy: hybrid
wait: 30s
stages:
  - {use: learned, threshold: 1.0}
  - {use: llm, threshold: 0.6, deadline: 60s, calls_per_day: 3, money_per_day: 1}
  - {use: person, desk: ann}
"""


class Model(ThreadingHTTPServer):
    """A language model that answers as it is told, when it may."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answering)
        self.sent: list[Sent] = []
        self.answer: dict[str, Any] = {
            "reason": "it is about tokens",
            "project": "projects/api",
            "confidence": 0.9,
        }
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.arrived = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Answering(BaseHTTPRequestHandler):
    server: Model

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.sent.append(Sent("POST", self.path, headers, content))
        self.server.arrived.set()
        self.server.may_answer.wait()
        body = json.dumps(completion(json.dumps(self.server.answer))).encode()
        with contextlib.suppress(ConnectionError):  # who asked is dead
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def model() -> Iterator[Model]:
    server = Model()
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    yield server
    server.may_answer.set()
    server.shutdown()
    serving.join()
    server.server_close()


@pytest.fixture
def hopper(data_dir: Path, processes: list[HopperProcess], model: Model) -> HopperProcess:
    """A whole Hopper that knows the model."""
    environment = {
        "HOPPER_LLM_URL": model.url,
        "HOPPER_LLM_MODEL": MODEL,
        "HOPPER_LLM_API_KEY": KEY,
        "HOPPER_LLM_PRICE_IN": "1",
        "HOPPER_LLM_PRICE_OUT": "1",
    }
    process = HopperProcess(data_dir, listen="127.0.0.1:0", environment=environment)
    processes.append(process)
    return process


@pytest.fixture
def ready(client: Hopper) -> Hopper:
    """With two projects and the policy."""
    for name in ("web", "api"):
        client.projects.RegisterProject(RegisterProjectRequest(project_id=name, project=Project()))
    policy = Policy(name=f"{ROOT}/policy", source=POLICY)
    client.routing.UpdatePolicy(UpdatePolicyRequest(policy=policy))
    # The router hears of projects a moment later, and who is asked meanwhile has fewer to choose from.
    known = eventually(lambda: _candidates(client), lambda known: len(known) == 2)
    assert known == {"projects/web", "projects/api"}
    return client


def _candidates(client: Hopper) -> set[str]:
    """Among whom the router would choose now."""
    request = SuggestRouteRequest(parent=ROOT, spec=TaskSpec(title="a wombat"))
    return {one.project for one in client.routing.SuggestRoute(request).decision.candidates}


def get(client: Hopper, name: str) -> Task:
    return client.tasks.GetTask(GetTaskRequest(name=name)).task


def decision_of(client: Hopper, task: Task) -> Decision:
    return client.routing.GetDecision(GetDecisionRequest(name=task.decision)).decision


def test_the_llm_then_a_person_and_memory_hears_of_both(ready: Hopper, model: Model) -> None:
    first = ready.submit("the wombat token is refused", requester="bob")
    assert (first.task.project, first.decision.strategy) == ("projects/api", "llm")
    _complete(ready, first.task)

    def remembered() -> bool:
        request = GetProjectHistoryRequest(project="projects/api")
        episodes = ready.episodes.GetProjectHistory(request).episodes
        return any(episode.outcome == Episode.OUTCOME_SUCCEEDED for episode in episodes)

    assert eventually(remembered, bool)
    model.answer = {"reason": "who knows", "project": "projects/api", "confidence": 0.1}
    second = ready.submit("another wombat token is refused", requester="bob")
    assert (second.task.state, list(second.task.wait.on)) == (Task.STATE_INPUT_REQUIRED, ["ann"])
    assert "the wombat token is refused" in model.sent[-1].content.decode()  # as an example
    request = AnswerTaskRequest(name=second.task.name, answer="web", answered_by="ann")
    answered = ready.tasks.AnswerTask(request).task
    assert answered.project == "projects/web"
    heard = [(said.stage, said.project) for said in decision_of(ready, answered).opinions]
    assert heard[1:] == [("llm", "projects/api"), ("person", "projects/web")]
    assert (
        eventually(lambda: ready.feedback.GetStats(GetStatsRequest(project="projects/web")).right, bool) == 1
    )
    assert [complaint for sent in model.sent for complaint in check_openai(sent)] == []


def test_who_is_killed_in_the_middle_of_a_question_asks_again(
    ready: Hopper, hopper: HopperProcess, model: Model
) -> None:
    model.may_answer.clear()
    ready.routing.UpdatePolicy(
        UpdatePolicyRequest(
            policy=Policy(name=f"{ROOT}/policy", source=POLICY.replace("wait: 30s", "wait: 0s"))
        )
    )
    task = ready.submit("the wombat token is refused").task
    assert list(task.wait.on) == ["llm"]
    assert model.arrived.wait(60)
    hopper.kill()
    model.may_answer.set()
    hopper.start()
    with Hopper(hopper.address, timeout=60) as again:
        placed = _placed(again, task.name)
        assert placed.project == "projects/api"
        decision = decision_of(again, placed)
        assert [said.word for said in decision.opinions][-1] == Opinion.WORD_CHOICE
        # The budget remembers the question that was never answered: two of three calls are spent.
        assert _placed(again, again.submit("a wombat, again").task.name).project == "projects/api"
        last = again.submit("and a wombat once more").task
        asked = _settled(again, last.name, lambda task: task.state == Task.STATE_INPUT_REQUIRED)
        assert "budget" in decision_of(again, asked).reasoning
    assert len(model.sent) == 3


def _complete(client: Hopper, task: Task) -> None:
    claimed = client.work.ClaimTasks(ClaimTasksRequest(queue=task.project, worker="eve")).tasks[0]
    claim = ClaimRef(task=claimed.name, fencing_token=claimed.claim.fencing_token)
    client.work.CompleteTasks(CompleteTasksRequest(completions=[Completion(claim=claim)]))


def _placed(client: Hopper, name: str) -> Task:
    return _settled(client, name, lambda task: bool(task.project))


def _settled(client: Hopper, name: str, condition: Callable[[Task], bool]) -> Task:
    task = eventually(lambda: get(client, name), condition)
    assert condition(task), decision_of(client, task).reasoning
    return task
