"""`hopper schedule`: tasks that come again and again."""

from typing import TYPE_CHECKING, Annotated

import typer

from hopper_cli import complete
from hopper_cli.cli import Cli, command
from hopper_cli.commands.options import TASKS, ReasonOption

if TYPE_CHECKING:
    from hopper.router.v1.schedule_pb2 import Schedule

ScheduleArgument = Annotated[
    str, typer.Argument(metavar="SCHEDULE", help="Its id.", autocompletion=complete.schedules)
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    group = typer.Typer(no_args_is_help=True, help="Tasks that come again and again.")
    app.add_typer(group, name="schedule", rich_help_panel=TASKS)
    command(
        group,
        "add",
        examples=(
            'hopper schedule add "Rebuild the search index" --cron "0 3 * * *" --zone Europe/Berlin',
            'hopper schedule add "Weekly report" --id report --cron "@weekly" --project mesos --within 1d',
            'hopper schedule add "Poll the feed" --cron "*/5 * * * *" --overlap 3 --catch-up none --jitter 1m',
            'hopper schedule add "When would this come?" --cron "0 9 L * *" --dry-run',
        ),
        epilog="CRON has five fields: minute, hour, day of the month, month, day of the week; or it is @hourly, "
        "@daily, @weekly, @monthly, @yearly.",
    )(add)
    command(
        group,
        "list",
        examples=("hopper schedule list", "hopper schedule list --json | jq -r '.schedules[].name'"),
    )(list_schedules)
    command(group, "show", examples=("hopper schedule show report",))(show)
    command(group, "pause", examples=('hopper schedule pause report -m "until the move is over"',))(pause)
    command(group, "resume", examples=("hopper schedule resume report",))(resume)
    command(group, "run", examples=("hopper schedule run report",))(run)
    command(group, "rm", examples=("hopper schedule rm report",))(remove)


def add(  # noqa: PLR0913, PLR0917 - each option is an argument
    cli: Cli,
    title: Annotated[str, typer.Argument(metavar="TITLE", help="What is asked for each time, on one line.")],
    cron: Annotated[str, typer.Option("--cron", "-c", metavar="CRON", help='When, such as "0 3 * * 1-5".')],
    id_: Annotated[str, typer.Option("--id", metavar="ID", help="Its id. Default: one is made.")] = "",
    zone: Annotated[
        str,
        typer.Option(
            "--zone", "-z", metavar="ZONE", help="The time zone that is meant in. Default: $TZ, else yours."
        ),
    ] = "",
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
            "--instance", "-i", metavar="INSTANCE", help="Who takes it in.", autocompletion=complete.instances
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
    effort: Annotated[
        str | None, typer.Option("--effort", metavar="TIME", help="How long the work should take.")
    ] = None,
    payload: Annotated[
        str | None,
        typer.Option("--payload", metavar="FILE", help="Anything for the executor; - reads standard input."),
    ] = None,
    retry: Annotated[
        int | None,
        typer.Option("--retry", metavar="N", min=0, max=999, help="How often to try again when it fails."),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="KEY=VALUE", help="A fact for people and filters. Repeatable."),
    ] = None,
    requester: Annotated[
        str | None,
        typer.Option("--as", metavar="WHO", help="Who asks. Default: $HOPPER_WORKER, else your login name."),
    ] = None,
    within: Annotated[
        str | None,
        typer.Option("--within", metavar="TIME", help="How long each may take until it is done, such as 2h."),
    ] = None,
    overlap: Annotated[
        str,
        typer.Option(
            "--overlap",
            metavar="POLICY",
            help="While an earlier one is open: skip, queue, or the number of those that may be open.",
        ),
    ] = "skip",
    catch_up: Annotated[
        str,
        typer.Option(
            "--catch-up",
            metavar="POLICY",
            help="What to make up for when nobody was there: none, one, or how many at most.",
        ),
    ] = "one",
    jitter: Annotated[
        str | None, typer.Option("--jitter", metavar="TIME", help="Come up to this much later.")
    ] = None,
    begin: Annotated[str | None, typer.Option("--from", metavar="TIME", help="Not before this time.")] = None,
    end: Annotated[str | None, typer.Option("--until", metavar="TIME", help="Not after this time.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say when it would come, and add nothing.")
    ] = False,
) -> None:
    """Ask for something to be done again and again, and learn when it comes next."""
    from hopper.router.v1.schedule_service_pb2 import CreateScheduleRequest
    from hopper_cli import schedule_specs
    from hopper_cli.inputs import local_zone, me
    from hopper_cli.names import bare, instance_name
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
        effort=effort,
        payload=payload,
        retry=retry,
    )
    schedule = schedule_specs.new_schedule(
        schedule_specs.Timing(cron, zone or local_zone(), overlap, catch_up, jitter, within, begin, end),
        cli.now,
    )
    schedule.instance = instance_name(instance)
    schedule.spec.CopyFrom(new_spec(options, cli.task, cli.now))
    request = CreateScheduleRequest(schedule=schedule, schedule_id=id_, validate_only=dry_run)
    response = cli.hopper.schedules.CreateSchedule(request)
    if cli.json:
        cli.out.document(response)
        return
    made = response.schedule
    cli.out.say("would come" if dry_run else f"{bare(made.name)} comes")
    _say_times(cli, made)


