"""What of a task is offered, and what is made of one that came."""

from datetime import UTC, datetime, timedelta

from hopper.federation.v1 import delegation_pb2 as dpb
from hopper.router.v1.task_pb2 import Clocks, TaskSpec
from hopper_common.border.grants import Direction
from hopper_common.rpc.limits import check_limits
from hopper_common.timestamps import to_proto
from hopper_federation.delegation import bodies
from hopper_federation.delegation.model import Delegation, Role, State

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOME, WORK = "h" * 32, "w" * 32


def came(**fields: object) -> Delegation:
    known: dict[str, object] = {"exclusive": False, **fields}
    return Delegation("0" * 26, Role.IN, HOME, f"{HOME}/{'1' * 26}", 1, State.ACCEPTED, 900.0, **known)  # type: ignore[arg-type]


def test_marks_of_this_hopper_do_not_leave_and_what_a_project_must_have_is_seen_at_the_border() -> None:
    spec = TaskSpec(
        title="read",
        tags=["paper"],
        labels={"hopper.path": HOME, "project": "x"},
        required_labels={"region": "eu"},
    )
    body = bodies.body_of(spec)
    assert dict(body.labels) == {"project": "x", "region": "eu"}
    crossing = bodies.crossing_of(body, exclusive=True, origin=HOME)
    assert crossing.labels == ("paper", "project=x", "region=eu")
    assert (crossing.direction, crossing.exclusive, crossing.origin) == (Direction.OUT, True, HOME)
    assert crossing.bytes == body.ByteSize()


def test_lengths_of_time_go_along() -> None:
    clocks = Clocks(run_for=to_proto(timedelta(minutes=5)))
    body = bodies.body_of(
        TaskSpec(title="read", clocks=clocks, estimated_effort=to_proto(timedelta(hours=1)))
    )
    spec = bodies.spec_of(body, came(), peer="peers/home", path=[HOME], close_by=NOW)
    assert spec.clocks.run_for.ToTimedelta() == timedelta(minutes=5)
    assert spec.estimated_effort.ToTimedelta() == timedelta(hours=1)
    assert spec.clocks.finish_by.ToDatetime(UTC) == NOW


def test_what_came_carries_this_hoppers_marks_and_nobody_elses() -> None:
    body = dpb.TaskBody(title="read", labels={"hopper.peer": "peers/liar", "project": "x"})
    spec = bodies.spec_of(body, came(exclusive=True), peer="peers/home", path=[HOME], close_by=None)
    assert dict(spec.labels) == {
        "project": "x",
        "hopper.peer": "peers/home",
        "hopper.delegation": "0" * 26,
        "hopper.task_uid": f"{HOME}/{'1' * 26}",
        "hopper.path": HOME,
    }
    assert (spec.requester, spec.exclusive, spec.retry.max_attempts) == ("peer.home", True, 1)


def test_many_labels_and_a_long_way_fit_into_a_task() -> None:
    body = dpb.TaskBody(title="read", labels={f"key{number:02}": "x" for number in range(64)})
    path = [letter * 32 for letter in "abcdef"]
    spec = bodies.spec_of(body, came(), peer=f"peers/{'p' * 63}", path=path, close_by=None)
    check_limits(spec)
    assert spec.labels["hopper.path"] == ",".join(letter * 32 for letter in "def")


def test_a_clock_that_has_run_out_leaves_a_second() -> None:
    spec = TaskSpec(clocks=Clocks(start_by=to_proto(NOW - timedelta(hours=1))))
    assert bodies.time_left(spec, "start_by", NOW) == timedelta(seconds=1)
    assert bodies.time_left(spec, "finish_by", NOW) is None
