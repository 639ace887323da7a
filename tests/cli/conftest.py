"""
A real Hopper for the tests of `hopper`, and the real command to talk to it.

The Hopper is one child process for all tests of a session, so every test makes projects of its own. Its data
directory is short, because the path of a Unix socket is.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from hopper_cli import checkup, complete
from hopper_cli.main import main

HOPPER = (sys.executable, "-m", "hopper_cli")
PATIENCE = 900  # a whole demo takes 20 s where nothing else runs


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document it printed."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """The JSON lines it printed."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def error(self) -> dict[str, Any]:
        """The error object on its standard error."""
        made: dict[str, Any] = json.loads(self.err)["error"]
        return made


@dataclass(frozen=True, slots=True)
class Terminal:
    """
    Runs `hopper` as a person would, in a data directory of its own.

    Attributes:
        quick: In this process, through the same entry, because a process takes most of a second to begin.
    """

    data_dir: Path
    user: str = "tester"
    quick: bool = False

    def environment(self, **more: str) -> dict[str, str]:
        """What the commands see: nothing of whoever runs the tests."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HOPPER_")}
        return {**kept, "HOPPER_DATA_DIR": str(self.data_dir), "HOPPER_WORKER": self.user, **more}

    def __call__(self, *arguments: str, stdin: str | bytes = "", **more: str) -> Ran:
        """Run a command to its end; *more* are environment variables."""
        given = stdin.encode() if isinstance(stdin, str) else stdin
        run = self._here if self.quick else self._process
        return run(arguments, given, self.environment(**more))

    def _here(self, arguments: Sequence[str], stdin: bytes, environment: dict[str, str]) -> Ran:
        out, err = io.StringIO(), io.StringIO()
        with (
            pytest.MonkeyPatch.context() as changed,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            for name in os.environ.keys() - environment.keys():
                changed.delenv(name)
            for name, value in environment.items():
                changed.setenv(name, value)
            changed.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            code = main(arguments)
        return Ran(code, out.getvalue(), err.getvalue())

    def _process(self, arguments: Sequence[str], stdin: bytes, environment: dict[str, str]) -> Ran:
        done = subprocess.run(
            [*HOPPER, *arguments],
            input=stdin,
            capture_output=True,
            env=environment,
            timeout=PATIENCE,
            check=False,
        )
        return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())

    def ok(self, *arguments: str, stdin: str | bytes = "") -> Ran:
        """Run a command that has to succeed."""
        ran = self(*arguments, stdin=stdin)
        assert ran.code == 0, f"hopper {' '.join(arguments)}: {ran.code}\n{ran.out}\n{ran.err}"
        return ran

    def json(self, *arguments: str, stdin: str | bytes = "") -> Any:
        """The document of a command that has to succeed."""
        return self.ok(*arguments, "--json", stdin=stdin).json

    @contextlib.contextmanager
    def started(
        self, *arguments: str, stderr: Any = subprocess.PIPE, **more: str
    ) -> Iterator[subprocess.Popen[str]]:
        """Run a command beside the test, with *more* in its environment; it is ended and waited for."""
        with subprocess.Popen(
            [*HOPPER, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=self.environment(**more),
        ) as process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
                    process.communicate(timeout=PATIENCE)


@pytest.fixture(autouse=True)
def _no_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process nobody sits at a prompt: a busy machine may take its time."""
    monkeypatch.setattr(complete, "_PATIENCE", PATIENCE)
    monkeypatch.setattr(checkup, "_SETTLING", PATIENCE)


@pytest.fixture(scope="session")
def short_dir() -> Iterator[Callable[[], Path]]:
    """Makes directories whose paths are short enough for sockets."""
    made: list[Path] = []

    def make() -> Path:
        made.append(Path(tempfile.mkdtemp(prefix="hct-", dir="/tmp")))
        return made[-1]

    yield make
    for path in made:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def hopper(short_dir: Callable[[], Path]) -> Iterator[Terminal]:
    """The command, with a Hopper that answers."""
    terminal = Terminal(short_dir(), quick=True)
    # Not a pipe: nobody reads it, and once it was full of warnings this Hopper would stand still.
    with (
        (short_dir() / "up.log").open("w") as log,
        terminal.started("up", "--json", stderr=log) as up,
    ):
        assert up.stdout is not None
        reached = json.loads(up.stdout.readline())
        assert reached["services"] == ["federation", "memory", "registry", "router"]
        yield terminal


@pytest.fixture
def real(hopper: Terminal) -> Terminal:
    """The same Hopper, and a process of its own for each command."""
    return replace(hopper, quick=False)


@pytest.fixture
def alone(short_dir: Callable[[], Path]) -> Terminal:
    """The command, on a machine where no Hopper runs."""
    return Terminal(short_dir())


@pytest.fixture
def project(hopper: Terminal) -> str:
    """A project of this test's own that only tasks pinned to it go to."""
    name = f"p{uuid.uuid4().hex[:8]}"
    hopper.ok("project", "add", name, "--description", "for one test", "--can", f"can-{name}")
    return name


@pytest.fixture
def task(hopper: Terminal, project: str) -> str:
    """The short id of a task that waits in that project's queue."""
    return add(hopper, project)


def settled(hopper: Terminal) -> None:
    """Wait until the router decides by all that the registry has: it hears of projects a moment later."""
    said = {check["name"]: check for check in hopper("doctor", "--json").json["checks"]}
    assert said["directory"]["status"] == "ok", said["directory"]


def add(hopper: Terminal, project: str, *options: str, title: str = "mend the fence") -> str:
    """Add a task to a project, and return its short id."""
    added = hopper.json("add", title, "--project", project, *options)
    return str(added["task"]["name"][-6:])
