"""Numbers of queues and the archive, at a real Hopper."""

import json
import subprocess
import uuid
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration
from rich.console import Console

from hopper.memory.v1.feedback_service_pb2 import CalibrationBin, GetStatsResponse
from hopper.router.v1.queue_service_pb2 import GetQueueStatsResponse, QueueStats
from hopper_cli.commands.routing_stats import calibration_plot
from hopper_cli.commands.stats import busiest_table, queue_parts
from tests.cli.conftest import HOPPER, Terminal, settled


def shown(answer: GetQueueStatsResponse) -> str:
    console = Console(width=200, record=True, file=None, force_terminal=False)
    with console.capture() as captured:
        for part in queue_parts(answer):
            console.print(part)
    return captured.get()


def age(minutes: int) -> Duration:
    length = Duration()
    length.FromTimedelta(timedelta(minutes=minutes))
    return length


def test_waits_ages_and_rates_are_shown() -> None:
    """With bars, and what has most first."""
    total = QueueStats(
        states={"QUEUED": 8, "RUNNING": 2}, waits={"NO_ELIGIBLE_EXECUTOR": 1, "WORKER": 7}, ready=7,
        oldest_ready=age(125), add_rate=1.25, start_rate=0.5, finish_rate=0.25, failed=3,
    )  # fmt: skip
    web = QueueStats(name="projects/web", states={"QUEUED": 8, "RUNNING": 2}, ready=7, oldest_ready=age(125))
    text = shown(GetQueueStatsResponse(total=total, projects=[web], keys=[QueueStats(name="ann")]))
    assert text.startswith(
        "10 open, 7 ready, the longest for 2 h 5 min; 1.2/s in, 0.5/s started, 0.2/s ended, "
        "3 failed in the last minute"
    )
    assert text.index("worker ") < text.index("no eligible executor")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "web 10 2 7 2 h 5 min 0.0 0.0 0.0 0 ████████████████████" in lines
    assert "ann 0 0 0 - 0.0 0.0 0.0 0" in lines


def test_what_somebody_calls_himself_is_no_markup_and_no_escape() -> None:
    """Requesters are anybody's words."""
    console = Console(width=200)
    with console.capture() as captured:
        console.print(busiest_table("requester", [QueueStats(name="[red]x\x1b[2J")]))
    assert "[red]x" in captured.get()
    assert "\x1b[2J" not in captured.get()


def test_one_project_has_numbers_of_its_own(hopper: Terminal, project: str) -> None:
    """By name or by option."""
    for n in range(3):
        hopper.ok("add", f"number {n}", "--project", project)
    text = hopper.ok("stats", project).out
    assert f"projects/{project}: 3 open, 3 ready" in text
    for arguments in ((project,), ("--project", project)):
        total = hopper.json("stats", *arguments)["queues"]["total"]
        assert (total["name"], total["ready"], total["waits"]) == (
            f"projects/{project}",
            "3",
            {"WORKER": "3"},
        )
    named = [each["name"] for each in hopper.json("stats", "--limit", "1000")["queues"]["projects"]]
    assert f"projects/{project}" in named
    refused = hopper("stats", project, "--instance", "global")
    assert (refused.code, "one project, or one instance" in refused.err) == (2, True)


def test_watching_goes_on(hopper: Terminal, project: str) -> None:
    """A line every two seconds, for programs."""
    child = subprocess.Popen(
        [*HOPPER, "stats", project, "--watch", "--json"], stdout=subprocess.PIPE, text=True,
        env=hopper.environment(),
    )  # fmt: skip
    try:
        assert child.stdout is not None
        lines = [json.loads(child.stdout.readline()) for _ in range(2)]
    finally:
        child.terminate()
        child.communicate()
    assert [line["total"]["name"] for line in lines] == [f"projects/{project}"] * 2
    assert lines[0]["time"] < lines[1]["time"]


def test_the_archive_is_asked_for_by_age(hopper: Terminal, project: str) -> None:
    """Nothing here is an hour old; less than that nobody may ask for."""
    hopper.ok("add", "young", "--project", project)
    assert hopper.ok("archive", "--older-than", "30d", "--dry-run").out == "0 tasks would be archived\n"
    assert hopper.ok("archive", "--older-than", "30d").out == "0 tasks were archived\n"
    assert hopper.ok("archive", "--older-than", "30d", "--json").lines[-1] == {
        "total": "0", "moved": "0", "done": True
    }  # fmt: skip
    refused = hopper("archive", "--older-than", "5m")
    assert (refused.code, "older_than" in refused.err) == (2, True)


def test_how_good_decisions_were(hopper: Terminal) -> None:
    """Over time, by confidence, by mistake; against rules alone and chance; and what they cost."""
    word = f"quagga{uuid.uuid4().hex[:6]}"
    for name in ("a", "b"):
        hopper.ok("project", "add", f"{name}-{word}", "--description", word, "--tag", f"{name}{word}")
    settled(hopper)
    for right in (True, False, False):
        task = hopper.json("add", f"feed the {word}", "--tag", f"a{word}")["task"]["name"]
        hopper.ok("feedback", task, *(["--good"] if right else ["--should-be", f"b-{word}"]))
    told = hopper.json("stats", "routing", "--days", "1", "--limit", "1000")
    stats = told["routing"]
    assert int(stats["total"]["judged"]) >= 3
    assert len(stats["periods"]) == 12
    assert sum(int(period["score"]["decisions"]) for period in stats["periods"]) == int(
        stats["total"]["decisions"]
    )
    pair = {"chosen": f"projects/a-{word}", "right": f"projects/b-{word}", "count": "2"}
    assert pair in stats["confusions"]
    assert told["regret"]["against_rules_lower"] <= told["regret"]["against_rules"]
    assert told["regret"]["replayed"]["estimate"]["judged"] >= 3
    assert told["regret"]["against_random"] < 1
    assert told["cost"]["seconds_p50"] <= told["cost"]["seconds_p99"]
    shown = hopper.ok("stats", "routing", "--instance", "global").out
    for heading in (
        "Accuracy over time",
        "Calibration: how sure, and how often right",
        "What decided",
        "What was taken for what",
        "Against other ways to decide",
        "Cost",
    ):
        assert f"\n{heading}\n" in shown
    assert " ".join(f"a-{word} b-{word} 2".split()) in " ".join(shown.split())
    assert "regret" in shown
    assert hopper("stats", "--days", "3").code == 2
    assert hopper("stats", "routing", "--watch").code == 2


def test_a_calibration_plot_has_a_mark_where_the_bar_should_end() -> None:
    """Green where the two are near each other."""
    bins = [
        CalibrationBin(to=0.6, count=4, mean_confidence=0.55, accuracy=0.5),
        CalibrationBin(to=0.7, count=0),
        CalibrationBin(to=1.0, count=10, mean_confidence=1.0, accuracy=0.25),
    ]
    console = Console(width=200)
    with console.capture() as captured:
        console.print(calibration_plot(GetStatsResponse(bins=bins)))
    lines = captured.get().splitlines()
    assert len(lines) == 3
    assert lines[1].rstrip().endswith(f"{'█' * 20}  │")
    assert lines[2].rstrip().endswith(f"{'█' * 10}{' ' * 29}│")
    assert lines[2].split()[3:7] == ["10", "100%", "25%", "-75"]
