"""A ledger keeps what was written into it, whatever happens to whoever writes."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hopper_testing.history import (
    FOREVER,
    Grant,
    History,
    Kind,
    Ledger,
    LedgerDamagedError,
    Outage,
    Outcome,
    Seen,
    Watcher,
)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    grant = Grant("t/1", 7, "w", 1_000_000, 2_000_000)
    with Ledger(tmp_path / "a.jsonl", "ann") as ledger:
        submit = ledger.asks(Kind.SUBMIT, title="a", request_id="r1")
        claim = ledger.asks(Kind.CLAIM, worker="w", lease=1.0, request_id="r2")
        ledger.told(submit, task="t/1")
        ledger.told(claim, grants=[grant])
        ledger.refused(ledger.asks(Kind.COMPLETE, task="t/1", token=7, result="00"), "STALE_TOKEN")
        ledger.unknown(ledger.asks(Kind.RELEASE, task="t/1", token=7), "UNAVAILABLE")
        ledger.asks(Kind.CANCEL, task="t/1")
        ledger.watches(3, 10)
        ledger.sees(3, Seen(11, "t/1", "CLAIM"))
        ledger.outage(5, 6)
    history = History.read([tmp_path / "a.jsonl"])
    one, two, three, four, five = history.operations
    assert (one.client, one.title, one.task, one.outcome) == ("ann", "a", "t/1", Outcome.OK)
    assert one.asked_at <= two.asked_at <= one.ended_at <= two.ended_at
    assert (two.grants, two.lease) == ((grant,), 1.0)
    assert (three.outcome, three.reason, three.may_be_done) == (Outcome.REFUSED, "STALE_TOKEN", False)
    assert (four.outcome, four.reason, four.may_be_done) == (Outcome.UNKNOWN, "UNAVAILABLE", True)
    assert (five.kind, five.outcome, five.ended_at) == (Kind.CANCEL, Outcome.UNKNOWN, FOREVER)
    assert history.watchers == [Watcher(10, [Seen(11, "t/1", "CLAIM")])]
    assert history.outages == [Outage(5, 6)]


def test_ledgers_are_read_as_one_history_in_the_order_of_asking(tmp_path: Path) -> None:
    with Ledger(tmp_path / "b.jsonl", "bob") as second, Ledger(tmp_path / "a.jsonl", "ann") as first:
        for number in range(4):
            (first, second)[number % 2].asks(Kind.SUBMIT, title=str(number))
    history = History.read(tmp_path.glob("*.jsonl"))
    assert [operation.title for operation in history.operations] == ["0", "1", "2", "3"]


def test_half_a_line_at_the_end_is_what_a_kill_leaves(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with Ledger(path, "ann") as ledger:
        ledger.told(ledger.asks(Kind.SUBMIT, title="a"), task="t/1")
    whole = path.read_bytes()
    answer = whole.index(b"\n") + 1
    for length in range(answer, len(whole)):
        path.write_bytes(whole[:length])
        (operation,) = History.read([path]).operations
        assert operation.outcome is Outcome.UNKNOWN
    path.write_bytes(whole[: answer - 5] + whole[answer:])
    with pytest.raises(LedgerDamagedError, match=r"a.jsonl, line 1"):
        History.read([path])


_WRITER = """
import sys
from pathlib import Path
from hopper_testing.history import Kind, Ledger
with Ledger(Path(sys.argv[1]), "ann") as ledger:
    for number in range(10**9):
        ledger.told(ledger.asks(Kind.SUBMIT, title=str(number)), task="t/1")
        print(number, flush=True)
"""


def test_a_client_that_is_killed_leaves_all_it_was_told(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    with writer.stdout as said:
        for line in said:
            if line == "100\n":
                break
        writer.send_signal(signal.SIGKILL)
        printed = 100 + len(said.readlines())
    writer.wait()
    operations = History.read([path]).operations
    assert len(operations) > printed
    assert {operation.outcome for operation in operations[: printed + 1]} == {Outcome.OK}
    assert [operation.title for operation in operations] == [str(number) for number in range(len(operations))]


def test_threads_share_a_ledger(tmp_path: Path) -> None:
    with Ledger(tmp_path / "a.jsonl", "ann") as ledger:

        def write(name: str) -> None:
            for number in range(200):
                ledger.told(ledger.asks(Kind.SUBMIT, title=f"{name}{number}"), task=f"t/{name}{number}")

        threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    operations = History.read([tmp_path / "a.jsonl"]).operations
    assert len(operations) == 800
    assert all(operation.task == f"t/{operation.title}" for operation in operations)


def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    Ledger(tmp_path / "a.jsonl", "ann").close()
    assert os.stat(tmp_path / "a.jsonl").st_mode & 0o777 == 0o600
