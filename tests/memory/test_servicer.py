"""The three services of memory, over real gRPC and real SQLite."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct

from hopper.memory.v1.episode_pb2 import Episode, EpisodeCandidate, EpisodeOutcome, Feedback
from hopper.memory.v1.episodic_service_pb2 import (
    GetEpisodeRequest,
    GetProjectHistoryRequest,
    ListMistakesRequest,
    RecordEpisodesRequest,
    RecordEpisodesResponse,
    SearchSimilarRequest,
)
from hopper.memory.v1.feedback_service_pb2 import (
    GetRoutingStatsRequest,
    GetStatsRequest,
    GetStatsResponse,
    ListVerdictsRequest,
    RoutingConfusion,
    SubmitFeedbackRequest,
    SubmitFeedbackResponse,
)
from hopper.memory.v1.working_service_pb2 import (
    Context,
    GetContextRequest,
    GetRecentActivityRequest,
    PutContextRequest,
)
from hopper_common.timestamps import to_proto
from tests.memory.harness import RunningMemory, refusal, violations
from tests.memory.samples import START, decision

CODE = grpc.StatusCode
DONE = Episode.OUTCOME_SUCCEEDED
GOOD = Feedback(match=Feedback.MATCH_GOOD)
BAD = Feedback(match=Feedback.MATCH_BAD)


def episode(number: int, **fields: Any) -> Episode:
    said: dict[str, Any] = {
        "task": f"instances/global/tasks/t{number}",
        "instance": "instances/global",
        "project": "projects/web",
        "confidence": 0.5,
        "decide_time": to_proto(START + timedelta(seconds=number)),
    }
    return Episode(decision=decision(number), **(said | fields))


def outcome(number: int, kind: Episode.Outcome.ValueType = DONE, **fields: Any) -> EpisodeOutcome:
    return EpisodeOutcome(
        decision=decision(number), outcome=kind, finish_time=to_proto(START + timedelta(hours=1)), **fields
    )


async def record(
    memory: RunningMemory, *episodes: Episode, outcomes: list[EpisodeOutcome] | None = None
) -> RecordEpisodesResponse:
    request = RecordEpisodesRequest(episodes=episodes, outcomes=outcomes)
    return await memory.episodes.RecordEpisodes(request)


async def get(memory: RunningMemory, number: int) -> Episode:
    return (await memory.episodes.GetEpisode(GetEpisodeRequest(decision=decision(number)))).episode


async def give(
    memory: RunningMemory, number: int, feedback: Feedback, request_id: str = ""
) -> SubmitFeedbackResponse:
    request = SubmitFeedbackRequest(decision=decision(number), feedback=feedback, request_id=request_id)
    return await memory.feedback.SubmitFeedback(request)


async def stats(memory: RunningMemory, **only: str) -> GetStatsResponse:
    return await memory.feedback.GetStats(GetStatsRequest(**only))


class TestRecordEpisodes:
    async def test_a_decision_and_its_outcome_are_one_episode(self, memory: RunningMemory) -> None:
        sent = episode(
            1,
            parent_decision="decisions/d0",
            title="Fix login",
            description="It fails.",
            tags=["type:Bug", "urgent"],
            strategy="rules",
            candidates=[
                EpisodeCandidate(project="projects/web", confidence=0.75),
                EpisodeCandidate(project="projects/ops", confidence=0.25),
            ],
        )
        end = outcome(
            1,
            Episode.OUTCOME_FAILED,
            attempts=2,
            worker="ann",
            failure_reason="TIMEOUT",
            queue_duration=Duration(seconds=1, nanos=500_000_000),
            run_duration=Duration(seconds=90),
        )
        answer = await record(memory, sent, outcomes=[end])
        assert (answer.new_episodes, answer.new_outcomes) == (1, 1)
        expected = Episode(
            name="episodes/d1",
            outcome=Episode.OUTCOME_FAILED,
            finish_time=end.finish_time,
            attempts=2,
            worker="ann",
            failure_reason="TIMEOUT",
            queue_duration=end.queue_duration,
            run_duration=end.run_duration,
        )
        expected.MergeFrom(sent)
        assert await get(memory, 1) == expected

    async def test_a_repeat_changes_nothing(self, memory: RunningMemory) -> None:
        await record(memory, episode(1), outcomes=[outcome(1), outcome(2)])
        before = await get(memory, 1)
        answer = await record(memory, episode(1, title="x"), outcomes=[outcome(1, attempts=9), outcome(2)])
        assert (answer.new_episodes, answer.new_outcomes) == (0, 0)
        assert await get(memory, 1) == before

    async def test_an_outcome_may_come_first(self, memory: RunningMemory) -> None:
        assert (await record(memory, outcomes=[outcome(1)])).new_outcomes == 1
        answer = await record(memory, episode(1))
        assert (answer.new_episodes, answer.new_outcomes) == (1, 0)
        assert (await get(memory, 1)).outcome == DONE

    async def test_output_only_fields_are_ignored(self, memory: RunningMemory) -> None:
        await record(memory, episode(1, name="episodes/other", outcome=DONE, attempts=3, feedback=[GOOD]))
        stored = await get(memory, 1)
        assert stored.name == "episodes/d1"
        assert (stored.outcome, stored.attempts, len(stored.feedback)) == (0, 0, 0)
        assert not stored.HasField("finish_time")

    async def test_without_a_time_it_was_decided_now(self, memory: RunningMemory) -> None:
        sent = episode(1)
        sent.ClearField("decide_time")
        await record(memory, sent)
        assert (await get(memory, 1)).decide_time == to_proto(memory.clock.now())

    async def test_what_is_missing_or_wrong_is_listed(self, memory: RunningMemory) -> None:
        call = record(
            memory,
            Episode(decision="d1", confidence=1.5),
            outcomes=[EpisodeOutcome(decision=decision(1))],
        )
        assert set(await violations(call)) == {
            "episodes[0].decision",
            "episodes[0].task",
            "episodes[0].instance",
            "episodes[0].confidence",
            "outcomes[0].outcome",
            "outcomes[0].finish_time",
        }

    async def test_one_wrong_episode_refuses_them_all(self, memory: RunningMemory) -> None:
        await violations(record(memory, episode(1), Episode(decision=decision(2))))
        assert (await stats(memory)).decisions == 0

    async def test_500_of_each_and_no_more(self, memory: RunningMemory) -> None:
        episodes = [episode(number, description="x" * 4000) for number in range(500)]
        answer = await record(memory, *episodes, outcomes=[outcome(number) for number in range(500)])
        assert (answer.new_episodes, answer.new_outcomes) == (500, 500)
        too_many = [outcome(number) for number in range(501)]
        assert set(await violations(record(memory, outcomes=too_many))) == {"outcomes"}


class TestGetEpisode:
    async def test_what_is_not_there_may_come(self, memory: RunningMemory) -> None:
        error = await refusal(get(memory, 1), CODE.NOT_FOUND, "EPISODE_NOT_FOUND", decision="decisions/d1")
        assert error.retry_after == timedelta(seconds=1)

    async def test_it_needs_the_name_of_a_decision(self, memory: RunningMemory) -> None:
        for name in ("", "episodes/d1", "decisions/UPPER"):
            call = memory.episodes.GetEpisode(GetEpisodeRequest(decision=name))
            assert set(await violations(call)) == {"decision"}


class TestSearchSimilar:
    async def search(self, memory: RunningMemory, text: str, **fields: Any) -> list[str]:
        answer = await memory.episodes.SearchSimilar(SearchSimilarRequest(text=text, **fields))
        scores = [match.score for match in answer.matches]
        assert scores == sorted(scores, reverse=True)
        return [match.episode.decision for match in answer.matches]

    async def test_the_likest_come_first(self, memory: RunningMemory) -> None:
        await record(
            memory,
            episode(1, title="Water the plants"),
            episode(2, title="Login fails", description="after the upgrade"),
            episode(3, title="Upgrade the server", description="login again afterwards"),
            *(episode(number, title="Something else") for number in range(4, 10)),
        )
        found = await self.search(memory, "users cannot log in: login FAILED")
        assert found == [decision(2), decision(3)]

    async def test_ten_unless_asked_for_more(self, memory: RunningMemory) -> None:
        await record(memory, *(episode(number, title="login") for number in range(30)))
        assert len(await self.search(memory, "login")) == 10
        assert len(await self.search(memory, "login", limit=25)) == 25
        call = memory.episodes.SearchSimilar(SearchSimilarRequest(text="login", limit=101))
        assert set(await violations(call)) == {"limit"}

    async def test_within_a_project_and_an_instance(self, memory: RunningMemory) -> None:
        await record(
            memory,
            episode(1, title="login", project="projects/a"),
            episode(2, title="login", project="projects/b"),
            episode(3, title="login", project="projects/a", instance="instances/team"),
        )
        assert set(await self.search(memory, "login", project="projects/a")) == {decision(1), decision(3)}
        assert await self.search(memory, "login", instance="instances/team") == [decision(3)]

    @pytest.mark.parametrize("text", ['"', "NEAR(a b)", "*", "a AND (", "title:x", "ünïcödé 🙂", "the of is"])
    async def test_no_text_is_an_error(self, memory: RunningMemory, text: str) -> None:
        await record(memory, episode(1, title="login"))
        assert await self.search(memory, text) == []
        assert await self.search(memory, f"{text} login") == [decision(1)]

    async def test_but_none_at_all_is(self, memory: RunningMemory) -> None:
        for text in ("", "x" * 4001, "nul\0"):
            call = memory.episodes.SearchSimilar(SearchSimilarRequest(text=text))
            assert set(await violations(call)) == {"text"}


class TestLists:
    async def pages(self, memory: RunningMemory, size: int) -> list[list[str]]:
        token = ""
        pages: list[list[str]] = []
        while token or not pages:
            answer = await memory.episodes.GetProjectHistory(
                GetProjectHistoryRequest(project="projects/web", page_size=size, page_token=token)
            )
            pages.append([episode.decision for episode in answer.episodes])
            token = answer.next_page_token
        return pages

    async def test_history_comes_in_pages_newest_first(self, memory: RunningMemory) -> None:
        await record(memory, *(episode(number) for number in range(7)), episode(9, project="projects/ops"))
        newest_first = [decision(number) for number in range(6, -1, -1)]
        assert await self.pages(memory, 3) == [newest_first[:3], newest_first[3:6], newest_first[6:]]
        assert await self.pages(memory, 7) == [newest_first]
        assert await self.pages(memory, 0) == [newest_first]

    async def test_no_history_is_one_empty_page(self, memory: RunningMemory) -> None:
        assert await self.pages(memory, 3) == [[]]

    async def test_a_page_is_cut_where_other_clients_would_refuse_it(self, memory: RunningMemory) -> None:
        for start in (0, 500):
            await record(memory, *(episode(n, description="x" * 4000) for n in range(start, start + 500)))
        pages = await self.pages(memory, 1000)
        assert len(pages) == 2
        assert [name for page in pages for name in page] == [
            decision(number) for number in range(999, -1, -1)
        ]
        size = len(pages[0]) * 4000
        assert 2.5 * 1024 * 1024 < size < 4 * 1024 * 1024

    async def test_mistakes_come_in_pages_newest_first(self, memory: RunningMemory) -> None:
        await record(
            memory,
            *(episode(number) for number in range(5)),
            episode(5, instance="instances/team"),
            outcomes=[
                outcome(0, Episode.OUTCOME_FAILED),
                outcome(1, Episode.OUTCOME_REROUTED),
                outcome(2),
                outcome(3, Episode.OUTCOME_CANCELLED),
                outcome(5, Episode.OUTCOME_FAILED),
            ],
        )
        await give(memory, 4, BAD)
        first = await memory.episodes.ListMistakes(ListMistakesRequest(page_size=3))
        token = first.next_page_token
        rest = await memory.episodes.ListMistakes(ListMistakesRequest(page_size=3, page_token=token))
        assert [episode.decision for episode in first.episodes] == [decision(n) for n in (5, 4, 1)]
        assert [episode.decision for episode in rest.episodes] == [decision(0)]
        assert rest.next_page_token == ""
        team = await memory.episodes.ListMistakes(ListMistakesRequest(instance="instances/team"))
        assert [episode.decision for episode in team.episodes] == [decision(5)]

    async def test_a_token_is_good_for_its_own_list_only(self, memory: RunningMemory) -> None:
        await record(
            memory,
            *(episode(number) for number in range(3)),
            outcomes=[outcome(number, Episode.OUTCOME_FAILED) for number in range(3)],
        )
        history = await memory.episodes.GetProjectHistory(
            GetProjectHistoryRequest(project="projects/web", page_size=1)
        )
        mistakes = await memory.episodes.ListMistakes(ListMistakesRequest(page_size=1))
        for call in (
            memory.episodes.GetProjectHistory(
                GetProjectHistoryRequest(project="projects/ops", page_token=history.next_page_token)
            ),
            memory.episodes.GetProjectHistory(
                GetProjectHistoryRequest(project="projects/web", page_token=mistakes.next_page_token)
            ),
            memory.episodes.ListMistakes(ListMistakesRequest(page_token="made up")),
            memory.episodes.ListMistakes(
                ListMistakesRequest(instance="instances/a", page_token=mistakes.next_page_token)
            ),
        ):
            await refusal(call, CODE.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")


class TestSubmitFeedback:
    async def test_it_goes_up_three_levels(self, memory: RunningMemory) -> None:
        parents = ["", decision(1), decision(2), decision(3)]
        await record(memory, *(episode(n + 1, parent_decision=p) for n, p in enumerate(parents)))
        said = Feedback(
            match=Feedback.MATCH_BAD,
            actual_effort=Duration(seconds=60),
            quality=0.0,
            rework=True,
            blockers=["vpn"],
            comment="wrong team",
            author="ann",
        )
        answer = await give(memory, 4, said)
        assert list(answer.passed_to) == [decision(3), decision(2), decision(1)]
        for number in (4, 3, 2, 1):
            (stored,) = (await get(memory, number)).feedback
            expected = Feedback(
                name=stored.name,
                from_decision=decision(4) if number != 4 else "",
                create_time=to_proto(memory.clock.now()),
            )
            expected.MergeFrom(said)
            expected.quality = 0.0
            assert stored == expected
            assert stored.name.startswith(f"episodes/d{number}/feedback/")
        assert answer.feedback == (await get(memory, 4)).feedback[0]

    async def test_quality_unsaid_is_not_quality_zero(self, memory: RunningMemory) -> None:
        await record(memory, episode(1))
        await give(memory, 1, GOOD)
        assert not (await get(memory, 1)).feedback[0].HasField("quality")

    async def test_a_decision_that_has_not_come_yet(self, memory: RunningMemory) -> None:
        error = await refusal(
            give(memory, 1, GOOD), CODE.NOT_FOUND, "EPISODE_NOT_FOUND", decision="decisions/d1"
        )
        assert error.retry_after == timedelta(seconds=1)

    async def test_a_repeat_gets_the_first_answer(self, memory: RunningMemory) -> None:
        await record(memory, episode(1), episode(2, parent_decision=decision(1)))
        request_id = str(uuid4())
        first = await give(memory, 2, BAD, request_id)
        memory.clock.advance(timedelta(hours=1))
        assert await give(memory, 2, BAD, request_id) == first
        assert len((await get(memory, 1)).feedback) == 1

    async def test_the_same_id_for_another_request(self, memory: RunningMemory) -> None:
        await record(memory, episode(1))
        request_id = str(uuid4())
        await give(memory, 1, BAD, request_id)
        await refusal(
            give(memory, 1, GOOD, request_id),
            CODE.ALREADY_EXISTS,
            "IDEMPOTENCY_CONFLICT",
            request_id=request_id,
            method="SubmitFeedback",
        )

    async def test_output_only_fields_are_ignored(self, memory: RunningMemory) -> None:
        await record(memory, episode(1))
        await give(memory, 1, Feedback(name="episodes/x/feedback/y", from_decision="decisions/z"))
        (stored,) = (await get(memory, 1)).feedback
        assert stored.name.startswith("episodes/d1/feedback/")
        assert stored.from_decision == ""

    async def test_a_better_project_needs_a_bad_match(self, memory: RunningMemory) -> None:
        await record(memory, episode(1))
        said = Feedback(match=Feedback.MATCH_GOOD, better_project="projects/ops")
        assert set(await violations(give(memory, 1, said))) == {"feedback.better_project"}
        assert not (await get(memory, 1)).feedback

    async def test_what_is_missing_or_wrong_is_listed(self, memory: RunningMemory) -> None:
        call = memory.feedback.SubmitFeedback(SubmitFeedbackRequest(request_id="1"))
        assert set(await violations(call)) == {"decision", "feedback", "request_id"}
        wrong = Feedback(quality=1.5, better_project="ops", blockers=["x"] * 21, comment="x" * 4001)
        assert set(await violations(give(memory, 1, wrong))) == {
            "feedback.quality",
            "feedback.better_project",
            "feedback.blockers",
            "feedback.comment",
        }


class TestGetStats:
    async def test_worked_by_hand(self, memory: RunningMemory) -> None:
        """0.9 right, 0.95 wrong, 0.2 wrong, 0.25 right: see `test_model`."""
        confidences = [0.9, 0.95, 0.2, 0.25]
        await record(
            memory,
            *(episode(number, confidence=confidence) for number, confidence in enumerate(confidences)),
            episode(9, project="projects/ops", instance="instances/team"),
            outcomes=[outcome(0), outcome(1, Episode.OUTCOME_FAILED), outcome(9)],
        )
        for number, feedback in enumerate([GOOD, BAD, BAD, GOOD]):
            await give(memory, number, feedback)
        answer = await stats(memory)
        assert (answer.decisions, answer.with_outcome, answer.succeeded) == (5, 3, 2)
        assert (answer.judged, answer.right, answer.accuracy) == (4, 2, 0.5)
        assert answer.calibration_error == pytest.approx(0.35)
        assert answer.regret == pytest.approx(0.2875)
        assert [(getattr(bin, "from"), bin.to) for bin in answer.bins] == [
            (index / 10, (index + 1) / 10) for index in range(10)
        ]
        third = answer.bins[2]
        assert (third.count, third.accuracy) == (2, 0.5)
        assert third.mean_confidence == pytest.approx(0.225)
        assert (await stats(memory, project="projects/ops")).decisions == 1
        assert (await stats(memory, instance="instances/team")).succeeded == 1

    async def test_of_nothing_it_is_zero(self, memory: RunningMemory) -> None:
        answer = await stats(memory)
        assert (answer.decisions, answer.accuracy, answer.calibration_error, answer.regret) == (0, 0, 0, 0)
        assert len(answer.bins) == 10


class TestWorkingMemory:
    def context(self, key: str = "session/42", **fields: Any) -> Context:
        value = Struct()
        value.update({"branch": "main", "load": 0.5, "seen": [1, None, {"deep": True}]})
        return Context(key=key, value=value, **fields)

    async def test_a_context_is_kept_for_a_while(self, memory: RunningMemory) -> None:
        sent = self.context(time_to_live=Duration(seconds=30))
        stored = (await memory.working.PutContext(PutContextRequest(context=sent))).context
        assert stored.value == sent.value
        assert stored.expire_time == to_proto(memory.clock.now() + timedelta(seconds=30))
        assert (await memory.working.GetContext(GetContextRequest(key=sent.key))).context == stored
        memory.clock.advance(timedelta(seconds=30))
        await refusal(
            memory.working.GetContext(GetContextRequest(key=sent.key)),
            CODE.NOT_FOUND,
            "CONTEXT_NOT_FOUND",
            context="session/42",
        )

    async def test_ten_minutes_unless_said_otherwise(self, memory: RunningMemory) -> None:
        stored = (await memory.working.PutContext(PutContextRequest(context=self.context()))).context
        assert stored.time_to_live == Duration(seconds=600)
        assert stored.expire_time == to_proto(memory.clock.now() + timedelta(minutes=10))

    async def test_a_context_without_facts_comes_back_without(self, memory: RunningMemory) -> None:
        await memory.working.PutContext(PutContextRequest(context=Context(key="empty")))
        found = (await memory.working.GetContext(GetContextRequest(key="empty"))).context
        assert not found.HasField("value")

    async def test_limits(self, memory: RunningMemory) -> None:
        large = Context(key="k" * 201, time_to_live=Duration(seconds=3601))
        large.value.update({"x": "x" * 65536})
        call = memory.working.PutContext(PutContextRequest(context=large))
        assert set(await violations(call)) == {"context.key", "context.value", "context.time_to_live"}
        call = memory.working.PutContext(PutContextRequest())
        assert set(await violations(call)) == {"context"}

    async def test_a_full_memory_says_when_to_come_back(
        self, memory: RunningMemory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOPPER_MEMORY_CONTEXTS", "3")
        await memory.restart()
        for number in range(3):
            await memory.working.PutContext(PutContextRequest(context=self.context(f"key/{number}")))
        error = await refusal(
            memory.working.PutContext(PutContextRequest(context=self.context("key/3"))),
            CODE.RESOURCE_EXHAUSTED,
            "OVERLOADED",
            service="memory",
        )
        assert error.retry_after == timedelta(seconds=1)


class TestGetRecentActivity:
    async def test_the_last_hour_newest_first(self, memory: RunningMemory) -> None:
        now = memory.clock.advance(timedelta(hours=5))
        ages = [timedelta(minutes=minutes) for minutes in (0, 10, 59, 60, 61)]
        await record(
            memory,
            *(episode(number, decide_time=to_proto(now - age)) for number, age in enumerate(ages)),
            episode(8, decide_time=to_proto(now - ages[1] / 2), project="projects/ops", confidence=0.25),
            episode(9, decide_time=to_proto(now - ages[1]), instance="instances/team", project=""),
        )
        answer = await memory.working.GetRecentActivity(GetRecentActivityRequest())
        assert [entry.decision for entry in answer.decisions] == [decision(n) for n in (0, 8, 9, 1, 2)]
        assert answer.decisions_by_project == {"projects/web": 3, "projects/ops": 1}
        entry = answer.decisions[1]
        assert (entry.task, entry.project) == ("instances/global/tasks/t8", "projects/ops")
        assert entry.confidence == 0.25
        assert entry.decide_time == to_proto(now - ages[1] / 2)

    async def test_only_an_instance_and_only_so_many(self, memory: RunningMemory) -> None:
        await record(memory, *(episode(number) for number in range(30)), episode(99, instance="instances/a"))
        ask = memory.working.GetRecentActivity
        assert len((await ask(GetRecentActivityRequest())).decisions) == 20
        few = await ask(GetRecentActivityRequest(instance="instances/global", limit=5))
        assert [entry.decision for entry in few.decisions] == [decision(n) for n in range(29, 24, -1)]
        assert few.decisions_by_project == {"projects/web": 30}


class TestRoutingStats:
    async def test_they_are_of_the_last_days(self, memory: RunningMemory) -> None:
        now = memory.clock.now()
        for number, age in enumerate((40, 20, 5, 0)):
            when = to_proto(now - timedelta(days=age))
            await record(memory, episode(number, decide_time=when, strategy="rules"))
        better = Feedback(match=Feedback.MATCH_BAD, better_project="projects/ops")
        await give(memory, 1, better)
        await give(memory, 3, GOOD)
        said = await memory.feedback.GetRoutingStats(GetRoutingStatsRequest())
        assert (said.total.decisions, said.total.judged, said.total.accuracy) == (3, 2, 0.5)
        assert len(said.periods) == 12
        assert [p.score.decisions for p in said.periods if p.score.decisions] == [1, 1, 1]
        assert said.periods[0].start_time == to_proto(now - timedelta(days=20))
        assert [(each.strategy, each.score.right) for each in said.strategies] == [("rules", 1)]
        assert list(said.confusions) == [
            RoutingConfusion(chosen="projects/web", right="projects/ops", count=1)
        ]
        assert said.confused == 1
        week = await memory.feedback.GetRoutingStats(GetRoutingStatsRequest(days=7, periods=1))
        assert (week.total.decisions, len(week.periods), week.confused) == (2, 1, 0)

    async def test_verdicts_are_told_as_they_are_known(self, memory: RunningMemory) -> None:
        await record(memory, episode(1), episode(2), outcomes=[outcome(2)])
        await give(memory, 1, Feedback(match=Feedback.MATCH_NONE))
        asked = ListVerdictsRequest(decisions=[decision(number) for number in (1, 2, 3)])
        found = {each.decision: each for each in (await memory.feedback.ListVerdicts(asked)).verdicts}
        assert found.keys() == {decision(1), decision(2)}
        assert (found[decision(1)].right, found[decision(1)].nobody) == (False, True)
        assert (found[decision(2)].HasField("right"), found[decision(2)].outcome) == (False, DONE)
        wrong = await violations(memory.feedback.ListVerdicts(ListVerdictsRequest()))
        assert "decisions" in wrong
