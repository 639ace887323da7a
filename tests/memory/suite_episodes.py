"""What every store of episodes does, whatever it keeps them in."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import permutations
from typing import Any

import pytest

from hopper_common.errors import IdempotencyConflict
from hopper_memory.errors import EpisodeNotFound
from hopper_memory.model import (
    MOST_FEEDBACK,
    MOST_LEVELS,
    Candidate,
    Episode,
    EpisodeOutcome,
    Feedback,
    Match,
    Outcome,
    bins_of,
)
from hopper_memory.ports import EpisodeStore, Given, Position, Recorded
from hopper_memory.routing_stats import Confusion, RoutingStats, Verdict
from tests.memory.factories import EPISODE_STORES
from tests.memory.samples import START, decision, episode, outcome

GOOD = Feedback(match=Match.GOOD)
BAD = Feedback(match=Match.BAD)
SECOND = timedelta(seconds=1)


async def give(
    store: EpisodeStore, number: int | str, feedback: Feedback, *, request_id: str = "", at: int = 0
) -> Given:
    now = START + at * SECOND
    return await store.add_feedback(decision(number), feedback, request_id=request_id, now=now)


async def feedback_on(store: EpisodeStore, number: int | str) -> Sequence[Feedback]:
    return (await store.get(decision(number))).feedback


async def outcome_of(store: EpisodeStore, number: int | str) -> Outcome | None:
    end = (await store.get(decision(number))).outcome
    return end.outcome if end else None


async def found(store: EpisodeStore, text: str, **only: str) -> list[str]:
    return [similar.episode.decision for similar in await store.search(text, limit=10, **only)]


def decisions(episodes: Sequence[Episode]) -> list[str]:
    return [episode.decision for episode in episodes]


def chain(*numbers: int, **fields: Any) -> list[Episode]:
    """Decisions, each made by the one before it in the list, which is the top."""
    parents = ["", *map(decision, numbers)]
    pairs = zip(numbers, parents, strict=False)
    return [episode(number, parent_decision=parent, **fields) for number, parent in pairs]


class EpisodeStoreSuite:
    @pytest.fixture(params=EPISODE_STORES)
    async def store(self, request: pytest.FixtureRequest) -> AsyncIterator[EpisodeStore]:
        async with EPISODE_STORES[request.param]() as store:
            yield store

    # Recording.

    async def test_an_episode_comes_back_as_it_was_recorded(self, store: EpisodeStore) -> None:
        whole = episode(
            1,
            parent_decision="decisions/d0",
            title="Größe \"quoted\" 'text'",
            description="several\nlines",
            tags=("type:Bug", "urgent"),
            confidence=0.875,
            strategy="rules",
            candidates=(Candidate("projects/web", 0.875), Candidate("projects/ops", 0.125)),
        )
        assert await store.record([whole], []) == Recorded(1, 0)
        assert await store.get(whole.decision) == whole

    async def test_an_outcome_comes_back_as_it_was_reported(self, store: EpisodeStore) -> None:
        end = outcome(
            1,
            Outcome.FAILED,
            attempts=3,
            worker="ann",
            failure_reason="TIMEOUT",
            queue_duration=timedelta(microseconds=1),
            run_duration=timedelta(days=3),
        )
        assert await store.record([episode(1)], [end]) == Recorded(1, 1)
        assert (await store.get(decision(1))).outcome == end

    async def test_an_unknown_decision_is_an_error_that_names_it(self, store: EpisodeStore) -> None:
        with pytest.raises(EpisodeNotFound) as caught:
            await store.get(decision(1))
        assert dict(caught.value.metadata) == {"decision": decision(1)}
        assert caught.value.retry_after == SECOND

    async def test_a_decision_that_comes_again_changes_nothing(self, store: EpisodeStore) -> None:
        first = episode(1, title="first")
        await store.record([first], [])
        assert await store.record([episode(1, title="second"), episode(2)], []) == Recorded(1, 0)
        assert await store.get(decision(1)) == first
        assert await found(store, "second") == []

    async def test_the_first_of_two_in_one_request_counts(self, store: EpisodeStore) -> None:
        first = episode(1, title="first")
        assert await store.record([first, episode(1, title="second")], []) == Recorded(1, 0)
        assert await store.get(decision(1)) == first

    async def test_nothing_to_record_is_nothing_recorded(self, store: EpisodeStore) -> None:
        assert await store.record([], []) == Recorded(0, 0)

    async def test_an_outcome_is_joined_to_an_earlier_decision(self, store: EpisodeStore) -> None:
        await store.record([episode(1), episode(2)], [])
        assert await outcome_of(store, 1) is None
        assert await store.record([], [outcome(1)]) == Recorded(0, 1)
        assert await outcome_of(store, 1) is Outcome.SUCCEEDED
        assert await outcome_of(store, 2) is None

    async def test_an_outcome_waits_for_its_decision(self, store: EpisodeStore) -> None:
        assert await store.record([], [outcome(1), outcome(2)]) == Recorded(0, 2)
        with pytest.raises(EpisodeNotFound):
            await store.get(decision(1))
        assert await store.record([episode(1)], []) == Recorded(1, 0)
        assert await outcome_of(store, 1) is Outcome.SUCCEEDED

    async def test_the_first_outcome_counts(self, store: EpisodeStore) -> None:
        await store.record([episode(1)], [outcome(1)])
        assert await store.record([], [outcome(1, Outcome.FAILED)]) == Recorded(0, 0)
        assert await outcome_of(store, 1) is Outcome.SUCCEEDED

    async def test_the_first_outcome_counts_while_they_wait_too(self, store: EpisodeStore) -> None:
        await store.record([], [outcome(1)])
        assert await store.record([], [outcome(1, Outcome.FAILED)]) == Recorded(0, 0)
        assert await store.record([episode(1)], [outcome(1, Outcome.FAILED)]) == Recorded(1, 0)
        assert await outcome_of(store, 1) is Outcome.SUCCEEDED

    async def test_an_outcome_that_comes_again_changes_nothing(self, store: EpisodeStore) -> None:
        await store.record([episode(1)], [outcome(1, attempts=1)])
        assert await store.record([], [outcome(1, attempts=2)]) == Recorded(0, 0)
        assert (await store.get(decision(1))).outcome == outcome(1, attempts=1)

    @pytest.mark.parametrize("order", list(permutations(["decision", "rerouted", "done"])))
    async def test_a_real_end_prevails_over_rerouted_in_any_order(
        self, store: EpisodeStore, order: Sequence[str]
    ) -> None:
        sent: dict[str, tuple[list[Episode], list[EpisodeOutcome]]] = {
            "decision": ([episode(1)], []),
            "rerouted": ([], [outcome(1, Outcome.REROUTED)]),
            "done": ([], [outcome(1)]),
        }
        for what in order:
            await store.record(*sent[what])
        assert await outcome_of(store, 1) is Outcome.SUCCEEDED
        for what in order:
            assert await store.record(*sent[what]) == Recorded(0, 0)

    async def test_a_full_request_is_recorded_at_once(self, store: EpisodeStore) -> None:
        episodes = [episode(number) for number in range(500)]
        outcomes = [outcome(number) for number in range(250, 750)]
        assert await store.record(episodes, outcomes) == Recorded(500, 500)
        assert await store.record(episodes, outcomes) == Recorded(0, 0)
        stats = await store.stats(project="", instance="")
        assert (stats.decisions, stats.with_outcome) == (500, 250)

    # Searching.

    async def test_words_are_found_in_title_description_and_tags(self, store: EpisodeStore) -> None:
        await store.record(
            [
                episode(1, title="Login page"),
                episode(2, description="the login is broken"),
                episode(3, tags=("login",)),
                episode(4, title="Logout"),
            ],
            [],
        )
        assert set(await found(store, "login")) == {decision(1), decision(2), decision(3)}

    async def test_forms_of_a_word_and_accents_and_case_do_not_matter(self, store: EpisodeStore) -> None:
        await store.record([episode(1, title="Deploying fails in CAFÉ")], [])
        for text in ("deploy", "deployed", "failing", "cafe", "cafe\u0301"):
            assert await found(store, text) == [decision(1)], text

    async def test_the_title_weighs_most(self, store: EpisodeStore) -> None:
        await store.record(
            [
                episode(1, title="something", description="database upgrade", tags=("other",)),
                episode(2, title="database upgrade", description="something", tags=("other",)),
                *(episode(number, title="unrelated") for number in range(3, 9)),
            ],
            [],
        )
        assert await found(store, "database upgrade") == [decision(2), decision(1)]

    async def test_rarer_words_and_more_of_them_weigh_more(self, store: EpisodeStore) -> None:
        common = [episode(number, title="deploy service") for number in range(10, 30)]
        others = [episode(number, title="something else") for number in range(30, 90)]
        rare = [episode(1, title="the zeppelin"), episode(2, title="deploy zeppelin")]
        await store.record([*rare, *common, *others], [])
        assert (await found(store, "deploy a zeppelin"))[:2] == [decision(2), decision(1)]

    async def test_scores_are_positive_and_fall(self, store: EpisodeStore) -> None:
        await store.record(
            [episode(number, title="login " * number, description="x") for number in range(1, 6)], []
        )
        await store.record([episode(number, title="other") for number in range(10, 30)], [])
        scores = [similar.score for similar in await store.search("login", limit=10)]
        assert len(scores) == 5
        assert scores == sorted(scores, reverse=True)
        assert scores[-1] > 0

    async def test_at_most_so_many_are_found(self, store: EpisodeStore) -> None:
        await store.record([episode(number, title="login") for number in range(20)], [])
        assert len(await store.search("login", limit=7)) == 7

    async def test_only_those_of_a_project_or_instance(self, store: EpisodeStore) -> None:
        await store.record(
            [
                episode(1, title="login", project="projects/web.shop"),
                episode(2, title="login", project="projects/web-shop"),
                episode(3, title="login", project="projects/web", instance="instances/team"),
                episode(4, title="login", project="", instance="instances/team"),
            ],
            [],
        )
        assert await found(store, "login", project="projects/web.shop") == [decision(1)]
        assert set(await found(store, "login", instance="instances/team")) == {decision(3), decision(4)}
        both = {"project": "projects/web", "instance": "instances/team"}
        assert await found(store, "login", **both) == [decision(3)]
        assert await found(store, "login", project="projects/nobody") == []

    async def test_the_name_of_a_project_is_not_a_word_of_its_episodes(self, store: EpisodeStore) -> None:
        await store.record([episode(1, title="login", project="projects/web")], [])
        assert await found(store, "web projects global instances") == []

    @pytest.mark.parametrize(
        "text",
        [
            '"',
            '""',
            "'; DROP TABLE episodes; --",
            "NEAR(login page, 5)",
            "login* ^login -login +login",
            "title:login OR {title} : login",
            "login AND NOT page",
            '"unbalanced login',
            "((((login))))",
            "%s %d {} \\ \\\\",
            "\u202elogin\u202c \ufeff",
            "🙂 login 🙂",
            "e\u0301\u0301\u0301",
            "the and of is",
            "AND OR NOT NEAR",
            "   \t\n",
            "x" * 4000,
            " ".join(f"word{number}" for number in range(600)),
            '"a" ' * 1000,
        ],
    )
    async def test_any_text_can_be_searched_for(self, store: EpisodeStore, text: str) -> None:
        await store.record([episode(1, title="login page")], [])
        assert await found(store, text) == ([decision(1)] if "login" in text else [])
        assert await found(store, "login", project="projects/web") == [decision(1)]

    async def test_a_word_that_everything_says_does_not_hide_the_rest(self, store: EpisodeStore) -> None:
        await store.record([episode(0, title="deploy the zeppelin")], [])
        for start in (1, 501, 1001, 1501):
            await store.record(
                [episode(number, title="deploy again") for number in range(start, start + 500)], []
            )
        matches = await found(store, "deploy zeppelin")
        assert matches[0] == decision(0)
        assert len(set(matches)) == 10
        assert len(await found(store, "deploy")) == 10
        assert len(await found(store, "deploy", project="projects/web")) == 10

    async def test_what_was_said_about_it_comes_along(self, store: EpisodeStore) -> None:
        await store.record([episode(1, title="login")], [outcome(1)])
        await give(store, 1, GOOD)
        (similar,) = await store.search("login", limit=1)
        assert similar.episode == await store.get(decision(1))
        assert similar.episode.feedback[0].match is Match.GOOD

    # Lists.

    async def test_history_is_a_projects_newest_first(self, store: EpisodeStore) -> None:
        await store.record([episode(2), episode(3, project="projects/ops"), episode(1)], [])
        assert decisions(await store.history("projects/web", limit=10, after=None)) == [
            decision(2),
            decision(1),
        ]

    async def test_paging_misses_and_repeats_none_of_the_same_moment(self, store: EpisodeStore) -> None:
        same = [episode(f"{number:02}", decide_time=START) for number in range(9)]
        await store.record([*same, episode(5), episode(6)], [])
        seen: list[Episode] = []
        after = None
        while page := await store.history("projects/web", limit=2, after=after):
            seen += page
            after = Position(page[-1].decide_time, page[-1].decision)
            # What is decided while somebody pages is newer than where they are.
            await store.record([episode(100 + len(seen))], [])
        assert len(seen) == len(set(decisions(seen))) == 11
        assert decisions(seen[:2]) == [decision(6), decision(5)]

    async def test_mistakes_are_what_failed_was_rerouted_or_judged_wrong(self, store: EpisodeStore) -> None:
        await store.record(
            [episode(number) for number in range(1, 8)],
            [
                outcome(1, Outcome.FAILED),
                outcome(2, Outcome.REROUTED),
                outcome(3, Outcome.SUCCEEDED),
                outcome(4, Outcome.CANCELLED),
                outcome(5, Outcome.REJECTED),
                outcome(6, Outcome.SUCCEEDED),
            ],
        )
        await give(store, 6, BAD)
        await give(store, 7, Feedback(match=Match.NONE))
        await give(store, 3, GOOD)
        listed = decisions(await store.mistakes("", limit=10, after=None))
        assert listed == [decision(number) for number in (7, 6, 2, 1)]

    async def test_a_mistake_that_is_judged_anew_is_none(self, store: EpisodeStore) -> None:
        await store.record([episode(1)], [])
        await give(store, 1, BAD)
        await give(store, 1, GOOD)
        assert await store.mistakes("", limit=10, after=None) == []

    async def test_mistakes_of_one_instance_by_pages(self, store: EpisodeStore) -> None:
        mine = [episode(number, instance="instances/team") for number in range(5)]
        await store.record(
            [*mine, episode(9)], [outcome(number, Outcome.FAILED) for number in (0, 1, 2, 3, 4, 9)]
        )
        first = await store.mistakes("instances/team", limit=3, after=None)
        place = Position(first[-1].decide_time, first[-1].decision)
        rest = await store.mistakes("instances/team", limit=3, after=place)
        assert decisions(first + rest) == [decision(number) for number in (4, 3, 2, 1, 0)]

    async def test_recent_activity_is_newest_first_and_counted_by_project(self, store: EpisodeStore) -> None:
        await store.record(
            [
                episode(0),
                episode(1),
                episode(2),
                episode(3, project="projects/ops"),
                episode(4, project=""),
                episode(5, instance="instances/team"),
            ],
            [],
        )
        activity = await store.recent("", since=START, limit=3)
        assert decisions(activity.decisions) == [decision(5), decision(4), decision(3)]
        assert activity.by_project == {"projects/web": 3, "projects/ops": 1}
        team = await store.recent("instances/team", since=START, limit=3)
        assert decisions(team.decisions) == [decision(5)]
        assert team.by_project == {"projects/web": 1}

    # Feedback.

    async def test_feedback_comes_back_as_it_was_given(self, store: EpisodeStore) -> None:
        await store.record([episode(1)], [])
        whole = Feedback(
            match=Match.BAD,
            better_project="projects/ops",
            actual_effort=timedelta(hours=2, microseconds=1),
            quality=0.0,
            rework=True,
            blockers=("vpn", "keys"),
            comment="no",
            author="ann@example.org",
        )
        given = await give(store, 1, whole, at=5)
        assert given.passed_to == []
        assert given.feedback == replace(whole, name=given.feedback.name, create_time=START + 5 * SECOND)
        assert given.feedback.name.startswith("episodes/d1/feedback/")
        assert await feedback_on(store, 1) == (given.feedback,)

    async def test_feedback_on_what_is_not_recorded_does_nothing(self, store: EpisodeStore) -> None:
        with pytest.raises(EpisodeNotFound) as caught:
            await give(store, 1, GOOD)
        assert dict(caught.value.metadata) == {"decision": decision(1)}
        await store.record([episode(1)], [])
        assert await feedback_on(store, 1) == ()

    async def test_feedback_goes_up_level_by_level(self, store: EpisodeStore) -> None:
        await store.record(chain(1, 2, 3, 4), [])
        given = await give(store, 4, replace(BAD, comment="wrong team", author="ann"))
        assert given.passed_to == [decision(3), decision(2), decision(1)]
        for number in (1, 2, 3):
            (up,) = await feedback_on(store, number)
            assert (up.match, up.comment, up.author) == (Match.BAD, "wrong team", "ann")
            assert up.from_decision == decision(4)
            assert up.name.startswith(f"episodes/d{number}/feedback/")
        assert (await feedback_on(store, 4))[0].from_decision == ""

    async def test_it_does_not_go_down_or_sideways(self, store: EpisodeStore) -> None:
        await store.record([*chain(1, 2, 3), episode(4, parent_decision=decision(1))], [])
        assert (await give(store, 2, GOOD)).passed_to == [decision(1)]
        assert await feedback_on(store, 3) == await feedback_on(store, 4) == ()

    async def test_a_better_project_goes_up_only_where_it_was_weighed(self, store: EpisodeStore) -> None:
        weighed = (Candidate("projects/web", 0.6), Candidate("projects/ops", 0.4))
        top, middle, low = chain(1, 2, 3)
        await store.record([replace(top, candidates=weighed), middle, low], [])
        await give(store, 3, replace(BAD, better_project="projects/ops"))
        betters = [(await feedback_on(store, number))[0].better_project for number in (3, 2, 1)]
        assert betters == ["projects/ops", "", "projects/ops"]

    async def test_what_nobody_should_have_had_is_a_bad_match_above(self, store: EpisodeStore) -> None:
        await store.record(chain(1, 2), [])
        await give(store, 2, Feedback(match=Match.NONE))
        matches = [(await feedback_on(store, number))[0].match for number in (2, 1)]
        assert matches == [Match.NONE, Match.BAD]

    async def test_a_gap_ends_the_way_up(self, store: EpisodeStore) -> None:
        top, _, low = chain(1, 2, 3)
        await store.record([top, low], [])
        assert (await give(store, 3, GOOD)).passed_to == []
        assert await feedback_on(store, 1) == ()

    @pytest.mark.parametrize("around", [1, 2, 3])
    async def test_decisions_in_a_circle_get_it_once(self, store: EpisodeStore, around: int) -> None:
        ring = [episode(n, parent_decision=decision((n + 1) % around)) for n in range(around)]
        await store.record(ring, [])
        assert (await give(store, 0, GOOD)).passed_to == [decision(n) for n in range(1, around)]
        for number in range(around):
            assert len(await feedback_on(store, number)) == 1

    async def test_it_goes_up_so_many_levels_and_no_more(self, store: EpisodeStore) -> None:
        await store.record(chain(*range(40)), [])
        given = await give(store, 39, GOOD)
        assert given.passed_to == [decision(number) for number in range(38, 38 - MOST_LEVELS, -1)]

    async def test_the_newest_are_shown_and_newest_first(self, store: EpisodeStore) -> None:
        await store.record([episode(1)], [])
        for number in range(MOST_FEEDBACK + 5):
            await give(store, 1, Feedback(comment=str(number)))
        shown = [feedback.comment for feedback in await feedback_on(store, 1)]
        assert shown == [str(number) for number in range(MOST_FEEDBACK + 4, 4, -1)]

    async def test_the_same_request_gets_the_first_answer(self, store: EpisodeStore) -> None:
        await store.record(chain(1, 2), [])
        whole = replace(BAD, quality=0.5, actual_effort=SECOND, blockers=("vpn",), comment="c", author="a")
        first = await give(store, 2, whole, request_id="r")
        assert await give(store, 2, whole, request_id="r", at=60) == first
        assert len(await feedback_on(store, 2)) == len(await feedback_on(store, 1)) == 1

    async def test_the_same_id_for_another_request_is_refused(self, store: EpisodeStore) -> None:
        await store.record([episode(1), episode(2)], [])
        await give(store, 1, GOOD, request_id="r")
        for number, feedback in ((1, BAD), (2, GOOD)):
            with pytest.raises(IdempotencyConflict):
                await give(store, number, feedback, request_id="r")
        assert len(await feedback_on(store, 1)) == 1

    async def test_a_refused_request_may_come_again(self, store: EpisodeStore) -> None:
        with pytest.raises(EpisodeNotFound):
            await give(store, 1, GOOD, request_id="r")
        await store.record([episode(1)], [])
        await give(store, 1, GOOD, request_id="r")
        assert len(await feedback_on(store, 1)) == 1

    # The score.

    async def test_the_score_of_nothing_is_zero(self, store: EpisodeStore) -> None:
        stats = await store.stats(project="", instance="")
        assert (stats.decisions, stats.with_outcome, stats.succeeded) == (0, 0, 0)
        assert stats.bins == bins_of([])

    async def test_the_score_is_what_a_hand_works_out(self, store: EpisodeStore) -> None:
        """
        Judged: 0.9 right, 0.95 wrong, 0.2 wrong, 0.25 right; a fifth, 0.9, nobody judged.

        Calibration 0.35 and regret 0.2875, as in `test_model`.
        """
        confidences = [0.9, 0.95, 0.2, 0.25, 0.9]
        await store.record(
            [episode(number, confidence=confidence) for number, confidence in enumerate(confidences)],
            [outcome(0), outcome(1, Outcome.FAILED), outcome(4)],
        )
        for number, feedback in enumerate([GOOD, BAD, Feedback(match=Match.NONE), GOOD]):
            await give(store, number, feedback)
        await give(store, 4, Feedback(comment="who knows"))
        stats = await store.stats(project="", instance="")
        assert (stats.decisions, stats.with_outcome, stats.succeeded) == (5, 3, 2)
        assert (stats.judged, stats.right, stats.accuracy) == (4, 2, 0.5)
        assert stats.calibration_error == pytest.approx(0.35)
        assert stats.regret == pytest.approx(0.2875)
        assert [bin.count for bin in stats.bins] == [0, 0, 2, 0, 0, 0, 0, 0, 0, 2]

    async def test_the_newest_feedback_that_judges_counts(self, store: EpisodeStore) -> None:
        await store.record([episode(1)], [])
        for feedback, right in ((BAD, 0), (GOOD, 1), (Feedback(comment="thanks"), 1), (BAD, 0)):
            await give(store, 1, feedback)
            stats = await store.stats(project="", instance="")
            assert (stats.judged, stats.right) == (1, right)

    async def test_feedback_from_below_counts_above(self, store: EpisodeStore) -> None:
        await store.record(chain(1, 2, 3), [])
        await give(store, 3, BAD)
        stats = await store.stats(project="", instance="")
        assert (stats.judged, stats.right) == (3, 0)

    async def test_the_score_of_a_project_of_an_instance(self, store: EpisodeStore) -> None:
        await store.record(
            [
                episode(1),
                episode(2, project="projects/ops"),
                episode(3, instance="instances/team"),
                episode(4, project="projects/ops", instance="instances/team"),
            ],
            [outcome(number) for number in (1, 2, 4)],
        )
        for number in (2, 3, 4):
            await give(store, number, GOOD)

        async def counts(project: str, instance: str) -> tuple[int, int, int]:
            stats = await store.stats(project=project, instance=instance)
            return stats.decisions, stats.with_outcome, stats.judged

        assert await counts("projects/web", "") == (2, 1, 1)
        assert await counts("", "instances/team") == (2, 1, 2)
        assert await counts("projects/ops", "instances/team") == (1, 1, 1)
        assert await counts("projects/nobody", "") == (0, 0, 0)

    # The score, parted.

    async def test_the_score_of_some_days_is_parted_by_time_and_strategy(self, store: EpisodeStore) -> None:
        """Eight decisions, a second apart, the last four of another strategy; the even ones judged."""
        await store.record(
            [
                episode(number, strategy="rules" if number < 4 else "learned", confidence=number / 10)
                for number in range(8)
            ],
            [outcome(0), outcome(1), outcome(2, Outcome.FAILED)],
        )
        for number in (0, 2, 4, 6):
            await give(store, number, BAD if number == 2 else GOOD)
        stats = await parted(store, periods=2)
        assert (stats.total.decisions, stats.total.judged, stats.total.right) == (8, 4, 3)
        first, second = stats.periods
        assert (first.start, second.start) == (START, START + 4 * SECOND)
        assert [first.end, second.end] == [START + 4 * SECOND, START + 8 * SECOND]
        sums = [(p.score.decisions, p.score.judged, p.score.right) for p in stats.periods]
        assert sums == [(4, 2, 1), (4, 2, 2)]
        assert (first.score.with_outcome, first.score.succeeded, first.score.accuracy) == (3, 2, 0.5)
        assert first.score.mean_confidence == pytest.approx(0.1)
        assert [(strategy, score.decisions) for strategy, score in stats.strategies] == [
            ("learned", 4), ("rules", 4)
        ]  # fmt: skip
        assert sum(bin.count for bin in stats.total.bins) == 4

    async def test_of_other_days_and_instances_nothing_is_said(self, store: EpisodeStore) -> None:
        await store.record([episode(1), episode(3, instance="instances/team"), episode(9)], [])
        stats = await parted(store, instance="instances/team", periods=5)
        assert (stats.total.decisions, len(stats.periods)) == (1, 5)
        assert [period.score.decisions for period in stats.periods] == [1, 0, 0, 0, 0]
        assert (await parted(store, until=START + 2 * SECOND)).total.decisions == 1
        none = await parted(store, instance="instances/none")
        assert none == RoutingStats(none.total)
        assert none.total.bins == bins_of([])

    async def test_mistakes_are_counted_by_what_was_right(self, store: EpisodeStore) -> None:
        """By the newest feedback that judges; without a better project nothing is known."""
        better = Feedback(match=Match.BAD, better_project="projects/ops")
        await store.record([episode(number) for number in range(6)], [])
        same = Feedback(match=Match.BAD, better_project="projects/web")  # contradicts itself
        said = {
            0: [better],
            1: [GOOD, better],
            2: [better, GOOD],
            3: [Feedback(match=Match.NONE)],
            4: [BAD],
            5: [same],
        }
        for number, feedback in said.items():
            for each in feedback:
                await give(store, number, each)
        await give(store, 0, Feedback(comment="a pity"))
        stats = await parted(store)
        assert stats.confusions == [
            Confusion("projects/web", "projects/ops", 2),
            Confusion("projects/web", "", 1),
        ]
        assert stats.confused == 3
        assert await store.verdicts([decision(5)]) == [Verdict(decision(5), right=False)]
        assert len((await parted(store, confusions=1)).confusions) == 1

    async def test_what_is_known_of_decisions(self, store: EpisodeStore) -> None:
        better = Feedback(match=Match.BAD, better_project="projects/ops")
        await store.record([episode(number) for number in range(6)], [outcome(0), outcome(1)])
        for number, feedback in ((1, GOOD), (2, better), (3, Feedback(match=Match.NONE)), (4, BAD)):
            await give(store, number, feedback)
        found = await store.verdicts([decision(number) for number in (0, 1, 2, 3, 4, 5, 99)])
        assert sorted(found, key=lambda verdict: verdict.decision) == [
            Verdict(decision(0), outcome=Outcome.SUCCEEDED),
            Verdict(decision(1), right=True, project="projects/web", outcome=Outcome.SUCCEEDED),
            Verdict(decision(2), right=False, project="projects/ops"),
            Verdict(decision(3), right=False, nobody=True),
            Verdict(decision(4), right=False),
            Verdict(decision(5)),
        ]
        assert await store.verdicts([]) == []


async def parted(store: EpisodeStore, instance: str = "", **said: Any) -> RoutingStats:
    """The score of the eight seconds from the start on."""
    window: dict[str, Any] = {"since": START, "until": START + 8 * SECOND, "periods": 4, "confusions": 10}
    return await store.routing_stats(instance, **(window | said))
