"""
Taking tasks in and deciding where they go: filter, score, decide, record.

Every function here works on a `Unit`. The decision itself is pure and lives in `routing`; what an instance does with a
task that arrives is its scope's decision and lives in `scopes`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from hopper_common.errors import EtagMismatch, FieldViolation, InvalidArgument
from hopper_router import asking, handover, intake, routing, transitions
from hopper_router.borders import held_back
from hopper_router.cascade import Await, Consult, Stage, Step, Suggestion, Use, following
from hopper_router.directory import Directory
from hopper_router.model import (
    Basis,
    Decision,
    DelegationKind,
    Failure,
    Hold,
    InputRequest,
    Instance,
    Opinion,
    Outcome,
    Scope,
    Task,
    TaskSpec,
    TaskState,
    Wait,
    WaitReason,
    Word,
)
from hopper_router.rules import OnUnsure, Policy
from hopper_router.scopes import SCOPES, Choose, HandOver, Keep, Surroundings, planned
from hopper_router.transitions import Event
from hopper_router.unit import Unit

# ---------------------------------------------------------------- taking in


def submit(unit: Unit, instance: str, spec: TaskSpec) -> tuple[Task, Decision]:
    """
    Take a task in and decide where it goes.

    Returns:
        The task where it was taken in (it may be DELEGATED already), and the decision made there.

    Raises:
        InstanceNotFound, InstanceNotRunning, FederationUnavailable, ProjectNotFound, TaskNotFound: See SubmitTask.
    """
    where = intake.require_accepting(unit, instance)
    intake.require_project(unit, spec.project)
    task = intake.new_task(unit, where, spec)
    decision = place(unit, unit.log(None, task, Event.SUBMIT))
    settle(unit)
    # What it was handed to may have sent it back, so that it was decided about once more.
    placed = unit.task(task.name)
    if placed.decision != decision.name:
        decision = unit.store.decisions([placed.decision])[placed.decision]
    return placed, decision


# ---------------------------------------------------------------- deciding


def settle(unit: Unit) -> None:
    """Decide about every task that a hand-over has brought, or a return has brought back, in this unit."""
    while unit.unplaced:
        task = unit.task(unit.unplaced.popleft())
        if task.state is TaskState.SUBMITTED:  # one that came with others may have been called off with them
            place(unit, task)


def place(
    unit: Unit, task: Task, said: Sequence[Opinion] = (), on_unsure: OnUnsure | None = None
) -> Decision:
    """
    Decide about a task that nobody works on, record it, and do what was decided, up to `settle`.

    Args:
        said: What others have been asked about it and said.
        on_unsure: What becomes of it if nobody was sure. Default: what the policy says.
    """
    started = unit.clock.monotonic()
    instance = unit.instance(task.instance)
    placement = SCOPES[instance.scope].place(task.spec, instance, surroundings(unit, task, instance))
    match placement:
        case Choose():
            decision = unit.record(choose(unit, task, said, on_unsure), task, started)
            unit.store.put_advice(decision)
            carry_out(unit, task, decision)
        case Keep(project, reason):
            decision = unit.record(_kept(unit, project, reason), task, started)
            carry_out(unit, task, decision)
        case HandOver(target, reason):
            decision = unit.record(_kept(unit, instance.project, reason), task, started)
            decided = unit.log(task, transitions.decide(task, decision.name, unit.now), Event.DECIDE)
            handover.hand_over(unit, decided, target, DelegationKind.ROUTE, reason)
    return decision


def suggest(unit: Unit, where: Instance, spec: TaskSpec) -> Decision:
    """What would be decided about a task that came in now; nothing is recorded."""
    started = unit.clock.monotonic()
    intake.require_kept_peer(unit, where)
    task = intake.new_task(unit, where, spec)
    placement = SCOPES[where.scope].place(task.spec, where, surroundings(unit, task, where))
    match placement:
        case Choose():
            decision = choose(unit, task)
        case Keep(project, reason):
            decision = _kept(unit, project, reason)
        case HandOver(target, reason):
            decision = _kept(unit, where.project, f"{reason}; handed to {target}")
    elapsed = timedelta(seconds=unit.clock.monotonic() - started)
    return replace(decision, instance=where.name, elapsed=elapsed, create_time=unit.now)


def surroundings(unit: Unit, task: Task, instance: Instance) -> Surroundings:
    """What the scope may look at."""
    directory = unit.world.directory
    return Surroundings(
        project=directory.project_of(instance.name),
        children=[]
        if intake.nested_out(unit, task)
        else [directory.instances[child] for child in directory.children(instance.name)],
        visited=intake.visited(unit, task),
        load=lambda name: unit.load.by_instance.get(name, 0),
    )


def choose(
    unit: Unit, task: Task, said: Sequence[Opinion] = (), on_unsure: OnUnsure | None = None
) -> Decision:
    """Decide among the registered projects, by the policy in force, and by what others *said*."""
    world = unit.world
    in_force = world.policies.in_force(task.instance, world.directory)
    policy = in_force.policy
    return routing.decide(
        task.spec,
        world.directory.candidates,
        policy if on_unsure is None else replace(policy, on_unsure=on_unsure),
        load=unit.load.by_project,
        refused=refused(unit, task),
        basis=basis(unit, in_force.name, in_force.version),
        strategies=world.strategies(task.instance),
        said=said,
        now=unit.now,
    )


def basis(unit: Unit, policy: str, version: int) -> Basis:
    """The versions of everything a decision looks at."""
    directory = unit.world.directory
    return Basis(directory.projects_version, directory.instances_version, policy, version)


def refused(unit: Unit, task: Task) -> dict[str, str]:
    """Projects whose instance cannot have this task, and the filter that says so."""
    directory = unit.world.directory
    if not directory.instance_of_project and not directory.borders:
        return {}
    had = intake.visited(unit, task)
    path = set(unit.delegation(task.delegation).path) if task.delegation else {task.instance}
    if intake.nested_out(unit, task):
        path = set(directory.instances)
    return left_out(directory, task.spec, path, had, unit.now)


def refused_then(unit: Unit, decision: Decision, spec: TaskSpec) -> dict[str, str]:
    """The same for a decision made once more: where the work had been by then, and who can take nothing now."""
    had_it = {
        project: exclusion.filter
        for exclusion in decision.exclusions
        if exclusion.filter in ("path", "rejected-before")
        for project in exclusion.projects
    }
    return had_it | left_out(unit.world.directory, spec, (), (), unit.now)


def left_out(
    directory: Directory, spec: TaskSpec, path: Collection[str], had: Collection[str], now: datetime
) -> dict[str, str]:
    """
    Projects that cannot have a task for what they stand for: an instance, or a peer; and which filter says so.

    Args:
        path: The instances that the work was in.
        had: Those that had it before, or sent it back.
    """
    filters = ruled_out(directory, path, had) if directory.instance_of_project else {}
    if directory.borders:
        filters = held_back(directory.borders, spec, directory.peers, now) | filters
    return filters


def ruled_out(directory: Directory, path: Collection[str], had: Collection[str]) -> dict[str, str]:
    """Projects whose instance cannot have work that was in *path*, and that *had* it before; which filter says so."""
    filters: dict[str, str] = {}
    for project, name in directory.instance_of_project.items():
        instance = directory.instances[name]
        if instance.scope is Scope.FEDERATED and not directory.reaches_peer(instance):
            filters[project] = "federation"
        elif name in path:
            filters[project] = "path"
        elif name in had:
            filters[project] = "rejected-before"
        elif name in directory.halted:
            filters[project] = "instance-not-running"
    return filters


def _kept(unit: Unit, project: str, reason: str) -> Decision:
    return Decision(
        outcome=Outcome.QUEUED,
        project=project,
        confidence=1.0,
        strategy="scope",
        reasoning=reason,
        basis=basis(unit, "", 0),
    )


def carry_out(unit: Unit, task: Task, decision: Decision) -> None:
    """Do what a recorded decision says."""
    step = _next_step(unit, task, decision)
    wait = _left_waiting(decision, step)
    decided = unit.log(task, transitions.decide(task, decision.name, unit.now, wait=wait), Event.DECIDE)
    if decision.outcome is Outcome.REJECTED:
        failure = Failure("POLICY", decision.reasoning, permanent=True)
        handover.finish(unit, decided, transitions.reject(decided, failure, unit.now), Event.REJECT)
    elif wait is None:
        _put(unit, decided, decision)
    else:
        _ask(unit, decided, decision, step)


def _next_step(unit: Unit, task: Task, decision: Decision) -> Step | None:
    """With stages: what is to be done about a task that a decision left unsure."""
    if decision.outcome is not Outcome.UNSURE or not decision.opinions:
        return None
    return following(_policy(unit, task).stages, decision.opinions)


def _policy(unit: Unit, task: Task) -> Policy:
    return unit.world.policies.in_force(task.instance, unit.world.directory).policy


def _ask(unit: Unit, task: Task, decision: Decision, step: Step | None) -> None:
    """Ask a person, if it is a person's turn; others are asked after the commit."""
    match step:
        case Consult(stage) if stage.use is Use.PERSON:
            question = asking.where_to(decision.candidates, stage, unit.world.directory.instances)
        case Await(opinion):
            question = InputRequest(opinion.reason, from_=task.spec.requester)
        case _:
            return
    within = _policy(unit, task).answer_within
    if within is not None:
        question = replace(question, answer_by=unit.now + within)
    unit.log(task, transitions.ask_where(task, question, unit.now), Event.ASK)


