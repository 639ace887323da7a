"""Policies compared, tried, switched on, put back; and their shadows."""

import uuid
from pathlib import Path

import pytest
from rich.console import Console

from hopper.router.v1.routing_service_pb2 import PolicyEstimate, ReplayChange, ReplayPolicyResponse
from hopper_cli.estimates import comparison_parts
from hopper_cli.policy_text import changes, text_diff, with_shadow
from hopper_cli.problems import UsageProblem
from tests.cli.conftest import Terminal, settled

RULE = "  - name: {name}\n    when: {{keyword: [{word}]}}\n    then: {{project: {project}, weight: 5}}\n"


@pytest.fixture
def instance(hopper: Terminal, project: str) -> str:
    """An instance of this test's own, without a policy of its own."""
    hopper.ok("instance", "create", project, "--scope", "project", "--project", project, "--start")
    return project


def policy(*rules: str, strategy: str = "rules", project: str = "p") -> str:
    """A policy with rules of those names."""
    listed = "".join(RULE.format(name=name, word=name, project=project) for name in rules)
    return f"strategy: {strategy}\nrules:\n{listed}"


def test_a_policy_goes_on_and_back(hopper: Terminal, instance: str, tmp_path: Path) -> None:
    """Every step is shown before, and becomes a version."""
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(policy("fence", project=instance))
    second.write_text(policy("fence", "gate", project=instance))
    shown = hopper.ok("policy", "diff", str(first), "--instance", instance).out
    assert f"+++ {first}" in shown
    assert "instances/global/policy" in shown  # what is in force comes from above
    assert "added: rule fence" in shown
    unasked = hopper("policy", "apply", str(first), "--instance", instance)
    assert (unasked.code, "--yes" in unasked.err) == (2, True)
    assert hopper.json("policy", "history", "--instance", instance)["policies"] == []
    on = hopper.ok("policy", "apply", str(first), "--instance", instance, "--yes").out
    assert on.endswith(f"{instance}: 1 rules, strategy rules, version 1\n")
    assert hopper.ok("policy", "diff", str(first), "--instance", instance).out == "nothing differs\n"
    hopper.ok("policy", "apply", str(second), "--instance", instance, "--yes")
    back = hopper.ok("policy", "rollback", "--instance", instance, "--yes").out
    assert "removed: rule gate" in back
    assert back.endswith("version 3\n")
    assert hopper.ok("rules", "show", "--instance", instance).out == first.read_text()
    made = hopper.json("policy", "rollback", "--version", "2", "--instance", instance, "--yes")["policy"]
    assert (made["version"], made["rule_count"]) == ("4", 2)
    listed = hopper.json("policy", "history", "--instance", instance)["policies"]
    assert [(each["version"], each["rule_count"]) for each in listed] == [
        ("4", 2), ("3", 1), ("2", 2), ("1", 1)
    ]  # fmt: skip
    told = hopper.json("policy", "diff", "--version", "1", "--instance", instance)
    assert (told["version"], told["changes"]) == (4, ["removed: rule gate"])
    missing = hopper("policy", "rollback", "--version", "9", "--instance", instance, "--yes", "--json")
    assert missing.error["reason"] == "POLICY_VERSION_NOT_FOUND"
    hopper.ok("rules", "remove", "--instance", instance)
    assert "(removed)" in hopper.ok("policy", "history", "--instance", instance).out


def test_there_has_to_be_something_to_go_back_to(hopper: Terminal, instance: str) -> None:
    """And something to compare with."""
    assert "no other policy" in hopper("policy", "rollback", "--instance", instance, "--yes").err
    assert hopper("policy", "diff").code == 2
    assert hopper("policy", "replay").code == 2
    broken = hopper("policy", "apply", "-", "--instance", instance, "--yes", stdin="strategy: best\n")
    assert (broken.code, broken.out.startswith("-:1:")) == (1, True)


