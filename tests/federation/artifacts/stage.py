"""What the tests of files beside tasks share: tasks that are only said to be, results that name files, disks."""

import hashlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from hopper.federation.v1 import delegation_pb2 as pb
from hopper_common.errors import NotFound
from hopper_federation.artifacts.errors import TaskOver
from hopper_federation.delegation.model import Delegation, Role, State

TASK = "instances/global/tasks/t"
CHILD = "instances/peer-bob/tasks/c"
DELEGATION = "d" * 26


def digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def artifact(name: str, content: bytes, /, **said: object) -> pb.Artifact:
    """What somebody says of a file."""
    made = pb.Artifact(name=name, sha256=digest(content), size=len(content), media_type="text/plain")
    for field, value in said.items():
        setattr(made, field, value)
    return made


def handed_over(
    role: Role, peer: str, artifacts: Iterable[pb.Artifact], *, task: str = CHILD, id: str = DELEGATION
) -> Delegation:
    """A hand-over that has ended with a result that names files."""
    envelope = pb.ResultEnvelope(delegation=id, outcome=pb.OUTCOME_SUCCEEDED, artifacts=artifacts)
    result = pb.Result(envelope=pb.Signed(payload=envelope.SerializeToString()))
    return Delegation(
        id=id,
        role=role,
        peer=peer,
        task_uid="u/t",
        epoch=1,
        state=State.COMPLETED,
        lease=60.0,
        task=task,
        result=result.SerializeToString(),
    )


class SaidTasks:
    """
    `hopper_federation.artifacts.tasks.Tasks` of tasks that the test says there are.

    Attributes:
        chain: By task, what was made of it.
        over: When tasks have ended.
    """

    def __init__(self) -> None:
        self.chain: dict[str, Sequence[str]] = {TASK: (CHILD,), CHILD: ()}
        self.over: dict[str, datetime] = {}

    async def require_open(self, task: str) -> None:
        self._require(task)
        if task in self.over:
            raise TaskOver(task=task)

    async def below(self, task: str) -> Sequence[str]:
        self._require(task)
        return [task, *self.chain[task]]

    async def over_before(self, task: str, moment: datetime) -> bool:
        return task not in self.chain or self.over.get(task, datetime.max.replace(tzinfo=UTC)) < moment

    def _require(self, task: str) -> None:
        if task not in self.chain:
            raise _NoTask(task=task)


class _NoTask(NotFound):
    """No task of that name."""

    reason = "TASK_NOT_FOUND"
