"""
`python -m tests.bench.routing_quality [--only NAME] [--limit N] [--through grpc] [--quick]`: how well tasks are placed.

Replays real streams of tasks, test then train, and prints the figures beside those of the reference design. The harness
and the data are not part of this repository: they are looked for in `$HOPPER_SHARED`, else in `shared` beside the
checkout.

    all passes, several at a time:  as it is, with feedback 50 tasks late, with targets that are taken away, and, where
                                    tasks without a target are among them, with "none of them" as feedback
    then alone:                     what deciding costs; a router that learns the whole log anew, and says the same
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple

from rich.console import Console
from rich.table import Table

from hopper_testing.processes import temporary_directory
from tests.bench import routing_quality_replicas as replicas
from tests.bench.routing_quality_replicas import Replicas
from tests.bench.routing_quality_routers import Router, TheModel, TheRouter, TheService

SHARED: Final = Path(os.environ.get("HOPPER_SHARED", Path(__file__).parents[3] / "shared"))
HARNESS: Final = SHARED / "bench" / "routing_quality" / "harness.py"
DATA: Final = SHARED / "data" / "routing"
STREAMS: Final = ("jira_components", "multi_project", "intents_oos", "dotnet_areas")
LATE: Final = 50
RETIRED: Final = 200
"""So many tasks after its last one, a target is taken away."""
NOBODYS: Final = ("intents_oos",)
"""The streams with tasks that are nobody's."""
MANY: Final = "jira_components"
"""The stream that times are measured on: 37 targets and long texts."""
SHORT: Final = ("dotnet_areas",)
"""The streams that this is tried on."""

Metrics = Mapping[str, Any]


IN_PROCESS: Final = ("model", "router")
ROUTERS: Final[Mapping[str, Callable[[], Router]]] = {
    "model": TheModel,
    "router": TheRouter,
    "grpc": TheService,
    "suggest": partial(TheService, suggest=True),
}


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a stream: how it is found, and the reference's, stream by stream."""

    title: str
    of: Callable[[Metrics], float | None]
    reference: Sequence[float | None]
    low_is_good: bool = False


def _percent(key: str) -> Callable[[Metrics], float | None]:
    def read(metrics: Metrics) -> float | None:
        value = metrics.get(key)
        return None if value is None else 100 * float(value)

    return read


OFFLINE_SVM: Final = {
    "jira_components": 62.7,
    "multi_project": 86.9,
    "intents_oos": 94.3,
    "dotnet_areas": 63.7,
}
"""The last third by a linear SVM that was trained on the first two."""


def _less_svm(metrics: Metrics) -> float:
    return 100 * float(metrics["last_third_top1"]) - OFFLINE_SVM[metrics["data"]]


FIGURES: Final = (
    Figure("top-1 from 500", _percent("top1_from500"), (82.9, 92.4, 95.1, 75.9)),
    Figure("top-1", _percent("top1"), (83.0, 92.0, 94.3, 74.6)),
    Figure("top-3", _percent("top3"), (94.9, 97.8, 98.6, 87.7)),
    Figure("last third", _percent("last_third_top1"), (76.5, 93.8, 96.4, 75.3)),
    Figure("last third less SVM's", _less_svm, (13.8, 6.9, 2.1, 11.6)),
    Figure("after 100", _percent("at100"), (87, 77, 73, 73)),
    Figure("after 500", _percent("at500"), (93, 83, 87, 79)),
    Figure("after 1,000", _percent("at1000"), (89, 90, 92, 75)),
    Figure("after 5,000", _percent("at5000"), (87, 92, 95, None)),
    Figure("ECE", _percent("ece"), (1.9, 0.9, 1.0, 3.5), low_is_good=True),
    Figure("surest 80 %", _percent("sel80"), (91.1, 98.9, 99.5, 85.5)),
    Figure("routable at 90 %", _percent("cov@90"), (84, 100, 100, 70)),
    Figure("out of scope AUROC", _percent("oos_auroc"), (None, None, 96.6, None)),
)
TIMES: Final = (
    Figure(
        "decide, CPU us p50", lambda m: float(m["decide_cpu_us_p50"]), (580, 350, 280, 510), low_is_good=True
    ),
    Figure(
        "decide, CPU us p99",
        lambda m: float(m["decide_cpu_us_p99"]),
        (1500, 700, 500, 1000),
        low_is_good=True,
    ),
    Figure("learn, us p50", lambda m: float(m["learn_us_p50"]), (200, 130, 140, 180), low_is_good=True),
)
LATE_REFERENCE: Final = (80.9, 90.6, 93.9, 70.8)
"""Top-1 of the reference with feedback 50 tasks late."""
NEW_TARGETS: Final = {"0": (31, 57), "1-2": (45, 65), "3-9": (59, 79), "10-29": (71, 85), "30+": (87, 96)}
"""Top-1 and top-3 of the reference by how many lessons the true target has had, all streams together."""


