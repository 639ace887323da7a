"""
How well, how fast and in how much memory duplicates are found: `python -m tests.bench.duplicates`.

Precision and recall are those of real tasks put in other words by machine, against different tasks for the same target.
"Another one" is how many tasks have a likest other at least so alike: some of these are the same work, filed twice.
"""

from __future__ import annotations

import gzip
import json
import random
import resource
import time
from typing import Any

from hopper_router.duplicates import Index, read
from tests.router.test_duplicates import STREAMS, rewritten

NAMES = ("jira_components", "multi_project", "dotnet_areas", "intents_oos")
THRESHOLDS = (0.6, 0.7, 0.75, 0.8, 0.85, 0.9)
ASKED = 1500
OPEN = 100_000


def main() -> None:
    """Print both tables."""
    chance = random.Random(7)
    tasks = {name: _tasks(name) for name in NAMES}
    _speed([task for name in NAMES for task in tasks[name]], chance)  # first: memory is that of the process
    for name in NAMES:
        _quality(name, tasks[name], chance)


def _tasks(name: str) -> list[dict[str, Any]]:
    with gzip.open(STREAMS / f"{name}.jsonl.gz", "rt") as lines:
        return [json.loads(line) for line in lines]


def _quality(name: str, tasks: list[dict[str, Any]], chance: random.Random) -> None:
    index = Index()
    of_target: dict[str, list[str]] = {}
    for task in tasks:
        index.add(task["id"], read(task["title"], task["description"], task["tags"]))
        of_target.setdefault(task["target"], []).append(task["id"])
    same, different, nearest = [], [], []
    for task in chance.sample(tasks, min(ASKED, len(tasks))):
        again = rewritten(task, chance)
        found = index.find(again, THRESHOLDS[0])
        same.append(max((one.score for one in found if one.key == task["id"]), default=0.0))
        other = chance.choice(of_target[task["target"]])
        different.append(0.0 if other == task["id"] else index.compare(again, other).score)
        found = index.find(read(task["title"], task["description"], task["tags"]), THRESHOLDS[0])
        nearest.append(max((one.score for one in found if one.key != task["id"]), default=0.0))
    print(f"{name}: {len(tasks):,} tasks, {len(same):,} asked about")
    print("  above  precision  recall  another one")
    for above in THRESHOLDS:
        right, wrong, others = (sum(score >= above for score in some) for some in (same, different, nearest))
        precision = right / max(right + wrong, 1)
        print(f"  {above:5}  {precision:9.3f}  {right / len(same):6.3f}  {others / len(nearest):11.3f}")


def _speed(tasks: list[dict[str, Any]], chance: random.Random) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    index = Index()
    adding = 0.0
    for number in range(OPEN):
        task = tasks[number % len(tasks)]
        again = rewritten(task, chance) if number >= len(tasks) else None
        began = time.thread_time()
        index.add(str(number), again or read(task["title"], task["description"], task["tags"]))
        adding += time.thread_time() - began
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{OPEN:,} open: {1000 * (after - before) / OPEN:,.0f} bytes and {_micros(adding, OPEN):.0f} us each"
    )
    sample = chance.sample(tasks, ASKED)
    _times(index, "there is one", [rewritten(task, chance) for task in sample])
    mixed = [
        read(
            " ".join([*one["title"].split()[:3], *other["title"].split()[3:]]),
            one["description"],
            one["tags"],
        )
        for one, other in zip(sample, chance.sample(tasks, ASKED), strict=True)
    ]
    _times(index, "there is none", mixed)


def _times(index: Index, what: str, asked: list[Any]) -> None:
    times = []
    for reading in asked:
        began = time.thread_time()
        index.find(reading, 0.8)
        times.append(_micros(time.thread_time() - began))
    times.sort()
    mean, tail = sum(times) / len(times), times[len(times) * 99 // 100]
    print(f"  find, {what}: mean {mean:.0f}, median {times[len(times) // 2]:.0f}, 99 % {tail:.0f} us")


def _micros(seconds: float, count: int = 1) -> float:
    return 1e6 * seconds / count


if __name__ == "__main__":
    main()
