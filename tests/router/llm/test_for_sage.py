"""The reference Sage's language model, over the router's client for LLMs and a real server."""

from __future__ import annotations

import json
from datetime import timedelta
from importlib.metadata import entry_points

import pytest

from hopper_router.llm.endpoint import Endpoint, HttpAdvisor
from hopper_router.llm.for_sage import SageModel, language_model
from hopper_router.llm.openai import OpenAI
from hopper_sage.model import Candidate, Precedent, Question, Reply, Task
from hopper_sage.ports import ModelFailed
from hopper_testing.clock import ManualClock
from tests.router.llm.published import APIS
from tests.router.llm.server import a_server, says

OPENAI = APIS[0]
QUESTION = Question(
    decision="decisions/1",
    instance="instances/global",
    task=Task("instances/global/tasks/1", "restore last night's backup", "it is urgent"),
    candidates=(Candidate("projects/ops", "Operations"), Candidate("projects/web", "Website")),
    precedents=(
        Precedent("decisions/0", "backup failed", "projects/ops", True, 0.9),
        Precedent("decisions/9", "backup of the shop", "projects/web", False, 0.8),
    ),
    replies=(Reply("Which machine?", "db-3"),),
    within=timedelta(seconds=5),
)
ANSWER = {"reason": "backups are theirs", "project": "projects/ops", "confidence": 0.8}


async def test_it_is_asked_with_what_was_replied_and_what_went_well() -> None:
    async with a_server() as server:
        endpoint = Endpoint(url=f"http://127.0.0.1:{server.port}{OPENAI.root}", model="m", key="k")
        async with HttpAdvisor(endpoint, OpenAI(), ManualClock()) as advisor:
            server.then(says(OPENAI.respond(json.dumps(ANSWER))))
            advice = await SageModel(advisor, "m").advise(QUESTION, ())
            assert (advice.project, advice.confidence, advice.cost.model_calls) == ("projects/ops", 0.8, 1)
            told = str(server.sent[0].body["messages"])
            assert "Which machine?" in told
            assert "db-3" in told
            assert "backup failed" in told
            assert "backup of the shop" not in told


async def test_trouble_is_told_in_a_word() -> None:
    async with a_server() as server:
        endpoint = Endpoint(
            url=f"http://127.0.0.1:{server.port}{OPENAI.root}", model="m", key="k", attempts=1
        )
        async with HttpAdvisor(endpoint, OpenAI(), ManualClock()) as advisor:
            server.then(says(OPENAI.respond(json.dumps({**ANSWER, "project": "projects/admin"}))))
            with pytest.raises(ModelFailed, match="LLM_ANSWER_INVALID"):
                await SageModel(advisor, "m").advise(QUESTION, ())


def test_the_sage_finds_it() -> None:
    (found,) = entry_points(group="hopper.sage.language_models")
    assert found.load() is language_model
