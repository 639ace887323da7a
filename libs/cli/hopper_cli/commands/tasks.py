"""Asking for things and finding them: add, list, search, show."""

from typing import TYPE_CHECKING, Annotated

import typer

from hopper_cli import complete
from hopper_cli.cli import Cli, command
from hopper_cli.commands.options import (
    TASKS,
    FinishedOption,
    RoutedToOption,
    StateChoice,
    TaskArgument,
    WithinOption,
)

if TYPE_CHECKING:
    from hopper.router.v1.task_pb2 import Task, TaskSpec
    from hopper.router.v1.task_service_pb2 import ListTasksRequest, ListTasksResponse
    from hopper_cli.specs import SpecOptions


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    command(
        app,
        "add",
        panel=TASKS,
        examples=(
            'hopper add "The quiz timer keeps running after submission"',
            'hopper add "Release 1.4" -t type:Release --priority high --due "friday 17:00" --after k7q2mz',
            'git diff | hopper add "Review this" -d - --project moodle --watch',
            'hopper add "Where would this go?" --dry-run --json | jq .decision.project',
            "hopper add --file tasks.jsonl --project moodle",
            "gh issue list --json title,body --jq '.[] | {title, description: .body}' | hopper add --file -",
        ),
    )(add)
    command(
        app,
        "list",
        panel=TASKS,
        examples=(
            "hopper list",
            "hopper list --project mesos --state failed --state rejected",
            "hopper list --all --json | jq -r '.tasks[].name'",
        ),
    )(list_tasks)
    command(
        app,
        "search",
        panel=TASKS,
        examples=("hopper search quiz timer", "hopper search release --all --limit 50"),
    )(search)
    command(
        app,
        "show",
        panel=TASKS,
        examples=("hopper show k7q2mz", "hopper show k7q2mz --json | jq -r .task.result | base64 -d"),
    )(show)


