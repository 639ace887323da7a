"""Handing tasks over: delegate, escalate, decompose, delegations, accept, reject."""

from typing import TYPE_CHECKING, Annotated

import typer

from hopper_cli import complete
from hopper_cli.cli import Cli, command
from hopper_cli.commands.options import HAND_OVER, ReasonOption, TaskArgument

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from hopper.router.v1.delegation_pb2 import Delegation, Subtask
    from hopper.router.v1.delegation_service_pb2 import DelegateTaskRequest
    from hopper.router.v1.task_pb2 import Task

_ID_LENGTH = 26
_PROPOSE_TIMEOUT = 120.0
"""Seconds; the policy has its own deadline, which is shorter or at most ten minutes."""

DelegationArgument = Annotated[
    str,
    typer.Argument(
        metavar="DELEGATION", help="Its id, or the task it brought here.", autocompletion=complete.tasks
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    command(
        app,
        "delegate",
        panel=HAND_OVER,
        examples=("hopper delegate k7q2mz --to run-3", "hopper delegate k7q2mz --to jane --kind reassign"),
    )(delegate)
    command(
        app, "escalate", panel=HAND_OVER, examples=('hopper escalate k7q2mz -m "this needs a decision"',)
    )(escalate)
    command(
        app,
        "decompose",
        panel=HAND_OVER,
        examples=(
            "hopper decompose k7q2mz --file parts.yaml",
            "hopper decompose k7q2mz --propose",
            "printf '%s\\n' '- title: design' '- {title: build, after: [0]}' | hopper decompose k7q2mz --file -",
        ),
    )(decompose)
    command(app, "delegations", panel=HAND_OVER, examples=("hopper delegations k7q2mz",))(delegations)
    command(app, "accept", panel=HAND_OVER, examples=("hopper accept k7q2mz",))(accept)
    command(app, "reject", panel=HAND_OVER, examples=('hopper reject k7q2mz -m "not our trade"',))(reject)


def delegate(
    cli: Cli,
    task: TaskArgument,
    to: Annotated[
        str,
        typer.Option("--to", metavar="INSTANCE", help="Who takes over.", autocompletion=complete.instances),
    ],
    kind: Annotated[
        str,
        typer.Option(
            "--kind",
            metavar="KIND",
            help="route (to a child) or reassign (to a sibling). Default: what fits.",
        ),
    ] = "",
    reason: ReasonOption = "",
) -> None:
    """Hand a task over to another instance: down to a child, or sideways to a sibling."""
    from hopper.router.v1.delegation_service_pb2 import DelegateTaskRequest
    from hopper_cli.names import instance_name

    name = cli.task(task)
    target = instance_name(to)
    request = DelegateTaskRequest(
        task=name, to_instance=target, kind=_kind(cli, kind, name, target), reason=reason
    )
    _delegate(cli, request)


def _kind(cli: Cli, asked: str, task: str, target: str) -> "Delegation.Kind.ValueType":
    from hopper.registry.v1.instance_service_pb2 import GetInstanceRequest
    from hopper.router.v1.delegation_pb2 import Delegation
    from hopper_cli.names import instance_of
    from hopper_cli.problems import UsageProblem

    kinds = {"route": Delegation.KIND_ROUTE, "reassign": Delegation.KIND_REASSIGN}
    if asked and asked.lower() not in kinds:
        raise UsageProblem(
            f"--kind {asked} is neither route nor reassign",
            remedy="there are `hopper escalate` and `hopper decompose`",
        )
    if asked:
        return kinds[asked.lower()]
    parent = cli.hopper.instances.GetInstance(GetInstanceRequest(name=target)).instance.parent
    return Delegation.KIND_ROUTE if parent == instance_of(task) else Delegation.KIND_REASSIGN


def escalate(cli: Cli, task: TaskArgument, reason: ReasonOption = "") -> None:
    """Hand a task up: whoever delegated it, or the parent, must see to it."""
    from hopper.router.v1.delegation_pb2 import Delegation
    from hopper.router.v1.delegation_service_pb2 import DelegateTaskRequest

    _delegate(cli, DelegateTaskRequest(task=cli.task(task), kind=Delegation.KIND_ESCALATE, reason=reason))


def decompose(
    cli: Cli,
    task: TaskArgument,
    file: Annotated[
        str | None,
        typer.Option(
            "--file", "-f", metavar="FILE", help="The parts, as YAML or JSON; - reads standard input."
        ),
    ] = None,
    propose: Annotated[
        bool, typer.Option("--propose", help="Have the LLM of the policy propose the parts; you are asked.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --propose: do not ask.")] = False,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="INSTANCE",
            help="A child that takes the parts. Default: they stay here.",
            autocompletion=complete.instances,
        ),
    ] = "",
    reason: ReasonOption = "",
) -> None:
    """
    Split a task into parts; when all of them have succeeded, so has the task.

    The file is a list of parts. Each has a title, and may have id, description, tags, needs, project, priority,
    effort, due, start-after, retry, labels, and after: the ids or positions (from 0) of parts that must succeed first.
    """
    from hopper.router.v1.delegation_pb2 import Delegation
    from hopper.router.v1.delegation_service_pb2 import DelegateTaskRequest
    from hopper_cli.inputs import read_file_text
    from hopper_cli.names import instance_name
    from hopper_cli.parts import read_parts
    from hopper_cli.problems import UsageProblem

    if (file is None) is not propose:
        raise UsageProblem("the parts come with --file, or from the policy's LLM with --propose: give one")
    name = cli.task(task)
    parts = _proposed(cli, name, yes) if file is None else read_parts(read_file_text(file), file, cli.now)
    if not parts:
        return
    request = DelegateTaskRequest(
        task=name,
        kind=Delegation.KIND_DECOMPOSE,
        to_instance=instance_name(to) if to else "",
        subtasks=parts,
        reason=reason,
    )
    _delegate(cli, request)