def test_a_replay_says_what_it_would_come_to(hopper: Terminal) -> None:
    """As a table, and as JSON; by a file, or by a strategy alone."""
    word = f"quoll{uuid.uuid4().hex[:6]}"
    for name in ("a", "b"):
        hopper.ok("project", "add", f"{name}-{word}", "--description", word, "--tag", f"{name}{word}")
    settled(hopper)
    task = hopper.json("add", f"feed the {word}", "--tag", f"a{word}")["task"]
    hopper.ok("feedback", task["name"], "--should-be", f"b-{word}")
    source = policy(word, project=f"b-{word}")
    told = hopper.json("policy", "replay", "-", "--limit", "1", stdin=source)
    (change,) = told["changes"]
    assert (change["to_project"], change["went"], change["expected"]) == (f"projects/b-{word}", 0.0, 1.0)
    assert told["estimate"]["method"] == "METHOD_KNOWN"
    assert (told["estimate"]["recorded"], told["estimate"]["value"]) == (0.0, 1.0)
    shown = hopper.ok("policy", "replay", "-", "--limit", "1", stdin=source).out
    assert "1 decisions run again, 1 would differ (100%)" in shown
    assert "100.0%, with 95 % confidence" in shown
    assert "+100.0 points" in shown
    same = hopper.json("policy", "replay", "--strategy", "rules", "--limit", "1")
    assert (same["replayed"], same["changed"]) == (1, 0)
    assert "1 would differ" in hopper.ok("rules", "replay", "-", "--limit", "1", stdin=source).out


def test_a_shadow_is_put_on_and_taken_off(hopper: Terminal, instance: str) -> None:
    """It is part of the policy, and so of its versions."""
    assert "there is no shadow" in hopper.ok("policy", "shadow", "--instance", instance).out
    on = hopper.ok("policy", "shadow", "--strategy", "learned", "--instance", instance, "--yes").out
    assert "shadow: none → strategy learned" in on
    report = hopper.ok("policy", "shadow", "--report", "--instance", instance).out
    assert report == "the shadow (learned) has not seen a decision yet\n"
    source = policy("fence", project=instance)
    hopper.ok("policy", "shadow", "-", "--instance", instance, "--yes", stdin=source)
    assert hopper.json("policy", "shadow", "--instance", instance)["strategy"] == "rules"
    hopper.ok("policy", "shadow", "--off", "--instance", instance, "--yes")
    assert "shadow:" not in hopper.ok("rules", "show", "--instance", instance).out
    assert len(hopper.json("policy", "history", "--instance", instance)["policies"]) == 3
    assert hopper("policy", "shadow", "--off", "--report").code == 2


# ---------------------------------------------------------------- texts


def test_changes_are_told_by_what_they_mean() -> None:
    before = "strategy: rules  # as ever\nweights: {text: 0.5}\n" + policy("a", "b").partition("\n")[2]
    after = (
        "strategy: learned\nweights: {text: 1, tags: 2}\n" + policy("b", "c", project="q").partition("\n")[2]
    )
    assert changes(before, after, "x") == [
        "strategy: rules → learned",
        "weight of tags: as built in → 2",
        "weight of text: 0.5 → 1",
        "removed: rule a",
        "added: rule c",
        "changed: rule b",
    ]
    assert changes(before, before.replace("  # as ever", ""), "x") == []
    assert text_diff("a\n", "a\n", names=("x", "y")) == []


def test_a_shadow_stands_at_the_end_once() -> None:
    plain = "# mine\nstrategy: rules\nrules:\n  - name: a\n"
    once = with_shadow(plain, "---\nstrategy: learned\n\nweights: {text: 1}\n")
    assert once == plain + "shadow:\n  strategy: learned\n\n  weights: {text: 1}\n"
    assert with_shadow(once, "strategy: rules") == plain + "shadow:\n  strategy: rules\n"
    assert with_shadow(once, "") == plain
    inside = "shadow:\n  strategy: learned\n  # of it\nthreshold: 0.5\n"
    assert with_shadow(inside, "") == "threshold: 0.5\n"
    with pytest.raises(UsageProblem, match="line by line"):
        with_shadow("{strategy: rules}", "strategy: learned")


def test_an_estimate_says_how_sure_it_is() -> None:
    estimate = PolicyEstimate(
        value=0.84, lower=0.8, upper=0.875, recorded=0.8, gain=0.04, gain_lower=-0.01, gain_upper=0.075,
        random=0.1, agreement=0.9, judged=200, modelled=12, method=PolicyEstimate.METHOD_DIRECT,
    )  # fmt: skip
    change = ReplayChange(task="instances/global/tasks/abcdefghij", from_project="projects/a", went=0.0)
    answer = ReplayPolicyResponse(estimate=estimate, changes=[change], notes=["as it is"])
    console = Console(width=200)
    with console.capture() as captured:
        for part in comparison_parts(answer):
            console.print(part)
    lines = [" ".join(line.split()) for line in captured.get().splitlines()]
    assert "went well 80.0% of 200 tasks whose outcome is known" in lines
    assert "would go well 84.0%, with 95 % confidence 80.0% to 87.5%" in lines
    assert "gain +4.0 points, with 95 % confidence -1.0 to +7.5" in lines
    assert "estimated by direct method, 12 of them modelled" in lines
    assert "as it is" in lines
    assert "efghij a 0% not well nobody 0%" in lines
