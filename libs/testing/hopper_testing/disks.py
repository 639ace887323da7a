"""Disks of a few megabytes, to be made full for real, where this user may mount one."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def small_disk(point: Path, *, megabytes: int) -> Iterator[Path]:
    """
    Mount an empty file system of that size on a directory, and take it away again.

    Raises:
        subprocess.CalledProcessError, FileNotFoundError: This user may not mount, or there is no `mount`.
    """
    options = f"size={megabytes}m,mode=0700"
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(point)], check=True, capture_output=True
    )
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", str(point)], check=True)


def may_mount() -> bool:
    """Whether this user may mount: root, outside of most containers."""
    with tempfile.TemporaryDirectory(prefix="hop-") as point:
        try:
            with small_disk(Path(point), megabytes=1):
                return True
        except (subprocess.CalledProcessError, FileNotFoundError):
            return False
