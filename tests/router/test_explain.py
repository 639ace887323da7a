"""ExplainTask: why here, why not there, why waiting; from the record, and computed anew."""

from typing import Any

import pytest

from hopper.router.v1 import decision_pb2
from hopper.router.v1 import delegation_service_pb2 as delegation_svc
from hopper.router.v1 import routing_service_pb2 as routing_svc
from hopper.router.v1 import task_pb2 as pb
from hopper.router.v1 import task_service_pb2 as svc
from hopper_router.model import Lesson, Project, Truth
from tests.router.harness import NOW, ROOT, Code, Router, refusal


async def explain(router: Router, task: pb.Task, not_project: str = "") -> svc.ExplainTaskResponse:
    return await router.tasks.ExplainTask(svc.ExplainTaskRequest(name=task.name, not_project=not_project))


async def why_not(router: Router, task: pb.Task, project: str) -> svc.WhyNot:
    return (await explain(router, task, project)).why_not


async def test_why_here_and_why_waiting(router: Router) -> None:
    web = router.registry.project("web", "html")
    task = await router.submit(required_capabilities=["html"])
    said = await explain(router, task)
    assert said.task == await router.get(task)
    assert [made.name for made in said.decisions] == [task.decision]
    here, waiting = said.sentences
    assert here.startswith(f"it went to {web} (100% sure, by only-candidate)")
    assert waiting == f"it is not running because: ready: waits for a worker of {web}"
    assert not said.HasField("why_not")
    await router.update(task, priority=3)
    again = await explain(router, task)
    assert len(again.decisions) == 2
    assert again.decisions[0].name == again.task.decision  # the one in force first
    assert "decided about 2 times" in again.sentences[1]


async def test_what_is_said_follows_the_task(router: Router) -> None:
    web = router.registry.project("web", "html")
    nowhere = await router.submit(required_capabilities=["rust"])
    assert (await explain(router, nowhere)).sentences[0].startswith("it went nowhere: ")
    task = await router.submit(required_capabilities=["html"])
    claimed = await router.claim_one(web, "ann")
    assert (await explain(router, task)).sentences[-1] == "ann has it"
    await router.fail(claimed, "BROKEN", permanent=True)
    assert (await explain(router, task)).sentences[-1] == "it ended FAILED: BROKEN"
    _, team = router.registry.team("app", "swift")
    kept = await router.submit(parent=team)
    assert (await explain(router, kept)).sentences[0].startswith("it stays in projects/app: ")
    router.registry.project("off", "cobol", paused=True)


async def test_why_not_a_candidate_is_in_the_record(router: Router) -> None:
    router.registry.project("web", "html", description="pages")
    app = router.registry.project("app", "html")
    task = await router.submit("pages", required_capabilities=["html"])
    said = await why_not(router, task, app)
    assert (said.project, said.rank, said.filter, said.recomputed) == (app, 2, "", False)
    assert said.candidate.project == app
    assert said.candidate.factors
    assert said.message == "it was number 2 of 2"
    router.registry.remove(app)
    assert await why_not(router, task, app) == said  # the record outlives the project


async def test_why_not_one_that_was_ruled_out_is_in_the_record(router: Router) -> None:
    router.registry.project("web", "html")
    crab = router.registry.project("crab", "rust")
    task = await router.submit(required_capabilities=["html"])
    said = await why_not(router, task, crab)
    assert (said.filter, said.rank, said.recomputed, said.HasField("candidate")) == (
        "capability",
        0,
        False,
        False,
    )
    assert "html" in said.detail
    assert "html" in said.message


async def test_it_did_go_there(router: Router) -> None:
    web = router.registry.project("web")
    task = await router.submit()
    said = await why_not(router, task, web)
    assert (said.rank, said.filter, said.message) == (1, "", f"it did go to {web}")


@pytest.mark.parametrize("hidden", [False, True])
async def test_why_not_one_that_came_later_is_computed_now(router: Router, hidden: bool) -> None:
    router.registry.project("web", "html")
    task = await router.submit(required_capabilities=["html"])
    late, lame = Project("projects/late", capabilities=frozenset({"html"})), Project("projects/lame")
    for project in (late, lame):
        if hidden:
            router.registry.hidden[project.name] = project
        else:
            router.registry.put(project)
    said = await why_not(router, task, late.name)
    assert (said.recomputed, said.filter) == (True, "")
    assert said.rank in (1, 2)
    assert said.candidate.project == late.name
    assert f"number {said.rank}" in said.message
    said = await why_not(router, task, lame.name)
    assert (said.recomputed, said.filter, said.rank) == (True, "capability", 0)
    assert "html" in said.detail