def add(  # noqa: PLR0913, PLR0917 - each option is an argument
    cli: Cli,
    title: Annotated[
        str | None, typer.Argument(metavar="TITLE", help="What is asked for, on one line.")
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            "--file",
            "-f",
            metavar="FILE",
            help="Add all tasks of a file of JSON lines, each a specification or a title; - reads standard input. "
            "Other options are for those that do not say otherwise.",
        ),
    ] = None,
    description: Annotated[
        str | None,
        typer.Option("--description", "-d", metavar="TEXT", help="All of it; - reads standard input."),
    ] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option("--tag", "-t", metavar="TAG", help="What it is about, such as type:Bug. Repeatable."),
    ] = None,
    project: Annotated[
        str | None,
        typer.Option(
            "--project", "-p", metavar="PROJECT", help="Send it there.", autocompletion=complete.projects
        ),
    ] = None,
    instance: Annotated[
        str,
        typer.Option(
            "--instance",
            "-i",
            metavar="INSTANCE",
            help="Who takes it in; global sends it wherever it belongs.",
            autocompletion=complete.instances,
        ),
    ] = "global",
    priority: Annotated[
        str | None,
        typer.Option("--priority", metavar="LEVEL", help="low, normal, high, urgent, or 0 to 100."),
    ] = None,
    needs: Annotated[
        list[str] | None,
        typer.Option(
            "--needs", metavar="CAPABILITY", help="What the executor must be able to do. Repeatable."
        ),
    ] = None,
    after: Annotated[
        list[str] | None,
        typer.Option(
            "--after",
            metavar="TASK",
            help="A task that must succeed first. Repeatable.",
            autocompletion=complete.tasks,
        ),
    ] = None,
    effort: Annotated[
        str | None,
        typer.Option("--effort", metavar="TIME", help="How long the work should take, such as 2h."),
    ] = None,
    due: Annotated[
        str | None,
        typer.Option(
            "--due", "--by", metavar="TIME", help="When it must be done: 2h, 17:00, friday, 2026-03-01 ..."
        ),
    ] = None,
    start_after: Annotated[
        str | None, typer.Option("--start-after", metavar="TIME", help="Not before this time.")
    ] = None,
    payload: Annotated[
        str | None,
        typer.Option("--payload", metavar="FILE", help="Anything for the executor; - reads standard input."),
    ] = None,
    retry: Annotated[
        int | None,
        typer.Option("--retry", metavar="N", min=0, max=999, help="How often to try again when it fails."),
    ] = None,
    exclusive: Annotated[
        bool,
        typer.Option(
            "--exclusive",
            help="It must not run twice: an attempt that was begun and did not succeed is the last.",
        ),
    ] = False,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="KEY=VALUE", help="A fact for people and filters. Repeatable."),
    ] = None,
    requester: Annotated[
        str | None,
        typer.Option("--as", metavar="WHO", help="Who asks. Default: $HOPPER_WORKER, else your login name."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say where it would go, and add nothing.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow it to its end.")] = False,
    allow_duplicate: Annotated[
        bool,
        typer.Option("--allow-duplicate", help="Add it even if it looks like the same work as an open task."),
    ] = False,
) -> None:
    """Ask for something to be done, and learn where it goes and why."""
    from hopper_cli.inputs import me
    from hopper_cli.specs import SpecOptions, new_spec

    options = SpecOptions(
        title=title,
        description=description,
        tags=tag or (),
        needs=needs or (),
        labels=label or (),
        project=project,
        requester=requester or me(),
        priority=priority,
        after=after or (),
        effort=effort,
        due=due,
        start_after=start_after,
        payload=payload,
        retry=retry,
        exclusive=exclusive,
    )
    _only_one_reads_stdin(options, file)
    _one_or_many(title, file, alone=dry_run or watch)
    spec = new_spec(options, cli.task, cli.now)
    if file is not None:
        _add_all(cli, file, spec, instance, allow_duplicate)
    elif dry_run:
        _suggest(cli, instance, spec)
    else:
        _submit(cli, instance, spec, watch, allow_duplicate)


def _only_one_reads_stdin(options: "SpecOptions", file: str | None) -> None:
    from hopper_cli.problems import UsageProblem

    if [options.description, options.payload, file].count("-") > 1:
        raise UsageProblem("standard input cannot be two of description, payload and file")


def _one_or_many(title: str | None, file: str | None, *, alone: bool) -> None:
    from hopper_cli.problems import UsageProblem

    if title is None and file is None:
        raise UsageProblem("missing argument 'TITLE'", remedy="or say --file FILE for many")
    if title is not None and file is not None:
        raise UsageProblem("a TITLE is for one task, --file for many")
    if file is not None and alone:
        raise UsageProblem("--dry-run and --watch are for one task, --file is for many")


def _add_all(cli: Cli, file: str, common: "TaskSpec", instance: str, allow_duplicate: bool) -> None:
    from hopper_cli.bulk import add_all, read_specs
    from hopper_cli.names import instance_name

    add_all(cli, read_specs(file, common), instance_name(instance), allow_duplicate=allow_duplicate)


def _suggest(cli: Cli, instance: str, spec: "TaskSpec") -> None:
    from hopper.router.v1.routing_service_pb2 import SuggestRouteRequest
    from hopper_cli.names import instance_name
    from hopper_cli.render import candidate_table, decision_line, duplicate_line

    request = SuggestRouteRequest(parent=instance_name(instance), spec=spec)
    response = cli.hopper.routing.SuggestRoute(request)
    if cli.json:
        cli.out.document(response)
        return
    cli.out.say(f"would go to {decision_line(response.decision)}")
    if len(response.decision.candidates) > 1:
        cli.out.say(candidate_table(response.decision.candidates[:5]))
    for duplicate in response.duplicates:
        cli.out.say(duplicate_line(duplicate))


def _submit(cli: Cli, instance: str, spec: "TaskSpec", watch: bool, allow_duplicate: bool) -> None:
    from hopper.router.v1.task_service_pb2 import SubmitTaskRequest
    from hopper_cli.commands.watch import follow
    from hopper_cli.names import instance_name, short
    from hopper_cli.render import decision_line, duplicate_line

    request = SubmitTaskRequest(parent=instance_name(instance), spec=spec, allow_duplicate=allow_duplicate)
    response = cli.hopper.tasks.SubmitTask(request)
    if cli.json and watch:
        cli.out.record(response)
    elif cli.json:
        cli.out.document(response)
    else:
        cli.out.say(
            f"{short(response.task.name)} → {decision_line(response.decision)}"
            f"{_waits(response.task, response.decision.reasoning)}"
        )
        for duplicate in response.duplicates:
            cli.out.say(duplicate_line(duplicate))
    if watch:
        follow(cli, response.task)


def _waits(task: "Task", said: str) -> str:
    """What it waits for, unless the reason of the decision has said so."""
    from hopper.router.v1.task_pb2 import Wait
    from hopper_cli.output import one_line

    # That a worker has to come is no news about a task that was added this moment.
    if task.wait.reason in (Wait.REASON_UNSPECIFIED, Wait.REASON_WORKER) or task.wait.message in ("", said):
        return ""
    return f" [{one_line(task.wait.message)}]"


def list_tasks(
    cli: Cli,
    state: Annotated[
        list[StateChoice] | None,
        typer.Option("--state", "-s", help="Only those in this state. Repeatable. Default: open."),
    ] = None,
    project: RoutedToOption = "",
    instance: WithinOption = "",
    tag: Annotated[str, typer.Option("--tag", "-t", metavar="TAG", help="Only those that carry it.")] = "",
    requester: Annotated[
        str, typer.Option("--requester", metavar="WHO", help="Only those that they asked for.")
    ] = "",
    everything: FinishedOption = False,
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, help="Most to list.")] = 100,
) -> None:
    """List tasks, newest first: the open ones, unless you ask for others."""
    from hopper.router.v1.task_service_pb2 import ListTasksRequest
    from hopper_cli.names import instance_name, project_name
    from hopper_cli.render import task_table

    request = ListTasksRequest(
        parent=instance_name(instance) if instance else "",
        project=project_name(project) if project else "",
        tag=tag,
        requester=requester,
        states=_states(state or [], everything),
    )
    found = _pages(cli, request, limit)
    if cli.json:
        cli.out.document(found)
        return
    if not found.tasks:
        cli.out.note(
            "no task matches" if everything or state else "no open task matches; --all shows finished ones"
        )
        return
    cli.out.say(task_table(found.tasks, cli.now))
    if found.next_page_token:
        cli.out.note(f"the first {limit}; there are more: --limit {10 * limit}")


