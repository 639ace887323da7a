"""
What went wrong, as people and scripts get to see it: one line that names the thing, a second one with the
remedy where it is known, and the exit code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from hopper_cli.exits import Exit

if TYPE_CHECKING:
    from hopper_common.errors import HopperError

_NONE: Final[Mapping[str, str]] = MappingProxyType({})


class CommandError(Exception):
    """
    A command cannot go on.

    Args:
        message: Lower case, names the thing.
        remedy: What to do about it.
        reason: For programs, in the manner of the catalogue of errors.
    """

    def __init__(
        self,
        message: str,
        *,
        remedy: str = "",
        exit_code: Exit = Exit.FAILED,
        reason: str = "COMMAND_FAILED",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.exit_code = exit_code
        self.reason = reason


class UsageProblem(CommandError):
    """What was typed cannot be right."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy, exit_code=Exit.USAGE, reason="USAGE")


@dataclass(frozen=True, slots=True)
class Problem:
    """An error, ready to be shown."""

    message: str
    reason: str
    exit_code: Exit
    remedy: str = ""
    metadata: Mapping[str, str] = field(default_factory=lambda: _NONE)
    violations: Sequence[tuple[str, str]] = ()

    def as_json(self) -> dict[str, Any]:
        """The error object of `--json`."""
        return {
            "error": {
                "reason": self.reason,
                "message": self.message,
                "remedy": self.remedy,
                "metadata": dict(self.metadata),
                "violations": [{"field": where, "description": what} for where, what in self.violations],
                "exit_code": int(self.exit_code),
            }
        }


REMEDIES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "TASK_NOT_FOUND": "`hopper list --all` and `hopper search` show which there are",
        "PROJECT_NOT_FOUND": "`hopper project list` shows which there are, `hopper project add` makes one",
        "INSTANCE_NOT_FOUND": "`hopper instance tree` shows which there are",
        "DELEGATION_NOT_FOUND": "`hopper delegations TASK` shows a task's, `hopper delegation list` what crossed",
        "DELEGATION_WRONG_STATE": "`hopper delegation list --waiting` shows what waits for you",
        "DELEGATION_LOOP": "`hopper delegations TASK` shows where it has been",
        "SCHEDULE_NOT_FOUND": "`hopper schedule list` shows which there are",
        "SCHEDULE_EXISTS": "choose another --id, or remove that one with `hopper schedule rm`",
        "PROJECT_EXISTS": "change it with `hopper project edit`",
        "INSTANCE_EXISTS": "change it with `hopper instance edit`",
        "PEER_NOT_FOUND": "`hopper peer list --all` shows which there are",
        "INVITATION_NOT_FOUND": "`hopper peer invitations` shows which there are",
        "ARTIFACT_NOT_FOUND": "`hopper artifact list TASK` shows which there are",
        "STALE_TOKEN": "the task went on without you: see `hopper show TASK`",
        "ETAG_MISMATCH": "somebody changed it at the same time: look again, then repeat the command",
        "EPISODE_NOT_FOUND": "memory hears of a decision a moment after it was made: repeat the command",
        "PARENT_NOT_RUNNING": "start the parent first: `hopper instance start PARENT`",
        "INSTANCE_HAS_CHILDREN": "terminate its children first: `hopper instance tree` shows them",
        "DUPLICATE_TASK": "`hopper add --allow-duplicate` adds it all the same",
        "PROJECT_PAUSED": "`hopper project resume` lets it go on",
        "PRINCIPAL_NOT_FOUND": "`hopper auth person list` and `hopper auth agent list` show who there is",
        "PRINCIPAL_EXISTS": "choose another id, or change what they may do with `hopper auth person grant`",
        "API_KEY_NOT_FOUND": "`hopper auth key list WHO` shows which there are",
        "TOO_MANY_API_KEYS": "`hopper auth key list WHO` shows them, `hopper auth key revoke KEY` ends one",
        "ALREADY_BOOTSTRAPPED": "`hopper auth person add ID --role admin@global` adds another admin",
        "INTERNAL": "the log of `hopper up` has more under that incident id",
    }
)


def of_command(error: CommandError) -> Problem:
    """A problem of the command itself."""
    return Problem(error.message, error.reason, error.exit_code, error.remedy)


def of_hopper(error: "HopperError") -> Problem:
    """A problem that Hopper told, or the SDK on the way to it."""
    from hopper_common.errors import InvalidArgument

    violations = error.violations if isinstance(error, InvalidArgument) else ()
    return Problem(
        message=error.message,
        reason=error.reason,
        exit_code=exit_code_of(error),
        # Many messages name their remedy themselves.
        remedy="" if "`hopper " in error.message else REMEDIES.get(error.reason, ""),
        metadata=error.metadata,
        violations=violations,
    )


def exit_code_of(error: "HopperError") -> Exit:
    """The exit code for a failed call."""
    from hopper_client import DeadlineExceeded, Unreachable
    from hopper_common.errors import InvalidArgument, NotFound

    if isinstance(error, Unreachable) or (
        isinstance(error, DeadlineExceeded) and "address" in error.metadata
    ):
        return Exit.NO_HOPPER
    if isinstance(error, NotFound):
        return Exit.NOT_FOUND
    # A policy that does not load is the answer to a question, not a mistake on the command line.
    if isinstance(error, InvalidArgument) and error.reason != "POLICY_INVALID":
        return Exit.USAGE
    return Exit.FAILED
