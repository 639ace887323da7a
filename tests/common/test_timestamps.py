"""Time between core, database and wire: nothing is lost on the way and back."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from hopper.registry.v1.project_pb2 import Project
from hopper_common.errors import InvalidArgument
from hopper_common.timestamps import (
    duration_field,
    from_micros,
    from_proto,
    time_field,
    to_micros,
    to_proto,
)

TIMES = st.datetimes(timezones=st.just(UTC))
LENGTHS = st.timedeltas(min_value=timedelta(days=-3_650_000), max_value=timedelta(days=3_650_000))


@given(TIMES)
def test_a_time_survives_the_database_and_the_wire(time: datetime) -> None:
    assert from_micros(to_micros(time)) == time
    assert from_proto(to_proto(time)) == time


@given(TIMES)
def test_timestamps_are_those_of_protobuf(time: datetime) -> None:
    reference = Timestamp()
    reference.FromDatetime(time)
    assert to_proto(time) == reference


@given(LENGTHS)
def test_a_length_survives_the_wire_and_is_protobufs(length: timedelta) -> None:
    reference = Duration()
    reference.FromTimedelta(length)
    assert to_proto(length) == reference
    assert from_proto(reference) == length


@given(TIMES, TIMES)
def test_stored_times_compare_like_times(one: datetime, other: datetime) -> None:
    assert (to_micros(one) < to_micros(other)) == (one < other)


def test_any_zone_is_stored_as_utc() -> None:
    east = datetime(2026, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))
    assert from_micros(to_micros(east)) == datetime(2026, 1, 1, tzinfo=UTC)


def test_none_stays_none() -> None:
    assert (to_micros(None), from_micros(None), to_proto(None), from_proto(None)) == (None,) * 4


def test_a_naive_time_is_refused() -> None:
    with pytest.raises(TypeError):
        to_micros(datetime(2026, 1, 1))


@pytest.mark.parametrize(
    "value", [Timestamp(seconds=2**62), Timestamp(seconds=-(2**62)), Duration(seconds=2**62)]
)
def test_what_no_calendar_has_is_the_callers_mistake(value: Timestamp | Duration) -> None:
    with pytest.raises(InvalidArgument, match="no time between"):
        from_proto(value)


def test_fractions_of_a_microsecond_are_cut_off_towards_zero() -> None:
    assert from_proto(Timestamp(nanos=1999)) == datetime(1970, 1, 1, microsecond=1, tzinfo=UTC)
    assert from_proto(Duration(seconds=-1, nanos=-1999)) == timedelta(seconds=-1, microseconds=-1)


def test_an_unset_field_is_none_and_a_zero_one_is_not() -> None:
    project = Project()
    assert (time_field(project, "create_time"), duration_field(project, "sla")) == (None, None)
    project.sla.SetInParent()
    project.create_time.SetInParent()
    assert duration_field(project, "sla") == timedelta()
    assert time_field(project, "create_time") == datetime(1970, 1, 1, tzinfo=UTC)
