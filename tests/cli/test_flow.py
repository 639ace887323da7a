"""The main flows, as a person at a terminal goes through them."""

import json
import signal
import stat
import uuid
from datetime import UTC, datetime, timedelta

from hopper.common.v1.options_pb2 import TRUST_LEVEL_TRUSTED
from hopper.registry.v1.project_pb2 import Border, Executor, Project
from hopper.registry.v1.project_service_pb2 import RegisterProjectRequest
from hopper_client import Hopper
from tests.cli.conftest import PATIENCE, Terminal, add, settled


def test_from_add_to_feedback(hopper: Terminal, real: Terminal, project: str) -> None:
    """A task is added, taken, done, explained and judged, with what each command prints for people."""
    added = real.ok("add", "mend the fence", "-p", project, "-d", "-", stdin="it leans to the left").out
    short = added.split()[0]
    assert added.startswith(f"{short} → {project} (")

    assert short in real.ok("list", "--project", project).out
    assert short in real.ok("search", "mend", "fence", "--limit", "100").out

    taken = real.ok("next", "--queue", project)
    assert "it leans to the left" in taken.out
    assert f"hopper done {short}" in taken.err
    assert stat.S_IMODE((real.data_dir / "claims.json").stat().st_mode) == 0o600

    assert "at 50%" in real.ok("progress", short, "0.5", "-m", "half-way").out
    assert "succeeded" in real.ok("done", short, "--result", "it stands").out
    # At once: a minute later it would not count.
    assert hopper.json("stats", "--project", project)["queues"]["total"]["finish_rate"] == 1 / 60
    assert short not in (real.data_dir / "claims.json").read_text()

    shown = real.ok("show", short).out
    assert "succeeded" in shown
    assert "it stands" in shown

    why = real.ok("why", short).out
    assert project in why
    assert "strategy pin" in why

    assert "noted" in real.ok("feedback", short, "--good", "--quality", "0.9", "--effort", "1h").out
    stats = real.json("stats", "--project", project)
    assert (stats["memory"]["judged"], stats["memory"]["right"]) == ("1", "1")


def test_a_failed_task_is_tried_again_until_it_is_given_up(hopper: Terminal, project: str) -> None:
    """`--retry 1` is one more attempt; a permanent failure is none."""
    short = add(hopper, project, "--retry", "0")
    hopper.ok("next", "--queue", project)
    failed = hopper.json("fail", short, "--reason", "NO_WOOD", "-m", "sold out")
    assert failed["task"]["state"] == "STATE_FAILED"
    assert failed["task"]["failure"]["reason"] == "NO_WOOD"

    retried = add(hopper, project, "--retry", "1")
    hopper.ok("next", "--queue", project)
    assert hopper.json("fail", retried, "--reason", "NO_WOOD")["task"]["state"] == "STATE_QUEUED"

    final = add(hopper, project, "--retry", "5")
    hopper.ok("next", "--queue", project, "--task", final)
    ended = hopper.json("fail", final, "--reason", "IMPOSSIBLE", "--permanent")
    assert ended["task"]["state"] == "STATE_FAILED"


def test_an_exclusive_task_is_begun_once(hopper: Terminal, project: str) -> None:
    """However often it might be tried again."""
    short = add(hopper, project, "--retry", "5", "--exclusive")
    assert "it is begun once at most" in hopper.ok("show", short).out
    hopper.ok("next", "--queue", project)
    assert hopper.json("fail", short, "--reason", "NO_WOOD")["task"]["state"] == "STATE_FAILED"


def test_a_peer_is_told_from_other_projects(hopper: Terminal) -> None:
    """In the list by a word, and by whom it stands for where all of it is shown."""
    border = Border(peer="b" * 32, level=TRUST_LEVEL_TRUSTED)
    peer = Project(border=border, executor=Executor(type=Executor.TYPE_PEER))
    with Hopper(f"unix:{hopper.data_dir / 'hopper.sock'}") as sdk:
        sdk.projects.RegisterProject(RegisterProjectRequest(project_id="peer-bob", project=peer))
    (line,) = [line for line in hopper.ok("project", "list").out.splitlines() if "peer-bob" in line]
    assert "active, peer" in line
    shown = hopper.ok("project", "show", "peer-bob").out
    assert f"{'b' * 32}, trusted" in shown


def test_a_released_task_is_there_for_the_next(hopper: Terminal, project: str, task: str) -> None:
    """And is no longer ours."""
    hopper.ok("next", "--queue", project)
    hopper.ok("release", task, "--reason", "lunch")
    refused = hopper("done", task)
    assert refused.code == 1
    assert "you do not hold" in refused.err
    assert "hopper next --task" in refused.err
    assert hopper.json("next", "--task", task)["tasks"][0]["name"].endswith(task)


def test_a_claim_that_was_lost_is_forgotten(hopper: Terminal, project: str, task: str) -> None:
    """Whoever comes too late is told, once, and can take the task anew."""
    hopper.ok("next", "--queue", project)
    hopper.ok("cancel", task, "--reason", "not needed")
    late = hopper("done", task, "--json")
    assert late.code == 1
    assert late.error["reason"] == "STALE_TOKEN"
    assert hopper("done", task).err.startswith(f"hopper: you do not hold {task}")


