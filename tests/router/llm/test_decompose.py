"""What an advisor proposes as parts becomes a plan, or is refused."""

from datetime import UTC, datetime, timedelta
from graphlib import TopologicalSorter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopper_router.llm.advisor import Subtask
from hopper_router.llm.decompose import PlanProblem, plan
from hopper_router.model import Clocks, TaskSpec

END = datetime(2026, 3, 1, tzinfo=UTC)
PARENT = TaskSpec(
    title="move the shop",
    description="all of it",
    tags=("shop",),
    required_capabilities=("linux",),
    required_labels={"region": "eu"},
    priority=80,
    project="projects/web",
    requester="mara",
    dependencies=("instances/global/tasks/01j",),
    payload=b"secret",
    clocks=Clocks(finish_by=END, run_for=timedelta(hours=1)),
    fairness_key="team-7",
)


def test_parts_keep_what_says_who_may_do_it_for_whom_and_until_when() -> None:
    first, second = plan((Subtask("copy", "the data"), Subtask("switch", "", (0,))), PARENT)
    assert (first.spec.title, first.spec.description, first.after) == ("copy", "the data", ())
    assert second.after == (0,)
    spec = second.spec
    assert (spec.required_labels, spec.requester, spec.priority) == ({"region": "eu"}, "mara", 80)
    assert (spec.tags, spec.turn_of, spec.clocks.finish_by) == (("shop",), "team-7", END)
    assert (spec.project, spec.payload, spec.dependencies, spec.required_capabilities) == ("", b"", (), ())


@pytest.mark.parametrize(
    ("subtasks", "problem"),
    [
        ((), "must be 1 to 20, and are 0"),
        ((Subtask("x"),) * 21, "must be 1 to 20, and are 21"),
        ((Subtask("x"), Subtask("  ")), r"subtasks\[1\].title: is empty"),
        ((Subtask("x", "", (1,)),), r"subtasks\[0\].after: there is no part 1"),
        ((Subtask("x", "", (-1,)),), r"subtasks\[0\].after: there is no part -1"),
        ((Subtask("x", "", (0,)),), "wait for each other"),
        ((Subtask("x", "", (1,)), Subtask("y", "", (2,)), Subtask("z", "", (0,))), "wait for each other"),
    ],
)
def test_what_is_no_plan_is_refused(subtasks: tuple[Subtask, ...], problem: str) -> None:
    with pytest.raises(PlanProblem, match=problem):
        plan(subtasks, PARENT)


def test_a_long_title_is_cut_between_characters() -> None:
    (part,) = plan((Subtask("é" * 200),), PARENT)
    assert part.spec.title == "é" * 150


@given(st.lists(st.lists(st.integers(-1, 8), max_size=4).map(tuple), min_size=1, max_size=8))
def test_every_plan_can_be_done_in_some_order(after: list[tuple[int, ...]]) -> None:
    try:
        parts = plan(tuple(Subtask("x", "", waits) for waits in after), PARENT)
    except PlanProblem:
        return
    order = list(TopologicalSorter({place: part.after for place, part in enumerate(parts)}).static_order())
    assert sorted(order) == list(range(len(after)))
    assert all(set(part.after) == set(waits) for part, waits in zip(parts, after, strict=True))
