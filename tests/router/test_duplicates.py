"""How alike two tasks are, and the index that finds the likest: against everybody compared with everybody."""

import gzip
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hopper_router.duplicates import MOST_FOUND, Index, Reading, read

STREAMS = Path(os.environ.get("HOPPER_ROUTING_DATA") or Path(__file__).parents[3] / "shared/data/routing")
WORDS = ["invoice", "refund", "crash", "login", "screen", "E4711", "export", "slow", "chart", "mail", "42"]

titles = st.lists(st.sampled_from(WORDS), min_size=1, max_size=7).map(" ".join)
descriptions = st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)
tags = st.lists(st.sampled_from(["type:Bug", "urgent", "ui"]), max_size=2)
readings = st.builds(read, titles, descriptions, tags)


def index_of(*items: Reading) -> Index:
    index = Index()
    for number, item in enumerate(items):
        index.add(str(number), item)
    return index


def score(one: Reading, other: Reading, *others: Reading) -> float:
    """How alike two tasks are among others."""
    return index_of(other, one, *others).compare(one, "0").score


# ---------------------------------------------------------------- how alike


@given(readings, st.lists(readings, max_size=5))
def test_a_task_is_exactly_like_itself(one: Reading, others: list[Reading]) -> None:
    assert score(one, one, *others) == 1.0


@given(readings, readings, st.lists(readings, max_size=5))
def test_whichever_is_asked_about(one: Reading, other: Reading, others: list[Reading]) -> None:
    there, back = score(one, other, *others), score(other, one, *others)
    assert 0.0 <= there <= 1.0
    assert there == pytest.approx(back)


@given(st.lists(st.sampled_from(WORDS), min_size=3, max_size=7, unique=True), st.data())
def test_the_more_words_of_a_title_are_others_the_less_alike(words: list[str], data: Any) -> None:
    """Each word that is replaced by one that nobody has takes something away."""
    asked = read(" ".join(words))
    changed = list(words)
    last = 1.0
    for place in data.draw(st.permutations(range(len(words)))):
        changed[place] = f"other{'abcdefgh'[place]}"
        now = score(asked, read(" ".join(changed)))
        assert now < last
        last = now
    assert last == 0.0


@given(st.lists(st.sampled_from(WORDS), min_size=2, max_size=9, unique=True), titles, st.data())
def test_the_more_words_of_descriptions_are_others_the_less_alike(
    words: list[str], title: str, data: Any
) -> None:
    asked = read(title, " ".join(words))
    changed = list(words)
    last = 1.0
    for place in data.draw(st.permutations(range(len(words)))):
        changed[place] = f"other{'abcdefghi'[place]}"
        now = score(asked, read(title, " ".join(changed)))
        assert now < last
        last = now


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Refund invoice 1001 for ACME", "refund Invoice 1001 for acme!"),
        ("The export of charts is slow", "export of chart slow"),
        ("Crash on login: error E4711", "E4711: crash on login"),
        ("[bug] Users cannot log in with SSO after update", "Users cannot log in with SSO after the update"),
        ("保存できない 請求書", "保存できない 請求書"),
        ("???", "???"),
    ],
)
def test_titles_that_mean_the_same_work(one: str, other: str) -> None:
    assert score(read(one), read(other)) >= 0.8


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Refund invoice 1001 for ACME", "Refund invoice 1002 for ACME"),
        ("Upgrade to Python 3.12", "Upgrade to Python 3.13"),
        ("Crash on login", "Crash on export"),
        ("Implement labels on sliders", "Implement labels on buttons"),
        ("Write the report", "Read the mail"),
        ("", "Write the report"),
    ],
)
def test_titles_that_mean_other_work(one: str, other: str) -> None:
    assert score(read(one), read(other)) < 0.8


def test_the_same_title_about_other_things_is_other_work() -> None:
    one = read("It crashes", "Opening the settings of an account that has no address ends the application")
    other = read("It crashes", "Printing more than ten pages at once on the old device never comes to an end")
    assert score(one, other) < 0.8
    assert score(one, read("It crashes")) >= 0.8  # which says nothing against it


def test_a_rare_word_says_more_than_a_common_one() -> None:
    common = [read(f"android {word}") for word in ("crash", "login", "mail", "chart", "export", "screen")]
    rare = score(read("android gyroscope"), read("gyroscope problem"), *common)
    often = score(read("android gyroscope"), read("android problem"), *common)
    assert rare > often


def test_why() -> None:
    index = index_of(read("Crash on login with E4711", "happens on the old device"), read("login screen"))
    (found,) = index.find(read("login crash E4711", "the old device again"), 0.5)
    assert found.key == "0"
    assert found.shared == ("e4711", "crash", "login", "old", "device") or set(found.shared) == {
        "e4711", "crash", "login", "old", "device",
    }  # fmt: skip
    assert found.shared[0] == "e4711"


# ---------------------------------------------------------------- the index


