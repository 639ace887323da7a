"""When keys were used last, to the minute: told to the registry now and then, in groups, each minute once."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

from hopper_common.auth.directory import Directory

_MINUTE: Final = timedelta(minutes=1)


class KeyUses:
    """The uses of keys in one process, on the way from its directory to the registry."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._untold: dict[str, datetime] = {}
        self._told: dict[str, datetime] = {}

    def take(self) -> Mapping[str, datetime]:
        """What is to be told, by the ids of the keys. It counts as told unless it is put back."""
        for key_id, time in self._directory.take_uses().items():
            minute = time.replace(second=0, microsecond=0)
            if minute > self._told.get(key_id, minute - _MINUTE):
                self._untold[key_id] = minute
        taken, self._untold = self._untold, {}
        self._told.update(taken)
        return taken

    def put_back(self, taken: Mapping[str, datetime]) -> None:
        """It could not be told."""
        self._untold = {**taken, **self._untold}