def _put(unit: Unit, task: Task, decision: Decision) -> None:
    """Hand a task to the instance that stands for the project it was routed to, or queue it here."""
    target = unit.world.directory.instance_of_project.get(decision.project)
    if target and target != task.instance and decision.outcome is Outcome.ROUTED:
        handover.hand_over(unit, task, target, DelegationKind.ROUTE, decision.reasoning)
    else:
        queued = transitions.queue(task, decision.project, unit.now)
        unit.log(task, replace(queued, rank=unit.rank(queued)), Event.QUEUE)


def _left_waiting(decision: Decision, step: Step | None) -> Wait | None:
    if decision.outcome is Outcome.NO_CANDIDATE:
        counts: Counter[str] = Counter()
        for exclusion in decision.exclusions:
            counts[exclusion.filter] += exclusion.count
        return Wait(WaitReason.NO_ELIGIBLE_EXECUTOR, message=decision.reasoning, exclusions=counts)
    if decision.outcome is Outcome.UNSURE:
        on = (step.stage.use.value,) if isinstance(step, Consult) else ()
        return Wait(WaitReason.UNSURE, on, message=decision.reasoning)
    return None


def place_again(unit: Unit, tasks: Iterable[Task]) -> int:
    """
    Look once more at tasks that wait for somebody who may take them, or whose project is gone; returns how many moved.

    A decision that leaves a task where it was is not recorded: the registry changes more often than the answer.
    """
    moved = 0
    for task in unit.known(tasks):
        if task.state is TaskState.SUBMITTED and task.wait is not None:
            still = _still_waiting(unit, task)
            if still is not None:
                if still != task.wait:
                    unit.keep(replace(task, wait=still))
                continue
        place(unit, task)
        settle(unit)
        moved += 1
    return moved


