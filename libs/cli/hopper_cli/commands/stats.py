"""How it goes: how much waits, for how long and why, how fast it moves, and how good decisions were."""

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from hopper_cli import complete
from hopper_cli.cli import Cli, command
from hopper_cli.commands.options import SET_UP

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import RenderableType

    from hopper.memory.v1.feedback_service_pb2 import GetStatsResponse
    from hopper.router.v1.queue_service_pb2 import GetQueueStatsResponse, QueueStats

_EVERY: Final = 2.0
_NAMED: Final = 10


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    command(
        app,
        "stats",
        panel=SET_UP,
        examples=(
            "hopper stats",
            "hopper stats mesos --watch",
            "hopper stats --json | jq .queues.total.waits",
            "hopper stats routing --days 7",
            "hopper stats routing --instance moodle --json",
        ),
    )(stats)


def stats(
    cli: Cli,
    project: Annotated[
        str,
        typer.Argument(
            metavar="PROJECT | routing",
            help="Only this one; or `routing`: how good decisions were.",
            autocompletion=complete.projects,
        ),
    ] = "",
    named: Annotated[
        str,
        typer.Option(
            "--project", "-p", metavar="PROJECT", help="The same.", autocompletion=complete.projects
        ),
    ] = "",
    instance: Annotated[
        str,
        typer.Option(
            "--instance", "-i", metavar="INSTANCE", help="Only this one.", autocompletion=complete.instances
        ),
    ] = "",
    limit: Annotated[
        int,
        typer.Option("--limit", "-n", min=1, max=1000, help="Most projects, and most requesters, to show."),
    ] = _NAMED,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Again every two seconds, until Ctrl-C.")
    ] = False,
    days: Annotated[
        int | None,
        typer.Option(
            "--days", metavar="N", min=1, max=3660, help="With routing: of so many days. Default: 30."
        ),
    ] = None,
) -> None:
    """
    How much waits, for how long and why; how fast it comes and goes; and how good decisions were.

    Counts are of open tasks, rates of the last minute. What is ready could be claimed now. Requesters are fairness
    keys: who takes turns with whom.

    `hopper stats routing` tells how good decisions were: over time, by how sure they were, what was taken for what,
    against rules alone and against chance, and what they cost. (A project of that name: --project routing.)
    """
    from hopper_cli.commands import routing_stats
    from hopper_cli.names import instance_name, project_name
    from hopper_cli.problems import UsageProblem

    if project == routing_stats.SUBJECT:
        if named or watch:
            raise UsageProblem("`stats routing` takes --instance and --days only")
        routing_stats.routing_stats(cli, instance_name(instance) if instance else "", days or 0)
        return
    if days is not None:
        raise UsageProblem("--days is for `hopper stats routing`")
    if sum(map(bool, (project, named, instance))) > 1:
        raise UsageProblem("name one project, or one instance")
    queue = project_name(project or named) if project or named else ""
    queue = instance_name(instance) if instance else queue
    if watch:
        _watch(cli, queue, limit)
        return
    queues, memory = _ask(cli, queue, limit), _ask_memory(cli, queue)
    if cli.json:
        from hopper_cli.output import to_json

        cli.out.document({"queues": to_json(queues), "memory": to_json(memory)})
        return
    for part in queue_parts(queues):
        cli.out.say(part)
    for line in memory_lines(memory):
        cli.out.say(line)
    if memory.bins:
        cli.out.say(calibration_table(memory))


def _ask(cli: Cli, queue: str, limit: int) -> "GetQueueStatsResponse":
    from hopper.router.v1.queue_service_pb2 import GetQueueStatsRequest

    return cli.hopper.queues.GetQueueStats(GetQueueStatsRequest(queue=queue, limit=limit))


def _ask_memory(cli: Cli, queue: str) -> "GetStatsResponse":
    from hopper.memory.v1.feedback_service_pb2 import GetStatsRequest

    is_project = queue.startswith("projects/")
    return cli.hopper.feedback.GetStats(
        GetStatsRequest(project=queue if is_project else "", instance="" if is_project else queue)
    )


def _watch(cli: Cli, queue: str, limit: int) -> None:
    import time

    if cli.json:
        while True:
            cli.out.record(_ask(cli, queue, limit))
            time.sleep(_EVERY)
    from rich.console import Group
    from rich.live import Live

    def picture() -> Group:
        return Group(*queue_parts(_ask(cli, queue, limit)))

    with Live(picture(), console=cli.out.console, auto_refresh=False) as live:
        while True:
            time.sleep(_EVERY)
            live.update(picture(), refresh=True)


