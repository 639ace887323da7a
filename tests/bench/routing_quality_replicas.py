"""
Whether routers that learned the same say the same, and how quickly one learns it all.

    the Hopper that learned a stream ─ keep ─► copies of its databases, what it was asked and said
                                                     │
       measure: another Hopper on the copies, all snapshots removed ─► learns the whole log ─► asked the same
                                                     └─ starts again: snapshot + log ────────► asked the same
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import grpc

from hopper.router.v1.routing_service_pb2 import SuggestRouteRequest
from hopper.router.v1.routing_service_pb2_grpc import RoutingServiceStub
from hopper.router.v1.task_pb2 import TaskSpec
from hopper_testing.processes import HopperProcess
from tests.bench.routing_quality_routers import PATIENCE, SERVICES, TheService, spec_of, until

MOST_ASKED: Final = 1000
_LEARN: Final = 600.0
"""Seconds that a whole log may take."""
_CALM: Final = 5.0
"""Seconds without a lesson after which none is on its way."""
_BEGAN: Final = "learning begins"
_DONE: Final = "all is learned that there is"

Task = Mapping[str, Any]


class Replicas(NamedTuple):
    """
    How a router that started later compares, in shares of the tasks both were asked about.

    Attributes:
        lessons: How many it had to learn.
        rate: How many of them a second.
        rebuilt: Which went to the same project by one that learned the whole log.
        restarted: By the same, started again with its snapshot and what came after that.
        call_ms: How long SuggestRoute took then, the median: it had seen none of these texts.
    """

    lessons: int
    rate: float
    rebuilt: float
    restarted: float
    call_ms: float


def keep(service: TheService, tasks: Sequence[Task], directory: Path) -> None:
    """Copy what a Hopper knows, and what it says of the last tasks now."""
    data = directory / "data"
    data.mkdir(mode=0o700, parents=True)
    _until_calm(service.data / "memory.db")
    asked = [spec_of(task) for task in tasks[-MOST_ASKED:]]
    said = [service.suggest(spec).project for spec in asked]
    for name in SERVICES:
        _copy(service.data / f"{name}.db", data / f"{name}.db")
    questions = [(spec.SerializeToString().hex(), project) for spec, project in zip(asked, said, strict=True)]
    (directory / "asked.json").write_text(json.dumps(questions))


def _until_calm(memory: Path) -> None:
    """Until no lesson has come for a while: how tasks ended is told after what was said about them."""
    counted, since = -1, time.monotonic()
    while time.monotonic() - since < _CALM:
        with contextlib.closing(sqlite3.connect(f"file:{memory}?mode=ro", uri=True)) as rows:
            (count,) = rows.execute("SELECT count(*) FROM lessons").fetchone()
        if count != counted:
            counted, since = count, time.monotonic()
        time.sleep(0.1)


def measure(directory: Path) -> Replicas:
    """Learn it all anew on the copies, and ask again; the copies are used up."""
    questions = [
        (TaskSpec.FromString(bytes.fromhex(spec)), project)
        for spec, project in json.loads((directory / "asked.json").read_text())
    ]
    data = directory / "data"
    with contextlib.closing(sqlite3.connect(data / "memory.db")) as memory, memory:
        memory.execute("DELETE FROM model_parts")
        memory.execute("DELETE FROM models")
    with ExitStack() as stack:
        others = [HopperProcess(data, service=name, environment=_QUIET) for name in ("registry", "memory")]
        for process in others:
            stack.enter_context(process)
        router = stack.enter_context(HopperProcess(data, service="router", environment=_TELLING))
        began, done, lessons = _learned(router, after=0)
        rebuilt, _ = _asked(router, questions)
        router.stop()
        start = router.log_size()
        router.start()
        _learned(router, after=start)
        restarted, call_ms = _asked(router, questions)
    rate = lessons / max((done - began).total_seconds(), 1e-3)
    return Replicas(lessons, rate, rebuilt, restarted, call_ms)


def _asked(router: HopperProcess, questions: Sequence[tuple[TaskSpec, str]]) -> tuple[float, float]:
    """The share of questions with the answers of then, and the median of milliseconds that one took."""
    same, taken = 0, []
    with grpc.insecure_channel(router.address) as channel:
        routing = RoutingServiceStub(channel)
        for spec, project in questions:
            request = SuggestRouteRequest(parent="instances/global", spec=spec)
            begin = time.perf_counter()
            decision = routing.SuggestRoute(request, timeout=PATIENCE).decision
            taken.append(time.perf_counter() - begin)
            same += decision.project == project
    return same / len(questions), 1e3 * statistics.median(taken)


def _learned(router: HopperProcess, *, after: int) -> tuple[datetime, datetime, int]:
    """When a router began to learn and when it knew everything, by its log from a byte on; and how much that was."""

    def told() -> dict[str, dict[str, Any]]:
        return {line["event"]: line for line in _lines(router.log_text(after=after))}

    until(lambda: _DONE in told(), "a router to learn everything", patience=_LEARN)
    lines = told()
    began, done = lines[_BEGAN], lines[_DONE]
    return _time(began), _time(done), done["position"] - began["after"]


def _lines(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # one that is being written
            yield json.loads(line)


def _time(line: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(line["timestamp"])


def _copy(source: Path, target: Path) -> None:
    with (
        contextlib.closing(sqlite3.connect(source)) as original,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        original.backup(copy)
    target.chmod(0o600)


_QUIET: Final = {"HOPPER_LOG_LEVEL": "warning"}
_TELLING: Final = {"HOPPER_LOG_LEVEL": "info"}