def place_orphan(unit: Unit, task: Task) -> bool:
    """
    Decide anew about a queued task whose project is gone; returns whether it moved.

    In an instance that stands for that project there is nothing to decide: what was handed to it goes back to whoever
    did that, and the rest waits for the project, or for a worker of the instance.
    """
    placement = _placement(unit, task)
    if not isinstance(placement, Keep) or placement.project != task.project:
        place(unit, task)
        settle(unit)
        return True
    return bool(task.delegation) and send_back(unit, task, f"{task.project} is gone")


def send_back(unit: Unit, task: Task, reason: str) -> bool:
    """Send a task back to whoever delegated it, unless somebody works on what came with it; returns whether it was."""
    sent = handover.give_back_if_idle(unit, unit.delegation(task.delegation), reason)
    settle(unit)
    return sent


def _still_waiting(unit: Unit, task: Task) -> Wait | None:
    """What a task would wait for if it were decided about now; None: it would move."""
    if not isinstance(_placement(unit, task), Choose):
        return None
    decision = choose(unit, task)
    wait = _left_waiting(decision, _next_step(unit, task, decision))
    if wait is not None and wait.on:  # who has been asked, or is being asked, is not asked once more
        return task.wait if _was_asked(unit, task, decision) else None
    return wait


def _was_asked(unit: Unit, task: Task, decision: Decision) -> bool:
    """Whether those whom *decision* would ask about a task are being asked already, or have been."""
    if task.wait is None or task.wait.reason is not WaitReason.UNSURE:
        return False
    if task.wait.on:
        return True
    recorded = unit.store.decisions([task.decision]).get(task.decision)
    return recorded is not None and recorded.basis.policy_version == decision.basis.policy_version


