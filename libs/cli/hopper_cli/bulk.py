"""
`hopper add --file`: many tasks from JSON lines, on one stream.

All lines are read and understood before the first task is added, so that a slip of the pen in line 900 adds nothing.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from google.protobuf import json_format

from hopper.router.v1.task_pb2 import TaskSpec
from hopper.router.v1.task_service_pb2 import SubmitStreamRequest, SubmitStreamResponse
from hopper_cli import inputs
from hopper_cli.problems import CommandError, UsageProblem

if TYPE_CHECKING:
    from hopper_cli.cli import Cli


def read_specs(file: str, common: TaskSpec) -> list[TaskSpec]:
    """
    The tasks of a file of JSON lines.

    Args:
        file: Its path; `-` is standard input. A line is a task's specification as an object with the field names of
            the contract, or a title alone as a string. Empty lines count for nothing.
        common: What all of them have that do not say otherwise.

    Raises:
        UsageProblem: A line is no task; it names the line.
    """
    lines = inputs.read_file_text(file).splitlines()
    return [_spec(line, number, common) for number, line in enumerate(lines, 1) if line.strip()]


def _spec(line: str, number: int, common: TaskSpec) -> TaskSpec:
    spec = TaskSpec()
    spec.CopyFrom(common)
    try:
        read = json.loads(line)
        json_format.ParseDict({"title": read} if isinstance(read, str) else read, spec)
    except (ValueError, TypeError, AttributeError, json_format.ParseError) as error:
        raise UsageProblem(
            f"line {number} is no task: {str(error).splitlines()[0]}",
            remedy='write one JSON object a line, such as {"title": "Mend the fence", "tags": ["type:Repair"]}',
        ) from None
    if not spec.title:
        raise UsageProblem(f"line {number} has no title")
    return spec


def add_all(cli: "Cli", specs: Sequence[TaskSpec], instance: str, *, allow_duplicate: bool = False) -> None:
    """
    Add tasks, and say of each what became of it.

    Args:
        allow_duplicate: Also those that look like the same work as open tasks, or as each other.

    Raises:
        CommandError: Some were refused.
    """
    began, refused = time.monotonic(), 0
    requests = [SubmitStreamRequest(spec=spec, allow_duplicate=allow_duplicate) for spec in specs]
    with _progress(cli, len(specs)) as advance:
        for number, answer in enumerate(cli.hopper.submit_many(requests, instance=instance), 1):
            _tell(cli, number, answer)
            refused += answer.HasField("error")
            advance()
    seconds = time.monotonic() - began
    cli.out.note(f"{len(specs) - refused:,} added, {refused:,} refused in {seconds:.1f} s")
    if refused:
        raise CommandError(f"{refused:,} of {len(specs):,} tasks were refused", reason="TASKS_REFUSED")


def _tell(cli: "Cli", number: int, answer: SubmitStreamResponse) -> None:
    from hopper_cli.names import short
    from hopper_cli.render import duplicate_line

    if cli.json:
        cli.out.record(answer)
    elif answer.HasField("error"):
        cli.out.say(f"{number}: refused: {answer.error.message}")
    else:
        cli.out.say(
            f"{short(answer.task.name)} → {answer.task.project.removeprefix('projects/') or 'nobody yet'}"
        )
        for duplicate in answer.duplicates:
            cli.out.say(duplicate_line(duplicate))


@contextmanager
def _progress(cli: "Cli", total: int) -> Iterator[Callable[[], None]]:
    """A bar, where somebody looks and the answers go elsewhere."""
    if cli.json or sys.stdout.isatty() or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.progress import MofNCompleteColumn, Progress

    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=cli.out.errors) as progress:
        task = progress.add_task("adding", total=total)
        yield lambda: progress.advance(task)