def _states(chosen: list[StateChoice], everything: bool) -> list["Task.State.ValueType"]:
    from hopper.router.v1.task_pb2 import Task
    from hopper_cli.render import FINAL

    real = [state for state in Task.State.values() if state != Task.STATE_UNSPECIFIED]
    if everything:
        return real
    states = {Task.State.Value(f"STATE_{name.name}") for name in chosen if name is not StateChoice.OPEN}
    if StateChoice.OPEN in chosen:
        states |= {state for state in real if state not in FINAL}
    return sorted(states)


def _pages(cli: Cli, request: "ListTasksRequest", limit: int) -> "ListTasksResponse":
    from hopper.router.v1.task_service_pb2 import ListTasksResponse

    found = ListTasksResponse()
    while len(found.tasks) < limit:
        request.page_size = min(1000, limit)
        page = cli.hopper.tasks.ListTasks(request)
        found.tasks.extend(page.tasks)
        found.next_page_token = request.page_token = page.next_page_token
        if not page.next_page_token:
            return found
    del found.tasks[limit:]
    return found


def search(
    cli: Cli,
    words: Annotated[list[str], typer.Argument(metavar="WORDS...", help="A task must have all of them.")],
    instance: WithinOption = "",
    everything: FinishedOption = False,
    limit: Annotated[
        int, typer.Option("--limit", "-n", metavar="N", min=1, max=100, help="Most to list.")
    ] = 20,
) -> None:
    """Find tasks by words of their title, description and tags, best match first."""
    from hopper.router.v1.task_service_pb2 import SearchTasksRequest
    from hopper_cli.names import instance_name
    from hopper_cli.render import task_table

    response = cli.hopper.tasks.SearchTasks(
        SearchTasksRequest(
            query=" ".join(words),
            parent=instance_name(instance) if instance else "",
            include_finished=everything,
            limit=limit,
        )
    )
    if cli.json:
        cli.out.document(response)
    elif response.tasks:
        cli.out.say(task_table(response.tasks, cli.now))
    else:
        cli.out.note(
            "no task matches" if everything else "no open task matches; --all looks at finished ones too"
        )


def show(cli: Cli, task: TaskArgument) -> None:
    """Show everything about a task, and the attempts at it that failed."""
    from hopper.router.v1.task_pb2 import TASK_VIEW_FULL
    from hopper.router.v1.task_service_pb2 import GetTaskRequest, ListAttemptsRequest
    from hopper_cli.output import to_json
    from hopper_cli.render import attempt_table

    name = cli.task(task)
    response = cli.hopper.tasks.GetTask(GetTaskRequest(name=name, view=TASK_VIEW_FULL))
    attempts = cli.hopper.tasks.ListAttempts(ListAttemptsRequest(task=name))
    if cli.json:
        cli.out.document({**to_json(response), **to_json(attempts)})
        return
    show_task(cli, response.task)
    if attempts.attempts:
        cli.out.say()
        cli.out.say(attempt_table(attempts.attempts, cli.now))


def show_task(cli: Cli, task: "Task") -> None:
    """Print a task in FULL view, for people."""
    from rich.text import Text

    from hopper_cli.names import short
    from hopper_cli.output import clean, one_line
    from hopper_cli.render import readable, task_facts

    cli.out.say(Text.assemble((short(task.name), "bold"), "  ", (one_line(task.spec.title), "bold")))
    cli.out.say(task_facts(task, cli.now))
    if task.spec.description:
        cli.out.say()
        cli.out.say(Text(clean(task.spec.description)))
    for name, content in (("payload", task.spec.payload), ("result", task.result)):
        if content:
            cli.out.say()
            cli.out.say(Text(f"{name}:", style="dim"))
            cli.out.say(Text(readable(content)))
