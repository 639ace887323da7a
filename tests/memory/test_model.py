"""The core: which outcome stands, what feedback says above, and how the score is made."""

from datetime import timedelta
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopper_common.errors import InvalidArgument
from hopper_memory.model import (
    BINS,
    Bin,
    Candidate,
    EpisodeOutcome,
    Feedback,
    Match,
    Outcome,
    Stats,
    bin_of,
    bins_of,
    check_feedback,
    episode_name,
    feedback_name,
    first_of_each,
    passed_up,
    prevailing,
    prevails,
    verdict,
)
from tests.memory.samples import episode, outcome

ENDS = [kind for kind in Outcome if kind is not Outcome.REROUTED]
JUDGED = st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=60)


def stats_of(judged: list[tuple[float, bool]]) -> Stats:
    return Stats(len(judged), 0, 0, bins_of(judged))


class TestNames:
    def test_an_episode_is_named_after_its_decision(self) -> None:
        assert episode_name("decisions/01j") == "episodes/01j"
        assert feedback_name("decisions/01j", "01k") == "episodes/01j/feedback/01k"

    def test_the_first_of_a_decision_counts(self) -> None:
        one, other, two = episode(1, title="one"), episode(1, title="other"), episode(2)
        assert first_of_each([one, two, other]) == [one, two]


class TestPrevails:
    @pytest.mark.parametrize("kind", Outcome)
    def test_the_first_always_does(self, kind: Outcome) -> None:
        assert prevails(kind, None)

    @pytest.mark.parametrize("first", ENDS)
    @pytest.mark.parametrize("later", Outcome)
    def test_nothing_prevails_over_a_real_end(self, first: Outcome, later: Outcome) -> None:
        assert not prevails(later, first)

    @pytest.mark.parametrize("end", ENDS)
    def test_a_real_end_prevails_over_rerouted(self, end: Outcome) -> None:
        assert prevails(end, Outcome.REROUTED)
        assert not prevails(Outcome.REROUTED, Outcome.REROUTED)

    def test_one_is_left_of_each_decision(self) -> None:
        rerouted, done, late = outcome(1, Outcome.REROUTED), outcome(1), outcome(1, Outcome.FAILED)
        other = outcome(2, Outcome.REJECTED)
        assert prevailing([rerouted, other, done, late]) == [done, other]

    def test_where_one_real_end_is_reported_order_does_not_matter(self) -> None:
        reports = [outcome(1), outcome(1, Outcome.REROUTED), outcome(1), outcome(1, Outcome.REROUTED)]
        left = {tuple(prevailing(order)) for order in permutations(reports)}
        assert left == {(outcome(1),)}

    @given(st.lists(st.sampled_from(Outcome)))
    def test_repeating_all_reports_changes_nothing(self, kinds: list[Outcome]) -> None:
        reports: list[EpisodeOutcome] = [outcome(1, kind) for kind in kinds]
        assert prevailing(reports + reports) == prevailing(reports)


class TestFeedback:
    CANDIDATES = (Candidate("projects/a", 0.7), Candidate("projects/b", 0.3))

    def up(self, feedback: Feedback, project: str = "projects/a") -> Feedback:
        return passed_up(feedback, given_on="decisions/low", project=project, candidates=self.CANDIDATES)

    @pytest.mark.parametrize("match", [None, Match.GOOD, Match.BAD])
    def test_a_match_goes_up_as_it_is(self, match: Match | None) -> None:
        assert self.up(Feedback(match=match)).match is match

    def test_that_nobody_should_have_had_it_makes_it_wrong_to_send_it_here(self) -> None:
        assert self.up(Feedback(match=Match.NONE)).match is Match.BAD

    def test_a_better_project_goes_up_where_it_could_have_been_chosen(self) -> None:
        said = Feedback(match=Match.BAD, better_project="projects/b")
        assert self.up(said).better_project == "projects/b"

    def test_it_does_not_where_it_was_not_weighed_or_was_chosen(self) -> None:
        assert self.up(Feedback(match=Match.BAD, better_project="projects/z")).better_project == ""
        assert self.up(Feedback(match=Match.BAD, better_project="projects/a")).better_project == ""

    def test_the_rest_is_about_the_work_and_stays(self) -> None:
        said = Feedback(
            match=Match.GOOD,
            actual_effort=timedelta(hours=2),
            quality=0.9,
            rework=True,
            blockers=("vpn",),
            comment="fine",
            author="ann",
        )
        up = self.up(said)
        assert up.from_decision == "decisions/low"
        assert (up.actual_effort, up.quality, up.rework) == (said.actual_effort, 0.9, True)
        assert (up.blockers, up.comment, up.author) == (("vpn",), "fine", "ann")

    @pytest.mark.parametrize("match", [None, Match.GOOD, Match.NONE])
    def test_only_a_bad_match_can_name_a_better_project(self, match: Match | None) -> None:
        with pytest.raises(InvalidArgument) as caught:
            check_feedback(Feedback(match=match, better_project="projects/b"))
        assert [violation.field for violation in caught.value.violations] == ["feedback.better_project"]
        check_feedback(Feedback(match=Match.BAD, better_project="projects/b"))

    @pytest.mark.parametrize(
        ("match", "project", "right"),
        [
            (Match.GOOD, "projects/a", True),
            (Match.BAD, "projects/a", False),
            (Match.NONE, "projects/a", False),
            (Match.NONE, "", True),
            (Match.BAD, "", False),
            (None, "projects/a", None),
        ],
    )
    def test_the_verdict(self, match: Match | None, project: str, right: bool | None) -> None:
        assert verdict(match, project=project) is right