def test_priorities_decide_what_is_next(hopper: Terminal, project: str) -> None:
    """The greater first, whoever came first."""
    add(hopper, project, "--priority", "low")
    urgent = add(hopper, project, "--priority", "urgent")
    assert hopper.json("next", "-q", f"projects/{project}")["tasks"][0]["name"].endswith(urgent)


def test_everything_that_can_be_asked_for_arrives(hopper: Terminal, project: str, task: str) -> None:
    """Each option of `add` is a field of the contract."""
    made = hopper.json(
        *("add", "all of it", "-p", project, "-d", "long", "-t", "type:Bug", "-t", "x", "--priority", "77"),
        *(
            "--needs",
            f"can-{project}",
            "--after",
            task,
            "--effort",
            "2h",
            "--by",
            "3d",
            "--start-after",
            "1d",
        ),
        *("--payload", "-", "--retry", "4", "--label", "colour=red", "--as", "jane"),
        stdin="\0bytes",
    )["task"]
    spec = made["spec"]
    assert spec["tags"] == ["type:Bug", "x"]
    assert spec["priority"] == 77
    assert spec["required_capabilities"] == [f"can-{project}"]
    assert spec["dependencies"][0].endswith(task)
    assert spec["estimated_effort"] == "7200s"
    assert spec["payload"] == "AGJ5dGVz"
    assert spec["retry"]["max_attempts"] == 5
    assert spec["labels"] == {"colour": "red"}
    assert spec["requester"] == "jane"
    due = datetime.fromisoformat(spec["clocks"]["finish_by"])
    assert abs(due - datetime.now(UTC) - timedelta(days=3)) < timedelta(minutes=5)
    assert made["wait"]["reason"] == "REASON_DEPENDENCY"


def test_a_dry_run_adds_nothing(hopper: Terminal, project: str) -> None:
    """It says where it would go."""
    suggested = hopper.json("add", "mend it", "-p", project, "--dry-run")
    assert suggested["decision"]["project"] == f"projects/{project}"
    assert hopper.json("list", "--project", project)["tasks"] == []


def test_a_task_is_edited_field_by_field(hopper: Terminal, project: str, task: str) -> None:
    """Tags are added to those that are there; what is not named stays."""
    hopper.ok("edit", task, "--tag", "a", "--tag", "b", "--due", "1d")
    edited = hopper.json("edit", task, "--no-tag", "a", "--priority", "urgent", "--title", "mend the gate")[
        "task"
    ]
    assert (edited["spec"]["title"], edited["spec"]["tags"], edited["spec"]["priority"]) == (
        "mend the gate",
        ["b"],
        95,
    )
    assert edited["project"] == f"projects/{project}"
    assert edited["spec"]["clocks"]["finish_by"]
    assert hopper("edit", task).code == 2


def test_a_task_is_held_back_and_let_go(hopper: Terminal, project: str, task: str) -> None:
    """Nobody gets it meanwhile."""
    assert "blocked by jane" in hopper.ok("block", task, "--by", "jane", "-m", "signature").out
    assert hopper("next", "-q", project).code == 5
    assert "jane: signature" in hopper.ok("show", task).out
    hopper.ok("unblock", task)
    assert hopper("next", "-q", project).code == 0


def test_a_question_is_answered(hopper: Terminal, project: str, task: str) -> None:
    """The task stays with whoever asked."""
    hopper.ok("next", "-q", project)
    assert "input required" in hopper.ok("ask", task, "Which colour?", "--of", "jane").out
    assert hopper.json("answer", task, "the blue one")["task"]["state"] == "STATE_RUNNING"
    assert "the blue one" in hopper.ok("show", task).out
    hopper.ok("done", task)


def test_a_bare_id_may_be_an_instances_queue(hopper: Terminal, project: str) -> None:
    """Where no project has that name."""
    person = f"jane-{project}"
    hopper.ok("instance", "create", person, "--scope", "personal", "--member", hopper.user, "--start")
    hopper.ok("add", "water the plants", "--instance", person)
    taken = hopper.json("next", "--queue", person)
    assert taken["tasks"][0]["name"].startswith(f"instances/{person}/")
    hopper.ok("instance", "pause", person)  # so that it is nobody's default queue in other tests


def test_a_person_with_one_queue_need_not_name_it(hopper: Terminal, project: str) -> None:
    """A personal instance of which they are the member."""
    person = f"joe-{project}"
    hopper.ok("instance", "create", person, "--scope", "personal", "--member", person, "--start")
    hopper.ok("add", "water the plants", "--instance", person)
    assert hopper.json("next", "--worker", person)["tasks"][0]["claim"]["worker"] == person


def test_without_a_queue_it_says_how_to_name_one(hopper: Terminal) -> None:
    """Unless this person has one."""
    ran = hopper("next", "--worker", "nobody-at-all")
    assert ran.code == 2
    assert "--queue" in ran.err


