"""
What a language model adds that is asked about the tasks the router is least sure of: `python -m tests.bench.cascade`.

The streams of `routing_quality` go through the router's own way of deciding and learning, with `strategy: hybrid`. The
model is simulated: of the shortlist it always names the right project, and it says so when none of them is. It may be
asked about 20 % of the tasks so far, whichever they are; its threshold follows the confidences of the last 1,000 tasks,
as an operator would set it. For each stream: top-1 by what was learned alone, in the same pass; with the model; how
many points that adds, and how many it would add if it were asked about everything.
"""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from hopper_router import routing
from hopper_router.model import Decision, Opinion, Outcome, TaskSpec, Word
from hopper_router.policy_yaml import load_policy
from hopper_router.rules import Policy
from tests.bench.routing_quality import DATA, HARNESS, STREAMS, _load
from tests.bench.routing_quality_routers import _NOWHERE, _ROOT, Task, TheRouter

SHARE: Final = 0.2
WINDOW: Final = 1000
_EVERY: Final = 50
_POLICY: Final = "strategy: hybrid\nstages: [{use: learned, threshold: 0.8}, {use: llm, threshold: 0.5}]"


class WithModel(TheRouter):
    """
    A router that asks a model that is never wrong about its shortlist.

    Args:
        truth: The right target of each task, by the task's id.
    """

    def __init__(self, truth: dict[str, str | None]) -> None:
        super().__init__()
        self._policy = load_policy(_POLICY)
        self._truth = truth
        self._sure: deque[float] = deque(maxlen=WINDOW)
        self.tasks = self.asked = self.alone = self.together = self.possible = 0

    def decide(self, task: Task) -> list[tuple[str, float]]:
        spec = TaskSpec(task["title"], task["description"], tuple(task["tags"]))
        decision = self._decided(spec)
        self.tasks += 1
        right = self._truth[task["id"]]
        shortlist = [self._names.target(each.project) for each in decision.candidates]
        first, confidence = decision.opinions[-1].project, decision.opinions[-1].confidence
        alone = self._names.target(first) if first else shortlist[0]
        chosen = alone
        self._follow(confidence)
        if decision.outcome is Outcome.UNSURE and self.asked + 1 <= SHARE * self.tasks:
            self.asked += 1
            said = self._said(right, shortlist)
            decision = self._decided(spec, said)
            if decision.project:
                chosen = self._names.target(decision.project)
        self._load.add(self._names.project(chosen))
        if right is not None:
            self.alone += alone == right
            self.together += chosen == right
            self.possible += right in shortlist
        rest = [target for target in shortlist if target != chosen]
        return [(chosen, decision.confidence), *((target, 0.0) for target in rest)]

    def _decided(self, spec: TaskSpec, *said: Opinion) -> Decision:
        return routing.decide(
            spec,
            self._candidates,
            self._policy,
            load=self._load,
            refused={},
            basis=_NOWHERE,
            strategies=self._learned.strategies(_ROOT),
            said=said,
        )

    def _said(self, right: str | None, shortlist: Sequence[str]) -> Opinion:
        if right is None or right not in shortlist:
            return Opinion("llm", Word.NOTHING_FITS, "", 0.9, 0.5, "none of them")
        return Opinion("llm", Word.CHOICE, self._names.project(right), 0.9, 0.5, "that one")

    def _follow(self, confidence: float) -> None:
        """Ask about as many of the next tasks as may be asked about."""
        self._sure.append(confidence)
        if self.tasks % _EVERY == 0:
            self._policy = _with_threshold(self._policy, float(np.quantile(self._sure, SHARE)))


def _with_threshold(policy: Policy, threshold: float) -> Policy:
    learned, *others = policy.stages
    return replace(policy, stages=(replace(learned, threshold=threshold), *others))


def main(arguments: Sequence[str]) -> int:
    """Replay, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.cascade")
    parser.add_argument("--only", action="append", choices=STREAMS)
    parser.add_argument("--limit", type=int, help="only the first N tasks of each stream")
    options = parser.parse_args(arguments)
    harness = _load(HARNESS)
    gains = []
    print("stream             tasks   asked   alone    with    gain  possible")
    for name in options.only or STREAMS:
        rows, targets = harness.load(DATA, name)
        rows = rows[: options.limit]
        router = WithModel({row["id"]: row["target"] for row in rows})
        harness.replay(router, rows, targets)
        of = 100 / sum(row["target"] is not None for row in rows)
        gains.append((router.together - router.alone) * of)
        print(
            f"{name:17} {router.tasks:6} {router.asked / router.tasks:7.1%} {router.alone * of:7.2f} "
            f"{router.together * of:7.2f} {gains[-1]:+7.2f} {(router.possible - router.alone) * of:+9.2f}"
        )
    print(f"mean gain {np.mean(gains):+.2f} points; the bar is +4")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
