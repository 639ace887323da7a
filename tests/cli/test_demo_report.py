import gzip
import json
from pathlib import Path

import pytest
import yaml

from hopper.router.v1.decision_pb2 import Decision
from hopper_cli.demo.data import cut, load, path_of
from hopper_cli.demo.report import accuracy, by_project, curve, percentile
from hopper_cli.demo.run import Routed, examples
from hopper_cli.problems import UsageProblem

SAMPLE = str(path_of("sample.jsonl"))


def routed(project: str, target: str, confidence: float = 0.5, *, learned: bool = False) -> Routed:
    """A task that was sent somewhere."""
    sample = load(1, SAMPLE).samples[0]
    return Routed(
        sample=type(sample)("1", "t", "", (), target),
        task="instances/global/tasks/x",
        decision=Decision(confidence=confidence),
        project=project,
        submit_seconds=0.1,
        learned=learned,
    )


def test_percentiles_are_measured_values() -> None:
    """Nearest rank: no value that was never measured."""
    values = [float(number) for number in range(100, 0, -1)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile(values, 1)) == (50, 99, 100)
    assert (percentile([7.0], 0.01), percentile([], 0.5)) == (7, 0)


def test_accuracy_counts_what_a_person_had_to_decide_as_not_right() -> None:
    """A router that asks for everything is no good router."""
    all_of_them = [routed("a", "a"), routed("a", "b"), routed("", "b"), routed("b", "b")]
    assert accuracy(all_of_them) == 0.5
    assert by_project(all_of_them) == {"a": (2, 1), "(asked a person)": (1, 0), "b": (1, 1)}


def test_the_curve_has_four_steps_by_rules_and_four_by_what_was_learned() -> None:
    """The tasks in their order, each in one step."""
    by_rules = [routed("a", "a" if number % 2 else "b") for number in range(10)]
    steps = curve([*by_rules, *[routed("a", "a", learned=True)] * 9])
    assert [(step.first, step.last) for step in steps] == [
        *((1, 3), (4, 6), (7, 9), (10, 10)),
        *((11, 13), (14, 16), (17, 19)),
    ]
    assert [step.learned for step in steps] == [False] * 4 + [True] * 3
    assert [round(step.accuracy, 2) for step in steps] == [0.33, 0.67, 0.33, 1, 1, 1, 1]
    assert [step.learned for step in curve([routed("a", "a")])] == [False]


def test_a_policy_that_learns_keeps_the_rules_as_an_opinion() -> None:
    """The same rules; the strategy is another."""
    data = load(1, SAMPLE)
    rules, learned = yaml.safe_load(data.rules), yaml.safe_load(data.learned)
    assert (rules["strategy"], learned["strategy"]) == ("rules", "learned")
    assert rules["rules"] == learned["rules"]


def test_examples_are_one_sure_one_unsure_one_wrong() -> None:
    """And three whatever happens, where there are three."""
    sure, unsure, wrong = routed("a", "a", 0.9), routed("a", "a", 0.2), routed("a", "b", 0.7)
    assert examples([unsure, routed("a", "a", 0.5), wrong, sure]) == [sure, unsure, wrong]
    assert len(examples([sure, unsure, routed("a", "a", 0.3)])) == 3
    assert examples([wrong]) == [wrong]


def test_the_sample_belongs_to_the_teams() -> None:
    """Every target is a team, and every team has tasks."""
    data = load(10_000, SAMPLE)
    assert {sample.target for sample in data.samples} == {project_id for project_id, _ in data.projects}
    assert len(data.projects) == 13
    assert 0 < data.majority < 0.5


def test_long_texts_are_cut_between_letters(tmp_path: Path) -> None:
    """The contract counts bytes."""
    assert cut("ä" * 10, 5) == "ää"
    file = tmp_path / "long.jsonl.gz"
    row = {"title": "x\n" * 400, "description": "ü" * 9000, "target": "moodle"}
    file.write_bytes(gzip.compress(json.dumps(row).encode()))
    (sample,) = load(5, str(file)).samples
    assert len(sample.title.encode()) == 300
    assert len(sample.description.encode()) == 4000


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "no tasks"),
        ('{"title": "x"}', "no tasks"),
        ('{"title": "x", "target": "nobody"}', "no task has one of the demo's teams"),
        ('{"target": "moodle"}', "line 1 has no title"),
        ("[]", "line 1 is no object"),
        ("{", "cannot be read"),
    ],
)
def test_a_wrong_data_file_is_refused(tmp_path: Path, content: str, complaint: str) -> None:
    """Before anything is started."""
    file = tmp_path / "data.jsonl"
    file.write_text(content)
    with pytest.raises(UsageProblem, match=complaint):
        load(5, str(file))


def test_a_missing_data_file_is_refused(tmp_path: Path) -> None:
    """By name."""
    with pytest.raises(UsageProblem, match=r"gone\.jsonl"):
        load(5, str(tmp_path / "gone.jsonl"))