def test_why_not_another_project(hopper: Terminal, project: str, task: str) -> None:
    """In words, and in numbers."""
    ran = hopper.json("why", task, "--not", project)
    assert ran["sentences"]
    assert ran["why_not"]["project"] == f"projects/{project}"
    assert ran["delegations"] == []
    assert f"Why not {project}?" in hopper.ok("why", task, "--not", project).out


def test_a_watched_task_is_followed_to_its_end(hopper: Terminal, project: str, task: str) -> None:
    """From the state it has, through every change, to the result."""
    with hopper.started("watch", task) as watching:
        assert watching.stdout is not None
        assert task in watching.stdout.readline()
        hopper.ok("next", "-q", project)
        assert "claim" in watching.stdout.readline()
        hopper.ok("done", task, "--result", "it stands")
        assert "succeeded" in watching.stdout.readline()
        assert watching.stdout.read() == "it stands\n"
        assert watching.wait(timeout=PATIENCE) == 0


def test_a_watched_task_that_fails_is_an_exit_code(hopper: Terminal, project: str) -> None:
    """So that scripts can wait for a task. One that is over already is told at once."""
    task = add(hopper, project)
    hopper.ok("cancel", task)
    ran = hopper("watch", task)
    assert ran.code == 1
    assert "cancelled" in ran.err
    assert task in ran.out


def test_all_tasks_are_watched_as_json_lines(hopper: Terminal, project: str, task: str) -> None:
    """The snapshot, its end, then changes; Ctrl-C is exit code 130."""
    with hopper.started("watch", "--project", project, "--json") as watching:
        assert watching.stdout is not None
        snapshot = json.loads(watching.stdout.readline())
        assert snapshot["task"]["name"].endswith(task)
        assert json.loads(watching.stdout.readline())["snapshot_complete"] == {"count": 1}
        hopper.ok("cancel", task)
        change = json.loads(watching.stdout.readline())
        assert (change["change"]["kind"], change["change"]["task"]["state"]) == ("CANCEL", "STATE_CANCELLED")
        watching.send_signal(signal.SIGINT)
        assert watching.wait(timeout=PATIENCE) == 130
        assert watching.stderr is not None
        assert "Traceback" not in watching.stderr.read()


def test_add_and_watch_in_one(hopper: Terminal, project: str) -> None:
    """JSON lines, of which the first is the answer to `add`."""
    with hopper.started("add", "mend it", "-p", project, "--watch", "--json") as watching:
        assert watching.stdout is not None
        name = json.loads(watching.stdout.readline())["task"]["name"]
        hopper.ok("next", "-q", project)
        hopper.ok("done", name)
        kinds = [json.loads(line)["change"]["kind"] for line in watching.stdout.read().splitlines()]
        assert kinds == ["CLAIM", "COMPLETE"]
        assert watching.wait(timeout=PATIENCE) == 0


def test_lists_are_read_to_the_end_of_their_pages(hopper: Terminal, project: str) -> None:
    """And cut where asked."""
    for _ in range(3):
        add(hopper, project)
    cut = hopper.json("list", "--project", project, "--limit", "2")
    assert len(cut["tasks"]) == 2
    assert cut["next_page_token"]
    everything = hopper.json("list", "--project", project, "--limit", "3")
    assert len(everything["tasks"]) == 3
    assert "there are more" in hopper.ok("list", "--project", project, "-n", "2").err


def test_lists_by_state(hopper: Terminal, project: str, task: str) -> None:
    """Open ones, unless others are asked for."""
    hopper.ok("cancel", task)
    assert hopper.json("list", "--project", project)["tasks"] == []
    assert "--all" in hopper.ok("list", "--project", project).err
    for options in (("--all",), ("--state", "cancelled"), ("-s", "open", "-s", "cancelled")):
        assert len(hopper.json("list", "--project", project, *options)["tasks"]) == 1
    assert hopper.json("list", "--project", project, "--state", "open")["tasks"] == []


def test_why_names_tasks_like_it_and_what_would_have_changed_it(hopper: Terminal) -> None:
    """With the ends of their ids, by which to ask on."""
    word = f"quokka{uuid.uuid4().hex[:6]}"
    for name in ("a", "b"):
        hopper.ok(
            "project", "add", f"{name}-{word}", "--description", f"about {word}", "--tag", f"{name}{word}"
        )
    settled(hopper)
    first = hopper.json("add", f"feed the {word}", "--tag", f"a{word}")["task"]
    hopper.ok("feedback", first["name"], "--good")  # memory knows of it then
    second = hopper.json("add", f"the {word} is hungry", "--tag", f"a{word}")["task"]["name"]
    told = hopper.json("why", second)
    assert [each["episode"]["task"] for each in told["similar"]] == [first["name"]]
    assert told["similar"][0]["episode"]["feedback"][0]["match"] == "MATCH_GOOD"
    kinds = {change["kind"] for change in told["counterfactuals"]}
    assert {"KIND_RULE", "KIND_THRESHOLD"} <= kinds
    shown = hopper.ok("why", second).out
    assert "Tasks like it" in shown
    assert first["name"][-6:] in shown
    assert "What would have changed it" in shown
    assert f"with a rule for b-{word} that weighs more than" in shown