def main(arguments: Sequence[str]) -> int:
    """Replay, print; 1 if a bar is missed."""
    options = _options(arguments)
    if not HARNESS.is_file():
        print(
            f"no harness at {HARNESS}: set HOPPER_SHARED to the folder that holds bench and data",
            file=sys.stderr,
        )
        return 2
    begin = time.monotonic()
    names = [name for name in STREAMS if not options.only or name in options.only]
    with temporary_directory() as directory:
        passes = _replayed(options, names, directory)
        if options.through == "grpc" and not options.quick:
            passes.speed = _speed(names, options.limit)
            passes.replicas = {name: replicas.measure(directory / name) for name in names}
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    in_process = options.through in IN_PROCESS
    console.print(_table(passes.plain, (*FIGURES, *TIMES) if in_process else FIGURES))
    console.print(_new_targets(passes.plain))
    if passes.late:
        console.print(_late(passes.plain, passes.late))
    if passes.told is not None:
        console.print(_told(passes.told))
    bars = list(_measured(passes))
    console.print(_bars(bars, passes.plain))
    console.print(
        f"{sum(bar.met for bar in bars)} of {len(bars)} bars met, in {time.monotonic() - begin:.0f} s"
    )
    return 0 if all(bar.met for bar in bars) else 1


def _replayed(options: argparse.Namespace, names: Sequence[str], directory: Path) -> Passes:
    """Every pass, several at a time, the longest first."""
    keep = options.through == "grpc" and not options.quick
    jobs = [Job("plain", name, keep_in=directory / name if keep else None) for name in names]
    if not options.quick:
        jobs += [Job("late", name, {"delay": LATE}) for name in names]
        jobs += [Job("told", name, {"reject": True}) for name in names if name in NOBODYS]
        jobs += [Job("retired", name, {"retire": RETIRED}) for name in names if name in SHORT]
    done: dict[str, dict[str, Metrics]] = {job.kind: {} for job in jobs}
    context = multiprocessing.get_context("spawn")  # gRPC's threads do not survive a fork
    with ProcessPoolExecutor(options.jobs, context) as pool:
        running = {pool.submit(play, job, options.through, options.limit): job for job in jobs}
        for future in as_completed(running):
            job, metrics = running[future], future.result()
            done[job.kind][job.name] = metrics
            print(f"{job.name}, {job.kind}: {metrics['tasks']} tasks", file=sys.stderr, flush=True)
            if options.json is not None:
                with options.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({**metrics, "pass": job.kind}) + "\n")
    plain, late, retired = (
        {name: done[kind][name] for name in names if name in done.get(kind, {})}
        for kind in ("plain", "late", "retired")
    )
    return Passes(plain, late, retired, next(iter(done.get("told", {}).values()), None))


def _speed(names: Sequence[str], limit: int | None) -> Metrics | None:
    """What deciding and learning cost in the router, in this process and with nothing beside it."""
    return play(Job("speed", MANY), "router", limit) if MANY in names else None


@dataclass(frozen=True, slots=True)
class Job:
    """
    One replay of a stream.

    Attributes:
        way: `delay`, `retire`, `reject`, as the harness has them.
        keep_in: Where what the Hopper knows at the end is kept, for `routing_quality_replicas`; None: nowhere.
    """

    kind: str
    name: str
    way: Mapping[str, Any] = field(default_factory=dict)
    keep_in: Path | None = None


def play(job: Job, through: str, limit: int | None) -> Metrics:
    """Replay a stream through a fresh router; the metrics."""
    harness = load_harness()
    rows, targets = harness.load(DATA, job.name)
    rows = rows[:limit]
    with closing(ROUTERS[through]()) as router:
        records = harness.replay(router, rows, targets, **job.way)
        if job.keep_in is not None and isinstance(router, TheService):
            replicas.keep(router, rows, job.keep_in)
    return {**harness.metrics(records), "data": job.name, **job.way}


