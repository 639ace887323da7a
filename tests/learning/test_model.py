"""What the model promises, on streams small enough to be read."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hopper_learning import Model, Prediction, Settings, Target, Text, UnknownTarget, WordLlamaEncoder
from tests.learning.streams import HashEncoder, Lesson, correct, model, stream, target, taught

SEEN = stream(400, seed=1)
UNSEEN = stream(150, seed=2)
SHOWN = taught(SEEN)
"""Taught once for the tests that only look."""


def same(one: Prediction, other: Prediction) -> bool:
    return (
        list(one.ids) == list(other.ids)
        and one.probabilities.tobytes() == other.probabilities.tobytes()
        and one.none == other.none
    )


def test_lessons_are_learned_and_carry_over_to_other_texts() -> None:
    assert correct(model(), UNSEEN) < 0.4
    assert correct(SHOWN, UNSEEN) > 0.95


def test_words_alone_are_enough_where_there_are_no_vectors() -> None:
    assert correct(taught(SEEN, encoder=False), UNSEEN) > 0.9


def test_probabilities_and_none_add_up_to_one_best_first() -> None:
    student = taught(SEEN[:100])
    student.learn(Text("what is the weather like"), None)
    for text, _ in UNSEEN[:20]:
        prediction = student.predict(text)
        assert prediction.probabilities.sum() + prediction.none == pytest.approx(1.0)
        assert (np.diff(prediction.probabilities) <= 0).all()
        assert prediction.top(2) == prediction.ranked[:2]


def test_confidence_is_the_share_that_is_right() -> None:
    student, said, right = model(), 0.0, 0
    lessons = stream(800, seed=3, own_words=120)
    for at, (text, answer) in enumerate(lessons):
        prediction = student.predict(text)
        if at >= 200:
            said += prediction.probabilities[0]
            right += prediction.ids[0] == answer
        student.learn(text, answer)
    assert said / 600 == pytest.approx(right / 600, abs=0.04)


def test_a_new_target_is_found_by_its_words_before_its_first_lesson() -> None:
    student = taught(SEEN)
    student.add(Target("projects/billing", "Billing", "invoices and payments"))
    assert student.predict(Text("invoice has the wrong payment date")).ids[0] == "projects/billing"


def test_a_new_target_is_learned_from_a_handful_of_lessons() -> None:
    student = taught(SEEN)
    student.add(target(6))
    lessons = [lesson for lesson in stream(200, targets=7, seed=4) if lesson.target == "projects/p6"]
    for text, right in lessons[:12]:
        student.learn(text, right)
    assert correct(student, lessons[12:]) > 0.7
    assert correct(student, UNSEEN) > 0.9


def test_examples_tags_and_capabilities_of_a_target_count_as_its_words() -> None:
    student = Model(HashEncoder())
    student.add(Target("a", "First", examples=("reset my password",)))
    student.add(Target("b", "Second", tags=("kubernetes",)))
    student.add(Target("c", "Third", capabilities=("translation",)))
    for title, right in (
        ("password forgotten", "a"),
        ("kubernetes upgrade", "b"),
        ("translation wanted", "c"),
    ):
        assert student.predict(Text(title)).ids[0] == right


def test_a_changed_target_keeps_what_was_learned_and_answers_to_its_new_name() -> None:
    student = taught(SEEN)
    student.add(Target("projects/p3", "Warehouse", "shelves"))
    assert correct(student, UNSEEN) > 0.9
    student.add(Target("projects/p9", "Other"))
    assert student.predict(Text("warehouse")).ids[0] == "projects/p3"


def test_a_removed_target_is_never_proposed_and_the_others_share_its_chances() -> None:
    student = taught(SEEN)
    student.remove("projects/p2")
    for text, _ in UNSEEN:
        prediction = student.predict(text)
        assert "projects/p2" not in prediction.ids
        assert prediction.probabilities.sum() + prediction.none == pytest.approx(1.0)
    with pytest.raises(UnknownTarget, match="add it first"):
        student.learn(UNSEEN[0].text, "projects/p2")
    student.remove("projects/p2")


def test_a_target_added_again_begins_anew() -> None:
    student = taught(SEEN)
    student.remove("projects/p2")
    student.add(Target("projects/new", "Nothing in common"))
    assert student.explain(SEEN[0].text, "projects/new").experts["nb"].probability < 0.1


def test_only_the_allowed_targets_are_ranked() -> None:
    text = UNSEEN[0].text
    assert set(SHOWN.predict(text, among=["projects/p1", "projects/p4", "unheard-of"]).ids) == {
        "projects/p1",
        "projects/p4",
    }
    assert list(SHOWN.predict(text, among=[]).ids) == []


def test_without_targets_there_is_nothing_to_say_and_one_target_gets_it_all() -> None:
    student = model(0)
    assert student.predict(Text("anything")).ranked == []
    student.learn(Text("not ours"), None)
    assert student.predict(Text("not ours")).none == pytest.approx(1.0)
    student.add(target(0))
    assert student.predict(Text("about area0")).ids == ["projects/p0"]
    alone = model(1)
    assert alone.predict(Text("anything")).ranked == [("projects/p0", 1.0)]


@pytest.mark.parametrize(
    "text",
    [
        Text(""),
        Text("   \n\t", "", ("",)),
        Text("x" * 1_000_000, "y z " * 250_000, ("t" * 10_000,) * 1000, "r" * 10_000),
        Text("スクロールビューが落ちる", "画面が消えます"),
        Text("\x00\ud800 \U0001f4a9 ﬁ", "ÅǺ ß İ"),
        Text("a.b.c.d.e.f___g--h/i\\j::k", "at com.foo.Bar$Baz.<init>(Bar.java:42)\n" * 500),
    ],
)
def test_any_text_is_answered_and_learned_from(text: Text) -> None:
    student = taught(SEEN[:50])
    assert len(student.predict(text).ids) == 6
    student.learn(text, "projects/p1")
    assert np.isfinite(student.predict(text).probabilities).all()


def test_what_nobody_can_place_is_learned_to_be_nothing_of_ours() -> None:
    student = taught(SEEN)
    rng = random.Random(5)
    strange = [Text(" ".join(f"odd{rng.randrange(30)}" for _ in range(6))) for _ in range(80)]
    for text in strange[:40]:
        student.learn(text, None)
    assert all(student.predict(text).none > 0.5 for text in strange[40:])
    assert np.mean([student.predict(text).none for text, _ in UNSEEN]) < 0.02


def test_a_wrong_placement_lowers_that_target_without_naming_another() -> None:
    student = taught(SEEN[:60])
    text, right = UNSEEN[0]
    before = dict(student.predict(text).ranked)[right]
    for _ in range(5):
        student.learn_not(text, right)
    assert dict(student.predict(text).ranked)[right] < before
    with pytest.raises(UnknownTarget):
        student.learn_not(text, "projects/none-such")


def test_a_lesson_taken_back_leaves_the_sums_as_if_it_had_never_been() -> None:
    student, other = taught(SEEN[:80]), taught(SEEN[:80])
    wrong = Lesson(UNSEEN[0].text, "projects/p5" if UNSEEN[0].target != "projects/p5" else "projects/p4")
    student.learn(*wrong)
    student.unlearn(*wrong)
    for expert in ("nb", "mean", "ridge"):
        for text, right in UNSEEN[:10]:
            got, wanted = (each.explain(text, right).experts[expert].probability for each in (student, other))
            assert got == pytest.approx(wanted, rel=1e-3)
    with pytest.raises(UnknownTarget):
        student.unlearn(UNSEEN[0].text, "projects/none-such")


def test_many_targets_keep_fewer_words() -> None:
    student = model(6, settings=Settings(max_cells=8 * 512, least_words=128))
    for text, right in stream(200, seed=13, own_words=60):
        student.learn(text, right)
    assert student._nb.counts.size <= 8 * 1024
    before = len(student._vocabulary.rows)
    for number in range(6, 40):
        student.add(target(number))
    assert len(student._vocabulary.rows) < before
    assert student._nb.counts.size <= 64 * 1024
    assert correct(student, stream(100, seed=14, own_words=60)) > 0.8


def test_contradicting_lessons_leave_both_targets_in_question() -> None:
    student = taught(SEEN[:100])
    text = Text("the same words every time")
    for _ in range(20):
        student.learn(text, "projects/p0")
        student.learn(text, "projects/p1")
    (first, chance), (second, other) = student.predict(text).top(2)
    assert {first, second} == {"projects/p0", "projects/p1"}
    assert chance + other > 0.9
    assert chance < 0.9


def test_a_lesson_of_little_weight_moves_little() -> None:
    text, right = UNSEEN[0]
    chances = []
    for weight in (0.1, 1.0):
        student = taught(SEEN[:12])
        student.learn(text, right, weight=weight)
        chances.append(dict(student.predict(text).ranked)[right])
    assert chances[0] < chances[1]


def test_explanations_name_experts_and_words() -> None:
    text, right = UNSEEN[0]
    explanation = SHOWN.explain(text, right)
    assert explanation.probability == pytest.approx(dict(SHOWN.predict(text).ranked)[right])
    assert {"nb", "linear", "mean", "ridge", "name"} <= set(explanation.experts)
    number = right.removeprefix("projects/p")
    assert explanation.words[0][0].startswith(f"word{number}x") or f"word{number}x" in explanation.words[0][0]
    assert explanation.words[0][1] > 0
    sizes = [abs(weight) for _, weight in explanation.words]
    assert sizes == sorted(sizes, reverse=True)
    with pytest.raises(UnknownTarget):
        SHOWN.explain(text, "projects/none-such")


def test_predicting_changes_nothing() -> None:
    student = taught(SEEN[:50])
    before = student.snapshot()
    for text, _ in UNSEEN[:30]:
        student.predict(text)
        student.explain(text, "projects/p1")
    assert student.snapshot() == before


def _noisy(lessons: list[Lesson], share: float, one_target: bool, seed: int) -> list[tuple[Lesson, str]]:
    rng = random.Random(seed)
    noisy = []
    for lesson in lessons:
        if rng.random() < share:
            wrong = "projects/p0" if one_target else f"projects/p{rng.randrange(6)}"
            if wrong != lesson.target:
                noisy.append((Lesson(lesson.text, wrong), "liar"))
                continue
        noisy.append((lesson, f"user{rng.randrange(5)}"))
    return noisy


@pytest.mark.parametrize("one_target", [False, True])
def test_a_source_that_only_lies_costs_at_most_two_points(one_target: bool) -> None:
    lessons, asked = stream(700, seed=6, own_words=100), stream(400, seed=7, own_words=100)
    honest, lied_to = model(), model()
    for lesson in lessons:
        honest.learn(*lesson)
    for lesson, source in _noisy(lessons, 0.05, one_target, 8):
        lied_to.learn(*lesson, source=source)
    assert correct(lied_to, asked) >= correct(honest, asked) - 0.02


def test_vocabulary_is_bounded_and_what_is_met_again_stays() -> None:
    small = Settings(max_words=256, max_marks=512)
    student = model(settings=small)
    rng = random.Random(9)
    for at, (text, right) in enumerate(stream(400, seed=10, own_words=8)):
        noise = " ".join(f"noise{rng.randrange(10**9)}" for _ in range(20))
        again = f"twice{at // 2} twice{at // 2 + 10**6}"
        student.learn(text._replace(description=f"{noise} {again}"), right)
    assert len(student._vocabulary.rows) <= 256
    assert len(student._vocabulary.marks) <= 512
    assert student._nb.counts.shape[0] <= 1024
    assert correct(student, stream(100, seed=11, own_words=8)) > 0.9


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("learn"), st.integers(0, 59)),
        st.tuples(st.just("none"), st.integers(0, 59)),
        st.tuples(st.just("not"), st.integers(0, 59)),
        st.tuples(st.just("remove"), st.integers(0, 5)),
        st.tuples(st.just("add"), st.integers(0, 7)),
    ),
    max_size=40,
)
POOL = stream(60, seed=12)


def play(student: Model, step: tuple[str, int]) -> None:
    """One entry of a log; lessons about targets that are not there are refused, as in life."""
    what, number = step
    try:
        if what == "learn":
            student.learn(*POOL[number], source=f"s{number % 3}")
        elif what == "none":
            student.learn(POOL[number].text, None)
        elif what == "not":
            student.learn_not(*POOL[number], source=f"s{number % 3}")
        elif what == "remove":
            student.remove(f"projects/p{number}")
        else:
            student.add(target(number))
    except UnknownTarget:
        pass


@given(steps=STEPS, cut=st.integers(0, 40))
@settings(max_examples=20, deadline=None)
def test_a_replica_and_a_restored_model_say_the_same_bytes(steps: list[tuple[str, int]], cut: int) -> None:
    small = Settings(max_words=64, max_marks=64)
    whole, replica, first = (model(settings=small) for _ in range(3))
    for step in steps:
        play(whole, step)
        play(replica, step)
        replica.predict(POOL[0].text)
    for step in steps[:cut]:
        play(first, step)
    restored = Model(HashEncoder(), small)
    restored.restore(first.snapshot())
    for step in steps[cut:]:
        play(restored, step)
    for text, _ in POOL[:10]:
        assert same(whole.predict(text), replica.predict(text))
        assert same(whole.predict(text), restored.predict(text))
    assert whole.snapshot() == restored.snapshot()


@given(steps=STEPS)
@settings(max_examples=20, deadline=None)
def test_only_targets_that_are_there_are_proposed_whatever_happened(steps: list[tuple[str, int]]) -> None:
    student = model(settings=Settings(max_words=64, max_marks=64))
    for step in steps:
        play(student, step)
    prediction = student.predict(POOL[0].text)
    assert sorted(prediction.ids) == sorted(each.id for each in student.targets)
    assert np.isfinite(prediction.probabilities).all()


def test_meaning_is_found_without_a_shared_word() -> None:
    student = Model(WordLlamaEncoder())
    student.add(Target("food", "Cooking", "recipes and meals"))
    student.add(Target("cars", "Vehicles", "driving and repairs"))
    assert student.predict(Text("how long do I boil pasta")).ids[0] == "food"
    assert student.predict(Text("the engine of my truck is loud")).ids[0] == "cars"


def test_weighing_columns_says_what_predicting_says() -> None:
    student = taught(SEEN)
    ids = [target.id for target in student.targets]
    columns = student.columns([*ids, "unheard-of"])
    assert columns[-1] == -1
    for _ in range(2):
        for text, _target in UNSEEN[:20]:
            chances, none, _ = student.weigh(text, columns[2:0:-1])
            said = student.predict(text, ids[1:3])
            assert none == pytest.approx(said.none)
            assert dict(zip(ids[2:0:-1], chances, strict=True)) == pytest.approx(dict(said.ranked))
        student.learn(Text("what is the weather like"), None)
    assert student.weigh(Text("anything"), columns[:0]).chances.tolist() == []


def test_what_targets_are_called_is_told_apart_from_what_outcomes_say() -> None:
    """Lessons move what was learned, and hardly what descriptions say."""
    student = Model(encoder=None)
    for name in ("kettle", "toaster"):
        student.add(Target(name, name))
    columns, about = student.columns(["kettle", "toaster"]), Text("the kettle hums")
    before = student.weigh(about, columns)
    assert np.exp(before.semantic).sum() == pytest.approx(1.0)
    assert before.semantic[0] > before.semantic[1]
    for _ in range(40):
        student.learn(about, "toaster")
    after = student.weigh(about, columns)
    assert after.chances[1] > after.chances[0]
    assert after.semantic[0] > after.semantic[1]


def test_telling_them_apart_knows_nothing_of_nobody() -> None:
    student = taught(SEEN)
    columns = student.columns([target.id for target in student.targets])
    student.learn(Text("sing a song"), None)
    semantic = student.weigh(Text("sing a song"), columns).semantic
    assert len(semantic) == len(columns)
    assert np.exp(semantic).sum() == pytest.approx(1.0)
