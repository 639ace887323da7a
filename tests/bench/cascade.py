"""
What a language model adds that is asked about the tasks the router is least sure of: `python -m tests.bench.cascade`.

The streams of `routing_quality` go through a whole Hopper by gRPC, with `strategy: hybrid`; the model is a server on
this machine that speaks chat completions:

    SubmitTask ─► router: learned, sure enough? ── no ──► POST /chat/completions ─► the right one of the shortlist
         ▲                     │ yes                                                or null, when it is not there
         └── the decision ◄────┴───────────◄────────────────────────────────────────┘
    SubmitFeedback: the truth, whoever decided

It may be asked about 20 % of the tasks: that many calls are its budget. Its threshold follows the confidences of the
last 1,000 tasks, as an operator would set it. For each stream: top-1 by what was learned alone, in the same pass; with
the model; how many points that adds; how many calls the server counted, and may have. One stream is replayed once more
with the model down: what that costs beside the points, in tasks and in time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from hopper.router.v1.decision_pb2 import Decision, Opinion
from tests.bench.routing_quality import DATA, HARNESS, STREAMS, load_harness
from tests.bench.routing_quality_routers import Task, TheService, spec_of

SHARE: Final = 0.2
WINDOW: Final = 1000
GAIN: Final = 4.0
DOWN: Final = "dotnet_areas"
"""The stream that is replayed with the model down."""
_EVERY: Final = 50
_BEGIN: Final = 0.8
_NOBODY: Final = "http://127.0.0.1:9/v1"
"""The port of `discard`: nobody listens there."""


class Model:
    """
    A language model that is never wrong about its shortlist.

    Attributes:
        right: The project of the task that is being asked about; None: there is none for it.
        asked: How many questions came.
    """

    def __init__(self) -> None:
        self.right: str | None = None
        self.asked = 0

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """A chat completion."""
        self.asked += 1
        question = request["messages"][-1]["content"]
        document = json.loads(question[question.index("<data>") + 6 : question.index("</data>")])
        there = self.right in {project["id"] for project in document["projects"]}
        wanted = request["response_format"]["json_schema"]["schema"]["properties"]
        said: dict[str, Any] = {
            name: [] if schema.get("type") == "array" else None for name, schema in wanted.items()
        }
        said |= {"reason": "that one", "project": self.right if there else None, "confidence": 0.9}
        message = {"role": "assistant", "content": json.dumps(said)}
        return {
            "model": "perfect",
            "choices": [{"message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": len(question) // 4, "completion_tokens": 20},
        }


@contextmanager
def serving(model: Model) -> Iterator[str]:
    """The address of the model's API."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            body = json.dumps(model.answer(request)).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()


@dataclass(slots=True)
class Tally:
    """
    What became of a stream.

    Attributes:
        alone: Of those that belong somewhere, how many were right by what was learned.
        together: With what the model said.
        possible: How many would be, had it been asked about all.
        unplaced: Tasks that got no project.
        asked, waited: How long SubmitTask took, in seconds: where the model was to be asked, and where not.
    """

    belonging: int = 0
    alone: int = 0
    together: int = 0
    possible: int = 0
    unplaced: int = 0
    asked: list[float] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)


class WithModel(TheService):
    """
    A Hopper that may ask a model about some of the tasks.

    Args:
        truth: The right target of each task, by the task's id.
        budget: How many calls it may have.
    """

    def __init__(self, model: Model, url: str, truth: Mapping[str, str | None], budget: int) -> None:
        self.tally = Tally()
        self._model = model
        self._truth = truth
        self._budget = budget
        self._sure: deque[float] = deque(maxlen=WINDOW)
        self._decided = 0
        environment = {"HOPPER_LLM_URL": url, "HOPPER_LLM_MODEL": "perfect"}
        super().__init__(policy=_policy(_BEGIN, budget), environment=environment)

    def decide(self, task: Task) -> list[tuple[str, float]]:
        self.hear_news()
        right = self._truth[task["id"]]
        self._model.right = None if right is None else self.names.project(right)
        begin = time.perf_counter()
        decision = self.submit(task["id"], spec_of(task))
        own = decision.opinions[0]
        times = self.tally.asked if len(decision.opinions) > 1 else self.tally.waited
        times.append(time.perf_counter() - begin)
        self._count(decision, own)
        self._follow(own.confidence)
        return [(self.names.target(each.project), each.confidence) for each in decision.candidates]

    def _count(self, decision: Decision, own: Opinion) -> None:
        tally, right = self.tally, self._model.right
        tally.unplaced += not decision.project
        if right is not None:
            tally.belonging += 1
            tally.alone += (own.project or decision.candidates[0].project) == right
            tally.together += decision.project == right
            tally.possible += right in {each.project for each in decision.candidates}

    def _follow(self, confidence: float) -> None:
        """Ask about as many of the next tasks as may be asked about."""
        self._sure.append(confidence)
        self._decided += 1
        if self._decided % _EVERY == 0:
            self.follow(_policy(float(np.quantile(self._sure, SHARE)), self._budget))