async def test_why_not_one_beyond_the_record_is_computed_now(router: Router) -> None:
    """Of many candidates and exclusions only the first are recorded; the others can be asked about all the same."""
    names = [router.registry.project(f"web{n:02}", "html") for n in range(30)]
    lame = [router.registry.project(f"lame{n:02}") for n in range(30)]
    task = await router.submit(required_capabilities=["html"])
    ranks: dict[str, Any] = {}
    for name in names:
        said = await why_not(router, task, name)
        ranks[name] = said.rank
        assert said.filter == ""
    assert ranks[task.project] == 1
    recorded = {c.project for c in (await explain(router, task)).decisions[0].candidates}
    assert 1 <= len(recorded) <= 10
    assert {(await why_not(router, task, name)).filter for name in lame} == {"capability"}


async def test_why_not_one_that_sent_it_back(router: Router) -> None:
    web, _ = router.registry.team("web", "html")
    top = await router.submit(required_capabilities=["html"])
    (made,) = await router.chain(top)
    await router.delegations.RejectDelegation(delegation_svc.RejectDelegationRequest(name=made.name))
    said = await why_not(router, top, web)
    assert (said.filter, said.recomputed) == ("rejected-before", False)


async def test_what_it_names_must_exist(router: Router) -> None:
    task = await router.submit()
    await refusal(
        why_not(router, task, "projects/none"), Code.NOT_FOUND, "PROJECT_NOT_FOUND", project="projects/none"
    )
    ghost = pb.Task(name=f"{ROOT}/tasks/none")
    await refusal(explain(router, ghost), Code.NOT_FOUND, "TASK_NOT_FOUND", task=ghost.name)


async def test_what_would_have_changed_it(router: Router) -> None:
    """From the record, and the tags that the second has now."""
    router.registry.project("web", tags=frozenset({"ui"}), description="pages")
    ops = router.registry.project("ops", tags=frozenset({"linux"}), description="servers")
    task = await router.submit("servers", tags=["ui"])
    found = {(change.kind, change.what): change for change in (await explain(router, task)).counterfactuals}
    kinds = svc.Counterfactual
    without = found[kinds.KIND_TAG, "ui"]
    assert (without.project, without.message) == (ops, "without the tag ui, it would have gone to ops")
    assert found[kinds.KIND_TAG, "linux"].recomputed
    assert found[kinds.KIND_RULE, "ops"].needed > 0
    assert (kinds.KIND_THRESHOLD, "threshold") in found
    assert len((await explain(router, task)).counterfactuals) <= 12


async def test_what_was_learned_is_told_by_words(router: Router) -> None:
    """Only where it took part; as it is known now, of the first two."""
    shop = router.registry.project("shop", description="checkout")
    docs = router.registry.project("docs", description="manuals")
    by_rules = await router.submit("zebra manuals")
    assert not (await explain(router, by_rules)).learned
    policy = decision_pb2.Policy(name=f"{ROOT}/policy", source="strategy: learned")
    await router.routing.UpdatePolicy(routing_svc.UpdatePolicyRequest(policy=policy))
    task = await router.submit("zebra manuals")
    titles = ["the zebra is lost", "zebra manuals", "zebra again"]
    router.engine.learned.apply(
        [
            Lesson(n, ROOT, f"decisions/{n}", title, "", (), Truth.RIGHT, docs, "ann", 1.0, NOW)
            for n, title in enumerate(titles, start=1)
        ]
    )
    said = (await explain(router, task)).learned
    assert {reason.project for reason in said} == {shop, docs}
    assert said[0].project == task.project
    of_docs = next(reason for reason in said if reason.project == docs)
    words = {word.word: word.weight for word in of_docs.words}
    assert words["zebra"] > 0
    assert 0 < of_docs.probability <= 1
    assert {opinion.name for opinion in of_docs.opinions} >= {"nb", "name"}
    assert not (await explain(router, by_rules)).learned