# ---------------------------------------------------------------- deciding by what others said


def advise(unit: Unit, name: str, decision: str, said: Sequence[Opinion]) -> bool:
    """
    Decide once more about a task, after others were asked because of *decision*; returns whether that was so.

    Whoever has routed it, changed it or called it off meanwhile was first: then nothing happens.
    """
    found = unit.tasks([name])
    if not found or found[0].state is not TaskState.SUBMITTED or found[0].decision != decision:
        return False
    stages = _policy(unit, found[0]).stages
    place(unit, _with_suggestions(unit, found[0], said, stages), said if stages else ())
    settle(unit)
    return True


def _with_suggestions(unit: Unit, task: Task, said: Sequence[Opinion], stages: Sequence[Stage]) -> Task:
    """A task with what was suggested of what its requester left open, as far as the policy still asks for that."""
    wanted = {suggestion for stage in stages for suggestion in stage.suggest}
    spec = task.spec
    for opinion in said:
        if opinion.tags and not spec.tags and Suggestion.TAGS in wanted:
            spec = replace(spec, tags=opinion.tags)
        if opinion.effort is not None and spec.estimated_effort is None and Suggestion.EFFORT in wanted:
            spec = replace(spec, estimated_effort=opinion.effort)
    if spec is task.spec:
        return task
    return unit.log(task, transitions.update(task, spec, unit.now), Event.UPDATE)


def answer_where(unit: Unit, task: Task, text: str, by: str) -> Task:
    """
    Take the answer to the question where a task goes, or to what an adviser had asked about it.

    Raises:
        InvalidArgument: It names no project that can take the task; the question stays open.
    """
    decision = unit.store.decisions([task.decision])[task.decision]
    said = [opinion for opinion in decision.opinions if not Use(opinion.stage).local]
    if said and said[-1].word is Word.ASKED and not said[-1].answer:
        said[-1] = replace(said[-1], answer=text)
    else:
        said.append(_persons_opinion(unit, task, said, text, by))
    question = replace(task.input, answer=text, answered_by=by) if task.input else None
    made = place(unit, replace(task, input=question), said)
    if said[-1].stage == Use.PERSON.value:
        unit.store.put_feedback(made.name, fits=said[-1].word is Word.CHOICE, author=by)
    settle(unit)
    return unit.task(task.name)