def _proposed(cli: Cli, task: str, yes: bool) -> "list[Subtask]":
    """The parts that the LLM proposes and the caller agrees to; none: it should stay in one piece."""
    from hopper.router.v1.delegation_service_pb2 import ProposeSubtasksRequest
    from hopper_cli.commands.projects import confirm
    from hopper_cli.names import short
    from hopper_cli.output import one_line
    from hopper_cli.render import part_table

    request = ProposeSubtasksRequest(task=task)
    proposed = cli.hopper.delegations.ProposeSubtasks(request, timeout=_PROPOSE_TIMEOUT)
    if not proposed.subtasks:
        if cli.json:
            cli.out.document(proposed)
        else:
            cli.out.say(f"{short(task)} should stay in one piece: {one_line(proposed.reason)}")
        return []
    if not cli.json:
        cli.out.say(part_table(proposed.subtasks))
        cli.out.note(f"{proposed.model}: {one_line(proposed.reason)}")
    confirm(cli, f"split {short(task)} into these {len(proposed.subtasks)} parts?", yes)
    return list(proposed.subtasks)


def _delegate(cli: Cli, request: "DelegateTaskRequest") -> None:
    from hopper_cli.commands.working import claims

    held = claims(cli).get(request.task)
    if held is not None:
        request.fencing_token = held.fencing_token
    response = cli.hopper.delegations.DelegateTask(request)
    if held is not None:
        claims(cli).drop(request.task)
    _tell(cli, response, response.delegation, response.task)


def _tell(cli: Cli, response: "Message", delegation: "Delegation", task: "Task | None" = None) -> None:
    from hopper.router.v1.delegation_pb2 import Delegation
    from hopper_cli.names import bare, path_of, short
    from hopper_cli.render import state_word, word

    if cli.json:
        cli.out.document(response)
        return
    kind = word(Delegation.Kind, delegation.kind, "KIND_")
    state = word(Delegation.State, delegation.state, "STATE_")
    made = ", ".join(short(name) for name in delegation.child_tasks)
    now = f"; {short(task.name)} is {state_word(task.state)}" if task is not None else ""
    makes = f", makes {made}" if made else ""
    cli.out.say(f"{kind} {path_of(list(delegation.path))}: {state}{makes}{now}")
    cli.out.note(f"delegation {bare(delegation.name)}")


def delegations(cli: Cli, task: TaskArgument) -> None:
    """Show a task's whole chain of hand-overs, oldest first."""
    from hopper.router.v1.delegation_service_pb2 import ListDelegationsRequest
    from hopper_cli.render import delegation_table

    response = cli.hopper.delegations.ListDelegations(ListDelegationsRequest(task=cli.task(task)))
    if cli.json:
        cli.out.document(response)
    elif response.delegations:
        cli.out.say(delegation_table(response.delegations, cli.now))
    else:
        cli.out.note("it was never handed over")


def accept(cli: Cli, delegation: DelegationArgument) -> None:
    """Take a task that was offered."""
    from hopper.router.v1.delegation_service_pb2 import AcceptDelegationRequest

    response = cli.hopper.delegations.AcceptDelegation(
        AcceptDelegationRequest(name=_delegation_name(cli, delegation))
    )
    _tell(cli, response, response.delegation)


def reject(cli: Cli, delegation: DelegationArgument, reason: ReasonOption = "") -> None:
    """Send a task back to who handed it over, offered or accepted, as long as nobody works on it."""
    from hopper.router.v1.delegation_service_pb2 import RejectDelegationRequest

    response = cli.hopper.delegations.RejectDelegation(
        RejectDelegationRequest(name=_delegation_name(cli, delegation), reason=reason)
    )
    _tell(cli, response, response.delegation)


def _delegation_name(cli: Cli, text: str) -> str:
    from hopper.router.v1.task_service_pb2 import GetTaskRequest
    from hopper_cli.names import short
    from hopper_cli.problems import CommandError

    if text.startswith("delegations/"):
        return text
    if len(text) == _ID_LENGTH:
        return f"delegations/{text.lower()}"
    task = cli.hopper.tasks.GetTask(GetTaskRequest(name=cli.task(text))).task
    if not task.delegation:
        raise CommandError(
            f"{short(task.name)} was not brought here by a delegation",
            remedy=f"`hopper delegations {short(task.name)}` shows its chain",
            reason="NO_DELEGATION",
        )
    return task.delegation
