"""Tasks, decisions and what belongs to them, as people read them."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from rich.table import Table
from rich.text import Text

from hopper.memory.v1.episode_pb2 import Episode, Feedback
from hopper.memory.v1.episodic_service_pb2 import SimilarEpisode
from hopper.router.v1.decision_pb2 import Candidate, Decision, Factor, Opinion, WeightOrigin
from hopper.router.v1.delegation_pb2 import Delegation, Subtask
from hopper.router.v1.schedule_pb2 import Schedule, ScheduleRun
from hopper.router.v1.task_pb2 import Attempt, Task, TaskSpec, Wait
from hopper.router.v1.task_service_pb2 import LearnedReason, PossibleDuplicate
from hopper_cli.names import bare, instance_of, path_of, short
from hopper_cli.output import clean, one_line
from hopper_cli.times import format_age, format_duration, format_time
from hopper_common.timestamps import duration_field, from_proto, time_field

_STATE_STYLES: Final[Mapping[str, str]] = {
    "submitted": "yellow",
    "queued": "cyan",
    "running": "bold blue",
    "input required": "bold magenta",
    "delegated": "blue",
    "succeeded": "green",
    "failed": "red",
    "rejected": "red",
    "cancelled": "dim",
}
FINAL: Final = frozenset({Task.STATE_SUCCEEDED, Task.STATE_FAILED, Task.STATE_REJECTED, Task.STATE_CANCELLED})
_BAR_WIDTH: Final = 20


def word(enum: Any, value: int, prefix: str) -> str:
    """An enum's value as words: `input required` of STATE_INPUT_REQUIRED."""
    try:
        name = str(enum.Name(value))
    except ValueError:  # of a newer Hopper
        return f"{prefix.lower()}{value}"
    return name.removeprefix(prefix).replace("_", " ").lower()


def state_word(state: int) -> str:
    """A task's state as words."""
    return word(Task.State, state, "STATE_")


def state_text(state: int) -> Text:
    """A task's state, coloured."""
    words = state_word(state)
    return Text(words, style=_STATE_STYLES.get(words, ""))


def wait_word(task: Task) -> str:
    """What an open task waits for, in a word or two."""
    if task.wait.reason == Wait.REASON_UNSPECIFIED:
        return ""
    words = word(Wait.Reason, task.wait.reason, "REASON_")
    on = ", ".join(bare(name)[-12:] for name in task.wait.on[:2])
    return f"{words} ({on})" if on else words


def grid(*headers: str) -> Table:
    """A table without lines, for lists."""
    table = Table(box=None, pad_edge=False, header_style="dim", show_edge=False)
    for header in headers:
        numeric = header.startswith("#")
        table.add_column(
            header.removeprefix("#").upper(),
            justify="right" if numeric else "left",
            no_wrap=True,
            overflow="ellipsis",
        )
    return table


def plain(text: str) -> Text:
    """Somebody's words on one line, never read as markup."""
    return Text(one_line(text))


def task_table(tasks: Iterable[Task], now: datetime) -> Table:
    """Tasks, one a line."""
    table = grid("task", "state", "#prio", "where", "waits for", "#age", "title")
    for task in tasks:
        table.add_row(
            Text(short(task.name), style="bold"),
            state_text(task.state),
            str(task.spec.priority),
            Text(where(task)),
            Text(wait_word(task), style="dim"),
            format_age(from_proto(task.create_time), now),
            plain(task.spec.title),
        )
    return table


def where(task: Task) -> str:
    """Where a task is: its project, else its instance."""
    return bare(task.project) if task.project else f"({bare(instance_of(task.name))})"


