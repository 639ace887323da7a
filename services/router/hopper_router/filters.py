"""
Who can take a task at all: the filters of `routing`, in their order.

What they leave depends on the requirements of the task and on who is full, not on its text, and most tasks require the
same as others before. So it is kept, with the exclusions as they are recorded, for as long as the candidates live.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from hopper_router.candidates import BoolArray, Candidates, HashArray, IntArray, holders
from hopper_router.kept import Kept
from hopper_router.load import LoadColumn
from hopper_router.model import Exclusion, Project, TaskSpec

MAX_NAMED: Final = 20
_MOST_REFUSED: Final = 100
"""More refused projects than this are not worth a key."""


@dataclass(frozen=True, slots=True, eq=False)
class Sieve:
    """
    What the filters leave.

    Attributes:
        left: A mask over the rows.
        eligible: The rows that are left, in order.
        everybody: Whether that is all of them.
        unlimited: Which of the eligible, by position, take any number of tasks.
        salts: Those of the eligible, for breaking ties.
        exclusions: Who was ruled out, in the order of the filters.
        caught: By filter the rows it ruled out.
    """

    left: BoolArray
    eligible: IntArray
    everybody: bool
    unlimited: IntArray
    salts: HashArray
    exclusions: tuple[Exclusion, ...]
    caught: tuple[tuple[str, IntArray], ...]

    def catcher(self, row: int) -> tuple[str, str]:
        """The filter that ruled *row* out, and what it said of all that it ruled out for the same reason."""
        exclusions = zip(self.exclusions, self.caught, strict=True)
        return next((name, said.detail) for said, (name, rows) in exclusions if row in rows)


def sieve(task: TaskSpec, candidates: Candidates, refused: Mapping[str, str], load: LoadColumn) -> Sieve:
    """
    Apply all filters.

    Args:
        refused: Projects ruled out from outside, with the name of the filter, and after a colon why, if it says so.

    Kept by what the task requires, who is refused and who is full; a pin's with the others, because whoever pins one
    project pins it again.
    """
    if len(refused) > _MOST_REFUSED:
        return _Filters(candidates).apply(task, refused, load)
    labels = tuple(sorted(task.required_labels.items())) if task.required_labels else ()
    key = (task.required_capabilities, labels, tuple(refused.items()), load.full, task.project)
    sieves: Kept[object, Sieve] = candidates.sieves
    return sieves.get(key, lambda: _Filters(candidates).apply(task, refused, load))


class _Filters:
    """The rows that are left, and what each filter caught."""

    def __init__(self, candidates: Candidates) -> None:
        self._candidates = candidates
        self._left: BoolArray = np.ones(len(candidates), dtype=np.bool_)
        self._caught: list[tuple[str, str, IntArray]] = []

    def apply(self, task: TaskSpec, refused: Mapping[str, str], load: LoadColumn) -> Sieve:
        candidates = self._candidates
        for name, detail, rows in _refused_rows(candidates, refused):
            self._drop(name, rows, detail)
        self._drop("project-paused", candidates.paused)
        capabilities = {c: holders(candidates.capabilities, c) for c in task.required_capabilities}
        self._require("capability", capabilities)
        labels = sorted(task.required_labels.items())
        self._require("label", {f"{k}={v}": holders(candidates.labels, (k, v)) for k, v in labels})
        self._drop("no-live-worker", candidates.unattended)
        self._drop("capacity", np.array(sorted(load.full), dtype=np.intp))
        if task.project:
            others = np.ones(len(candidates), dtype=np.bool_)
            others[[candidates.rows[task.project]] if task.project in candidates.rows else []] = False
            self._drop("pin", others, f"the requester wants {id_of(task.project)}")
        return self._result()

    def _drop(self, name: str, rows: IntArray | BoolArray, detail: str = "") -> None:
        """Rule out those of *rows* (numbers, or a mask) that are left."""
        chosen = np.zeros_like(self._left)
        chosen[rows] = True
        caught = np.flatnonzero(chosen & self._left)
        if caught.size:
            self._left[caught] = False
            self._caught.append((name, detail, caught))

    def _require(self, name: str, wanted: Mapping[str, IntArray]) -> None:
        """Rule out who lacks any of what is wanted, and say what is lacking to how many."""
        if not wanted:
            return
        complete = np.ones_like(self._left)
        missing = []
        for what, rows in wanted.items():
            has = np.zeros_like(self._left)
            has[rows] = True
            lacking = int(np.count_nonzero(self._left & ~has))
            if lacking:
                missing.append(f"{what} ({lacking})")
            complete &= has
        self._drop(name, ~complete, f"missing {', '.join(missing)}")

    def _result(self) -> Sieve:
        names = self._candidates.names
        eligible = np.flatnonzero(self._left)
        return Sieve(
            left=self._left,
            eligible=eligible,
            everybody=len(eligible) == len(names),
            unlimited=np.flatnonzero(np.isinf(self._candidates.limits[eligible])),
            salts=self._candidates.salts[eligible],
            exclusions=tuple(
                Exclusion(name, len(rows), tuple(names[row] for row in rows[:MAX_NAMED].tolist()), detail)
                for name, detail, rows in self._caught
            ),
            caught=tuple((name, rows) for name, _, rows in self._caught),
        )


def _refused_rows(candidates: Candidates, refused: Mapping[str, str]) -> list[tuple[str, str, IntArray]]:
    by_reason: dict[tuple[str, str], list[int]] = {}
    for project, reason in refused.items():
        if project in candidates.rows:
            name, _, detail = reason.partition(": ")
            by_reason.setdefault((name, detail), []).append(candidates.rows[project])
    return [
        (name, detail, np.array(sorted(rows), dtype=np.intp))
        for (name, detail), rows in sorted(by_reason.items())
    ]


def detail_of(name: str, task: TaskSpec, project: Project, load: int) -> str:
    """Why one filter rules one project out."""
    lacking = [c for c in task.required_capabilities if c not in project.capabilities]
    other = [f"{k}={v}" for k, v in sorted(task.required_labels.items()) if project.labels.get(k) != v]
    return {
        "project-paused": "it is paused",
        "capability": f"missing {', '.join(lacking)}",
        "label": f"missing {', '.join(other)}",
        "no-live-worker": "it needs a live worker and has none",
        "capacity": f"{load} open tasks, and it takes {project.max_open}",
        "pin": f"the requester wants {id_of(task.project)}",
    }.get(name, "")


def id_of(name: str) -> str:
    """`projects/{id}` without its collection."""
    return name.removeprefix("projects/")
