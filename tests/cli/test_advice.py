"""`hopper decompose --propose` and `hopper sage report`: with a language model and a Sage, both real servers."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import PATIENCE, Terminal
from tests.router.llm.published import MODEL, completion

PARTS = [
    {"title": "design it", "description": "on paper", "after": []},
    {"title": "build it", "description": "of wood", "after": [0]},
]
POLICY = """
strategy: hybrid
stages:
  - {use: rules, threshold: 0.0}
  - {use: llm, suggest: [subtasks], deadline: 60s, calls_per_day: 20}
  - {use: sage, threshold: 0.5, deadline: 60s}
"""


class Model(BaseHTTPRequestHandler):
    """Proposes parts, or none of what is small."""

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["content-length"])).decode()
        parts = [] if "a typo" in asked else PARTS
        said = {"reason": "as it is", "project": None, "confidence": 0.9, "subtasks": parts}
        body = json.dumps(completion(json.dumps(said))).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def model() -> Iterator[str]:
    """Where a language model is."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Model) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def sage(short_dir: Callable[[], Path]) -> Iterator[str]:
    """Where a Sage is."""
    directory = short_dir()
    environment = {**os.environ, "HOPPER_DATA_DIR": str(directory)}
    command = [sys.executable, "-m", "hopper_sage"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + PATIENCE
        while not (directory / "sage.sock").exists():
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
        yield f"unix:{directory}/sage.sock"
        process.terminate()


@pytest.fixture(scope="module")
def advised(short_dir: Callable[[], Path], model: str, sage: str) -> Iterator[Terminal]:
    """The command, with a Hopper that has both."""
    terminal = Terminal(short_dir(), quick=True)
    settings = {"HOPPER_LLM_URL": model, "HOPPER_LLM_MODEL": MODEL, "HOPPER_SAGE_ADDRESS": sage}
    with terminal.started("up", "--json", **settings) as up:
        assert up.stdout is not None
        up.stdout.readline()
        terminal.ok("project", "add", "web")
        terminal.ok("rules", "apply", "-", stdin=POLICY)
        yield terminal


def test_parts_are_proposed_shown_and_made(advised: Terminal) -> None:
    task = advised.json("add", "a garden shed", "--project", "web")["task"]["name"][-6:]
    unasked = advised("decompose", task, "--propose")
    assert (unasked.code, "--yes" in unasked.err) == (2, True)
    assert "build it" in unasked.out
    assert advised.json("show", task)["task"]["state"] == "STATE_QUEUED"
    made = advised.json("decompose", task, "--propose", "--yes")["delegation"]
    first, second = [advised.json("show", name[-6:])["task"] for name in made["child_tasks"]]
    assert (first["spec"]["title"], second["spec"]["title"]) == ("design it", "build it")
    assert second["spec"]["dependencies"] == [first["name"]]


def test_what_should_stay_in_one_piece_does(advised: Terminal) -> None:
    task = advised.json("add", "a typo", "--project", "web")["task"]["name"][-6:]
    said = advised.ok("decompose", task, "--propose", "--yes").out
    assert said == f"{task} should stay in one piece: as it is\n"
    assert advised.json("show", task)["task"]["state"] == "STATE_QUEUED"


def test_parts_come_from_somewhere(advised: Terminal) -> None:
    for options in ((), ("--propose", "--file", "-")):
        ran = advised("decompose", "abcdef", *options)
        assert (ran.code, "give one" in ran.err) == (2, True)


def test_a_sage_reports(advised: Terminal) -> None:
    told = advised.ok("sage", "report").out
    assert "reference" in told
    assert "asked" in told
    report = advised.json("sage", "report", "--days", "7")
    assert report["sage"]["name"] == "reference"
    assert "performance" in report


def test_without_either_the_remedy_is_told(hopper: Terminal, task: str, project: str) -> None:
    ran = hopper("decompose", task, "--propose", "--json")
    assert ran.error["reason"] == "LLM_NOT_CONFIGURED"
    ran = hopper("sage", "report", "--json")
    assert (ran.error["reason"], "stage sage" in ran.error["message"]) == ("SAGE_REFUSED", True)
