"""The stream of tasks: everywhere, for everybody, of every kind. What was asked for is noted before it is."""

import asyncio
import contextlib
import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hopper.router.v1.task_service_pb2 import CancelTaskRequest
from hopper_common.errors import HopperError
from tests.faults.federation.stage import Member, Stage, capability
from tests.faults.federation.working import Job

NOBODY: Final = "nobody"
_EVERY: Final = (0.05, 0.35)
_CALL_OFF_AFTER: Final = (0.0, 4.0)


@dataclass(slots=True)
class Asked:
    """
    One task that was asked for.

    Attributes:
        of: Who can do it: the name of a member, or `nobody`.
        name: What it is called where it was asked for; empty: no answer came, it may be there or not.
        called_off: That it is not wanted any more was said, with or without an answer.
    """

    job: Job
    home: str
    of: str
    exclusive: bool
    name: str = ""
    called_off: bool = False


class Asker:
    """
    Asks until it is told to stop.

    Attributes:
        asked: All of it.
    """

    def __init__(self, stage: Stage, chance: random.Random) -> None:
        self.asked: list[Asked] = []
        self._stage = stage
        self._chance = chance

    async def run(self, seconds: float) -> None:
        """For so long; when it returns every call has ended."""
        async with asyncio.TaskGroup() as group:
            end = asyncio.get_running_loop().time() + seconds
            while asyncio.get_running_loop().time() < end:
                home = self._chance.choice(self._stage.members)
                group.create_task(self._ask(home, self._something(home)))
                await asyncio.sleep(self._chance.uniform(*_EVERY))

    def _something(self, home: Member) -> Asked:
        chance = self._chance
        seconds = chance.choices((0.0, chance.uniform(0, 1), chance.uniform(2, 15)), weights=(6, 3, 1))[0]
        job = Job(f"{home.name}-{len(self.asked)}", seconds, fails=chance.random() < 0.08)
        of = NOBODY if chance.random() < 0.02 else chance.choice(self._names())
        made = Asked(job, home.name, of, exclusive=chance.random() < 0.2)
        self.asked.append(made)
        return made

    def _names(self) -> Sequence[str]:
        return [member.name for member in self._stage.members]

    async def _ask(self, home: Member, asked: Asked) -> None:
        call_off = self._chance.uniform(*_CALL_OFF_AFTER) if self._chance.random() < 0.1 else None
        with contextlib.suppress(HopperError):  # nobody answers: it may be there or not
            answer = await home.client.submit(
                f"task {asked.job.uid}",
                required_capabilities=[capability(asked.of)],
                payload=asked.job.payload(),
                exclusive=asked.exclusive,
                request_id=str(uuid.UUID(int=self._chance.getrandbits(128), version=4)),
                allow_duplicate=True,
            )
            asked.name = answer.task.name
            if call_off is not None:
                await asyncio.sleep(call_off)
                asked.called_off = True
                await home.client.tasks.CancelTask(CancelTaskRequest(name=asked.name))
