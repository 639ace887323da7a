"""`hopper policy`: a policy compared, tried on the record, switched on, put back, and watched by a shadow."""

from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from hopper_cli.cli import Cli, command
from hopper_cli.commands.options import SET_UP, InstanceOption, YesOption
from hopper_cli.commands.peer_trust import explain

if TYPE_CHECKING:
    from hopper.router.v1.decision_pb2 import Policy
    from hopper.router.v1.routing_service_pb2 import CompareShadowResponse, ReplayPolicyResponse

FileArgument = Annotated[
    str, typer.Argument(metavar="FILE", help="A policy as YAML; - reads standard input.")
]
MaybeFile = Annotated[str, typer.Argument(metavar="[FILE]", help="A policy as YAML; - reads standard input.")]
LimitOption = Annotated[
    int,
    typer.Option("--limit", "-n", metavar="N", min=1, max=10_000, help="How many of the latest decisions."),
]
VersionOption = Annotated[
    int | None, typer.Option("--version", "-v", metavar="N", min=1, help="That version.")
]
StrategyOption = Annotated[
    str, typer.Option("--strategy", metavar="STRATEGY", help="rules or learned, and no file.")
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    group = typer.Typer(
        no_args_is_help=True, help="What a policy would change: compare, replay, apply, roll back, shadow."
    )
    app.add_typer(group, name="policy", rich_help_panel=SET_UP)
    command(group, "diff", examples=("hopper policy diff rules.yaml", "hopper policy diff --version 3"))(diff)
    command(
        group,
        "replay",
        examples=("hopper policy replay rules.yaml --limit 5000", "hopper policy replay --strategy learned"),
    )(replay)
    command(group, "apply", examples=("hopper policy apply rules.yaml",))(apply)
    command(group, "history", examples=("hopper policy history",))(history)
    command(
        group, "rollback", examples=("hopper policy rollback", "hopper policy rollback --version 3 --yes")
    )(rollback)
    command(
        group,
        "shadow",
        examples=(
            "hopper policy shadow --strategy learned",
            "hopper policy shadow rules.yaml",
            "hopper policy shadow --report",
            "hopper policy shadow --off",
        ),
    )(shadow)
    command(
        group,
        "explain",
        examples=(
            "hopper policy explain bob 8f2k1m",
            "hopper policy explain bob --direction in --capability docs.review --label customer=acme",
        ),
    )(explain)


# ---------------------------------------------------------------- comparing


def diff(
    cli: Cli, file: MaybeFile = "", instance: InstanceOption = "global", version: VersionOption = None
) -> None:
    """Say how a file, or an earlier version, differs from the policy in force."""
    from hopper_cli.inputs import read_file_text
    from hopper_cli.problems import UsageProblem

    if bool(file) == bool(version):
        raise UsageProblem("name a file, or a --version")
    now = _in_force(cli, instance)
    other = read_file_text(file) if file else _version(cli, instance, version or 0).source
    name = file or f"version {version}"
    found = _Difference.of(now, other, name)
    if cli.json:
        cli.out.document(
            {"policy": now.name, "version": now.version, "changes": found.changes, "diff": found.lines}
        )
    else:
        _print_difference(cli, found)


class _Difference(NamedTuple):
    lines: list[str]
    changes: list[str]

    @classmethod
    def of(cls, now: "Policy", other: str, name: str) -> "_Difference":
        from hopper_cli.policy_text import changes, text_diff

        version = f"{now.name} {f'version {now.version}' if now.version else 'built in'}"
        return cls(text_diff(now.source, other, names=(version, name)), changes(now.source, other, name))


def _print_difference(cli: Cli, found: _Difference) -> None:
    from rich.text import Text

    from hopper_cli.output import clean, one_line

    if not found.lines:
        cli.out.say("nothing differs")
        return
    styles = {"+": "green", "-": "red", "@": "cyan"}
    for line in found.lines:
        cli.out.say(Text(clean(line), style=styles.get(line[:1], "")))
    cli.out.say()
    for change in found.changes or ["only what does not count differs: comments, or how it is written"]:
        cli.out.say(one_line(change))


def _in_force(cli: Cli, instance: str) -> "Policy":
    from hopper.router.v1.routing_service_pb2 import GetPolicyRequest
    from hopper_cli.names import instance_name

    return cli.hopper.routing.GetPolicy(GetPolicyRequest(instance=instance_name(instance))).policy


def _version(cli: Cli, instance: str, version: int) -> "Policy":
    from hopper.router.v1.routing_service_pb2 import GetPolicyRequest
    from hopper_cli.names import instance_name

    request = GetPolicyRequest(instance=instance_name(instance), version=version)
    return cli.hopper.routing.GetPolicy(request).policy


def replay(
    cli: Cli,
    file: MaybeFile = "",
    instance: InstanceOption = "global",
    strategy: StrategyOption = "",
    limit: LimitOption = 1000,
) -> None:
    """
    Run a policy over recorded decisions: what would go elsewhere, and how well that would have gone. Changes nothing.

    Tasks have gone well if feedback says that they were in the right place, or, where nobody said so, if they
    succeeded. The estimate says how it was made and what it takes for granted.
    """
    from hopper.router.v1.routing_service_pb2 import ReplayPolicyRequest
    from hopper_cli.inputs import read_file_text
    from hopper_cli.names import instance_name
    from hopper_cli.problems import UsageProblem

    if bool(file) == bool(strategy):
        raise UsageProblem("name a file, or a --strategy")
    response = cli.hopper.routing.ReplayPolicy(
        ReplayPolicyRequest(
            instance=instance_name(instance),
            source=read_file_text(file) if file else "",
            strategy=strategy,
            limit=limit,
        )
    )
    if cli.json:
        cli.out.document(response)
    else:
        print_replay(cli, response)


def print_replay(cli: Cli, response: "ReplayPolicyResponse") -> None:
    """What a replay came to."""
    from hopper_cli.estimates import comparison_parts

    share = f" ({response.changed / response.replayed:.0%})" if response.replayed else ""
    cli.out.say(f"{response.replayed} decisions run again, {response.changed} would differ{share}")
    for part in comparison_parts(response):
        cli.out.say(part)
    if response.changed > len(response.changes):
        cli.out.note(f"the first {len(response.changes)} of {response.changed}")


# ---------------------------------------------------------------- switching on, putting back


def apply(cli: Cli, file: FileArgument, instance: InstanceOption = "global", yes: YesOption = False) -> None:
    """
    Switch a policy on, after showing what it changes. It is in force for the next decision.

    Refused if somebody else has changed the policy since it was shown.
    """
    from hopper.router.v1.routing_service_pb2 import ValidatePolicyRequest
    from hopper_cli.commands.rules import print_findings
    from hopper_cli.exits import Exit
    from hopper_cli.inputs import read_file_text

    source = read_file_text(file)
    found = cli.hopper.routing.ValidatePolicy(ValidatePolicyRequest(source=source))
    if found.errors and not cli.json:
        print_findings(cli, file, found)
        raise typer.Exit(Exit.FAILED)
    _change(cli, instance, source, file, yes)


def _change(cli: Cli, instance: str, source: str, name: str, yes: bool) -> None:
    """Show what changes, ask, and set the policy, unless it is another one by then."""
    from hopper.router.v1 import decision_pb2
    from hopper.router.v1.routing_service_pb2 import UpdatePolicyRequest
    from hopper_cli.names import bare, instance_name

    now, own = _in_force(cli, instance), f"{instance_name(instance)}/policy"
    if not cli.json:
        _print_difference(cli, _Difference.of(now, source, name))
    _confirm(cli, f"switch this on for {bare(instance_name(instance))}?", yes)
    etag = now.etag if now.name == own else "p0"  # of its own it has none
    policy = decision_pb2.Policy(name=own, source=source, etag=etag)
    response = cli.hopper.routing.UpdatePolicy(UpdatePolicyRequest(policy=policy))
    if cli.json:
        cli.out.document(response)
        return
    made = response.policy
    what = f"{made.rule_count} rules, strategy {made.strategy}" if source else "no policy of its own any more"
    cli.out.say(f"{bare(instance_name(instance))}: {what}, version {made.version}")


def _confirm(cli: Cli, question: str, yes: bool) -> None:
    import sys

    from hopper_cli.problems import CommandError, UsageProblem

    if yes:
        return
    if cli.json or not sys.stdin.isatty():
        raise UsageProblem("there is nobody to ask", remedy="say --yes")
    if not typer.confirm(question, err=True):
        raise CommandError("nothing was done", reason="DECLINED")


def history(cli: Cli, instance: InstanceOption = "global", limit: LimitOption = 20) -> None:
    """List the policies that an instance has had, newest first."""
    from hopper.router.v1.routing_service_pb2 import ListPolicyVersionsRequest
    from hopper_cli.names import instance_name
    from hopper_cli.render import grid
    from hopper_cli.times import format_time
    from hopper_common.timestamps import from_proto

    request = ListPolicyVersionsRequest(instance=instance_name(instance), page_size=min(limit, 1000))
    response = cli.hopper.routing.ListPolicyVersions(request)
    if cli.json:
        cli.out.document(response)
        return
    if not response.policies:
        cli.out.note("it never had a policy of its own")
        return
    table = grid("#version", "since", "strategy", "#rules")
    for policy in response.policies:
        since = format_time(from_proto(policy.update_time), cli.now)
        table.add_row(str(policy.version), since, policy.strategy or "(removed)", str(policy.rule_count))
    cli.out.say(table)


def rollback(
    cli: Cli, instance: InstanceOption = "global", version: VersionOption = None, yes: YesOption = False
) -> None:
    """Put an earlier policy back in force: the one before, or that version. It becomes the newest version."""
    number = version or _version_before(cli, instance)
    _change(cli, instance, _version(cli, instance, number).source, f"version {number}", yes)


def _version_before(cli: Cli, instance: str) -> int:
    from hopper.router.v1.routing_service_pb2 import ListPolicyVersionsRequest
    from hopper_cli.names import bare, instance_name
    from hopper_cli.problems import UsageProblem

    request = ListPolicyVersionsRequest(instance=instance_name(instance), page_size=2)
    found = cli.hopper.routing.ListPolicyVersions(request).policies
    if len(found) < 2:
        raise UsageProblem(
            f"{bare(instance_name(instance))} has had no other policy of its own",
            remedy="`hopper rules remove` takes its policy away",
        )
    return int(found[1].version)


# ---------------------------------------------------------------- the shadow


def shadow(
    cli: Cli,
    file: MaybeFile = "",
    instance: InstanceOption = "global",
    strategy: StrategyOption = "",
    off: Annotated[bool, typer.Option("--off", help="Take the shadow away.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Compare; so does giving nothing at all.")] = False,
    limit: LimitOption = 1000,
    yes: YesOption = False,
) -> None:
    """
    Let a second policy decide beside the one in force, and compare the two. A shadow never acts.

    With a file or a strategy it is put into the policy of the instance, under `shadow`; what it does not say is as in
    the policy itself.
    """
    from hopper_cli.inputs import read_file_text
    from hopper_cli.policy_text import with_shadow
    from hopper_cli.problems import UsageProblem

    if sum(map(bool, (file, strategy, off, report))) > 1:
        raise UsageProblem("name one of: a file, --strategy, --off, --report")
    if not (file or strategy or off):
        _report(cli, instance, limit)
        return
    own = read_file_text(file) if file else f"strategy: {strategy}\n" if strategy else ""
    source = with_shadow(_in_force(cli, instance).source, own)
    _change(cli, instance, source, "with the shadow" if own else "without a shadow", yes)


def _report(cli: Cli, instance: str, limit: int) -> None:
    from hopper.router.v1.routing_service_pb2 import CompareShadowRequest
    from hopper_cli.names import instance_name

    request = CompareShadowRequest(instance=instance_name(instance), limit=limit)
    response = cli.hopper.routing.CompareShadow(request)
    if cli.json:
        cli.out.document(response)
    else:
        _print_shadow(cli, response)


def _print_shadow(cli: Cli, response: "CompareShadowResponse") -> None:
    from hopper_cli.estimates import comparison_parts
    from hopper_cli.times import format_time
    from hopper_common.timestamps import from_proto

    if not response.strategy:
        cli.out.say("there is no shadow: `hopper policy shadow FILE` or `--strategy learned` makes one")
        return
    if not response.compared:
        cli.out.say(f"the shadow ({response.strategy}) has not seen a decision yet")
        return
    since = format_time(from_proto(response.first_time), cli.now)
    share = f"{response.changed / response.compared:.0%}"
    cli.out.say(
        f"the shadow ({response.strategy}) has seen {response.compared} decisions since {since}: "
        f"it would have made {response.changed} otherwise ({share})"
    )
    for part in comparison_parts(response):
        cli.out.say(part)