@given(st.lists(readings, max_size=12), readings, st.sampled_from([0.5, 0.65, 0.8, 0.95, 1.0]))
@example(
    [
        read("invoice"),
        read("invoice", "", ["type:Bug"]),
        read("invoice refund", "invoice crash E4711", ["urgent"]),
    ],
    read("refund crash E4711", "invoice crash E4711", ["type:Bug"]),
    0.5,
)
def test_finds_whom_everybody_compared_finds(known: list[Reading], asked: Reading, least: float) -> None:
    index = index_of(*known)
    every = [index.compare(asked, str(number)) for number in range(len(known))]
    alike = [one for one in every if one.score >= least]
    found = index.find(asked, least, most=len(known))
    assert {one.key for one in found} == {one.key for one in alike}
    assert [one.score for one in found] == sorted((one.score for one in alike), reverse=True)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.one_of(st.none(), readings)), max_size=30))
def test_what_was_forgotten_leaves_nothing_behind(moves: list[tuple[str, Reading | None]]) -> None:
    """After any changes the index says what one says that was made of what is left."""
    index, left = Index(), dict[str, Reading]()
    for key, reading in moves:
        if reading is None:
            assert index.remove(key) == (left.pop(key, None) is not None)
        else:
            index.add(key, reading)
            left[key] = reading
    fresh = Index()
    for key, reading in left.items():
        fresh.add(key, reading)
    assert len(index) == len(left)
    for reading in left.values():
        for key in left:
            assert index.compare(reading, key).score == pytest.approx(fresh.compare(reading, key).score)
    for key in left:
        index.remove(key)
    assert (index._by_word, index._by_title, index._vocabulary._numbers) == ({}, {}, {})


def test_the_oldest_are_forgotten() -> None:
    index = Index(limit=3)
    for number in range(5):
        index.add(str(number), read(f"task {number}00"))
    assert [key for key in map(str, range(5)) if key in index] == ["2", "3", "4"]


def test_a_task_gets_its_name() -> None:
    index = index_of(read("Crash on login"))
    index.rename("0", "name")
    assert [one.key for one in index.find(read("Crash on login"), 0.9)] == ["name"]
    index.add("again", read("Crash on login"))
    index.rename("again", "name")
    assert len(index) == 1


def test_few_of_many_that_are_the_same() -> None:
    """Titles of nothing but common words are found if they are the same; and who looks is not held up."""
    index = index_of(*[read("weekly report", f"of week {number}") for number in range(3000)])
    found = index.find(read("weekly report"), 0.8)
    assert len(found) == MOST_FOUND
    assert all(one.score == 1.0 for one in found)


def test_long_texts_are_read_in_part() -> None:
    reading = read("word " * 60_000, "x1 " * 300_000, [f"tag{number}" for number in range(1000)])
    assert len(reading.title) == 1
    assert len(reading.rest) == 1
    assert len(reading.tags) == 16


# ---------------------------------------------------------------- on real tasks

CHANGES = {"error": "failure", "add": "support", "fix": "repair", "create": "make", "unable": "not able"}
CHANGES |= {"remove": "delete", "show": "display", "issue": "problem", "need": "want", "missing": "absent"}


def rewritten(task: dict[str, Any], chance: random.Random) -> Reading:
    """The same task as somebody else might put it: words left out, swapped and replaced, less description."""
    words = task["title"].split()
    if len(words) > 3 and chance.random() < 0.5:
        del words[chance.randrange(len(words))]
    if len(words) > 2 and chance.random() < 0.3:
        at = chance.randrange(len(words) - 1)
        words[at], words[at + 1] = words[at + 1], words[at]
    words = [CHANGES.get(word.lower(), word) for word in words]
    if chance.random() < 0.3:
        words.insert(0, chance.choice(["[bug]", "please:", "urgent", "re:"]))
    sentences = task["description"].split(". ")
    kept = chance.choice([[], sentences, sentences[: max(1, len(sentences) * 2 // 3)], ["Hello", *sentences]])
    return read(" ".join(words).lower(), ". ".join(kept), task["tags"])


@pytest.mark.skipif(not STREAMS.is_dir(), reason="the routing streams are not there")
@pytest.mark.parametrize(
    ("stream", "least_precision", "least_recall"),
    [
        ("jira_components", 0.995, 0.8),
        ("multi_project", 0.995, 0.8),
        ("dotnet_areas", 0.99, 0.8),
        # Sentences of five words about the same thing are near to being the same work.
        ("intents_oos", 0.95, 0.65),
    ],
)
def test_real_tasks(stream: str, least_precision: float, least_recall: float) -> None:
    """Of tasks put in other words most are found; a different task for the same target is not."""
    with gzip.open(STREAMS / f"{stream}.jsonl.gz", "rt") as lines:
        tasks = [json.loads(line) for line in lines]
    chance = random.Random(7)
    index = Index()
    of_target: dict[str, list[str]] = {}
    for task in tasks:
        index.add(task["id"], read(task["title"], task["description"], task["tags"]))
        of_target.setdefault(task["target"], []).append(task["id"])
    found = wrong = 0
    asked = chance.sample(tasks, 500)
    for task in asked:
        again = rewritten(task, chance)
        found += task["id"] in {one.key for one in index.find(again, 0.8)}
        other = chance.choice(of_target[task["target"]])
        wrong += other != task["id"] and index.compare(again, other).score >= 0.8
    precision, recall = found / max(found + wrong, 1), found / len(asked)
    print(f"{stream}: precision {precision:.3f}, recall {recall:.3f}")
    assert precision >= least_precision
    assert recall >= least_recall
