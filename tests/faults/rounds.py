"""
Crash rounds: callers use a Hopper, a fault strikes it in each round, and in the end a checker reads what they wrote.

Rounds come in watches of ten. After each watch the callers stop, what is open is finished, and the watch's whole
history is checked against what is there; after the last one, the acknowledged tasks of all watches are looked for once
more. Worker processes are killed as well, and two of them have the same names.
"""

import asyncio
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from hopper_testing.checker import Report, Rule, Violation, check
from hopper_testing.dump import Dump, take_dump
from hopper_testing.history import History, Kind, Ledger, Outcome
from hopper_testing.workload import drain, prepare
from tests.faults.nemesis import strike
from tests.faults.promises import MARGIN
from tests.faults.stage import Callers, Engine, Stage, stage_in_temporary_directory

ROUNDS_PER_WATCH: Final = 10
_CREW: Final = ("worker*2", "streamer")
_BUSY: Final = ("--pause", "0.03", "--batch", "8")
_NAMES: Final = ("--name", "ann", "--name", "bob", "--name", "cid")
_DRAIN_SECONDS: Final = 60.0
_CATCH_UP_SECONDS: Final = 120.0

Say = Callable[[str], None]


@dataclass
class Result:
    """What came of the rounds of one engine."""

    engine: Engine
    seed: int
    rounds: int = 0
    report: Report = field(default_factory=Report)
    struck: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def lines(self) -> Iterator[str]:
        """A summary, and every violation."""
        counts, delays = self.report.counts, sorted(self.report.back_after)
        yield f"{self.engine}: {self.rounds} rounds from seed {self.seed} in {self.seconds:.0f} s"
        for what, count in sorted(self.struck.items()):
            yield f"  {count:5} x {what}"
        names = (
            "submits",
            "acks",
            "claims",
            "completes",
            "cancels",
            "refused",
            "unanswered",
            "events",
            "watched",
        )
        yield "  " + ", ".join(f"{name} {counts[name]}" for name in names)
        if delays:
            middle, last = delays[len(delays) // 2] / 1e6, delays[-1] / 1e6
            yield f"  leases that ran out {len(delays)}: ready again after {middle:.3f} s (median), {last:.3f} s (most)"
        yield f"  lost {self.report.lost}, doubled {self.report.doubled}, violations {len(self.report.violations)}"
        for violation in self.report.violations[:50]:
            yield f"  {violation}"


def run(engine: Engine, *, rounds: int, seed: int, say: Say = print, keep: Path | None = None) -> Result:
    """
    Let faults strike for so many rounds, and check.

    Args:
        say: Told how it goes.
        keep: Where ledgers and logs are left, whatever comes of it.
    """
    result = Result(engine, seed)
    began = time.monotonic()
    chance = random.Random(f"{engine}/{seed}")
    with stage_in_temporary_directory(engine) as stage, _kept(stage, keep):
        at_rest = first = prepare(stage.addresses[0])
        number = 0
        while result.rounds < rounds:
            number += 1
            todo = min(ROUNDS_PER_WATCH, rounds - result.rounds)
            history, dump = _watch(stage, chance, number, todo, at_rest, result)
            report = check(history, dump, promise=1_000_000 + MARGIN)
            result.report.add(report)
            for violation in report.violations:
                say(f"  {violation}")
            result.rounds += todo
            at_rest = dump.head
            counts = result.report.counts
            say(
                f"{engine}: {result.rounds}/{rounds} rounds, {counts['submits']} submits, {counts['acks']} acks, "
                f"{counts['claims']} claims, {counts['completes']} completes, lost {result.report.lost}, "
                f"doubled {result.report.doubled}, violations {len(result.report.violations)}"
            )
        result.report.violations += _still_there(stage, first)
    result.seconds = time.monotonic() - began
    return result


@contextmanager
def _kept(stage: Stage, keep: Path | None) -> Iterator[None]:
    try:
        yield
    finally:
        if keep is not None:
            target = keep / stage.engine
            shutil.copytree(stage.directory / "ledgers", target / "ledgers", dirs_exist_ok=True)
            for log in stage.directory.glob("*.log"):
                shutil.copy(log, target)


def _watch(
    stage: Stage, chance: random.Random, number: int, rounds: int, at_rest: int, result: Result
) -> tuple[History, Dump]:
    """Some rounds, to the end of everything that was begun in them; its history, and what is there of it."""
    before = set(_ledgers(stage))
    with _callers(stage, chance, number) as crew:
        for round_number in range(rounds):
            if chance.random() < 0.2:
                crew.replace(chance, round_number)
            result.struck[strike(stage, chance)] += 1
        stage.calm()
        crew.stop()
        with Ledger(stage.directory / "ledgers" / f"{number}-drain.jsonl", "drain") as ledger:
            left = asyncio.run(drain(stage.addresses[-1], ledger, seconds=_DRAIN_SECONDS, seed=number))
        dump = take_dump(stage.addresses[-1], after=at_rest)
        crew.watched_until(dump.head)
    history = History.read([path for path in _ledgers(stage) if path not in before or path.stem == "nemesis"])
    if left:
        result.report.violations.append(
            Violation(Rule.LATE, f"watch {number}", f"{left} tasks cannot be finished")
        )
    return history, dump


def _ledgers(stage: Stage) -> list[Path]:
    return list((stage.directory / "ledgers").glob("*.jsonl"))


def _still_there(stage: Stage, first: int) -> Iterator[Violation]:
    """Acknowledged tasks of all watches that are gone, or are two, in the end."""
    dump = take_dump(stage.addresses[0], after=first)
    there = Counter((task.name, task.title) for task in dump.tasks)
    for operation in History.read(_ledgers(stage)).operations:
        acknowledged = operation.kind is Kind.SUBMIT and operation.outcome is Outcome.OK
        if acknowledged and there[operation.task, operation.title] != 1:
            yield Violation(Rule.LOST, operation.title, f"was {operation.task}, and is gone in the end")


class _Crew:
    """The processes of callers of one watch."""

    def __init__(self, stage: Stage, chance: random.Random, number: int) -> None:
        self._stage = stage
        self._number = number
        self._seed = chance.getrandbits(32)
        self._processes = [
            self._start("submitters", ("submitter*4", "canceller")),
            self._start("workers-1", _CREW, _NAMES),
            self._start("workers-2", _CREW, _NAMES),
        ]
        stage.busy = [process.ledger for process in self._processes]
        self._watcher = self._start("watcher", ("watcher",))

    def replace(self, chance: random.Random, round_number: int) -> None:
        """Kill one process of workers, and start another of the same names."""
        place = chance.choice((1, 2))
        self._processes[place].kill()
        self._processes[place] = self._start(f"workers-{place}-{round_number}", _CREW, _NAMES)
        self._stage.busy.append(self._processes[place].ledger)

    def stop(self) -> None:
        """Let those who change something end."""
        for process in self._processes:
            process.stop()

    def watched_until(self, head: int) -> None:
        """Wait until the watcher has been shown everything, and let it end."""
        deadline = time.monotonic() + _CATCH_UP_SECONDS
        while not self._has_seen(head):
            if time.monotonic() > deadline:
                raise AssertionError(f"the watcher is not shown {head}: {self._watcher.said()}")
            time.sleep(0.1)
        self._watcher.stop()

    def close(self) -> None:
        """End whatever is left."""
        for process in (*self._processes, self._watcher):
            process.close()

    def _has_seen(self, head: int) -> bool:
        watchers = History.read([self._watcher.ledger]).watchers
        return any(
            max((watcher.start, *(change.generation for change in watcher.seen))) >= head
            for watcher in watchers
        )

    def _start(self, name: str, roles: Sequence[str], options: Sequence[str] = ()) -> Callers:
        full = f"{self._number}-{name}"
        return Callers(self._stage, full, roles, seed=self._seed, seconds=3600, options=(*_BUSY, *options))


@contextmanager
def _callers(stage: Stage, chance: random.Random, number: int) -> Iterator[_Crew]:
    with ExitStack() as stack:
        crew = _Crew(stage, chance, number)
        stack.callback(crew.close)
        yield crew