def _say_times(cli: Cli, schedule: "Schedule") -> None:
    from hopper_cli.render import coming_table

    if schedule.next_times:
        cli.out.say(coming_table(schedule, cli.now))
    else:
        cli.out.say("never again", style="yellow")


def list_schedules(
    cli: Cli,
    instance: Annotated[
        str,
        typer.Option(
            "--instance",
            "-i",
            metavar="INSTANCE",
            help="Only those it takes in.",
            autocompletion=complete.instances,
        ),
    ] = "",
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, help="Most to list.")] = 100,
) -> None:
    """List schedules by name, with when they come next and how the last time went."""
    from hopper.router.v1.schedule_service_pb2 import ListSchedulesRequest, ListSchedulesResponse
    from hopper_cli.names import instance_name
    from hopper_cli.render import schedule_table

    request = ListSchedulesRequest(
        parent=instance_name(instance) if instance else "", page_size=min(1000, limit)
    )
    found = ListSchedulesResponse()
    while len(found.schedules) < limit:
        page = cli.hopper.schedules.ListSchedules(request)
        found.schedules.extend(page.schedules)
        found.next_page_token = request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    del found.schedules[limit:]
    if cli.json:
        cli.out.document(found)
    elif not found.schedules:
        cli.out.note("no schedule; `hopper schedule add` makes one")
    else:
        cli.out.say(schedule_table(found.schedules, cli.now))
        if found.next_page_token:
            cli.out.note(f"the first {limit}; there are more: --limit {10 * limit}")


def show(cli: Cli, schedule: ScheduleArgument) -> None:
    """Show everything about a schedule, its last runs, and when it comes next."""
    from rich.text import Text

    from hopper.router.v1.schedule_service_pb2 import GetScheduleRequest
    from hopper_cli.names import bare, schedule_name
    from hopper_cli.output import clean, one_line
    from hopper_cli.render import run_table, schedule_facts

    response = cli.hopper.schedules.GetSchedule(GetScheduleRequest(name=schedule_name(schedule)))
    found = response.schedule
    if cli.json:
        cli.out.document(response)
        return
    cli.out.say(Text.assemble((bare(found.name), "bold"), "  ", (one_line(found.spec.title), "bold")))
    cli.out.say(schedule_facts(found, cli.now))
    if found.spec.description:
        cli.out.say()
        cli.out.say(Text(clean(found.spec.description)))
    cli.out.say()
    cli.out.say(
        "would come" if found.pause_reason or not found.HasField("next_time") else "comes", style="dim"
    )
    _say_times(cli, found)
    if found.recent_runs:
        cli.out.say()
        cli.out.say(run_table(found.recent_runs, cli.now))


def pause(cli: Cli, schedule: ScheduleArgument, reason: ReasonOption = "") -> None:
    """Let a schedule stand still. What would have come meanwhile is not made up for."""
    from hopper.router.v1.schedule_service_pb2 import PauseScheduleRequest
    from hopper_cli.names import bare, schedule_name

    request = PauseScheduleRequest(name=schedule_name(schedule), reason=reason)
    response = cli.hopper.schedules.PauseSchedule(request)
    if cli.json:
        cli.out.document(response)
    else:
        cli.out.say(f"{bare(response.schedule.name)} stands still")


def resume(cli: Cli, schedule: ScheduleArgument) -> None:
    """Let a schedule go on, from now."""
    from hopper.router.v1.schedule_service_pb2 import ResumeScheduleRequest
    from hopper_cli.names import bare, schedule_name

    response = cli.hopper.schedules.ResumeSchedule(ResumeScheduleRequest(name=schedule_name(schedule)))
    if cli.json:
        cli.out.document(response)
        return
    cli.out.say(f"{bare(response.schedule.name)} comes")
    _say_times(cli, response.schedule)


def run(cli: Cli, schedule: ScheduleArgument) -> None:
    """Submit a schedule's task now, whatever its state; its times stay as they are."""
    from hopper.router.v1.schedule_service_pb2 import TriggerScheduleRequest
    from hopper_cli.names import schedule_name, short
    from hopper_cli.render import state_word, where

    response = cli.hopper.schedules.TriggerSchedule(TriggerScheduleRequest(name=schedule_name(schedule)))
    if cli.json:
        cli.out.document(response)
    else:
        task = response.task
        cli.out.say(f"{short(task.name)} {state_word(task.state)}, {where(task)}")


def remove(cli: Cli, schedule: ScheduleArgument) -> None:
    """Remove a schedule; its tasks stay."""
    from hopper.router.v1.schedule_service_pb2 import DeleteScheduleRequest
    from hopper_cli.names import bare, schedule_name

    name = schedule_name(schedule)
    response = cli.hopper.schedules.DeleteSchedule(DeleteScheduleRequest(name=name))
    if cli.json:
        cli.out.document(response)
    else:
        cli.out.say(f"{bare(name)} is gone; its tasks stay")
