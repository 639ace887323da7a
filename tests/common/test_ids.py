"""Ids: unique, and in the order of their time."""

import os
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from hopper_common.ids import Ids, new_id

TIMES = st.datetimes(min_value=datetime(1970, 1, 1), timezones=st.just(UTC))


@given(TIMES)
def test_an_id_is_26_characters_that_a_resource_name_allows(now: datetime) -> None:
    name = new_id(now)
    assert len(name) == 26
    assert set(name) <= set("0123456789abcdefghjkmnpqrstvwxyz")


@given(TIMES, st.timedeltas(min_value=timedelta(milliseconds=1)))
def test_later_ids_sort_later(now: datetime, wait: timedelta) -> None:
    if wait <= datetime.max.replace(tzinfo=UTC) - now:
        assert new_id(now) < new_id(now + wait)


def test_ids_of_one_moment_differ() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert len({new_id(now) for _ in range(100_000)}) == 100_000


def test_the_time_is_in_the_first_ten_characters() -> None:
    """The example of the ULID specification."""
    assert new_id(datetime.fromtimestamp(1469918176.385, UTC)).startswith("01aryz6s41")


def test_ids_of_one_maker_grow_even_when_the_clock_steps_back() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    ids = Ids()
    made = [ids.new(now - timedelta(seconds=step % 3)) for step in range(10_000)]
    assert made == sorted(set(made))


def test_a_forked_process_makes_other_ids() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    ids = Ids()
    ids.new(now)
    later = now + timedelta(milliseconds=1)  # nothing but randomness tells the two processes apart
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, ids.new(later).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 26).decode() != ids.new(later)
    os.close(read)
    os.close(write)
