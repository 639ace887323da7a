"""`hopper work`: a command for each task."""

import json
import signal
import sys
import time
from pathlib import Path

import pytest

from hopper_cli.worker import judge
from hopper_client import TaskFailed
from tests.cli.conftest import PATIENCE, Terminal, add


def test_the_command_gets_the_task_and_gives_the_result(real: Terminal, project: str, tmp_path: Path) -> None:
    """The task as JSON on standard input, its name in the environment; what is printed is the result."""
    task = add(real, project, "-d", "all of it")
    seen = tmp_path / "seen"
    ran = real.ok("work", "-q", project, "--once", "--exec", f'cat > {seen}; printf "did %s" "$HOPPER_TASK"')
    assert f"{task} done after" in ran.out
    given = json.loads(seen.read_text())
    assert given["name"].endswith(task)
    assert given["spec"]["description"] == "all of it"
    shown = real.ok("show", task).out
    assert f"did {given['name']}" in shown


def test_the_commands_of_a_command_speak_to_the_same_hopper(hopper: Terminal, project: str) -> None:
    """An agent that is started may use `hopper` itself."""
    add(hopper, project)
    other = f"by-{project}"
    command = (
        f'{" ".join(("python", "-m", "hopper_cli"))} add {other} -p {project} --address "$HOPPER_ADDRESS" >&2'
    )

    hopper.ok("work", "-q", project, "--once", "--exec", command.replace("python", sys.executable, 1))
    assert [each["spec"]["title"] for each in hopper.json("list", "--project", project)["tasks"]] == [other]


def test_a_status_other_than_0_is_a_failure(real: Terminal, project: str) -> None:
    """With the end of what it complained about."""
    task = add(real, project, "--retry", "0")
    ran = real("work", "-q", project, "--once", "--exec", "echo of no use; echo 'no wood' >&2; exit 3")
    assert ran.code == 1
    assert "failed (EXIT_3)" in ran.out
    failure = real.json("show", task)["task"]["failure"]
    assert (failure["reason"], failure["message"]) == ("EXIT_3", "no wood")


def test_nothing_to_do_is_exit_code_5(hopper: Terminal, project: str) -> None:
    """With `--once`; a drained queue is what `--drain` is for."""
    assert hopper("work", "-q", project, "--once", "--exec", "true").code == 5
    ran = hopper.ok("work", "-q", project, "--drain", "--exec", "true", "--json")
    assert ran.lines == [{"stats": {"claimed": 0, "succeeded": 0, "failed": 0, "lost": 0, "released": 0}}]


def test_a_queue_is_drained_by_several_at_once(hopper: Terminal, project: str) -> None:
    """As JSON lines: each task, then the sum."""
    tasks = {add(hopper, project) for _ in range(3)}
    ran = hopper.ok("work", "-q", project, "--drain", "-c", "3", "--exec", "cat > /dev/null", "--json")
    *done, last = ran.lines
    assert {each["task"][-6:] for each in done} == tasks
    assert {each["outcome"] for each in done} == {"done"}
    assert last["stats"]["succeeded"] == 3


def test_the_first_interrupt_lets_work_finish(hopper: Terminal, project: str, tmp_path: Path) -> None:
    """The command is not interrupted, its result counts, and the worker leaves."""
    task = add(hopper, project)
    begun, go = tmp_path / "begun", tmp_path / "go"
    command = f"touch {begun}; until [ -e {go} ]; do sleep 0.02; done; echo finished"
    with hopper.started("work", "-q", project, "--exec", command, "--json") as worker:
        _wait_for(begun)
        worker.send_signal(signal.SIGINT)
        go.touch()
        assert worker.wait(timeout=PATIENCE) == 0
    assert hopper.json("show", task)["task"]["state"] == "STATE_SUCCEEDED"


def test_the_second_interrupt_ends_it_and_gives_the_task_back(
    hopper: Terminal, project: str, tmp_path: Path
) -> None:
    """With everything the command has started; the attempt does not count."""
    task = add(hopper, project)
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    command = f"trap 'touch {ended}; exit 1' TERM; touch {begun}; while :; do sleep 0.02; done"
    with hopper.started("work", "-q", project, "--exec", command) as worker:
        _wait_for(begun)
        worker.send_signal(signal.SIGINT)
        assert worker.stderr is not None
        while "Ctrl-C again" not in worker.stderr.readline():
            assert worker.poll() is None
        worker.send_signal(signal.SIGINT)
        assert worker.wait(timeout=PATIENCE) == 130
    assert ended.exists()
    given_back = hopper.json("show", task)["task"]
    assert (given_back["state"], given_back["attempt"]) == ("STATE_QUEUED", 0)


def test_a_cancelled_task_ends_its_command(hopper: Terminal, project: str, tmp_path: Path) -> None:
    """The work is not wanted any more."""
    task = add(hopper, project)
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    command = f"trap 'touch {ended}; exit 1' TERM; touch {begun}; while :; do sleep 0.02; done"
    with hopper.started("work", "-q", project, "--exec", command, "--lease", "1s"):
        _wait_for(begun)
        hopper.ok("cancel", task)
        _wait_for(ended)


def test_what_a_process_means() -> None:
    """0 is done; a status or a signal is a failure; too much is one for good."""
    assert judge(0, b"all", b"noise") == b"all"
    for status, reason in ((7, "EXIT_7"), (-9, "SIGNAL_9")):
        with pytest.raises(TaskFailed) as caught:
            judge(status, b"", b"x" * 9000 + b"the end\n")
        assert (caught.value.reason, caught.value.permanent) == (reason, False)
        assert caught.value.message.endswith("the end")
        assert len(caught.value.message) <= 4000
    with pytest.raises(TaskFailed) as caught:
        judge(0, b"x" * (1024 * 1024 + 1), b"")
    assert (caught.value.reason, caught.value.permanent) == ("RESULT_TOO_LARGE", True)


def _wait_for(path: Path) -> None:
    """Until it is there; the test's own timeout is the end of patience."""
    while not path.exists():
        _pause()


def _pause() -> None:
    time.sleep(0.02)
