"""`hopper artifact`: files beside tasks."""

import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from hopper_cli.artifact_text import artifacts
from hopper_cli.cli import Cli, command
from hopper_cli.commands.options import WORK, TaskArgument

if TYPE_CHECKING:
    from hopper.federation.v1.delegation_pb2 import Artifact


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    group = typer.Typer(
        no_args_is_help=True,
        help="Files beside tasks: what is too big for a result. They cross to the Hopper that asked for the work.",
    )
    app.add_typer(group, name="artifact", rich_help_panel=WORK)
    command(
        group,
        "put",
        examples=(
            "hopper artifact put k7q2mz report.pdf",
            "hopper artifact put k7q2mz build/out.tar.gz --name binaries.tar.gz",
            "make report | hopper artifact put k7q2mz - --name report.csv --type text/csv",
        ),
    )(put)
    command(
        group,
        "list",
        examples=(
            "hopper artifact list k7q2mz",
            "hopper artifact list k7q2mz --json | jq -r '.artifacts[].artifact.name'",
        ),
    )(list_artifacts)
    command(
        group,
        "get",
        examples=(
            "hopper artifact get k7q2mz report.pdf",
            "hopper artifact get k7q2mz report.pdf -o /tmp/r.pdf",
            "hopper artifact get k7q2mz report.csv -o - | head",
        ),
    )(get)


def put(
    cli: Cli,
    task: TaskArgument,
    file: Annotated[str, typer.Argument(metavar="FILE", help="What to put; - reads standard input.")],
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="What it is called there. Default: the file's name.")
    ] = "",
    media_type: Annotated[
        str, typer.Option("--type", metavar="TYPE", help="What kind it is. Default: what its name suggests.")
    ] = "",
) -> None:
    """
    Put a file beside a task, before the task ends.

    The same file again changes nothing; another one under its name takes its place.
    """
    kept = put_beside(cli, cli.task(task), file, name, media_type)
    if cli.json:
        cli.out.document(kept)
    else:
        from hopper_cli.artifact_text import size

        cli.out.say(f"{kept.name}: {size(kept.size)}, SHA-256 {kept.sha256.hex()}")


def put_beside(cli: Cli, task: str, file: str, name: str = "", media_type: str = "") -> "Artifact":
    """Put a file, or standard input for `-`, beside a task."""
    from hopper_cli.artifact_text import bar
    from hopper_cli.inputs import file_at, read_bytes_from_stdin
    from hopper_cli.problems import UsageProblem

    if file == "-" and not name:
        raise UsageProblem("standard input has no name", remedy="say --name")
    source = read_bytes_from_stdin() if file == "-" else file_at(file)
    with bar(cli, name or Path(file).name) as progress:
        return cli.hopper.put_artifact(task, source, name=name, media_type=media_type, progress=progress)


def list_artifacts(cli: Cli, task: TaskArgument) -> None:
    """List the files beside a task, and those that came with what it was handed to."""
    from hopper.federation.v1.artifact_service_pb2 import ListArtifactsRequest
    from hopper_cli.artifact_text import is_here, table

    found = cli.hopper.artifacts.ListArtifacts(ListArtifactsRequest(task=cli.task(task)))
    if cli.json:
        cli.out.document(found)
    elif found.artifacts:
        cli.out.say(table(found))
        if any(not each.problem and not is_here(each) for each in found.artifacts):
            cli.out.note(
                "what is not here yet comes by itself, once the Hopper that has it answers: `hopper peer status`"
            )
    else:
        cli.out.note("no files")


def get(
    cli: Cli,
    task: TaskArgument,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="What it is called there.", autocompletion=artifacts)
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Where to; - is standard output. Default: its name, here."
        ),
    ] = "",
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace a file that is there.")] = False,
) -> None:
    """Fetch a file that is beside a task. It is written once it is whole, and its SHA-256 is right."""
    from hopper_cli.artifact_text import bar, size
    from hopper_cli.output import ReaderGone
    from hopper_cli.problems import CommandError
    from hopper_common.errors import InvalidArgument

    target = _target(cli, output or Path(name).name, force=force)
    full = cli.task(task)
    try:
        with bar(cli, name) as progress:
            got = cli.hopper.get_artifact(full, name, target, progress=progress)
    except BrokenPipeError:
        raise ReaderGone from None
    except InvalidArgument as error:
        if error.reason != "ARTIFACT_INVALID":
            raise
        raise CommandError(  # what is wrong is the file, and not what was typed
            error.message,
            remedy="ask whoever did the task for the file, or have it done again",
            reason=error.reason,
        ) from error
    except OSError as error:
        raise CommandError(
            f"{output or name} cannot be written: {error.strerror}", reason="FILE_NOT_WRITTEN"
        ) from error
    if isinstance(target, Path):
        if cli.json:
            cli.out.document({"file": str(target), "bytes": got.size, "sha256": got.sha256.hex()})
        else:
            cli.out.note(f"{target}: {size(got.size)}")


def _target(cli: Cli, output: str, *, force: bool) -> "Path | IO[bytes]":
    from hopper_cli.problems import CommandError, UsageProblem

    if output == "-":
        if cli.json:
            raise UsageProblem("--json and -o - both want standard output")
        return sys.stdout.buffer
    path = Path(output)
    if path.is_dir():
        raise UsageProblem(f"{output} is a directory", remedy="name a file in it")
    if path.exists() and not force:
        raise CommandError(
            f"{output} exists already", remedy="say --force to replace it", reason="FILE_EXISTS"
        )
    return path
