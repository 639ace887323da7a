"""The parts of a decomposed task, from a file."""

from datetime import datetime
from typing import Final

from hopper.router.v1.delegation_pb2 import Subtask
from hopper_cli.problems import UsageProblem
from hopper_cli.specs import SpecOptions, new_spec
from hopper_cli.yamls import Entry, load

_KNOWN: Final = frozenset(
    {
        "id",
        "title",
        "description",
        "tags",
        "needs",
        "labels",
        "project",
        "priority",
        "effort",
        "due",
        "start-after",
        "retry",
        "after",
    }
)


def read_parts(text: str, file: str, now: datetime) -> list[Subtask]:
    """
    Read parts.

    Args:
        file: Its name, for complaints.
        now: The zone is that of times which name none.

    Raises:
        UsageProblem: Says which part, and what is wrong with it.
    """
    content = load(text, file)
    if not isinstance(content, list) or not content:
        raise UsageProblem(f"{file} is no list of parts", remedy="write it like `- title: first part`")
    entries = [Entry(part, f"{file}: part {number}", _KNOWN) for number, part in enumerate(content)]
    positions = _positions(entries)
    return [_part(entry, positions, now) for entry in entries]


def _positions(entries: list[Entry]) -> dict[str, int]:
    """Parts by position and by id."""
    positions = {str(number): number for number in range(len(entries))}
    for number, entry in enumerate(entries):
        name = entry.text("id")
        if name is None:
            continue
        if positions.setdefault(name, number) != number:
            raise UsageProblem(f"{entry.at}: another part has the id {name!r}")
    return positions


def _part(entry: Entry, positions: dict[str, int], now: datetime) -> Subtask:
    title = entry.text("title")
    if not title:
        raise UsageProblem(f"{entry.at} has no title")
    retry = entry.number("retry")
    options = SpecOptions(
        title=title,
        tags=entry.texts("tags"),
        needs=entry.texts("needs"),
        labels=[f"{key}={value}" for key, value in entry.pairs("labels").items()],
        project=entry.text("project"),
        priority=entry.text("priority"),
        effort=entry.text("effort"),
        due=entry.text("due"),
        start_after=entry.text("start-after"),
        retry=None if retry is None else int(retry),
    )
    with entry.named():
        spec = new_spec(options, str, now)
    spec.description = entry.text("description") or ""
    return Subtask(spec=spec, after=_after(entry, positions))


def _after(entry: Entry, positions: dict[str, int]) -> list[int]:
    unknown = [name for name in entry.texts("after") if name not in positions]
    if unknown:
        raise UsageProblem(f"{entry.at}: after names {unknown[0]!r}, which is no part")
    return [positions[name] for name in entry.texts("after")]
