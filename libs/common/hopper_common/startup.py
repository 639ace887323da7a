"""
Why a process does not start, or stops on its own: errors for whoever runs it, each with its exit code.

They are not `HopperError`s: no caller ever sees them.
"""

import stat
from pathlib import Path
from typing import ClassVar


class StartupError(Exception):
    """
    Something the operator has to mend.

    Attributes:
        exit_code: What the process exits with; `hopper_common.host` has the list.
    """

    exit_code: ClassVar[int] = 1


class AddressRefused(StartupError):
    """The address cannot be listened on, or dialled: taken, malformed, too long, or not of this machine."""

    exit_code = 4


class DirectoryShared(StartupError):
    """Others may write to a directory that must be this user's alone."""

    exit_code = 4


def make_private(directory: Path) -> None:
    """
    Make a directory for this user alone, or check one that is there.

    One that others may only read is left as it is: everything in it is made 0600.

    Raises:
        DirectoryShared: Others may write to it, and so put their own socket or database in place of ours.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise DirectoryShared(
            f"others may write to {directory}: run chmod 700 on it, or choose another (HOPPER_DATA_DIR)"
        )
