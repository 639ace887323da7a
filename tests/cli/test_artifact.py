"""`hopper artifact`, and `hopper done --artifact`."""

import os
from pathlib import Path

import pytest
from rich.console import Console

from hopper.federation.v1.artifact_service_pb2 import ListArtifactsResponse, StoredArtifact
from hopper.federation.v1.delegation_pb2 import Artifact
from hopper_cli.artifact_text import table
from tests.cli.conftest import Terminal
from tests.cli.test_answers import complete
from tests.e2e.calls import eventually


def test_a_file_goes_there_and_back(hopper: Terminal, task: str, tmp_path: Path) -> None:
    content = os.urandom(1_500_000)
    (tmp_path / "data.bin").write_bytes(content)
    put = hopper.ok("artifact", "put", task, str(tmp_path / "data.bin"))
    assert "data.bin: 1.4 MiB, SHA-256 " in put.out
    listed = hopper.ok("artifact", "list", task)
    assert "data.bin" in listed.out
    assert "yes" in listed.out
    target = tmp_path / "back.bin"
    assert "1.4 MiB" in hopper.ok("artifact", "get", task, "data.bin", "-o", str(target)).err
    assert target.read_bytes() == content


def test_programs_read_it_too(hopper: Terminal, task: str, tmp_path: Path) -> None:
    put = hopper.json("artifact", "put", task, "-", "--name", "report.csv", stdin=b"a,b\n")
    assert (put["name"], put["size"], put["media_type"]) == ("report.csv", "4", "text/csv")
    (listed,) = hopper.json("artifact", "list", task)["artifacts"]
    assert (listed["artifact"]["name"], listed["stored"]) == ("report.csv", "4")
    target = tmp_path / "r.csv"
    got = hopper.json("artifact", "get", task, "report.csv", "-o", str(target))
    assert (got["file"], got["bytes"]) == (str(target), 4)


def test_it_goes_down_a_pipe(hopper: Terminal, real: Terminal, task: str) -> None:
    hopper.ok("artifact", "put", task, "-", "--name", "note", "--type", "text/x-note", stdin="written")
    assert real.ok("artifact", "get", task, "note", "-o", "-").out == "written"


def test_nothing_that_is_there_is_written_over(hopper: Terminal, task: str, tmp_path: Path) -> None:
    hopper.ok("artifact", "put", task, "-", "--name", "note", stdin="new")
    target = tmp_path / "note"
    target.write_text("old")
    refused = hopper("artifact", "get", task, "note", "-o", str(target), "--json")
    assert (refused.code, refused.error["reason"]) == (1, "FILE_EXISTS")
    assert target.read_text() == "old"
    hopper.ok("artifact", "get", task, "note", "-o", str(target), "--force")
    assert target.read_text() == "new"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["put", "{task}", "{dir}/nosuch"], "USAGE"),
        (["put", "{task}", "-"], "USAGE"),
        (["put", "{task}", "-", "--name", "../evil"], "ARTIFACT_INVALID"),
        (["get", "{task}", "nosuch", "-o", "{dir}/x"], "ARTIFACT_NOT_FOUND"),
        (["get", "{task}", "nosuch", "-o", "{dir}"], "USAGE"),
        (["get", "{task}", "nosuch", "-o", "-"], "USAGE"),
        (["get", "{task}", "note", "-o", "{dir}/no/such/place"], "FILE_NOT_WRITTEN"),
        (["list", "zzzzzz"], "TASK_NOT_FOUND"),
    ],
)
def test_what_is_wrong_is_said(
    hopper: Terminal, task: str, tmp_path: Path, arguments: list[str], reason: str
) -> None:
    hopper.ok("artifact", "put", task, "-", "--name", "note", stdin="there")
    made = [each.format(task=task, dir=tmp_path) for each in arguments]
    assert hopper("artifact", *made, "--json").error["reason"] == reason


def test_a_damaged_file_is_not_a_mistake_of_who_asks_for_it(
    hopper: Terminal, task: str, tmp_path: Path
) -> None:
    content = os.urandom(2_000)
    hopper.ok("artifact", "put", task, "-", "--name", "plan", stdin=content)
    kept = [path for path in (hopper.data_dir / "blobs").rglob("*") if path.is_file()]
    (blob,) = [path for path in kept if path.read_bytes() == content]
    blob.chmod(0o600)
    blob.write_bytes(content[::-1])
    ran = hopper("artifact", "get", task, "plan", "-o", str(tmp_path / "plan"), "--json")
    assert (ran.code, ran.error["reason"]) == (1, "ARTIFACT_INVALID")
    assert ran.error["remedy"]
    assert not (tmp_path / "plan").exists()


def test_why_a_file_is_not_here_is_in_the_list() -> None:
    """And one that is on its way is not said to be missing for good."""
    made = ListArtifactsResponse(
        artifacts=[
            StoredArtifact(artifact=Artifact(name="whole", size=3), stored=3),
            StoredArtifact(artifact=Artifact(name="coming", size=3)),
            StoredArtifact(
                artifact=Artifact(name="full", size=3), problem="QUOTA", detail="there is no room"
            ),
        ]
    )
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table(made))
    whole, coming, full = capture.get().splitlines()[1:]
    assert whole.split()[3] == "yes"
    assert "not yet" in coming
    assert full.split()[3] == "no"
    assert full.rstrip().endswith("there is no room")


def test_no_files_is_no_error(hopper: Terminal, task: str) -> None:
    assert hopper.ok("artifact", "list", task).out == ""
    assert hopper.json("artifact", "list", task) == {"artifacts": []}


def test_a_task_is_done_with_a_file(hopper: Terminal, project: str, task: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    hopper.ok("next", "--queue", project)
    files = ["--artifact", str(tmp_path / "a.txt"), "--artifact", str(tmp_path / "b.txt")]
    hopper.ok("done", task, "--result", "see there", *files)
    listed = hopper.json("artifact", "list", task)["artifacts"]
    assert [each["artifact"]["name"] for each in listed] == ["a.txt", "b.txt"]
    late = hopper("artifact", "put", task, str(tmp_path / "a.txt"), "--name", "c.txt", "--json")
    assert late.error["reason"] == "TASK_WRONG_STATE"


def test_names_are_completed(hopper: Terminal, task: str) -> None:
    hopper.ok("artifact", "put", task, "-", "--name", "report.csv", stdin="a,b")
    offers = eventually(lambda: complete(hopper, f"hopper artifact get {task} re"), bool)
    assert offers == ["report.csv"]
