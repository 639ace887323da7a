"""What the run came to, for people and for programs."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rich.table import Table
from rich.text import Text

from hopper_cli.demo.data import DemoData, path_of
from hopper_cli.demo.neighbours import Together
from hopper_cli.demo.run import Explained, Outcome, Routed
from hopper_cli.names import short
from hopper_cli.output import Output, one_line, to_json
from hopper_cli.render import bar, grid

if TYPE_CHECKING:
    from rich.console import RenderableType

_UNPLACED: Final = "(asked a person)"
_STEPS: Final = 4


def percentile(values: Sequence[float], share: float) -> float:
    """The value that *share* of them do not exceed (nearest rank); 0 of none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def accuracy(routed: Sequence[Routed]) -> float:
    """The share that went where it belongs."""
    return sum(each.right for each in routed) / len(routed) if routed else 0.0


def by_project(routed: Sequence[Routed]) -> dict[str, tuple[int, int]]:
    """For each project: tasks it was sent, and how many of them were right. Most first."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for each in routed:
        count = counts[each.project or _UNPLACED]
        count[0] += 1
        count[1] += each.right
    return {
        name: (sent, right) for name, (sent, right) in sorted(counts.items(), key=lambda item: -item[1][0])
    }


def by_rules(routed: Sequence[Routed]) -> Sequence[Routed]:
    """Those that rules placed."""
    return [each for each in routed if not each.learned]


def by_learning(routed: Sequence[Routed]) -> Sequence[Routed]:
    """Those that were placed by what was learned."""
    return [each for each in routed if each.learned]


class Step(NamedTuple):
    """Some tasks in a row, from the *first*, counted from 1, to the *last*."""

    first: int
    last: int
    learned: bool
    accuracy: float


def curve(routed: Sequence[Routed]) -> list[Step]:
    """How accuracy goes on: a few steps by rules, a few by what was learned."""
    steps: list[Step] = []
    done = 0
    for part in (by_rules(routed), by_learning(routed)):
        size = max(math.ceil(len(part) / _STEPS), 1)
        for begin in range(0, len(part), size):
            some = part[begin : begin + size]
            steps.append(Step(done + 1, done + len(some), some[0].learned, accuracy(some)))
            done += len(some)
    return steps


def latencies(outcome: Outcome) -> dict[str, dict[str, float]]:
    """Milliseconds, the middle and the 99th of a hundred."""
    measured = {
        "submit": [each.submit_seconds for each in outcome.routed],
        "queue_to_start": outcome.queue_seconds,
        "end_to_end": outcome.total_seconds,
    }
    return {
        name: {
            "count": len(values),
            "p50_ms": round(1000 * percentile(values, 0.5), 2),
            "p99_ms": round(1000 * percentile(values, 0.99), 2),
        }
        for name, values in measured.items()
    }


def as_json(
    data: DemoData, outcome: Outcome, together: Together, failed: Mapping[str, str]
) -> dict[str, Any]:
    """The summary for programs."""
    return {
        "ok": not failed,
        "tasks": len(data.samples),
        "source": data.source,
        "seconds": round(outcome.seconds, 3),
        "accuracy": round(accuracy(outcome.routed), 4),
        "right": sum(each.right for each in outcome.routed),
        "asked_a_person": sum(not each.project for each in outcome.routed),
        "majority_accuracy": round(data.majority, 4),
        "rules_accuracy": round(accuracy(by_rules(outcome.routed)), 4),
        "learned_accuracy": round(accuracy(by_learning(outcome.routed)), 4),
        "curve": [
            {
                "from": step.first,
                "to": step.last,
                "learned": step.learned,
                "accuracy": round(step.accuracy, 4),
            }
            for step in curve(outcome.routed)
        ],
        "projects": [
            {"project": name, "tasks": sent, "right": right, "accuracy": round(right / sent, 4)}
            for name, (sent, right) in by_project(outcome.routed).items()
        ],
        "latencies": latencies(outcome),
        "decisions": int(outcome.stats.decisions),
        "joined": int(outcome.stats.with_outcome),
        "failures": dict(failed),
        "examples": [_example_json(each) for each in outcome.examples],
        "memory": to_json(outcome.stats),
        "together": asdict(together),
    }


def _example_json(explained: Explained) -> dict[str, Any]:
    routed = explained.routed
    return {
        "task": routed.task,
        "title": routed.sample.title,
        "project": routed.project,
        "target": routed.sample.target,
        "right": routed.right,
        "confidence": routed.decision.confidence,
        "reasoning": routed.decision.reasoning,
        "sentences": list(explained.sentences),
    }


def tell(
    out: Output, data: DemoData, outcome: Outcome, together: Together, failed: Mapping[str, str]
) -> None:
    """Print all of it."""
    for heading, content in (
        ("What went where", _project_table(outcome.routed)),
        ("How it learned", _curve_table(outcome.routed)),
        ("", _verdict(data, outcome)),
        ("Three decisions", _examples(outcome.examples)),
        ("How long it took", _latency_table(outcome)),
        ("What memory says", _memory(outcome)),
        ("Two Hoppers", _together(together)),
    ):
        out.say()
        if heading:
            out.say(Text(heading, style="bold"))
        out.say(content)
    _failures(out, failed)
    if not failed:
        _go_on(out)


def _project_table(routed: Sequence[Routed]) -> Table:
    table = grid("project", "#tasks", "#right", "#accuracy", "")
    for name, (sent, right) in by_project(routed).items():
        share = right / sent
        table.add_row(name, str(sent), str(right), f"{share:.0%}", Text(bar(share), style="green"))
    return table


def _curve_table(routed: Sequence[Routed]) -> Table:
    table = grid("tasks", "decided by", "#right", "")
    for step in curve(routed):
        judge = "rules, and what was learned" if step.learned else "rules"
        color = "green" if step.learned else "yellow"
        share = f"{step.accuracy:.0%}"
        table.add_row(f"{step.first}-{step.last}", judge, share, Text(bar(step.accuracy), style=color))
    return table


def _verdict(data: DemoData, outcome: Outcome) -> Text:
    rules, learned = by_rules(outcome.routed), by_learning(outcome.routed)
    text = Text.assemble(
        (
            f"Hand-written rules sent {accuracy(rules):.1%} of {len(rules)} tasks to the right team",
            "bold yellow",
        )
    )
    if learned:
        text.append(
            f"; what was learned from those, {accuracy(learned):.1%} of the next {len(learned)}", "bold green"
        )
    text.append(f". Always guessing the most common team would reach {data.majority:.1%}.\n")
    text.append(
        f"Tasks: {data.source}; all that was learned was learned here, from what workers said.", "dim"
    )
    return text


def _examples(examples: Sequence[Explained]) -> "RenderableType":
    lines = []
    for each in examples:
        routed = each.routed
        verdict = (
            ("right", "green") if routed.right else (f"wrong: it belongs to {routed.sample.target}", "red")
        )
        lines.append(
            Text.assemble(
                f"{short(routed.task)}  {one_line(routed.sample.title)}\n",
                f"        → {routed.project or _UNPLACED} ({routed.decision.confidence:.0%} sure), ",
                verdict,
                (f"\n        {one_line(routed.decision.reasoning)}", "dim"),
            )
        )
    return Text("\n").join(lines)


def _latency_table(outcome: Outcome) -> Table:
    table = grid("", "#p50", "#p99", "#count")
    names = {
        "submit": "submit (decided and durable)",
        "queue_to_start": "queued until a worker has it",
        "end_to_end": "submitted until done",
    }
    for name, measured in latencies(outcome).items():
        table.add_row(
            names[name],
            f"{measured['p50_ms']:.1f} ms",
            f"{measured['p99_ms']:.1f} ms",
            str(int(measured["count"])),
        )
    return table


def _memory(outcome: Outcome) -> Text:
    from hopper_cli.commands.stats import memory_lines

    stats = outcome.stats
    joined = f"{stats.with_outcome}/{stats.decisions} decisions joined to their outcomes"
    return Text("\n".join([joined, *memory_lines(stats)[1:], f"all of it in {outcome.seconds:.1f} s"]))


def _together(together: Together) -> Text:
    text = Text(f"home and work were paired after {together.pairing_seconds:.1f} s: {together.words}\n")
    for each in together.crossed:
        killed = (
            f"; work was killed meanwhile, and away for {together.outage_seconds:.1f} s"
            if each.killed
            else ""
        )
        text.append(f"{short(each.task)}  {each.title}\n")
        text.append(f"        ← {each.result}, after {each.seconds:.1f} s{killed}\n", "green")
        text.append(f"        {'; '.join(each.custody)}; {each.feedback}\n", "dim")
    text.append("what is private stayed at home\n")
    text.append(f"all of it in {together.seconds:.1f} s")
    return text


def _failures(out: Output, failed: Mapping[str, str]) -> None:
    if not failed:
        return
    out.say()
    out.say(Text(f"Not all is well: {len(failed)} problems", style="bold red"))
    for name, problem in list(failed.items())[:20]:
        out.say(f"  {name}: {problem}")


def _go_on(out: Output) -> None:
    out.say()
    out.say(Text("How to go on (this Hopper is gone; the next one is yours)", style="bold"))
    for line in (
        "hopper up                                   # in another terminal",
        f"hopper project add --file {path_of('projects.yaml')}",
        f"hopper rules apply {path_of('rules.yaml')}",
        'hopper add "Quiz timer keeps running after the attempt was submitted"',
        "hopper next --queue moodle                  # then: hopper why TASK, hopper done TASK, hopper stats",
    ):
        out.say(f"  {line}")
