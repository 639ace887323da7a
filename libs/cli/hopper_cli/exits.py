"""The exit codes of `hopper`, in one table. `hopper up` has those of `hopper_common.host`, shown beside them."""

from enum import IntEnum
from typing import Final


class Exit(IntEnum):
    """What a command ends with."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    NO_HOPPER = 4
    NOTHING_TO_DO = 5
    INTERRUPTED = 130
    READER_GONE = 141


MEANINGS: Final[tuple[tuple[Exit, str, str], ...]] = (
    (Exit.OK, "done", "stopped when asked to"),
    (Exit.FAILED, "Hopper refused or failed, or the task did", "a service failed while it ran"),
    (Exit.USAGE, "what was typed cannot be right", "an option or environment variable is wrong"),
    (Exit.NOT_FOUND, "there is no such task, project, ...", "another process has the data directory"),
    (Exit.NO_HOPPER, "no Hopper answers", "the socket or port cannot be listened on"),
    (Exit.NOTHING_TO_DO, "nothing to do: the queue is empty", "a service could not be opened"),
    (Exit.INTERRUPTED, "interrupted", "killed by a second signal"),
    (Exit.READER_GONE, "whoever read the output has left", ""),
)
"""Code, what it means, and what it means for `hopper up`."""


def epilog() -> str:
    """The table as the end of `hopper --help`."""
    lines = ["Exit codes:"]
    lines += [f"{int(code):>5}  {meaning}" for code, meaning, _ in MEANINGS]
    lines += ["", "`hopper up` has its own: see `hopper up --help`."]
    return "\n".join(lines)


def up_epilog() -> str:
    """The table as the end of `hopper up --help`."""
    return "\n".join(
        ["Exit codes:", *(f"{int(code):>5}  {meaning}" for code, _, meaning in MEANINGS if meaning)]
    )