class TestScore:
    def test_worked_by_hand(self) -> None:
        """
        Four judged: 0.9 right, 0.95 wrong, 0.2 wrong, 0.25 right.

        Last bin: mean 0.925, half right, gap 0.425. Third bin: mean 0.225, half right, gap 0.275.
        Calibration (2*0.425 + 2*0.275) / 4 = 0.35. Regret (0.95 + 0.2) / 4 = 0.2875.
        """
        stats = stats_of([(0.9, True), (0.95, False), (0.2, False), (0.25, True)])
        assert (stats.judged, stats.right, stats.accuracy) == (4, 2, 0.5)
        assert stats.calibration_error == pytest.approx(0.35)
        assert stats.regret == pytest.approx(0.2875)
        last = stats.bins[9]
        assert (last.count, last.accuracy) == (2, 0.5)
        assert last.mean_confidence == pytest.approx(0.925)

    def test_nothing_judged_is_all_zero_and_ten_empty_bins(self) -> None:
        stats = stats_of([])
        assert (stats.accuracy, stats.calibration_error, stats.regret) == (0.0, 0.0, 0.0)
        assert stats.bins == tuple(Bin(index) for index in range(BINS))
        assert {(bin.mean_confidence, bin.accuracy) for bin in stats.bins} == {(0.0, 0.0)}

    @pytest.mark.parametrize(
        ("confidence", "index"),
        [(0.0, 0), (0.0999, 0), (0.1, 1), (0.5, 5), (0.8999, 8), (0.9, 9), (0.999, 9), (1.0, 9)],
    )
    def test_bins_are_closed_below_and_the_last_above_too(self, confidence: float, index: int) -> None:
        assert bin_of(confidence) == index

    def test_bins_touch_each_other_from_0_to_1(self) -> None:
        bins = bins_of([])
        assert (bins[0].lower, bins[-1].upper) == (0.0, 1.0)
        assert [bin.upper for bin in bins[:-1]] == [bin.lower for bin in bins[1:]]

    @pytest.mark.parametrize(("right", "regret", "error"), [(False, 1.0, 1.0), (True, 0.0, 0.0)])
    def test_the_ends_of_the_scale(self, right: bool, regret: float, error: float) -> None:
        stats = stats_of([(1.0, right)] * 3)
        assert (stats.regret, stats.calibration_error) == (regret, error)

    @given(JUDGED)
    def test_agrees_with_the_definitions(self, judged: list[tuple[float, bool]]) -> None:
        stats = stats_of(judged)
        n = len(judged) or 1
        assert stats.judged == len(judged)
        assert stats.accuracy == pytest.approx(sum(right for _, right in judged) / n)
        assert stats.regret == pytest.approx(sum(c for c, right in judged if not right) / n)
        error = 0.0
        for index in range(BINS):
            members = [(c, right) for c, right in judged if bin_of(c) == index]
            # |sum of confidence - number right| is the gap of the means, times the count.
            error += abs(sum(c for c, _ in members) - sum(right for _, right in members)) / n
        assert stats.calibration_error == pytest.approx(error)

    @given(JUDGED)
    def test_every_number_is_a_share(self, judged: list[tuple[float, bool]]) -> None:
        stats = stats_of(judged)
        for share in (stats.accuracy, stats.calibration_error, stats.regret):
            assert -1e-9 <= share <= 1 + 1e-9
