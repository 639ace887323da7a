"""`hopper rules`: how tasks are routed, checked and tried before it is switched on."""

from typing import TYPE_CHECKING, Annotated

import typer

from hopper_cli.cli import Cli, command
from hopper_cli.commands.options import SET_UP, InstanceOption

if TYPE_CHECKING:
    from hopper.router.v1.routing_service_pb2 import ValidatePolicyResponse

FileArgument = Annotated[
    str, typer.Argument(metavar="FILE", help="A policy as YAML; - reads standard input.")
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    group = typer.Typer(no_args_is_help=True, help="How tasks are routed: check, try and switch on rules.")
    app.add_typer(group, name="rules", rich_help_panel=SET_UP)
    command(group, "check", examples=("hopper rules check rules.yaml",))(check)
    command(
        group, "show", examples=("hopper rules show > rules.yaml", "hopper rules show --instance moodle")
    )(show)
    command(
        group,
        "apply",
        examples=("hopper rules apply rules.yaml", "hopper rules apply rules.yaml --instance moodle"),
    )(apply)
    command(group, "replay", examples=("hopper rules replay rules.yaml --limit 5000",))(replay)
    command(group, "remove", examples=("hopper rules remove --instance moodle",))(remove)


def check(cli: Cli, file: FileArgument) -> None:
    """Say what is wrong with a policy, line by line. Exit code 1 when it would not load."""
    from hopper.router.v1.routing_service_pb2 import ValidatePolicyRequest
    from hopper_cli.exits import Exit
    from hopper_cli.inputs import read_file_text

    response = cli.hopper.routing.ValidatePolicy(ValidatePolicyRequest(source=read_file_text(file)))
    if cli.json:
        cli.out.document(response)
    else:
        print_findings(cli, file, response)
    if response.errors:
        raise typer.Exit(Exit.FAILED)


def print_findings(cli: Cli, file: str, response: "ValidatePolicyResponse") -> None:
    """What is wrong with a file, line by line, as compilers say it."""
    from hopper_cli.output import one_line

    for error in response.errors:
        cli.out.say(f"{file}:{error.line}:{error.column}: {one_line(error.message)}", style="red")
    for warning in response.warnings:
        cli.out.say(
            f"{file}:{warning.line}:{warning.column}: warning: {one_line(warning.message)}", style="yellow"
        )
    if not response.errors:
        cli.out.say(f"{file}: {response.rule_count} rules, all of them load")


def show(cli: Cli, instance: InstanceOption = "global") -> None:
    """Print the policy in force for an instance: its own, or that of the nearest one above."""
    from hopper.router.v1.routing_service_pb2 import GetPolicyRequest
    from hopper_cli.names import instance_name

    response = cli.hopper.routing.GetPolicy(GetPolicyRequest(instance=instance_name(instance)))
    policy = response.policy
    if cli.json:
        cli.out.document(response)
        return
    version = f"version {policy.version}" if policy.version else "built in"
    cli.out.note(f"{policy.name}, {version}: {policy.rule_count} rules, strategy {policy.strategy}")
    if policy.source:
        cli.out.say(policy.source.rstrip("\n"))


def apply(cli: Cli, file: FileArgument, instance: InstanceOption = "global") -> None:
    """Switch a policy on. It is in force for the next decision."""
    from hopper_cli.inputs import read_file_text

    _set(cli, instance, read_file_text(file), file)


def remove(cli: Cli, instance: InstanceOption = "global") -> None:
    """Take an instance's own policy away; that of the nearest one above is in force, or the built-in one."""
    _set(cli, instance, "", "")


def _set(cli: Cli, instance: str, source: str, file: str) -> None:
    from hopper.router.v1.decision_pb2 import Policy
    from hopper.router.v1.routing_service_pb2 import UpdatePolicyRequest, ValidatePolicyRequest
    from hopper_cli.names import bare, instance_name
    from hopper_common.errors import InvalidArgument

    name = instance_name(instance)
    request = UpdatePolicyRequest(policy=Policy(name=f"{name}/policy", source=source))
    try:
        response = cli.hopper.routing.UpdatePolicy(request)
    except InvalidArgument as error:
        if error.reason == "POLICY_INVALID" and not cli.json:
            found = cli.hopper.routing.ValidatePolicy(ValidatePolicyRequest(source=source))
            print_findings(cli, file, found)
            raise typer.Exit(1) from None
        raise
    if cli.json:
        cli.out.document(response)
        return
    policy = response.policy
    rules = f"{policy.rule_count} rules, strategy {policy.strategy}, version {policy.version}"
    cli.out.say(f"{bare(name)}: {rules}" if source else f"{bare(name)}: has no policy of its own any more")


def replay(
    cli: Cli,
    file: FileArgument,
    instance: InstanceOption = "global",
    limit: Annotated[
        int,
        typer.Option(
            "--limit", "-n", metavar="N", min=1, max=10_000, help="How many of the latest decisions."
        ),
    ] = 1000,
) -> None:
    """Run a policy over recorded decisions, and say which tasks would go elsewhere. Changes nothing."""
    from hopper.router.v1.routing_service_pb2 import ReplayPolicyRequest
    from hopper_cli.commands.policy import print_replay
    from hopper_cli.inputs import read_file_text
    from hopper_cli.names import instance_name

    response = cli.hopper.routing.ReplayPolicy(
        ReplayPolicyRequest(instance=instance_name(instance), source=read_file_text(file), limit=limit)
    )
    if cli.json:
        cli.out.document(response)
    else:
        print_replay(cli, response)