def facts(rows: Iterable[tuple[str, str | Text]]) -> Table:
    """Names and values, those without a value left out."""
    table = Table(box=None, pad_edge=False, show_header=False, show_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        if value:
            table.add_row(name, Text(clean(value)) if isinstance(value, str) else value)
    return table


def task_facts(task: Task, now: datetime) -> Table:
    """Everything about a task but its description, payload and result."""
    return facts([*_life(task, now), *_spec(task.spec, now), ("name", task.name)])


def _life(task: Task, now: datetime) -> list[tuple[str, str | Text]]:
    state = state_text(task.state)
    if task.wait.message:
        state.append(f"  {one_line(task.wait.message)}", style="dim")
    return [
        ("state", state),
        ("where", f"{where(task)}, in {bare(instance_of(task.name))}"),
        ("worker", _claim(task, now)),
        ("progress", _progress(task)),
        ("attempt", str(task.attempt) if task.attempt else ""),
        ("failure", _failure(task)),
        ("question", _question(task)),
        ("held", _hold(task)),
        ("created", format_time(from_proto(task.create_time), now)),
        ("finished", _time(task, "finish_time", now)),
        ("decision", task.decision),
        ("delegation", task.delegation),
    ]


def _spec(spec: TaskSpec, now: datetime) -> list[tuple[str, str | Text]]:
    effort = duration_field(spec, "estimated_effort")
    return [
        ("priority", str(spec.priority)),
        ("tags", ", ".join(spec.tags)),
        ("needs", ", ".join([*spec.required_capabilities, *_pairs(spec.required_labels)])),
        ("pinned to", bare(spec.project)),
        ("requester", spec.requester),
        ("after", ", ".join(short(name) for name in spec.dependencies)),
        ("effort", format_duration(effort) if effort is not None else ""),
        ("not before", _time(spec.clocks, "start_after", now)),
        ("start by", _time(spec.clocks, "start_by", now)),
        ("due", _time(spec.clocks, "finish_by", now)),
        ("from", _came_from(spec.labels)),
        ("labels", ", ".join(_pairs(_own(spec.labels)))),
        ("exclusive", "it is begun once at most" if spec.exclusive else ""),
    ]


_PEER_LABEL: Final = "hopper."
"""How labels begin that the federation service gives to what came from a peer."""


def _came_from(labels: Mapping[str, str]) -> str:
    """The peer that handed it over, and the command that shows more."""
    peer, hand_over = labels.get("hopper.peer"), labels.get("hopper.delegation")
    if not peer or not hand_over:
        return ""
    return f"{bare(peer)}: see `hopper delegation show {short(hand_over)}`"


def _own(labels: Mapping[str, str]) -> dict[str, str]:
    """Those that people gave; where it came from is said in words."""
    if not _came_from(labels):
        return dict(labels)
    return {key: value for key, value in labels.items() if not key.startswith(_PEER_LABEL)}


def _pairs(pairs: Mapping[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in sorted(pairs.items())]


def _time(message: Any, field: str, now: datetime) -> str:
    time = time_field(message, field)
    return "" if time is None else format_time(time, now)


def _claim(task: Task, now: datetime) -> str:
    if not task.claim.worker:
        return ""
    until = time_field(task.claim, "lease_expire_time")
    lease = f", lease until {format_time(until, now)}" if until is not None else ""
    return f"{task.claim.worker}{lease}"


def _progress(task: Task) -> str:
    if not task.HasField("progress"):
        return ""
    return f"{task.progress.fraction:.0%} {one_line(task.progress.message)}".rstrip()


def _failure(task: Task) -> str:
    if not task.failure.reason:
        return ""
    permanent = " (permanent)" if task.failure.permanent else ""
    return f"{task.failure.reason}{permanent} {clean(task.failure.message)}".rstrip()


def _question(task: Task) -> str:
    if not task.input.question:
        return ""
    asked_of = getattr(task.input, "from")
    to = f" (to {asked_of})" if asked_of else ""
    answer = f" → {one_line(task.input.answer)}" if task.input.answer else ""
    return f"{one_line(task.input.question)}{to}{answer}"


def _hold(task: Task) -> str:
    if not task.HasField("hold"):
        return ""
    return f"{task.hold.by or 'by hand'}: {one_line(task.hold.reason)}".rstrip(": ")


# Decisions.


def decision_line(decision: Decision) -> str:
    """Where a task goes and why, in one line."""
    if decision.outcome == Decision.OUTCOME_ROUTED:
        head = f"{bare(decision.project)} ({decision.confidence:.0%} sure)"
    else:
        head = f"nobody yet ({word(Decision.Outcome, decision.outcome, 'OUTCOME_')})"
        if decision.outcome == Decision.OUTCOME_QUEUED:
            head = f"the queue of {bare(decision.instance)}"
    return f"{head}: {one_line(decision.reasoning)}" if decision.reasoning else head


def duplicate_line(duplicate: PossibleDuplicate) -> str:
    """What a new task looks like, and why, in one line."""
    state = state_word(duplicate.state)
    words = one_line(", ".join(duplicate.shared_words))
    return f"  looks like {short(duplicate.task)} ({state}, {duplicate.score:.0%} alike: {words})"


def part_table(parts: Iterable[Subtask]) -> Table:
    """The parts of a task, each with those that come first."""
    table = grid("#part", "after", "title", "description")
    for place, part in enumerate(parts):
        after = ", ".join(map(str, part.after))
        table.add_row(str(place), after, plain(part.spec.title), plain(part.spec.description))
    return table


def bar(share: float, width: int = _BAR_WIDTH) -> str:
    """A share from 0 to 1 as a bar, to an eighth of a character."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")


def candidate_table(candidates: Sequence[Candidate]) -> Table:
    """Candidates, best first."""
    table = grid("#", "project", "#score", "#sure", "")
    for rank, candidate in enumerate(candidates, 1):
        table.add_row(
            str(rank),
            bare(candidate.project),
            f"{candidate.score:.3f}",
            f"{candidate.confidence:.0%}",
            Text(bar(candidate.confidence), style="cyan"),
        )
    return table


def factor_table(candidate: Candidate) -> Table:
    """What a candidate's score is made of. Factors that say nothing are left out."""
    table = grid("factor", "#value", "#weight", "from", "#part", "", "because")
    largest = max((abs(each.value * each.weight) for each in candidate.factors), default=0.0) or 1.0
    for factor in candidate.factors:
        part = factor.value * factor.weight
        if not part and not factor.evidence:
            continue
        table.add_row(
            factor.name,
            f"{factor.value:.2f}",
            _weight(factor.weight),
            weight_origin(factor),
            f"{part:+.3f}",
            Text(bar(abs(part) / largest), style="red" if part < 0 else "green"),
            Text(one_line(", ".join(factor.evidence)), style="dim"),
        )
    return table


def _weight(weight: float) -> str:
    """With as many digits as it takes: small ones differ in the third."""
    return f"{weight:.2f}" if abs(weight) >= _SMALL or not weight else f"{weight:.3g}"


_SMALL: Final = 0.1


def weight_origin(factor: Factor) -> str:
    """Where the weight of a factor comes from; empty: it is the shipped one."""
    match factor.weight_origin:
        case WeightOrigin.WEIGHT_ORIGIN_POLICY:
            return "policy"
        case WeightOrigin.WEIGHT_ORIGIN_LEARNED:
            count = factor.weight_lessons
            return f"learned, {count}{'+' if count >= 10 else ''}"
        case _:
            return ""


def lead_table(first: Candidate, second: Candidate) -> Table:
    """What put one candidate before another, greatest first; factors that made no difference are left out."""
    theirs = {factor.name: factor.value * factor.weight for factor in second.factors}
    parts = [(each.name, each.value * each.weight, theirs.get(each.name, 0.0)) for each in first.factors]
    telling = [(name, mine, other) for name, mine, other in parts if abs(mine - other) > _NOTHING]
    largest = max((abs(mine - other) for _, mine, other in telling), default=0.0) or 1.0
    table = grid("factor", f"#{bare(first.project)}", f"#{bare(second.project)}", "#lead", "")
    for name, mine, other in sorted(telling, key=lambda part: -abs(part[1] - part[2])):
        lead = mine - other
        table.add_row(
            name,
            f"{mine:+.3f}",
            f"{other:+.3f}",
            f"{lead:+.3f}",
            Text(bar(abs(lead) / largest), style="red" if lead < 0 else "green"),
        )
    table.add_row(
        "together", f"{first.score:+.3f}", f"{second.score:+.3f}", f"{first.score - second.score:+.3f}"
    )
    return table


_NOTHING: Final = 5e-4


def exclusion_table(decision: Decision) -> Table:
    """Who was ruled out, by what."""
    table = grid("ruled out by", "#how many", "projects", "detail")
    for each in decision.exclusions:
        table.add_row(
            each.filter,
            str(each.count),
            ", ".join(each.projects),
            Text(one_line(each.detail), style="dim"),
        )
    return table


_MOST_WORDS: Final = 10


def word_table(reasons: Sequence[LearnedReason]) -> Table:
    """The words that moved the first of some projects most, and how far they moved the others."""
    first = reasons[0]
    columns = [f"#{bare(each.project)} {each.probability:.0%}" for each in reasons]
    table = grid("word", *columns, "")
    others = [{word.word: word.weight for word in each.words} for each in reasons[1:]]
    largest = max((abs(word.weight) for word in first.words), default=0.0) or 1.0
    for word in first.words[:_MOST_WORDS]:
        weights = [word.weight, *(other.get(word.word) for other in others)]
        table.add_row(
            plain(word.word),
            *("" if weight is None else f"{weight:+.2f}" for weight in weights),
            Text(bar(abs(word.weight) / largest), style="red" if word.weight < 0 else "green"),
        )
    return table


def opinion_table(reason: LearnedReason) -> Table:
    """What each part of the model says of a project, and how much it is listened to."""
    table = grid("part", "#says", "#weight", "")
    for each in reason.opinions:
        table.add_row(
            each.name,
            f"{each.probability:.1%}",
            f"{each.weight:.2f}",
            Text(bar(each.probability), style="cyan"),
        )
    return table


_SAYS: Final[Mapping[int, str]] = {
    Opinion.WORD_NOTHING_FITS: "none of them",
    Opinion.WORD_UNSURE: "does not know",
    Opinion.WORD_ASKED: "asked first",
    Opinion.WORD_FAILED: "no answer",
}


def stage_table(opinions: Sequence[Opinion]) -> Table:
    """What each stage of a cascade said, how sure it was and had to be, and what it took."""
    table = grid("stage", "said", "#sure", "#needed", "#took", "#money", "because")
    for each in opinions:
        chosen = each.word == Opinion.WORD_CHOICE
        table.add_row(
            each.stage,
            bare(each.project) if chosen else _SAYS.get(each.word, ""),
            _sure(each) if chosen else "",
            f"{each.threshold:.0%}",
            format_duration(from_proto(each.elapsed)),
            f"{each.money_micros / 1e6:.4f}" if each.money_micros else "",
            plain(each.answer or each.reason),
        )
    return table


def _sure(opinion: Opinion) -> str:
    """How sure somebody is and, where that has proved to mean something else, how sure they say they are."""
    sure, stated = f"{opinion.confidence:.0%}", f"{opinion.stated_confidence:.0%}"
    return f"{sure} (says {stated})" if opinion.stated_confidence and stated != sure else sure


# Episodes.


def similar_table(similar: Sequence[SimilarEpisode], now: datetime) -> Table:
    """Past tasks with where they went and how that was, the most similar first."""
    table = grid("task", "went to", "#sure", "how it went", "#age", "title", "")
    largest = max((each.score for each in similar), default=0.0) or 1.0
    for each in similar:
        episode = each.episode
        table.add_row(
            Text(short(episode.task), style="bold"),
            bare(episode.project) or "nobody",
            f"{episode.confidence:.0%}",
            how_it_went(episode),
            format_age(from_proto(episode.decide_time), now),
            plain(episode.title),
            Text(bar(each.score / largest, 8), style="dim"),
        )
    return table


_VERDICTS: Final = {
    Feedback.MATCH_GOOD: ("right", "green"),
    Feedback.MATCH_BAD: ("wrong", "red"),
    Feedback.MATCH_NONE: ("nobody's", "red"),
}
_ENDS: Final = {Episode.OUTCOME_SUCCEEDED: "green", Episode.OUTCOME_FAILED: "red"}


def how_it_went(episode: Episode) -> Text:
    """What feedback says of a decision, or else how the task ended."""
    for each in episode.feedback:
        if each.match in _VERDICTS:
            said, style = _VERDICTS[each.match]
            better = f": {bare(each.better_project)}" if each.better_project else ""
            return Text(f"{said}{better}", style=style)
    if episode.outcome == Episode.OUTCOME_UNSPECIFIED:
        return Text("open", style="dim")
    words = word(Episode.Outcome, episode.outcome, "OUTCOME_")
    to = f" to {bare(episode.rerouted_to)}" if episode.rerouted_to else ""
    return Text(f"{words}{to}", style=_ENDS.get(episode.outcome, "yellow"))


# Delegations.


def delegation_table(delegations: Iterable[Delegation], now: datetime) -> Table:
    """Hand-overs, oldest first."""
    table = grid("delegation", "kind", "state", "path", "task", "makes", "#age", "reason")
    for each in delegations:
        table.add_row(
            bare(each.name),
            word(Delegation.Kind, each.kind, "KIND_"),
            word(Delegation.State, each.state, "STATE_"),
            path_of(list(each.path)),
            short(each.task),
            ", ".join(short(name) for name in each.child_tasks[:5]),
            format_age(from_proto(each.create_time), now),
            plain(each.reason),
        )
    return table


# Parked tasks.


def parked_table(tasks: Iterable[Task], now: datetime) -> Table:
    """Tasks that failed or were rejected, one a line."""
    table = grid("task", "state", "reason", "#attempts", "where", "#age", "title", "message")
    for task in tasks:
        table.add_row(
            Text(short(task.name), style="bold"),
            state_text(task.state),
            task.failure.reason,
            str(task.attempt),
            Text(where(task)),
            format_age(from_proto(task.finish_time), now),
            plain(task.spec.title),
            Text(one_line(task.failure.message), style="dim"),
        )
    return table


def attempt_table(attempts: Iterable[Attempt], now: datetime) -> Table:
    """Attempts that failed, newest first."""
    table = grid("attempt", "worker", "#took", "#ended", "reason", "")
    for each in attempts:
        start, end = time_field(each, "start_time"), from_proto(each.end_time)
        table.add_row(
            str(each.attempt),
            plain(each.worker),
            format_duration(end - start) if start is not None else "",
            format_age(end, now),
            Text(f"{each.failure.reason}{' (permanent)' if each.failure.permanent else ''}", style="red"),
            Text(one_line(each.failure.message), style="dim"),
        )
    return table


# Schedules.

_SCHEDULE_STYLES: Final[Mapping[str, str]] = {"active": "green", "paused": "yellow", "ended": "dim"}


def _schedule_state(schedule: Schedule) -> Text:
    words = word(Schedule.State, schedule.state, "STATE_")
    return Text(words, style=_SCHEDULE_STYLES.get(words, ""))


def schedule_table(schedules: Iterable[Schedule], now: datetime) -> Table:
    """Schedules, one a line."""
    table = grid("schedule", "state", "cron", "zone", "next", "last", "#runs", "title")
    for each in schedules:
        table.add_row(
            Text(bare(each.name), style="bold"),
            _schedule_state(each),
            plain(each.cron),
            plain(each.time_zone),
            _time(each, "next_time", now),
            _went(each.last_run) if each.HasField("last_run") else "",
            str(each.run_count),
            plain(each.spec.title),
        )
    return table


def _went(run: ScheduleRun) -> Text:
    """What became of a run."""
    if not run.task:
        return Text(run.error.reason, style="red")
    if run.task_state == Task.STATE_UNSPECIFIED:
        return Text(short(run.task))
    return Text.assemble(short(run.task), " ", state_text(run.task_state))


def schedule_facts(schedule: Schedule, now: datetime) -> Table:
    """Everything about a schedule but its runs and times, and its spec's description and payload."""
    state = _schedule_state(schedule)
    if schedule.pause_reason:
        state.append(f"  {one_line(schedule.pause_reason)}", style="dim")
    jitter = duration_field(schedule, "jitter")
    within = duration_field(schedule, "finish_within")
    error = _time(schedule, "error_time", now)
    return facts(
        [
            ("state", state),
            ("cron", f"{schedule.cron}  ({schedule.time_zone})"),
            ("where", bare(schedule.spec.project) or f"({bare(schedule.instance)})"),
            ("while one is open", _overlap(schedule)),
            ("when nobody was there", _catch_up(schedule)),
            ("up to later", format_duration(jitter) if jitter else ""),
            ("to be done within", format_duration(within) if within else ""),
            ("from", _time(schedule, "start_time", now)),
            ("until", _time(schedule, "end_time", now)),
            ("so far", _so_far(schedule)),
            (
                "refused",
                f"{schedule.error.reason} {one_line(schedule.error.message)}, {error}" if error else "",
            ),
            *_spec(schedule.spec, now),
            ("name", schedule.name),
        ]
    )


def _overlap(schedule: Schedule) -> str:
    if schedule.overlap == Schedule.OVERLAP_LIMIT:
        return f"comes all the same, until {schedule.max_open} are open"
    return "is left out" if schedule.overlap == Schedule.OVERLAP_SKIP else "comes all the same"


def _catch_up(schedule: Schedule) -> str:
    if schedule.catch_up == Schedule.CATCH_UP_ALL:
        return f"the last {schedule.max_catch_up} are made up for"
    return "one is made up for" if schedule.catch_up == Schedule.CATCH_UP_ONE else "nothing is made up for"


def _so_far(schedule: Schedule) -> str:
    counts = {
        "submitted": schedule.run_count,
        "left out": schedule.skip_count,
        "missed": schedule.miss_count,
        "refused": schedule.error_count,
    }
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def coming_table(schedule: Schedule, now: datetime) -> Table:
    """When a schedule comes next, in the zone of whoever reads."""
    table = Table(box=None, show_header=False, show_edge=False)
    for time in schedule.next_times:
        table.add_row(format_time(from_proto(time), now))
    return table


def run_table(runs: Iterable[ScheduleRun], now: datetime) -> Table:
    """Runs, newest first."""
    table = grid("came", "task", "")
    for run in runs:
        detail = "by hand" if run.by_hand else one_line(run.error.message)
        table.add_row(format_time(from_proto(run.scheduled_time), now), _went(run), Text(detail, style="dim"))
    return table


def readable(content: bytes) -> str:
    """Bytes as text, or how many there are when they are none."""
    try:
        return clean(content.decode("utf-8"))
    except UnicodeDecodeError:
        return f"({len(content):,} bytes that are no text)"