# ---------------------------------------------------------------- queues


def queue_parts(queues: "GetQueueStatsResponse") -> "Iterator[RenderableType]":
    """The numbers of queues, part by part, with an empty line after each."""
    total = queues.total
    yield _headline(total)
    yield ""
    for heading, counts in (("state", total.states), ("waits for", total.waits)):
        if counts:
            yield count_table(heading, counts)
            yield ""
    for heading, rows in (("project", queues.projects), ("requester", queues.keys)):
        if rows and not (len(rows) == 1 and rows[0].name == total.name):
            yield busiest_table(heading, rows)
            yield ""


def _headline(total: "QueueStats") -> str:
    open_ = sum(total.states.values())
    ready = f"{total.ready} ready"
    if total.HasField("oldest_ready"):
        ready += f", the longest for {_age(total)}"
    rates = f"{total.add_rate:.1f}/s in, {total.start_rate:.1f}/s started, {total.finish_rate:.1f}/s ended"
    failed = f", {total.failed} failed in the last minute" if total.failed else ""
    name = f"{total.name}: " if total.name else ""
    return f"{name}{open_} open, {ready}; {rates}{failed}"


def _age(stats: "QueueStats") -> str:
    from hopper_cli.times import format_duration
    from hopper_common.timestamps import duration_field

    age = duration_field(stats, "oldest_ready")
    return "" if age is None else format_duration(age)


def count_table(heading: str, counts: "Mapping[str, int]") -> "RenderableType":
    """Counts, the greatest first, as bars."""
    from hopper_cli.render import bar, grid, plain

    table = grid(heading, "#tasks", "")
    largest = max(counts.values(), default=0) or 1
    for name, count in sorted(counts.items(), key=lambda at: (-at[1], at[0])):
        table.add_row(name.replace("_", " ").lower(), str(count), plain(bar(count / largest)))
    return table


def busiest_table(heading: str, rows: "Sequence[QueueStats]") -> "RenderableType":
    """Queues or keys, a line each, with what waits in each as a bar."""
    from hopper_cli.names import bare
    from hopper_cli.render import bar, grid, plain

    table = grid(
        heading,
        "#open",
        "#running",
        "#ready",
        "#oldest",
        "#in/s",
        "#started/s",
        "#ended/s",
        "#failed",
        "waiting",
    )
    waiting = [sum(row.states.values()) - row.states.get("RUNNING", 0) for row in rows]
    largest = max(waiting, default=0) or 1
    for row, backlog in zip(rows, waiting, strict=True):
        table.add_row(
            plain(bare(row.name) if heading == "project" else row.name),
            str(sum(row.states.values())),
            str(row.states.get("RUNNING", 0)),
            str(row.ready),
            _age(row) or "-",
            f"{row.add_rate:.1f}",
            f"{row.start_rate:.1f}",
            f"{row.finish_rate:.1f}",
            str(row.failed),
            plain(bar(backlog / largest)),
        )
    return table


# ---------------------------------------------------------------- memory


def memory_lines(memory: "GetStatsResponse") -> list[str]:
    """What memory says about decisions, a line each."""
    judged = (
        f"{memory.judged} judged, {memory.right} of them right: accuracy {memory.accuracy:.1%}"
        if memory.judged
        else "none judged yet: `hopper feedback TASK --good` says how it went"
    )
    lines = [
        f"{memory.decisions} decisions, {memory.with_outcome} joined to an outcome, {memory.succeeded} ended well",
        judged,
    ]
    if memory.judged:
        lines.append(f"calibration error {memory.calibration_error:.3f}, regret {memory.regret:.3f}")
    return lines


def calibration_table(memory: "GetStatsResponse") -> Any:
    """How sure decisions were, and how often they were right."""
    from hopper_cli.render import bar, grid, plain

    table = grid("confidence", "#judged", "#mean", "#right", "")
    for each in memory.bins:
        if each.count:
            table.add_row(
                f"{getattr(each, 'from'):.1f} to {each.to:.1f}",
                str(each.count),
                f"{each.mean_confidence:.0%}",
                f"{each.accuracy:.0%}",
                plain(bar(each.accuracy)),
            )
    return table
