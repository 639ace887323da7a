"""Failures at chosen places, and none where nobody asked for one."""

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hopper_common import failpoints
from hopper_common.errors import StorageUnavailable
from hopper_common.failpoints import FailpointError, active, armed, hit, reach
from tests.common.toy import EngineKind, add_note, new_toy, notes, open_toy

ROOT = Path(__file__).parents[2]


def test_nothing_happens_unless_asked_for() -> None:
    assert not armed()
    for place in failpoints.PLACES:
        hit(place, "router")


def test_a_failpoint_acts_at_the_hit_it_was_set_for_and_never_again() -> None:
    with active("commit.before=error@2"):
        hit("commit.before", "router")
        with pytest.raises(FailpointError, match=r"commit\.before"):
            hit("commit.before", "router")
        hit("commit.before", "router")
    assert not armed()


def test_one_without_a_number_acts_every_time_until_it_is_taken_away() -> None:
    with active("commit.before=error"):
        for _ in range(3):
            with pytest.raises(FailpointError):
                hit("commit.before", "router")
    hit("commit.before", "router")


def test_one_of_a_service_leaves_the_others_alone() -> None:
    with active("router:commit.before=error, memory:commit.after=error"):
        hit("commit.before", "memory")
        with pytest.raises(FailpointError):
            hit("commit.before", "router")
        assert armed("commit.after")
        assert not armed("unit.after")


def test_a_connection_is_cut_where_there_is_one() -> None:
    cut: list[bool] = []
    with active("commit.sent=drop"):
        hit("commit.sent", "router", lambda: cut.append(True))
        assert cut == [True]
        with pytest.raises(FailpointError):
            hit("commit.sent", "router")


async def test_sleeping_holds_up_its_own_task_only() -> None:
    with active("commit.before=sleep:3600"):
        sleeping = asyncio.create_task(reach("commit.before", "router"))
        await asyncio.sleep(0)
        assert not sleeping.done()
        sleeping.cancel()
        await asyncio.wait([sleeping])
    with active("commit.before=sleep:0.2"):
        begun = time.monotonic()
        await reach("commit.before", "router")
    assert time.monotonic() - begun >= 0.15


@pytest.mark.parametrize(
    "text",
    ["commit=kill", "commit.before", "commit.before=explode", "commit.before=sleep", "commit.sent=kill:3"],
)
def test_what_is_no_failpoint_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="HOPPER_FAILPOINTS"), active(text):
        pass


WRITER = """
import sys, uvloop
from tests.common.toy import add_note, open_toy
async def main():
    db = await open_toy(sys.argv[1])
    for number in range(5):
        await db.write(lambda conn: add_note(conn, str(number)))
        print(number, flush=True)
uvloop.run(main())
"""


@pytest.mark.parametrize(
    ("place", "kept"),
    [
        ("sql.after", ["0", "1"]),
        ("unit.after", ["0", "1"]),
        ("commit.before", ["0", "1"]),
        ("commit.sent", ["0", "1", "2"]),
        ("commit.after", ["0", "1", "2"]),
    ],
)
async def test_a_process_dies_where_the_environment_says(
    engine_kind: EngineKind, tmp_path: Path, place: str, kept: list[str]
) -> None:
    url = new_toy(engine_kind, tmp_path)
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", WRITER, url],
        env={"HOPPER_FAILPOINTS": f"toy:{place}=kill@3"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stdout.split() == ["0", "1"]
    db = await open_toy(url)
    assert await db.read(notes) == kept
    await db.close()


async def test_an_answer_that_was_lost_after_the_commit_is_not_called_undone(database_url: str) -> None:
    db = await open_toy(database_url)
    with active("commit.after=error"), pytest.raises(StorageUnavailable) as caught:
        await db.write(lambda conn: add_note(conn, "a"))
    assert "nothing was done" not in caught.value.message
    assert await db.read(notes) == ["a"]
    await db.close()