def go_on_unanswered(unit: Unit, task: Task) -> None:
    """Nobody has answered in time where a task goes, or what its requester means: ask the next, or go on without."""
    decision = unit.store.decisions([task.decision])[task.decision]
    said = [opinion for opinion in decision.opinions if not Use(opinion.stage).local]
    if said and said[-1].word is Word.ASKED and not said[-1].answer:
        said[-1] = replace(said[-1], word=Word.FAILED, reason="its requester has not answered in time")
    else:
        said.append(Opinion(Use.PERSON.value, Word.FAILED, reason="nobody has answered in time"))
    place(unit, task, said, _policy(unit, task).if_unanswered)
    settle(unit)


def _persons_opinion(unit: Unit, task: Task, said: Sequence[Opinion], text: str, by: str) -> Opinion:
    opinion = asking.chosen(text, unit.world.directory.projects)
    if opinion is None:
        problem = f"must be the id of a registered project, or {asking.NOBODY}"
        raise InvalidArgument(violations=[FieldViolation("answer", problem)])
    opinion = replace(opinion, reason=f"answered by {by}" if by else "answered")
    decision = choose(unit, task, [*said, opinion])
    if opinion.word is Word.CHOICE and decision.project != opinion.project:
        why = decision.opinions[-1].reason if decision.opinions else decision.reasoning
        raise InvalidArgument(violations=[FieldViolation("answer", why)])
    return opinion


def _placement(unit: Unit, task: Task) -> Choose | Keep | HandOver:
    instance = unit.instance(task.instance)
    return SCOPES[instance.scope].place(task.spec, instance, surroundings(unit, task, instance))


# ---------------------------------------------------------------- changing what is asked for


def change_spec(unit: Unit, name: str, spec: TaskSpec, *, etag: str) -> Task:
    """
    Change what is asked for, and decide anew.

    Raises:
        EtagMismatch, DependencyCycle, TaskNotFound, ProjectNotFound, TaskWrongState.
    """
    task = unit.task(name)
    if etag and etag != task.etag:
        raise EtagMismatch(resource=name, etag=task.etag)
    if spec.project != task.spec.project:  # one that has gone since must not keep the rest from being changed
        intake.require_project(unit, spec.project)
    if spec.exclusive and not task.spec.exclusive:  # what was begun already might be begun a second time
        transitions.require_repeatable(replace(task, spec=spec), Event.UPDATE.value)
    spec = planned(spec, unit.instance(task.instance))
    blockers = intake.open_dependencies(unit, spec.dependencies)
    intake.require_acyclic(unit, name, spec.dependencies)
    changed = replace(transitions.update(task, spec, unit.now), blockers=blockers)
    changed = unit.log(task, changed, Event.UPDATE)
    unit.flush()
    unit.store.replace_dependencies(changed)
    if not changed.offered:
        place(unit, changed)
        settle(unit)
    return unit.task(name)  # what it was handed to may have sent it back by now


def block(unit: Unit, name: str, hold: Hold) -> Task:
    """Hold a task back."""
    task = unit.task(name)
    return unit.log(task, transitions.block(task, hold, unit.now), Event.BLOCK)


def unblock(unit: Unit, name: str) -> Task:
    """Let a task go on; a repeat changes nothing."""
    task = unit.task(name)
    moved = transitions.unblock(task, unit.now)
    return unit.log(task, moved, Event.UNBLOCK) if task.hold is not None else task


def replay(unit: Unit, name: str) -> Task:
    """Try a parked task again: see transitions.replay."""
    task = unit.task(name)
    again = unit.log(task, transitions.replay(task, unit.now), Event.REPLAY)
    place(unit, again)
    settle(unit)
    return unit.task(name)


def cancel(unit: Unit, name: str, reason: str) -> Task:
    """Call a task off, and whatever it was handed over as; a repeat changes nothing."""
    task = unit.task(name)
    if task.state is TaskState.CANCELLED:
        return task
    return handover.cancel(unit, task, reason)
