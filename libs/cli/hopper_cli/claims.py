"""
The claims that a person holds between two commands: `hopper next` takes a task, `hopper done` ends it, and the
fencing token that makes it theirs has to be somewhere in between.

It is `claims.json` in the data directory, for its owner's eyes only: whoever has a token can end the task.
Two commands at the same time take turns.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from hopper_cli.problems import CommandError
from hopper_common.startup import make_private

FILE: Final = "claims.json"
_LOCK: Final = "claims.lock"
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class HeldClaim:
    """A claim, as it was given."""

    task: str
    fencing_token: int
    worker: str
    queue: str
    address: str
    lease_expire_time: str


class ClaimsFile:
    """
    The claims of one data directory.

    Args:
        data_dir: It is made when the first claim is kept.
    """

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / FILE
        self._lock = data_dir / _LOCK

    def get(self, task: str) -> HeldClaim | None:
        """The claim on a task, None when there is none here."""
        return self._read().get(task)

    def all(self) -> list[HeldClaim]:
        """Every claim, the oldest first."""
        return list(self._read().values())

    def keep(self, claim: HeldClaim) -> None:
        """Remember a claim, in place of an earlier one on the same task."""
        with self._locked():
            self._write({**self._read(), claim.task: claim})

    def drop(self, task: str) -> None:
        """Forget the claim on a task, if there is one."""
        if task not in self._read():
            return
        with self._locked():
            self._write({name: claim for name, claim in self._read().items() if name != task})

    def _read(self) -> dict[str, HeldClaim]:
        try:
            data = json.loads(self._path.read_text(encoding="utf-8"))
            return {entry["task"]: HeldClaim(**entry) for entry in data["claims"]}
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError) as error:
            raise self._broken() from error

    def _broken(self) -> CommandError:
        return CommandError(
            f"{self._path} cannot be read",
            remedy="remove it: the tasks in it come back to their queues when their leases run out",
            reason="CLAIMS_UNREADABLE",
        )

    def _write(self, claims: dict[str, HeldClaim]) -> None:
        data: dict[str, Any] = {
            "version": _VERSION,
            "claims": [asdict(claim) for claim in claims.values()],
        }
        new = self._path.with_suffix(f".{os.getpid()}.new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(data, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        make_private(self._path.parent)
        with open(os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
