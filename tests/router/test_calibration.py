"""What an adviser's word has proved to be worth: the pure part, and by gRPC."""

import random
from collections.abc import AsyncIterator
from math import exp, log
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopper_router.calibration import TAKEN_AT_ITS_WORD, Given, Proof, fitted, proof, scales
from hopper_router.replay import Verdict
from tests.router.harness import Router, State
from tests.router.test_advice import API, LLM, OPS, WEB, World, advising

HERE = Given("llm", "m", API, 0.9, "decisions/d", API)
ELSEWHERE = HERE._replace(decided=WEB)


@pytest.mark.parametrize(
    ("given", "verdict", "right"),
    [
        (HERE, Verdict(right=True), True),
        (HERE, Verdict(right=False), False),
        (HERE, Verdict(right=False, project=WEB), False),
        (HERE, Verdict(right=False, nobody=True), False),
        (ELSEWHERE, Verdict(right=True), False),
        (ELSEWHERE, Verdict(right=False, project=API), True),
        (ELSEWHERE, Verdict(right=False, project=OPS), False),
        (ELSEWHERE, Verdict(right=False, nobody=True), False),
        (ELSEWHERE, Verdict(right=False), None),  # one of many is ruled out, and not this one
        (ELSEWHERE._replace(decided=""), Verdict(right=False), None),
    ],
)
def test_what_feedback_proves(given: Given, verdict: Verdict, right: bool | None) -> None:
    assert proof(given, verdict) == (None if right is None else Proof(0.9, right, 1.0))


@pytest.mark.parametrize(
    ("given", "verdict", "proves"),
    [
        (HERE, Verdict(well=True), Proof(0.9, True, 0.5)),
        (ELSEWHERE, Verdict(well=True), Proof(0.9, False, 0.5)),
        (HERE, Verdict(well=False), None),  # it may have failed in the right place
        (HERE, Verdict(), None),
        (ELSEWHERE._replace(decided=""), Verdict(well=True), None),
    ],
)
def test_what_an_end_proves(given: Given, verdict: Verdict, proves: Proof | None) -> None:
    assert proof(given, verdict) == proves


def test_of_whom_nothing_is_known_is_taken_at_its_word() -> None:
    assert fitted([]).of(0.83) == 0.83
    assert scales([HERE], {}) == {}


def test_a_few_outcomes_move_little_and_many_as_far_as_they_speak() -> None:
    few, many = ([Proof(0.9, n % 10 < 6, 1.0) for n in range(count)] for count in (3, 300))
    assert 0.8 < fitted([proof._replace(right=False) for proof in few[:1]]).of(0.9) < 0.9
    assert fitted(few).of(0.9) > 0.85
    assert abs(fitted(many).of(0.9) - 0.6) < 0.03


@pytest.mark.parametrize(("slope", "shift"), [(0.4, 0.0), (1.0, -1.5), (2.0, 0.5), (0.3, -0.5)])
def test_thresholds_mean_what_they_say(slope: float, shift: float) -> None:
    """
    Of an adviser that is too sure, or not sure enough: the error of its word, by bins, after 400 outcomes.

    The prior still has a part in them.
    """
    chance = random.Random(7)

    def say() -> Proof:
        stated = chance.uniform(0.3, 0.97)
        really = 1 / (1 + exp(-(slope * log(stated / (1 - stated)) + shift)))
        return Proof(stated, chance.random() < really, 1.0)

    scale = fitted(say() for _ in range(400))
    unseen = [say() for _ in range(4000)]
    before = _error([(one.stated, one.right) for one in unseen])
    after = _error([(scale.of(one.stated), one.right) for one in unseen])
    assert after < 0.055 < before


def _error(said: list[tuple[float, bool]]) -> float:
    """Expected calibration error over ten bins."""
    bins = [[one for one in said if int(min(one[0], 0.999) * 10) == n] for n in range(10)]
    return sum(
        len(them) / len(said) * abs(mean(one[0] for one in them) - mean(one[1] for one in them))
        for them in bins
        if them
    )


PROOFS = st.lists(st.builds(Proof, st.floats(0, 1), st.booleans(), st.sampled_from([0.5, 1.0])), max_size=60)


@given(PROOFS, st.lists(st.floats(0, 1), min_size=2))
def test_surer_stays_surer_and_nothing_breaks(proofs: list[Proof], said: list[float]) -> None:
    scale = fitted(proofs)
    means = [scale.of(one) for one in sorted(said)]
    assert means == sorted(means)
    assert all(0 <= one <= 1 for one in means)
    assert scale == fitted(proofs)


def test_models_do_not_answer_for_each_other() -> None:
    bad = [HERE._replace(decision=f"decisions/{n}") for n in range(40)]
    good = [HERE._replace(model="other", decision=f"decisions/{n}") for n in range(40, 80)]
    verdicts = {one.decision: Verdict(right=one.model == "other") for one in (*bad, *good)}
    found = scales([*bad, *good], verdicts)
    assert found["llm", "m"].of(0.9) < 0.5
    assert found["llm", "other"].of(0.9) > 0.9
    assert TAKEN_AT_ITS_WORD.of(0.9) == 0.9


# ---------------------------------------------------------------- by gRPC


@pytest.fixture
async def world(router: Router) -> AsyncIterator[World]:
    for name in ("web", "api", "ops"):
        router.registry.project(name)
    async with advising(router) as made:
        yield made


async def test_a_model_that_is_surer_than_right_loses_its_say_and_gets_it_back(world: World) -> None:
    await world.policy(LLM + "on_unsure: ask")
    world.says(API, 0.9)
    placed = [await world.advise(await world.router.submit(f"odd {n}")) for n in range(12)]
    assert {(task.state, task.project) for task in placed} == {(State.STATE_QUEUED, API)}
    world.memory.known = {task.decision: Verdict(right=False, project=WEB) for task in placed}
    await world.adviser.weigh()
    unsure = await world.advise(await world.router.submit("odd again"))
    assert unsure.state == State.STATE_SUBMITTED
    said = (await world.decision(unsure)).opinions[-1]
    assert said.stated_confidence == 0.9
    assert said.confidence < 0.6
    assert f"llm: {said.confidence:.2f} for api, less than 0.60" in unsure.wait.message
    # Somebody takes a second look: it was right, all the time.
    world.memory.known = {task.decision: Verdict(right=True) for task in placed}
    await world.adviser.weigh()
    sure = await world.advise(await world.router.submit("odd once more"))
    assert (sure.state, sure.project) == (State.STATE_QUEUED, API)


async def test_what_people_decided_after_it_was_unsure_counts_too(world: World) -> None:
    await world.policy(LLM + "  - {use: person}")
    world.says(API, 0.55)
    for n in range(20):
        asked = await world.advise(await world.router.submit(f"odd {n}"))
        answered = await world.answer(asked, "api")
        world.memory.known[answered.decision] = Verdict(right=True)
    await world.adviser.weigh()
    placed = await world.advise(await world.router.submit("odd again"))
    assert (placed.state, placed.project) == (State.STATE_QUEUED, API)
