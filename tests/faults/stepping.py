"""A Hopper whose wall clock can be set, also while it runs; time itself passes as ever."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from hopper_testing.processes import HopperProcess

_LAUNCHER: Final = Path(__file__).with_name("stepped.py")


class SteppedProcess(HopperProcess):
    """
    All services in one process, on a wall clock that is wrong by what is in a file.

    Args:
        wrong_by: That file; made here, with a clock that is right.

    Attributes:
        ahead: How far its wall clock is ahead of the machine's, in seconds.
    """

    def __init__(
        self, data_dir: Path, wrong_by: Path, *, environment: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(data_dir, environment=environment)
        self._file = wrong_by
        self.step(0.0)

    def step(self, seconds: float) -> None:
        """Set the wall clock so far from the real one."""
        new = self._file.with_suffix(".new")
        new.write_text(str(seconds))
        new.rename(self._file)
        self.ahead = seconds

    def _command(self) -> list[str]:
        return [sys.executable, str(_LAUNCHER), str(self._file)]
