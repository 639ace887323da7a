"""`hopper sage`: how well the outside advisor does."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hopper_cli.cli import Cli, command
from hopper_cli.commands.options import SET_UP, InstanceOption

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hopper.router.v1.routing_service_pb2 import ReportSageResponse


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    group = typer.Typer(no_args_is_help=True, help="The Sage that a policy asks: how well it does.")
    app.add_typer(group, name="sage", rich_help_panel=SET_UP)
    command(
        group, "report", examples=("hopper sage report", "hopper sage report --instance moodle --days 7")
    )(report)


def report(
    cli: Cli,
    instance: InstanceOption = "global",
    days: Annotated[
        int, typer.Option("--days", metavar="N", min=0, max=3660, help="Only of so many days; 0: of all.")
    ] = 0,
) -> None:
    """Ask the Sage of an instance's policy how well it did, by its own account."""
    from datetime import timedelta

    from hopper.router.v1.routing_service_pb2 import ReportSageRequest
    from hopper_cli.names import instance_name

    request = ReportSageRequest(instance=instance_name(instance))
    if days:
        request.start_time.FromDatetime(cli.now - timedelta(days=days))
    response = cli.hopper.routing.ReportSage(request)
    if cli.json:
        cli.out.document(response)
        return
    for part in parts(response):
        cli.out.say(part)


def parts(response: "ReportSageResponse") -> "Iterator[Any]":
    """The report, part by part."""
    from hopper_cli.output import one_line
    from hopper_cli.render import facts, grid

    sage, seen = response.sage, response.performance
    yield facts(
        [
            ("sage", f"{sage.name} {sage.version}  {one_line(sage.description)}"),
            ("asked", f"{seen.decisions} times"),
            (
                "answered",
                f"{seen.choices} choices, {seen.clarifications} questions, {seen.abstentions} abstentions",
            ),
            ("right", f"{seen.right} of {seen.judged} judged, {seen.accuracy:.0%}" if seen.judged else ""),
            ("off by", f"{seen.calibration_error:.2f} between how sure and how right" if seen.judged else ""),
            ("cost", f"{seen.cost.model_calls} model calls, {seen.cost.money_micros / 1e6:.2f}"),
            ("says", one_line(seen.remarks)),
        ]
    )
    if seen.bins:
        table = grid("confidence", "#judged", "#sure", "#right")
        for each in seen.bins:
            range_ = f"{each.lower:.1f} to {each.upper:.1f}"
            table.add_row(range_, str(each.count), f"{each.mean_confidence:.0%}", f"{each.accuracy:.0%}")
        yield table