def _told(told: Metrics) -> str:
    return (
        f'told "none of them": AUROC {100 * told["oos_auroc"]:.1f} (reference 98.5), '
        f"caught at 5 % false {100 * told['oos_caught_at_5pct_false']:.0f} % (92), "
        f"top-1 {100 * told['top1']:.1f}"
    )


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.routing_quality")
    parser.add_argument("--only", action="append", choices=STREAMS)
    parser.add_argument(
        "--limit", type=int, help="only the first N tasks; the reference's figures are of whole streams"
    )
    parser.add_argument(
        "--through",
        choices=sorted(ROUTERS),
        default="grpc",
        help="see routing_quality_routers; default: grpc",
    )
    parser.add_argument("--json", type=Path, help="append every run's figures to a file, a line each")
    parser.add_argument("--quick", action="store_true", help="only one pass, as it is")
    parser.add_argument("--jobs", type=int, default=3, help="how many passes at a time; default: 3")
    return parser.parse_args(arguments)


def load_harness() -> ModuleType:
    """The harness, which is no package."""
    spec = importlib.util.spec_from_file_location("routing_quality_harness", HARNESS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(slots=True)
class Passes:
    """
    The metrics of each pass, by stream.

    Attributes:
        late: With feedback that comes late.
        retired: Where targets are taken away.
        told: Of the stream with tasks for nobody, when that is said of them.
        speed: What deciding and learning cost in the router, measured alone.
        replicas: How a router that learned it all later compares.
    """

    plain: Mapping[str, Metrics]
    late: Mapping[str, Metrics] = field(default_factory=dict)
    retired: Mapping[str, Metrics] = field(default_factory=dict)
    told: Metrics | None = None
    speed: Metrics | None = None
    replicas: Mapping[str, Replicas] = field(default_factory=dict)


class Bar(NamedTuple):
    """What was reached, the worst of it where there are several, and what was to be."""

    title: str
    reached: float
    bar: float
    low_is_good: bool = False
    digits: int = 1

    @property
    def met(self) -> bool:
        """Whether that is enough."""
        return self.reached <= self.bar if self.low_is_good else self.reached >= self.bar


def _bars(bars: Sequence[Bar], plain: Mapping[str, Metrics]) -> Table:
    caption = "" if len(plain) == len(STREAMS) else "bars are meant for all four streams"
    table = Table("bar", "reached", "to be", "", title=f"bars, over {', '.join(plain)}", caption=caption)
    for bar in bars:
        sign = "<=" if bar.low_is_good else ">="
        table.add_row(
            bar.title, f"{bar.reached:.{bar.digits}f}", f"{sign} {bar.bar:g}", "met" if bar.met else "MISSED"
        )
    return table


def _measured(passes: Passes) -> Iterator[Bar]:
    plain = passes.plain
    place = {name: STREAMS.index(name) for name in plain}

    def all_of(title: str) -> list[tuple[float, float | None]]:
        figure = next(figure for figure in FIGURES if figure.title == title)
        found = [(figure.of(metrics), figure.reference[place[name]]) for name, metrics in plain.items()]
        return [(value, reference) for value, reference in found if value is not None]

    def mean(title: str) -> float:
        return statistics.fmean([value for value, _ in all_of(title)] or [0.0])

    top = all_of("top-1 from 500")
    svm = all_of("last third less SVM's")
    yield Bar("1 top-1 from 500, mean", mean("top-1 from 500"), 87.5)
    yield Bar("1 top-1 from 500, the worst against the reference", min(v - (r or 0) for v, r in top), -0.5)
    yield Bar("2 last third less an offline SVM's, the worst", min(v for v, _ in svm), 0)
    yield Bar("2 last third less an offline SVM's, mean", mean("last third less SVM's"), 9)
    yield Bar("3 top-3, mean", mean("top-3"), 95)
    for after, bar in (("100", 77), ("500", 85), ("1,000", 86)):
        yield Bar(f"4 after {after}, mean", mean(f"after {after}"), bar)
    yield Bar("5 ECE, the worst", max(v for v, _ in all_of("ECE")), 3.5, low_is_good=True)
    for value, _ in all_of("out of scope AUROC"):
        yield Bar("6 out of scope AUROC", value, 96.5)
    if passes.told is not None:
        yield Bar('6 the same, told "none of them"', 100 * float(passes.told["oos_auroc"]), 98.5)
    for bucket, rank, least in (("0", 2, 57), ("3-9", 1, 59), ("10-29", 1, 71)):
        reached = _share(plain, bucket, rank)
        yield Bar(f"7 targets with {bucket} lessons, top-{2 * rank - 1}", reached, least)
    yield from _speeds(passes)
    everywhere = [*plain.values(), *passes.late.values(), *passes.retired.values()]
    dead = sum(int(metrics["dead_targets_proposed"]) for metrics in everywhere)
    yield Bar("9 targets proposed that were gone", dead, 0, low_is_good=True)
    if passes.replicas:
        yield from _alike(list(passes.replicas.values()))
    if passes.late:
        falls = [100 * (plain[name]["top1"] - metrics["top1"]) for name, metrics in passes.late.items()]
        yield Bar("11 fall with feedback 50 late, mean", statistics.fmean(falls), 2.0, low_is_good=True)


def _speeds(passes: Passes) -> Iterator[Bar]:
    speed = passes.speed
    if speed is not None:
        for title, key, most in (
            ("decide in the router, CPU ms p50", "decide_cpu_us_p50", 1.0),
            ("decide in the router, CPU ms p99", "decide_cpu_us_p99", 3.0),
            ("learn, ms p50", "learn_us_p50", 0.5),
        ):
            yield Bar(f"8 {title}", float(speed[key]) / 1e3, most, low_is_good=True, digits=2)
    if passes.replicas:
        slowest = max(each.call_ms for each in passes.replicas.values())
        yield Bar("8 whole SuggestRoute, ms p50, the slowest", slowest, 3.0, low_is_good=True, digits=2)


def _alike(found: Sequence[Replicas]) -> Iterator[Bar]:
    rebuilt, restarted = (
        100 * min(shares) for shares in zip(*((r.rebuilt, r.restarted) for r in found), strict=True)
    )
    yield Bar("10 a router that learned the whole log agrees, %, the worst", rebuilt, 99.9, digits=2)
    yield Bar("10 the same, started again from its snapshot", restarted, 99.9, digits=2)
    yield Bar(
        "10 lessons a second from the log, the slowest", min(each.rate for each in found), 300, digits=0
    )


def _share(runs: Mapping[str, Metrics], bucket: str, rank: int) -> float:
    """The share of tasks, of those whose target had so many lessons, placed right; with rank 2: among three."""
    parts = [metrics[f"prior{bucket}"] for metrics in runs.values() if metrics[f"prior{bucket}"][0]]
    right = float(sum(part[0] * part[rank] for part in parts))
    return 100 * right / (sum(part[0] for part in parts) or 1)


def _table(runs: Mapping[str, Metrics], figures: Sequence[Figure]) -> Table:
    table = Table("", *runs, "mean", title="measured (reference)")
    for figure in figures:
        values = [figure.of(metrics) for metrics in runs.values()]
        reference = [figure.reference[STREAMS.index(name)] for name in runs]
        cells = [
            _beside(value, other, figure.low_is_good) for value, other in zip(values, reference, strict=True)
        ]
        means = [_mean(side) for side in (values, reference)]
        table.add_row(figure.title, *cells, _beside(means[0], means[1], figure.low_is_good))
    return table


def _new_targets(runs: Mapping[str, Metrics]) -> Table:
    table = Table(
        "lessons of the true target", *NEW_TARGETS, title="top-1 / top-3, streams together (reference)"
    )
    cells = []
    for bucket, (first, third) in NEW_TARGETS.items():
        shares = [_share(runs, bucket, rank) for rank in (1, 2)]
        cells.append(f"{shares[0]:.0f} / {shares[1]:.0f} ({first} / {third})")
    table.add_row("", *cells)
    return table


def _late(plain: Mapping[str, Metrics], late: Mapping[str, Metrics]) -> Table:
    table = Table("", *plain, "mean", title=f"feedback {LATE} tasks late: top-1 (reference)")
    values = [100 * metrics["top1"] for metrics in late.values()]
    falls = [100 * metrics["top1"] - value for metrics, value in zip(plain.values(), values, strict=True)]
    reference = [LATE_REFERENCE[STREAMS.index(name)] for name in plain]
    cells = [_beside(value, other) for value, other in zip(values, reference, strict=True)]
    table.add_row("top-1", *cells, _beside(_mean(values), _mean(reference)))
    table.add_row("falls by", *(f"{fall:.1f}" for fall in falls), f"{statistics.fmean(falls):.1f}")
    return table


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _beside(value: float | None, reference: float | None, low_is_good: bool = False) -> str:
    if value is None:
        return "-"
    if reference is None:
        return f"{value:.1f}"
    better = value <= reference if low_is_good else value >= reference
    return f"{value:.1f} ({reference:g}){'' if better else ' <'}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
