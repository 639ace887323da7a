"""
What workers are answered, as bytes put together by hand from the rows of the hot path.

Such a row becomes one task in one answer and is then forgotten, so nothing is made of it on the way: its spec is bytes
already, and most of the rest is the same in the whole set. The messages are those that `convert.task_to_proto` makes of
the same row; a test holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from hopper.router.v1 import task_pb2 as pb
from hopper.router.v1.work_service_pb2 import ClaimResult
from hopper_router.convert import STATE_TO_PROTO, live_to_proto
from hopper_router.hot import Row
from hopper_router.model import TaskState
from hopper_router.rows import live_from_json
from hopper_router.wire_fields import message_field, micros_field, name_field, number_field, text_field

_RUNNING: Final = number_field(b"\x18", STATE_TO_PROTO[TaskState.RUNNING])
_SUCCEEDED: Final = number_field(b"\x18", STATE_TO_PROTO[TaskState.SUCCEEDED])


def claimed(rows: Iterable[Row]) -> bytes:
    """A ClaimTasksResponse of tasks that were just claimed: in FULL view, with their tokens."""
    return b"".join(
        [
            message_field(
                b"\x0a",
                _task(row, _RUNNING, row["spec"]) + message_field(b"\x42", _claim(row, row["token"])),
            )
            for row in rows
        ]
    )


def renewed(row: Row) -> bytes:
    """The Task of a claim that goes on, in BASIC view."""
    return _task(row, _RUNNING, _basic(row["spec"])) + message_field(b"\x42", _claim(row))


def completed(row: Row) -> bytes:
    """The Task of a claim that has ended with success, in BASIC view."""
    return _task(row, _SUCCEEDED, _basic(row["spec"])) + micros_field(b"\x92\x01", row["finish_time"])


def result(name: str, task: bytes) -> bytes:
    """One of the results of a RenewClaimsResponse, CompleteTasksResponse or WorkAnswer: a task that was updated."""
    return message_field(b"\x0a", text_field(b"\x0a", name) + message_field(b"\x12", task))


def other_result(made: ClaimResult) -> bytes:
    """The same of a result that is a message."""
    return message_field(b"\x0a", made.SerializeToString())


def assigned(response: bytes) -> bytes:
    """A WorkResponse of a serialized ClaimTasksResponse."""
    return message_field(b"\x0a", response)


def answered(results: bytes) -> bytes:
    """A WorkResponse of a WorkAnswer, or of another message that has its results in the same place."""
    return message_field(b"\x12", results)


def _task(row: Row, state: bytes, spec: bytes) -> bytes:
    instance, live, delegation = row["instance"], row["live"], row["delegation"]
    parts = (
        text_field(b"\x0a", f"{instance}/tasks/{row['id']}"),
        message_field(b"\x12", spec),
        state,
        number_field(b"\x20", row["generation"]),
        name_field(b"\x32", row["project"]),
        text_field(b"\x3a", row["decision"]),
        number_field(b"\x48", row["attempt"]),
        micros_field(b"\x82\x01", row["create_time"]),
        micros_field(b"\x8a\x01", row["update_time"]),
        name_field(b"\x9a\x01", f"s{row['spec_version']}"),
        text_field(b"\x6a", delegation) if delegation else b"",
        _live(live) if live else b"",
    )
    return b"".join(parts)


def _claim(row: Row, token: int = 0) -> bytes:
    lease_end = row["lease_end"]
    return (
        name_field(b"\x0a", row["worker"])
        + number_field(b"\x10", token)
        + (b"" if lease_end is None else micros_field(b"\x1a", lease_end))
        + micros_field(b"\x22", row["claim_time"])
    )


def _live(document: str) -> bytes:
    parts = live_from_json(document)
    parts.pop("wait", None)  # a task that runs, or is done, waits for nothing
    return live_to_proto(**parts).SerializeToString()


def _basic(spec: bytes) -> bytes:
    """A TaskSpec as the BASIC view has it."""
    basic = pb.TaskSpec.FromString(spec)
    basic.ClearField("description")
    basic.ClearField("payload")
    return basic.SerializeToString()
