"""`hopper project`: who can do tasks."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hopper_cli.cli import Cli, command
from hopper_cli.commands.options import SET_UP, ProjectArgument, YesOption

if TYPE_CHECKING:
    from rich.text import Text

    from hopper.registry.v1.project_pb2 import Project, RateLimit, Worker

Name = Annotated[str | None, typer.Option("--name", metavar="TEXT", help="What people call it.")]
Description = Annotated[
    str | None,
    typer.Option(
        "--description",
        "-d",
        metavar="TEXT",
        help="What it is for; routing reads it. - reads standard input.",
    ),
]
Can = Annotated[
    list[str] | None, typer.Option("--can", metavar="CAPABILITY", help="What it can do. Repeatable.")
]
Tag = Annotated[
    list[str] | None, typer.Option("--tag", "-t", metavar="TAG", help="What it is about. Repeatable.")
]
Label = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="KEY=VALUE", help="A fact that tasks may require. Repeatable."),
]
Example = Annotated[
    list[str] | None, typer.Option("--example", metavar="TITLE", help="A typical task. Repeatable.")
]
Boost = Annotated[
    list[str] | None,
    typer.Option(
        "--boost", metavar="TAG=NUMBER", help="Added to the score of tasks with the tag. Repeatable."
    ),
]
Velocity = Annotated[
    float | None, typer.Option("--velocity", metavar="N", min=0, help="Tasks finished per day.")
]
Sla = Annotated[
    str | None, typer.Option("--sla", metavar="TIME", help="How soon a task is promised, such as 2d.")
]
MaxRunning = Annotated[
    int | None, typer.Option("--max-running", metavar="N", min=0, help="Most at once; 0: no limit.")
]
MaxOpen = Annotated[
    int | None, typer.Option("--max-open", metavar="N", min=0, help="Most queued and running; 0: no limit.")
]
MaxPerKey = Annotated[
    int | None,
    typer.Option("--max-per-key", metavar="N", min=0, help="Most at once with one concurrency key."),
]
StartRate = Annotated[
    str | None, typer.Option("--start-rate", metavar="RATE", help="Most started, such as 10/s, or none.")
]
StartRatePerKey = Annotated[
    str | None,
    typer.Option("--start-rate-per-key", metavar="RATE", help="The same with one concurrency key."),
]
Hours = Annotated[
    str | None,
    typer.Option(
        "--hours",
        metavar="HOURS",
        help="When it works, such as 'mon-fri 09:00-12:00 13:00-17:00, sat 10-14 Europe/Berlin' (without a zone: "
        "this machine's), or none: always. A task in a hurry goes rather to who works now.",
    ),
]
Cost = Annotated[float | None, typer.Option("--cost", metavar="N", min=0, help="What one task costs.")]
ExecutorKind = Annotated[
    str | None, typer.Option("--executor", metavar="KIND", help="workers, agent, person or peer.")
]
LiveWorker = Annotated[
    bool | None,
    typer.Option(
        "--requires-live-worker/--no-live-worker-needed",
        help="Whether tasks go there only while a worker lives.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    group = typer.Typer(no_args_is_help=True, help="Who can do tasks: add, change, pause them.")
    app.add_typer(group, name="project", rich_help_panel=SET_UP)
    command(
        group,
        "add",
        examples=(
            'hopper project add moodle -d "Learning platform in PHP" --can php --tag education',
            "hopper project add --file projects.yaml",
        ),
    )(add)
    command(group, "list", examples=("hopper project list", "hopper project list --can java"))(list_projects)
    command(group, "show", examples=("hopper project show moodle",))(show)
    command(
        group,
        "edit",
        examples=(
            "hopper project edit moodle --can accessibility --cannot sql",
            "hopper project edit moodle --sla 2d",
            'hopper project edit moodle --hours "mon-fri 09:00-17:00 Europe/Berlin"',
        ),
    )(edit)
    command(group, "remove", examples=("hopper project remove moodle --yes",))(remove)
    command(group, "pause", examples=("hopper project pause moodle",))(pause)
    command(group, "resume", examples=("hopper project resume moodle",))(resume)
    command(group, "workers", examples=("hopper project workers moodle",))(workers)


def add(  # noqa: PLR0913, PLR0917 - each option is an argument
    cli: Cli,
    project: Annotated[
        str | None, typer.Argument(metavar="ID", help="Chosen by you: a-z, 0-9, dots, dashes.")
    ] = None,
    name: Name = None,
    description: Description = None,
    can: Can = None,
    tag: Tag = None,
    label: Label = None,
    example: Example = None,
    boost: Boost = None,
    velocity: Velocity = None,
    sla: Sla = None,
    max_running: MaxRunning = None,
    max_open: MaxOpen = None,
    max_per_key: MaxPerKey = None,
    start_rate: StartRate = None,
    start_rate_per_key: StartRatePerKey = None,
    hours: Hours = None,
    cost: Cost = None,
    executor: ExecutorKind = None,
    live_worker: LiveWorker = None,
    file: Annotated[
        str | None,
        typer.Option(
            "--file", "-f", metavar="FILE", help="Add all projects of a YAML file; - reads standard input."
        ),
    ] = None,
) -> None:
    """Register a project, or all of a file."""
    from hopper.registry.v1.project_pb2 import Project
    from hopper_cli.problems import UsageProblem
    from hopper_cli.project_specs import ProjectOptions, apply

    options = ProjectOptions(
        display_name=name,
        description=description,
        can=can or (),
        tags=tag or (),
        labels=label or (),
        examples=example or (),
        boosts=boost or (),
        velocity=velocity,
        sla=sla,
        max_running=max_running,
        max_open=max_open,
        max_per_key=max_per_key,
        start_rate=start_rate,
        start_rate_per_key=start_rate_per_key,
        hours=hours,
        cost=cost,
        executor=executor,
        requires_live_worker=live_worker,
    )
    if (project is None) == (file is None):
        raise UsageProblem("say either the ID of a project, or --file")
    if project is not None:
        made = Project()
        apply(options, made)
        _add_one(cli, project, made)
    elif options != ProjectOptions():
        raise UsageProblem("with --file, everything about the projects stands in the file")
    else:
        _add_all(cli, file or "")


def _add_one(cli: Cli, project_id: str, project: "Project") -> None:
    from hopper.registry.v1.project_service_pb2 import RegisterProjectRequest
    from hopper_cli.names import bare

    response = cli.hopper.projects.RegisterProject(
        RegisterProjectRequest(project_id=bare(project_id), project=project)
    )
    if cli.json:
        cli.out.document(response)
    else:
        cli.out.say(f"{bare(response.project.name)} added")


def _add_all(cli: Cli, file: str) -> None:
    from hopper.registry.v1.project_service_pb2 import ListProjectsResponse, RegisterProjectRequest
    from hopper_cli.inputs import read_file_text
    from hopper_cli.names import bare
    from hopper_cli.project_specs import read_projects

    added = ListProjectsResponse()
    for project_id, project in read_projects(read_file_text(file), file):
        response = cli.hopper.projects.RegisterProject(
            RegisterProjectRequest(project_id=project_id, project=project)
        )
        added.projects.append(response.project)
        if not cli.json:
            cli.out.say(f"{bare(response.project.name)} added")
    if cli.json:
        cli.out.document(added)


def list_projects(
    cli: Cli,
    can: Annotated[str, typer.Option("--can", metavar="CAPABILITY", help="Only those that can do it.")] = "",
    tag: Annotated[str, typer.Option("--tag", "-t", metavar="TAG", help="Only those that have it.")] = "",
) -> None:
    """List projects by id, with their workers."""
    from hopper.registry.v1.project_service_pb2 import ListProjectsResponse

    found = all_projects(cli, can=can, tag=tag)
    if cli.json:
        cli.out.document(ListProjectsResponse(projects=found))
    elif found:
        cli.out.say(_table(found))
    else:
        cli.out.note("no project" + (" matches" if can or tag else "; `hopper project add` makes one"))


def all_projects(cli: Cli, *, can: str = "", tag: str = "") -> "list[Project]":
    """Every project that matches, by id."""
    from hopper.registry.v1.project_service_pb2 import ListProjectsRequest

    request = ListProjectsRequest(page_size=1000, capability=can, tag=tag)
    found: list[Project] = []
    while True:
        page = cli.hopper.projects.ListProjects(request)
        found.extend(page.projects)
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


def _table(projects: "list[Project]") -> Any:
    from hopper_cli.names import bare
    from hopper_cli.render import grid, plain

    table = grid("project", "state", "#workers", "#busy", "can", "description")
    for project in projects:
        table.add_row(
            bare(project.name),
            _state(project, brief=True),
            str(project.presence.live_workers),
            f"{project.presence.running}/{project.presence.slots}",
            ", ".join(project.capabilities),
            plain(project.description),
        )
    return table


def _state(project: "Project", *, brief: bool = False) -> "Text":
    """In a word; *brief*: with what a peer is told by, where its executor is not shown besides."""
    from rich.text import Text

    from hopper.registry.v1.project_pb2 import Executor, Project
    from hopper_cli.render import word

    words = word(Project.State, project.state, "STATE_")
    state = Text(words, style="yellow" if project.state == Project.STATE_PAUSED else "green")
    return state.append(", peer") if brief and project.executor.type == Executor.TYPE_PEER else state


def show(cli: Cli, project: ProjectArgument) -> None:
    """Show everything about a project."""
    from hopper.registry.v1.project_service_pb2 import GetProjectRequest
    from hopper_cli.names import project_name

    response = cli.hopper.projects.GetProject(GetProjectRequest(name=project_name(project)))
    if cli.json:
        cli.out.document(response)
    else:
        _show(cli, response.project)


def _show(cli: Cli, project: "Project") -> None:
    from rich.text import Text

    from hopper_cli.names import bare
    from hopper_cli.output import clean, one_line
    from hopper_cli.render import facts

    cli.out.say(
        Text.assemble((bare(project.name), "bold"), f"  {one_line(project.display_name)}  ", _state(project))
    )
    if project.description:
        cli.out.say(Text(clean(project.description)))
    cli.out.say(facts([*_abilities(project), *_limits(project, cli)]))
    for example in project.examples:
        cli.out.say(f"  e.g. {one_line(example)}")


def _abilities(project: "Project") -> "list[tuple[str, str | Text]]":
    from hopper.registry.v1.project_pb2 import Executor
    from hopper_cli.render import word

    presence = project.presence
    kind = word(Executor.Type, project.executor.type, "TYPE_").replace("unspecified", "workers")
    required = ", needs a live worker" if project.executor.requires_live_worker else ""
    return [
        ("can", ", ".join(project.capabilities)),
        ("tags", ", ".join(project.tags)),
        ("labels", ", ".join(f"{key}={value}" for key, value in sorted(project.labels.items()))),
        ("boosts", ", ".join(f"{tag} {boost:+g}" for tag, boost in sorted(project.priority_boosts.items()))),
        ("executor", f"{kind}{required}"),
        ("peer", _peer(project)),
        ("workers", f"{presence.live_workers} live, {presence.running} of {presence.slots} slots busy"),
    ]


def _peer(project: "Project") -> str:
    from hopper.common.v1.options_pb2 import TrustLevel
    from hopper_cli.output import one_line
    from hopper_cli.render import word

    if not project.HasField("border"):
        return ""
    border = project.border
    policy = f"`hopper peer policy {one_line(project.display_name)}`"
    return f"{border.peer}, {word(TrustLevel, border.level, 'TRUST_LEVEL_')}: see {policy}"


def _limits(project: "Project", cli: Cli) -> "list[tuple[str, str | Text]]":
    from hopper_cli.times import format_duration, format_time
    from hopper_common.timestamps import duration_field, from_proto

    sla = duration_field(project, "sla")
    return [
        ("velocity", f"{project.velocity_per_day:g} a day" if project.velocity_per_day else ""),
        ("sla", format_duration(sla) if sla is not None else ""),
        ("most running", str(project.capacity.max_running or "")),
        ("most open", str(project.capacity.max_open or "")),
        ("most per key", str(project.capacity.max_running_per_key or "")),
        ("starts", _rate(project.capacity.start_rate)),
        ("starts per key", _rate(project.capacity.start_rate_per_key)),
        ("works", _hours(project, cli)),
        ("cost", f"{project.cost_per_task:g} a task" if project.cost_per_task else ""),
        ("changed", format_time(from_proto(project.update_time), cli.now)),
    ]


def _rate(limit: "RateLimit") -> str:
    from hopper_cli.times import format_duration
    from hopper_common.timestamps import duration_field

    period = duration_field(limit, "period")
    return f"{limit.count} in {format_duration(period)}" if limit.count and period else ""


def _hours(project: "Project", cli: Cli) -> str:
    from hopper_cli.times import format_duration
    from hopper_common.time_zones import ZoneUnknown
    from hopper_common.working_hours import describe, opens_in
    from hopper_common.working_hours_proto import hours_from_proto

    hours = hours_from_proto(project)
    if hours is None:
        return ""
    try:
        wait = opens_in(hours, cli.now)
    except ZoneUnknown:  # here; the registry knows it
        return describe(hours)
    return f"{describe(hours)}, {f'opens in {format_duration(wait)}' if wait else 'now too'}"


def edit(  # noqa: PLR0913, PLR0917 - each option is an argument
    cli: Cli,
    project: ProjectArgument,
    name: Name = None,
    description: Description = None,
    can: Can = None,
    cannot: Annotated[
        list[str] | None, typer.Option("--cannot", metavar="CAPABILITY", help="What it cannot do any more.")
    ] = None,
    tag: Tag = None,
    no_tag: Annotated[list[str] | None, typer.Option("--no-tag", metavar="TAG", help="Take it off.")] = None,
    label: Label = None,
    example: Example = None,
    no_example: Annotated[
        list[str] | None, typer.Option("--no-example", metavar="TITLE", help="Take it off.")
    ] = None,
    boost: Boost = None,
    velocity: Velocity = None,
    sla: Sla = None,
    max_running: MaxRunning = None,
    max_open: MaxOpen = None,
    max_per_key: MaxPerKey = None,
    start_rate: StartRate = None,
    start_rate_per_key: StartRatePerKey = None,
    hours: Hours = None,
    cost: Cost = None,
    executor: ExecutorKind = None,
    live_worker: LiveWorker = None,
) -> None:
    """Change a project: what you name, and nothing else."""
    from hopper_cli.project_specs import ProjectOptions, apply

    options = ProjectOptions(
        display_name=name,
        description=description,
        can=can or (),
        cannot=cannot or (),
        tags=tag or (),
        no_tags=no_tag or (),
        labels=label or (),
        examples=example or (),
        no_examples=no_example or (),
        boosts=boost or (),
        velocity=velocity,
        sla=sla,
        max_running=max_running,
        max_open=max_open,
        max_per_key=max_per_key,
        start_rate=start_rate,
        start_rate_per_key=start_rate_per_key,
        hours=hours,
        cost=cost,
        executor=executor,
        requires_live_worker=live_worker,
    )
    _update(cli, project, lambda present: apply(options, present), "changed")


def _update(cli: Cli, project: str, change: "Callable[[Project], list[str]]", done: str) -> None:
    from google.protobuf.field_mask_pb2 import FieldMask

    from hopper.registry.v1.project_service_pb2 import GetProjectRequest, UpdateProjectRequest
    from hopper_cli.names import bare, project_name
    from hopper_cli.problems import UsageProblem

    # Read first: the etag says that nobody else changed it meanwhile.
    present = cli.hopper.projects.GetProject(GetProjectRequest(name=project_name(project))).project
    paths = change(present)
    if not paths:
        raise UsageProblem(
            "nothing to change: say what", remedy="`hopper project edit --help` has the options"
        )
    response = cli.hopper.projects.UpdateProject(
        UpdateProjectRequest(project=present, update_mask=FieldMask(paths=paths))
    )
    if cli.json:
        cli.out.document(response)
    else:
        cli.out.say(f"{bare(response.project.name)} {done}")


def remove(
    cli: Cli,
    project: ProjectArgument,
    yes: YesOption = False,
) -> None:
    """Remove a project; its open tasks are routed anew."""
    from hopper.registry.v1.project_service_pb2 import UnregisterProjectRequest
    from hopper_cli.names import bare, project_name

    name = project_name(project)
    confirm(cli, f"remove {bare(name)}, and route its open tasks anew?", yes)
    response = cli.hopper.projects.UnregisterProject(UnregisterProjectRequest(name=name))
    if cli.json:
        cli.out.document(response)
    else:
        cli.out.say(f"{bare(name)} removed")


def confirm(cli: Cli, question: str, yes: bool) -> None:
    """
    Ask before what cannot be undone.

    Raises:
        CommandError: The answer is no, or there is nobody to ask.
    """
    import sys

    from hopper_cli.problems import CommandError, UsageProblem

    if yes:
        return
    if cli.json or not sys.stdin.isatty():
        raise UsageProblem("this cannot be undone, and there is nobody to ask", remedy="say --yes")
    if not typer.confirm(question, err=True):
        raise CommandError("nothing was done", reason="DECLINED")


def pause(cli: Cli, project: ProjectArgument) -> None:
    """Send a project no new tasks; it keeps those it has, and its workers get none."""
    _set_state(cli, project, "PAUSED", "paused")


def resume(cli: Cli, project: ProjectArgument) -> None:
    """Let a paused project go on."""
    _set_state(cli, project, "ACTIVE", "goes on")


def _set_state(cli: Cli, project: str, state: str, done: str) -> None:
    from hopper.registry.v1.project_pb2 import Project

    def change(present: "Project") -> list[str]:
        present.state = Project.State.Value(f"STATE_{state}")
        return ["state"]

    _update(cli, project, change, done)


def workers(cli: Cli, project: ProjectArgument) -> None:
    """List a project's workers, those that died in the last day included."""
    from hopper.registry.v1.project_service_pb2 import ListWorkersRequest, ListWorkersResponse
    from hopper_cli.names import project_name

    request = ListWorkersRequest(project=project_name(project), page_size=1000)
    found = ListWorkersResponse()
    while True:
        page = cli.hopper.projects.ListWorkers(request)
        found.workers.extend(page.workers)
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    if cli.json:
        cli.out.document(found)
    elif found.workers:
        cli.out.say(_worker_table(list(found.workers), cli))
    else:
        cli.out.note(f"no worker yet; `hopper work --queue {project} --exec COMMAND` is one")


def _worker_table(found: "list[Worker]", cli: Cli) -> Any:
    from rich.text import Text

    from hopper_cli.names import bare
    from hopper_cli.render import grid
    from hopper_cli.times import format_age
    from hopper_common.timestamps import from_proto

    table = grid("worker", "state", "#busy", "#heard", "labels")
    for worker in found:
        table.add_row(
            bare(worker.name),
            Text("live", style="green") if worker.live else Text("gone", style="dim"),
            f"{worker.running}/{worker.slots}",
            format_age(from_proto(worker.last_heartbeat_time), cli.now),
            ", ".join(f"{key}={value}" for key, value in sorted(worker.labels.items())),
        )
    return table
