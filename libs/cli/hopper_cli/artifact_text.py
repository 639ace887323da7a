"""Files beside tasks, for people: a table, sizes, a bar while they travel, and what the shell offers for a name."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import typer

from hopper_cli.complete import Offer, offers

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from hopper.federation.v1.artifact_service_pb2 import ListArtifactsResponse, StoredArtifact
    from hopper_cli.cli import Cli
    from hopper_client import Hopper

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


def artifacts(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """Files beside the task that was named before: names, and sizes."""

    def ask(hopper: "Hopper") -> Iterable[Offer]:
        from hopper.federation.v1.artifact_service_pb2 import ListArtifactsRequest

        task = hopper.resolve_task(ctx.params.get("task") or "")
        found = hopper.artifacts.ListArtifacts(ListArtifactsRequest(task=task)).artifacts
        return [(each.artifact.name, size(each.artifact.size)) for each in found]

    return offers(ctx, ask)


def size(count: int) -> str:
    """So many bytes: `12 B`, `1.5 MiB`."""
    amount, unit = float(count), 0
    while amount >= 1024 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1024, unit + 1
    return f"{count} B" if unit == 0 else f"{amount:.1f} {_UNITS[unit]}"


def table(found: "ListArtifactsResponse") -> "Table":
    """The files beside a task."""
    from rich.table import Table
    from rich.text import Text

    from hopper_cli.output import one_line

    made = Table(box=None, pad_edge=False, header_style="dim", show_edge=False)
    for column in ("NAME", "SIZE", "HERE", "TYPE", "SHA-256", ""):
        made.add_column(column, justify="right" if column == "SIZE" else "left", no_wrap=True)
    for each in found.artifacts:
        said = each.artifact
        made.add_row(
            one_line(said.name),
            size(said.size),
            _here(each),
            one_line(said.media_type),
            said.sha256.hex()[:12],
            Text(one_line(each.detail), style="red"),
        )
    return made


def is_here(file: "StoredArtifact") -> bool:
    """Whether all of it is."""
    said = file.artifact
    return file.stored == said.size and (file.stored > 0 or said.sha256 == _EMPTY)


def _here(file: "StoredArtifact") -> str:
    if is_here(file):
        return "yes"
    if file.stored:
        return f"{size(file.stored)} of it"
    return "no" if file.problem else "not yet"


def missing_lines(cli: "Cli", task: str) -> "Iterator[Text]":
    """The files beside a task that are not here, and why."""
    from rich.text import Text

    from hopper.federation.v1.artifact_service_pb2 import ListArtifactsRequest
    from hopper_cli.output import one_line
    from hopper_client import HopperError

    try:
        found = cli.hopper.artifacts.ListArtifacts(ListArtifactsRequest(task=task)).artifacts
    except HopperError as error:  # the rest of the answer does not need it
        cli.out.note(f"its files are not looked at: {error.reason}")
        return
    for each in found:
        if not is_here(each):
            why = one_line(each.detail) or "it is on its way"
            yield Text(f"  the file {one_line(each.artifact.name)} is not here: {why}", style="yellow")


_EMPTY: Final = bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
"""The SHA-256 of nothing: a file of no bytes is here though none of its bytes is."""


@contextmanager
def bar(cli: "Cli", title: str) -> Iterator[Callable[[int, int], None]]:
    """What to tell how many bytes have gone, of how many: a bar, where somebody looks."""
    if cli.json or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from hopper_cli.output import one_line

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=cli.out.errors, transient=True) as progress:
        task = progress.add_task(one_line(title), total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
