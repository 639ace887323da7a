"""
The Python SDK of Hopper: `AsyncHopper` and `Hopper` to ask for work and follow it, `Worker` to do it.

It owns how calls are made: one channel, deadlines, request ids, retries, typed errors, watches that resume,
claims that stay alive. What the calls mean is the contract's: the stubs generated from it are the API, and
nothing here renames a message or hides a field.
"""

from hopper_client.address import default_address
from hopper_client.blocking import Hopper
from hopper_client.client import AsyncHopper
from hopper_client.context import TaskContext, TaskFailed
from hopper_client.errors import (
    AmbiguousTask,
    ArtifactDamaged,
    ArtifactNotFound,
    TaskNotFound,
    Unreachable,
    from_item,
)
from hopper_client.worker import Worker, WorkerStats
from hopper_common.errors import (
    AlreadyExists,
    EtagMismatch,
    FieldViolation,
    HopperError,
    IdempotencyConflict,
    Internal,
    InvalidArgument,
    LostRace,
    NotFound,
    OutOfRange,
    PermissionDenied,
    RateLimited,
    ResourceExhausted,
    ResumeTooOld,
    ServiceUnavailable,
    ShuttingDown,
    Unauthenticated,
    Unavailable,
    WrongState,
)
from hopper_common.rpc.errors import DeadlineExceeded, MethodNotOffered

__all__ = [
    "AlreadyExists",
    "AmbiguousTask",
    "ArtifactDamaged",
    "ArtifactNotFound",
    "AsyncHopper",
    "DeadlineExceeded",
    "EtagMismatch",
    "FieldViolation",
    "Hopper",
    "HopperError",
    "IdempotencyConflict",
    "Internal",
    "InvalidArgument",
    "LostRace",
    "MethodNotOffered",
    "NotFound",
    "OutOfRange",
    "PermissionDenied",
    "RateLimited",
    "ResourceExhausted",
    "ResumeTooOld",
    "ServiceUnavailable",
    "ShuttingDown",
    "TaskContext",
    "TaskFailed",
    "TaskNotFound",
    "Unauthenticated",
    "Unavailable",
    "Unreachable",
    "Worker",
    "WorkerStats",
    "WrongState",
    "default_address",
    "from_item",
]
