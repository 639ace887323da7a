"""RoutingService over real gRPC: suggestions, and the record of decisions."""

from typing import Any

from hopper.router.v1 import routing_service_pb2 as svc
from hopper.router.v1 import task_pb2 as pb
from hopper.router.v1.decision_pb2 import Decision
from hopper_router.model import InstanceState, Project, Scope
from tests.router.harness import HOUR, NOW, ROOT, Code, Router, State, refusal, violations


async def suggest(router: Router, parent: str = ROOT, title: str = "work", **fields: Any) -> Decision:
    request = svc.SuggestRouteRequest(parent=parent, spec=pb.TaskSpec(title=title, **fields))
    return (await router.routing.SuggestRoute(request)).decision


async def decisions(router: Router, **fields: Any) -> list[Decision]:
    found = await router.routing.ListDecisions(svc.ListDecisionsRequest(page_size=1000, **fields))
    return list(found.decisions)


async def decision(router: Router, name: str) -> Decision:
    return (await router.routing.GetDecision(svc.GetDecisionRequest(name=name))).decision


async def test_a_suggestion_is_what_would_happen_and_does_nothing(router: Router) -> None:
    web = router.registry.project("web", "html", description="pages and forms")
    router.registry.project("app", "html", description="phones")
    said = await suggest(router, title="fix the forms", required_capabilities=["html"])
    assert (said.name, said.task, said.instance) == ("", "", ROOT)
    assert (said.outcome, said.project) == (Decision.OUTCOME_ROUTED, web)
    assert await router.found() == []
    assert await decisions(router) == []
    done = (await router.submitted("fix the forms", required_capabilities=["html"])).decision
    for moving in (said, done):
        for field in ("name", "task", "elapsed", "create_time"):
            moving.ClearField(field)
    assert said == done


async def test_a_suggestion_for_each_kind_of_instance(router: Router) -> None:
    web, team = router.registry.team("web", "html")
    run = router.registry.instance("run", Scope.ORCHESTRATION, team)
    kept = await suggest(router, team)
    assert (kept.outcome, kept.project, kept.strategy) == (Decision.OUTCOME_QUEUED, web, "scope")
    handed = await suggest(router, team, estimated_effort=9 * HOUR)
    assert run in handed.reasoning
    peer = router.registry.instance("peer", Scope.FEDERATED)
    await refusal(suggest(router, peer), Code.FAILED_PRECONDITION, "FEDERATION_UNAVAILABLE", instance=peer)


async def test_what_a_suggestion_names_must_exist(router: Router) -> None:
    await refusal(
        suggest(router, "instances/none"), Code.NOT_FOUND, "INSTANCE_NOT_FOUND", instance="instances/none"
    )
    await refusal(
        suggest(router, project="projects/none"), Code.NOT_FOUND, "PROJECT_NOT_FOUND", project="projects/none"
    )
    router.registry.hidden["projects/new"] = Project("projects/new")
    assert (await suggest(router, project="projects/new")).strategy == "pin"
    assert set(await violations(suggest(router, title=""))) == {"spec.title"}


async def test_a_decision_records_what_it_was_made_of(router: Router) -> None:
    web = router.registry.project("web", "html")
    router.registry.project("app", "html", "swift")
    router.registry.project("off", "html", paused=True)
    router.registry.project("crab", "rust")
    made = (await router.submitted(required_capabilities=["html"])).decision
    assert await decision(router, made.name) == made
    assert made.create_time.ToDatetime(NOW.tzinfo) == NOW
    assert made.eligible_count == 2
    assert {candidate.project for candidate in made.candidates} == {web, "projects/app"}
    assert made.candidates[0].project == made.project
    for candidate in made.candidates:
        total = sum(factor.value * factor.weight for factor in candidate.factors)
        assert abs(total - candidate.score) < 1e-6
        assert len(candidate.factors) == 9
    assert abs(sum(candidate.confidence for candidate in made.candidates) - 1) < 1e-6
    excluded = {(e.filter, e.count, *e.projects) for e in made.exclusions}
    assert excluded == {("project-paused", 1, "projects/off"), ("capability", 1, "projects/crab")}
    directory = router.registry.current
    assert (made.basis.projects_version, made.basis.instances_version) == (
        directory.projects_version,
        directory.instances_version,
    )
    assert (made.basis.policy, made.basis.policy_version) == (f"{ROOT}/policy", 0)


async def test_decisions_are_listed_newest_first_and_filtered(router: Router) -> None:
    web, team = router.registry.team("web", "html")
    app = router.registry.project("app", "swift")
    first = await router.submit("a", required_capabilities=["html"])
    second = await router.submit("b", required_capabilities=["swift"])
    await router.update(second, priority=9)
    names = [made.name for made in await decisions(router)]
    assert names == sorted(names, reverse=True)
    assert len(names) == 4  # at the root, in the team, and twice about the second
    assert [made.task for made in await decisions(router, task=second.name)] == [second.name] * 2
    assert {made.instance for made in await decisions(router, instance=team)} == {team}
    assert {made.task for made in await decisions(router, project=app)} == {second.name}
    assert [made.task for made in await decisions(router, instance=ROOT, project=web)] == [first.name]
    page = await router.routing.ListDecisions(svc.ListDecisionsRequest(page_size=3))
    rest = await router.routing.ListDecisions(
        svc.ListDecisionsRequest(page_size=3, page_token=page.next_page_token)
    )
    assert [made.name for made in (*page.decisions, *rest.decisions)] == names
    assert rest.next_page_token == ""
    await refusal(
        router.routing.ListDecisions(
            svc.ListDecisionsRequest(page_size=3, page_token=page.next_page_token, task=first.name)
        ),
        Code.INVALID_ARGUMENT,
        "PAGE_TOKEN_INVALID",
    )
    await refusal(
        decision(router, "decisions/none"), Code.NOT_FOUND, "DECISION_NOT_FOUND", decision="decisions/none"
    )


async def test_the_decision_in_force_is_on_the_task(router: Router) -> None:
    router.registry.project("web", "html")
    task = await router.submit(required_capabilities=["swift"])
    first = task.decision
    router.registry.project("app", "swift")
    await router.follow()
    placed = await router.get(task)
    assert placed.decision != first
    assert [made.name for made in await decisions(router, task=task.name)] == [placed.decision, first]


async def test_looking_again_without_a_new_answer_leaves_no_record(router: Router) -> None:
    router.registry.project("web", "html")
    task = await router.submit(required_capabilities=["rust"])
    for number in range(3):
        router.registry.project(f"other{number}", "html")
        await router.follow()
    assert len(await decisions(router, task=task.name)) == 1
    seen = await router.get(task)
    assert seen.generation == task.generation
    assert dict(seen.wait.exclusions) == {"capability": 4}  # and yet what is said is true


async def test_a_stopped_instance_is_ruled_out_and_its_project_comes_back_with_it(router: Router) -> None:
    _, team = router.registry.team("web", "html")
    router.registry.change(team, state=InstanceState.PAUSED)
    task = await router.submit(required_capabilities=["html"])
    assert dict(task.wait.exclusions) == {"instance-not-running": 1}
    router.registry.change(team, state=InstanceState.RUNNING)
    await router.follow()
    assert (await router.get(task)).state == State.STATE_DELEGATED
