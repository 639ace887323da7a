"""`hopper instance`: the hierarchy."""

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hopper_cli import complete
from hopper_cli.cli import Cli, command
from hopper_cli.commands.options import SET_UP, InstanceArgument, ReasonOption, YesOption
from hopper_cli.commands.projects import confirm

if TYPE_CHECKING:
    from datetime import datetime

    from google.protobuf.message import Message
    from rich.text import Text
    from rich.tree import Tree

    from hopper.registry.v1.instance_pb2 import Instance
    from hopper.registry.v1.instance_service_pb2 import TreeNode


class ScopeChoice(StrEnum):
    """What kind of node an instance is."""

    PROJECT = "project"
    ORCHESTRATION = "orchestration"
    PERSONAL = "personal"
    FAMILY = "family"
    EVENT = "event"
    FEDERATED = "federated"


Name = Annotated[str | None, typer.Option("--name", metavar="TEXT", help="What people call it.")]
ForProject = Annotated[
    str | None,
    typer.Option(
        "--project",
        "-p",
        metavar="PROJECT",
        help="The project it stands for.",
        autocompletion=complete.projects,
    ),
]
Member = Annotated[
    list[str] | None,
    typer.Option(
        "--member", metavar="WHO", help="Who may claim (personal: the one; family: each). Repeatable."
    ),
]
MaxWorkers = Annotated[
    int | None,
    typer.Option("--max-workers", metavar="N", min=0, help="Orchestration: most tasks at once; 0: no limit."),
]
ComplexEffort = Annotated[
    str | None,
    typer.Option("--complex-effort", metavar="TIME", help="Project: from this effort on, a task is complex."),
]
EventTime = Annotated[
    str | None, typer.Option("--date", metavar="TIME", help="Event: what tasks are planned back from.")
]
ManualAccept = Annotated[
    bool | None,
    typer.Option(
        "--manual-accept/--accept-at-once", help="Whether somebody here accepts what is handed over."
    ),
]
OfferTimeout = Annotated[
    str | None, typer.Option("--offer-timeout", metavar="TIME", help="How long an offer waits for that.")
]
Peer = Annotated[str | None, typer.Option("--peer", metavar="ID", help="Federated: the peer's install id.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    group = typer.Typer(no_args_is_help=True, help="The hierarchy: who stands under whom.")
    app.add_typer(group, name="instance", rich_help_panel=SET_UP)
    command(
        group,
        "create",
        examples=(
            "hopper instance create moodle --scope project --project moodle --start",
            "hopper instance create run-3 --scope orchestration --parent moodle --max-workers 4 --start",
            "hopper instance create jane --scope personal --member jane --start",
            'hopper instance create launch --scope event --date "2026-06-01 09:00" --start',
        ),
    )(create)
    command(group, "tree", examples=("hopper instance tree", "hopper instance tree moodle --all"))(tree)
    command(group, "list", examples=("hopper instance list --parent global",))(list_instances)
    command(group, "show", examples=("hopper instance show run-3",))(show)
    command(group, "edit", examples=("hopper instance edit run-3 --max-workers 8",))(edit)
    command(group, "start", examples=("hopper instance start run-3",))(start)
    command(group, "pause", examples=('hopper instance pause run-3 -m "the tests are red"',))(pause)
    command(group, "resume", examples=("hopper instance resume run-3",))(resume)
    command(group, "stop", examples=("hopper instance stop run-3",))(stop)
    command(group, "terminate", examples=("hopper instance terminate run-3 --yes",))(terminate)


def create(  # noqa: PLR0913, PLR0917 - each option is an argument
    cli: Cli,
    instance: Annotated[str, typer.Argument(metavar="ID", help="Chosen by you: a-z, 0-9, dots, dashes.")],
    scope: Annotated[ScopeChoice, typer.Option("--scope", "-s", help="What kind of node.")],
    parent: Annotated[
        str,
        typer.Option(
            "--parent", metavar="INSTANCE", help="What it stands under.", autocompletion=complete.instances
        ),
    ] = "global",
    name: Name = None,
    project: ForProject = None,
    member: Member = None,
    max_workers: MaxWorkers = None,
    complex_effort: ComplexEffort = None,
    date: EventTime = None,
    manual_accept: ManualAccept = None,
    offer_timeout: OfferTimeout = None,
    peer: Peer = None,
    start: Annotated[bool, typer.Option("--start", help="And bring it up.")] = False,
) -> None:
    """Add a node to the hierarchy."""
    from hopper.registry.v1.instance_pb2 import Instance, Scope
    from hopper.registry.v1.instance_service_pb2 import CreateInstanceRequest, StartInstanceRequest
    from hopper_cli.names import bare, instance_name

    made = Instance(parent=instance_name(parent), scope=Scope.Value(f"SCOPE_{scope.name}"))
    _apply(
        cli.now,
        made,
        name=name,
        project=project,
        members=member,
        max_workers=max_workers,
        complex_effort=complex_effort,
        date=date,
        manual_accept=manual_accept,
        offer_timeout=offer_timeout,
        peer=peer,
    )
    created = cli.hopper.instances.CreateInstance(
        CreateInstanceRequest(instance_id=bare(instance), instance=made)
    )
    if start:
        started = cli.hopper.instances.StartInstance(StartInstanceRequest(name=created.instance.name))
        _tell(cli, started, started.instance, "created and started")
    else:
        _tell(cli, created, created.instance, "created")


def _apply(  # noqa: PLR0913 - one argument for each option
    now: "datetime",
    instance: "Instance",
    *,
    name: str | None,
    project: str | None,
    members: Sequence[str] | None,
    max_workers: int | None,
    complex_effort: str | None,
    date: str | None,
    manual_accept: bool | None,
    offer_timeout: str | None,
    peer: str | None,
) -> list[str]:
    """Change an instance to what was typed; returns the paths, as `UpdateInstance` takes them."""
    from hopper_cli.names import project_name
    from hopper_cli.times import parse_duration, parse_time
    from hopper_common.timestamps import to_proto

    config = instance.config
    changed = []
    if name is not None:
        instance.display_name = name
        changed.append("display_name")
    if project is not None:
        instance.project = project_name(project) if project else ""
        changed.append("project")
    if members is not None:
        config.members[:] = members
        changed.append("config.members")
    for field, value in (("max_workers", max_workers), ("manual_accept", manual_accept), ("peer", peer)):
        if value is not None:
            setattr(config, field, value)
            changed.append(f"config.{field}")
    for field, length in (("complex_effort", complex_effort), ("offer_timeout", offer_timeout)):
        if length is not None:
            getattr(config, field).CopyFrom(to_proto(parse_duration(length)))
            changed.append(f"config.{field}")
    if date is not None:
        config.event_time.CopyFrom(to_proto(parse_time(date, now=now, end_of_day=False)))
        changed.append("config.event_time")
    return changed


def _tell(cli: Cli, response: "Message", instance: "Instance", done: str) -> None:
    from hopper_cli.names import bare

    if cli.json:
        cli.out.document(response)
    else:
        cli.out.say(f"{bare(instance.name)} {done}; {_state_word(instance)}")


def _state_word(instance: "Instance") -> str:
    from hopper.registry.v1.instance_pb2 import Instance
    from hopper_cli.render import word

    return word(Instance.State, instance.state, "STATE_")


def _scope_word(instance: "Instance") -> str:
    from hopper.registry.v1.instance_pb2 import Scope
    from hopper_cli.render import word

    return word(Scope, instance.scope, "SCOPE_")


def _state_text(instance: "Instance") -> "Text":
    from rich.text import Text

    styles = {"running": "green", "paused": "yellow", "error": "red", "terminated": "dim", "stopped": "dim"}
    words = _state_word(instance)
    return Text(words, style=styles.get(words, "cyan"))


def tree(
    cli: Cli,
    instance: Annotated[
        str, typer.Argument(metavar="INSTANCE", help="The top of it.", autocompletion=complete.instances)
    ] = "global",
    everything: Annotated[bool, typer.Option("--all", "-a", help="Terminated ones too.")] = False,
) -> None:
    """Show the hierarchy, or what stands under one instance."""
    from hopper.registry.v1.instance_service_pb2 import GetTreeRequest
    from hopper_cli.names import instance_name

    response = cli.hopper.instances.GetTree(
        GetTreeRequest(root=instance_name(instance), show_terminated=everything)
    )
    if cli.json:
        cli.out.document(response)
    else:
        cli.out.say(_tree(response.root))


def _tree(node: "TreeNode") -> "Tree":
    from rich.tree import Tree

    top = Tree(_label(node.instance), guide_style="dim")
    _grow(top, node)
    return top


def _grow(branch: "Tree", node: "TreeNode") -> None:
    for child in node.children:
        _grow(branch.add(_label(child.instance)), child)


def _label(instance: "Instance") -> "Text":
    from rich.text import Text

    from hopper_cli.names import bare
    from hopper_cli.output import one_line

    project = f" for {bare(instance.project)}" if instance.project else ""
    why = f" ({one_line(instance.state_reason)})" if instance.state_reason else ""
    return Text.assemble(
        (bare(instance.name), "bold"),
        f"  {_scope_word(instance)}{project}  ",
        _state_text(instance),
        (why, "dim"),
    )


def list_instances(
    cli: Cli,
    parent: Annotated[
        str,
        typer.Option(
            "--parent",
            metavar="INSTANCE",
            help="Only its direct children.",
            autocompletion=complete.instances,
        ),
    ] = "",
) -> None:
    """List instances by id."""
    from hopper.registry.v1.instance_service_pb2 import ListInstancesResponse

    found = all_instances(cli, parent)
    if cli.json:
        cli.out.document(ListInstancesResponse(instances=found))
    else:
        cli.out.say(_table(found))


def all_instances(cli: Cli, parent: str = "") -> "list[Instance]":
    """Every instance, or every direct child of one, by id."""
    from hopper.registry.v1.instance_service_pb2 import ListInstancesRequest
    from hopper_cli.names import instance_name

    request = ListInstancesRequest(page_size=1000, parent=instance_name(parent) if parent else "")
    found: list[Instance] = []
    while True:
        page = cli.hopper.instances.ListInstances(request)
        found.extend(page.instances)
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


def _table(instances: "list[Instance]") -> Any:
    from hopper_cli.names import bare
    from hopper_cli.render import grid, plain

    table = grid("instance", "scope", "state", "under", "project", "name")
    for instance in instances:
        table.add_row(
            bare(instance.name),
            _scope_word(instance),
            _state_text(instance),
            bare(instance.parent),
            bare(instance.project),
            plain(instance.display_name),
        )
    return table


def show(cli: Cli, instance: InstanceArgument) -> None:
    """Show everything about an instance."""
    from hopper.registry.v1.instance_service_pb2 import GetInstanceRequest
    from hopper_cli.names import instance_name

    response = cli.hopper.instances.GetInstance(GetInstanceRequest(name=instance_name(instance)))
    if cli.json:
        cli.out.document(response)
        return
    cli.out.say(_label(response.instance))
    cli.out.say(_facts(response.instance, cli.now))
    for run in response.instance.archive:
        cli.out.say(
            f"  run {run.instance}: {run.succeeded} succeeded, {run.failed} failed, {run.returned} returned"
        )


def _facts(instance: "Instance", now: "datetime") -> Any:
    from hopper_cli.names import bare
    from hopper_cli.render import facts
    from hopper_cli.times import format_duration, format_time
    from hopper_common.timestamps import duration_field, from_proto, time_field

    config = instance.config
    complex_effort = duration_field(config, "complex_effort")
    offer_timeout = duration_field(config, "offer_timeout")
    event_time = time_field(config, "event_time")
    return facts(
        [
            ("name", instance.display_name),
            ("under", bare(instance.parent)),
            ("members", ", ".join(config.members)),
            ("most workers", str(config.max_workers or "")),
            ("complex from", format_duration(complex_effort) if complex_effort is not None else ""),
            ("date", format_time(event_time, now) if event_time is not None else ""),
            ("accepts", "by hand" if config.manual_accept else "at once"),
            ("offers wait", format_duration(offer_timeout) if offer_timeout is not None else ""),
            ("peer", config.peer),
            ("changed", format_time(from_proto(instance.update_time), now)),
        ]
    )


def edit(  # noqa: PLR0913, PLR0917 - each option is an argument
    cli: Cli,
    instance: InstanceArgument,
    name: Name = None,
    project: ForProject = None,
    member: Member = None,
    max_workers: MaxWorkers = None,
    complex_effort: ComplexEffort = None,
    date: EventTime = None,
    manual_accept: ManualAccept = None,
    offer_timeout: OfferTimeout = None,
    peer: Peer = None,
) -> None:
    """Change an instance: what you name, and nothing else. --member replaces the members."""
    from google.protobuf.field_mask_pb2 import FieldMask

    from hopper.registry.v1.instance_service_pb2 import GetInstanceRequest, UpdateInstanceRequest
    from hopper_cli.names import instance_name
    from hopper_cli.problems import UsageProblem

    present = cli.hopper.instances.GetInstance(GetInstanceRequest(name=instance_name(instance))).instance
    paths = _apply(
        cli.now,
        present,
        name=name,
        project=project,
        members=member,
        max_workers=max_workers,
        complex_effort=complex_effort,
        date=date,
        manual_accept=manual_accept,
        offer_timeout=offer_timeout,
        peer=peer,
    )
    if not paths:
        raise UsageProblem(
            "nothing to change: say what", remedy="`hopper instance edit --help` has the options"
        )
    response = cli.hopper.instances.UpdateInstance(
        UpdateInstanceRequest(instance=present, update_mask=FieldMask(paths=paths))
    )
    _tell(cli, response, response.instance, "changed")


def start(cli: Cli, instance: InstanceArgument) -> None:
    """Bring an instance up."""
    from hopper.registry.v1.instance_service_pb2 import StartInstanceRequest
    from hopper_cli.names import instance_name

    response = cli.hopper.instances.StartInstance(StartInstanceRequest(name=instance_name(instance)))
    _tell(cli, response, response.instance, "started")


def pause(cli: Cli, instance: InstanceArgument, reason: ReasonOption = "") -> None:
    """Hand no tasks out, there and below; running ones go on."""
    from hopper.registry.v1.instance_service_pb2 import PauseInstanceRequest
    from hopper_cli.names import instance_name

    response = cli.hopper.instances.PauseInstance(
        PauseInstanceRequest(name=instance_name(instance), reason=reason)
    )
    _tell(cli, response, response.instance, "paused")


def resume(cli: Cli, instance: InstanceArgument) -> None:
    """Let a paused instance go on."""
    from hopper.registry.v1.instance_service_pb2 import ResumeInstanceRequest
    from hopper_cli.names import instance_name

    response = cli.hopper.instances.ResumeInstance(ResumeInstanceRequest(name=instance_name(instance)))
    _tell(cli, response, response.instance, "goes on")


def stop(cli: Cli, instance: InstanceArgument, reason: ReasonOption = "") -> None:
    """Wind an instance and everything under it down: no new tasks, running ones finish."""
    from hopper.registry.v1.instance_service_pb2 import StopInstanceRequest
    from hopper_cli.names import instance_name

    response = cli.hopper.instances.StopInstance(
        StopInstanceRequest(name=instance_name(instance), reason=reason)
    )
    _tell(cli, response, response.instance, "winds down")


def terminate(
    cli: Cli,
    instance: InstanceArgument,
    yes: YesOption = False,
) -> None:
    """End an instance for good. It stays readable."""
    from hopper.registry.v1.instance_service_pb2 import TerminateInstanceRequest
    from hopper_cli.names import bare, instance_name

    name = instance_name(instance)
    confirm(cli, f"end {bare(name)} for good?", yes)
    response = cli.hopper.instances.TerminateInstance(TerminateInstanceRequest(name=name))
    _tell(cli, response, response.instance, "ended")
