"""`hopper add --file`: many tasks at once."""

import json
from pathlib import Path

from tests.cli.conftest import Terminal


def lines(*items: object) -> str:
    return "".join(json.dumps(item) + "\n" for item in items)


def test_a_file_of_tasks_is_added_in_its_order(hopper: Terminal, project: str, tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    numbered = [{"title": f"task {number}", "priority": number % 100} for number in range(300)]
    file.write_text(lines("only a title", *numbered) + "\n\n")
    ran = hopper.ok("add", "--file", str(file), "-p", project, "-t", "type:Bulk", "--json")
    tasks = [line["task"] for line in ran.lines]
    assert [task["spec"]["title"] for task in tasks] == [
        "only a title",
        *(item["title"] for item in numbered),
    ]
    assert {task["project"] for task in tasks} == {f"projects/{project}"}
    assert {tuple(task["spec"]["tags"]) for task in tasks} == {("type:Bulk",)}
    assert tasks[43]["spec"]["priority"] == 42
    assert {task["spec"]["requester"] for task in tasks} == {"tester"}


def test_standard_input_is_a_file_too_and_people_get_a_line_each(hopper: Terminal, project: str) -> None:
    ran = hopper.ok("add", "--file", "-", "-p", project, stdin=lines("one", {"title": "two"}))
    assert [line.split(" → ")[1] for line in ran.out.splitlines()] == [project, project]
    assert "2 added, 0 refused" in ran.err


def test_one_that_is_refused_leaves_the_others_and_fails_the_command(hopper: Terminal, project: str) -> None:
    given = lines("one", {"title": "two", "project": "projects/nobody-here"}, "three")
    ran = hopper("add", "--file", "-", "-p", project, "--json", stdin=given)
    assert ran.code == 1
    assert [next(iter(line)) for line in ran.lines] == ["task", "error", "task"]
    assert ran.lines[1]["error"]["reason"] == "PROJECT_NOT_FOUND"
    assert ran.error["reason"] == "TASKS_REFUSED"


def test_a_line_that_is_no_task_adds_nothing(hopper: Terminal, project: str) -> None:
    for bad in ('{"title": ', '{"titel": "x"}', "[1]", '{"tags": ["a"]}', "7"):
        ran = hopper("add", "--file", "-", "-p", project, stdin=lines("one") + bad + "\n")
        assert ran.code == 2, bad
        assert "line 2" in ran.err
    assert hopper.json("list", "--project", project)["tasks"] == []


def test_a_title_or_a_file(hopper: Terminal) -> None:
    for arguments in ((), ("title", "--file", "-"), ("--file", "-", "--watch"), ("--file", "-", "-d", "-")):
        assert hopper("add", *arguments).code == 2