def _policy(threshold: float, calls: int) -> str:
    return (
        "strategy: hybrid\nwait: 30s\non_unsure: route\nstages:\n"
        f"  - {{use: learned, threshold: {threshold:.4f}}}\n"
        f"  - {{use: llm, threshold: 0.5, calls_per_day: {calls}}}\n"
    )


class Found(NamedTuple):
    """What one replay came to."""

    stream: str
    tasks: int
    budget: int
    calls: int
    tally: Tally

    def points(self, right: int) -> float:
        """So many right ones, in percent of those that can be."""
        return 100 * right / max(self.tally.belonging, 1)

    @property
    def gain(self) -> float:
        """The points that the model added."""
        return self.points(self.tally.together - self.tally.alone)


def replay(name: str, limit: int | None, *, down: bool = False) -> Found:
    """Replay a stream through a fresh Hopper; *down*: the model cannot be reached."""
    harness = load_harness()
    rows, targets = harness.load(DATA, name)
    rows = rows[:limit]
    budget = int(SHARE * len(rows))
    model = Model()
    with serving(model) as url:
        truth = {row["id"]: row["target"] for row in rows}
        with closing(WithModel(model, _NOBODY if down else url, truth, budget)) as router:
            harness.replay(router, rows, targets)
    return Found(name, len(rows), budget, model.asked, router.tally)


def main(arguments: Sequence[str]) -> int:
    """Replay, print; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.cascade")
    parser.add_argument("--only", action="append", choices=STREAMS)
    parser.add_argument("--limit", type=int, help="only the first N tasks of each stream")
    parser.add_argument("--jobs", type=int, default=3, help="how many streams at a time; default: 3")
    options = parser.parse_args(arguments)
    if not HARNESS.is_file():
        print(f"no harness at {HARNESS}: set HOPPER_SHARED", file=sys.stderr)
        return 2
    context = multiprocessing.get_context("spawn")  # gRPC's threads do not survive a fork
    with ProcessPoolExecutor(options.jobs, context) as pool:
        running = [pool.submit(replay, name, options.limit) for name in options.only or STREAMS]
        without = pool.submit(replay, DOWN, options.limit, down=True)
        found = [future.result() for future in running]
        down = without.result()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    console.print(_table(found))
    console.print(_told(down))
    gain = statistics.fmean(each.gain for each in found)
    kept = all(each.calls <= each.budget for each in found)
    harmless = not down.tally.unplaced and down.tally.together == down.tally.alone
    bars = {
        f"mean gain {gain:+.2f} points, to be >= {GAIN:+g}": gain >= GAIN,
        "budget never exceeded": kept,
        "the model down costs those points alone": harmless,
    }
    for bar, met in bars.items():
        console.print(f"{bar}: {'met' if met else 'MISSED'}")
    return 0 if all(bars.values()) else 1


def _table(found: Sequence[Found]) -> Table:
    table = Table(title="top-1, %, with a model that may be asked about 20 % of the tasks")
    for heading in (
        "stream",
        "tasks",
        "calls",
        "budget",
        "alone",
        "with",
        "gain",
        "possible",
        "ms asked / not",
    ):
        table.add_column(heading, justify="left" if heading == "stream" else "right")
    for each in found:
        tally = each.tally
        table.add_row(
            each.stream,
            str(each.tasks),
            str(each.calls),
            str(each.budget),
            f"{each.points(tally.alone):.2f}",
            f"{each.points(tally.together):.2f}",
            f"{each.gain:+.2f}",
            f"{each.points(tally.possible - tally.alone):+.2f}",
            f"{_middle(tally.asked)} / {_middle(tally.waited)}",
        )
    return table


def _told(down: Found) -> str:
    tally = down.tally
    return (
        f"{down.stream} with the model down: {down.tasks - tally.unplaced} of {down.tasks} tasks placed, "
        f"top-1 {down.points(tally.together):.2f} (alone {down.points(tally.alone):.2f}), "
        f"ms where it was to be asked / not: {_middle(tally.asked)} / {_middle(tally.waited)}"
    )


def _middle(seconds: Sequence[float]) -> str:
    return f"{1e3 * statistics.median(seconds):.1f}" if seconds else "-"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
