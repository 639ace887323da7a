"""
Asks a language model or a Sage about tasks that nobody in memory was sure of, and has them decided about once more.

    a unit: UNSURE, and somebody is left to be asked ─► the task waits, SUBMITTED, for `llm` or `sage`
                                                              │
       Adviser, on one router ─► reads who waits ─► asks, within deadline and budget ─► a unit: placing.advise

Nothing hangs on this process: who waits for whom is in the task's row, what was said goes into the next decision, and
an adviser that starts finds both. One that died in the middle of a question is followed by one that asks again. Whoever
routes a task by hand, changes it or calls it off meanwhile was first.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final, Protocol

import structlog

from hopper_common.clock import Clock
from hopper_common.errors import HopperError, NotFound, ShuttingDown
from hopper_router import advice_store, placing
from hopper_router.backoff import Backoff
from hopper_router.calibration import TAKEN_AT_ITS_WORD, Scale, scales
from hopper_router.cascade import (
    MOST_CLARIFICATIONS,
    Consult,
    Stage,
    Suggestion,
    Use,
    asked_before,
    following,
)
from hopper_router.engine import Engine
from hopper_router.errors import RegistryUnknown
from hopper_router.llm import advisor as llm
from hopper_router.llm.budget import Budget, Limits
from hopper_router.llm.errors import BudgetExhausted, LlmAnswerInvalid, LlmUnavailable
from hopper_router.llm.guarded import GuardedAdvisor
from hopper_router.model import Candidate, Decision, Opinion, Project, Task, TaskSpec, TaskState, Word
from hopper_router.policies import InForce
from hopper_router.replay import Verdict
from hopper_router.sage import advisor as sage
from hopper_router.sage.errors import SageAnswerInvalid, SageRefused, SageUnavailable
from hopper_router.unit import Unit

MOST_AT_ONCE: Final = 16
"""Tasks that are asked about at the same time."""
LOOK_EVERY: Final = 1.0
"""Seconds; for tasks that other routers on the same database have taken in."""
LOOK_SELDOM: Final = 30.0
"""The same where no policy asks for advice."""
FIRST_PAUSE: Final = timedelta(milliseconds=200)
WEIGH_EVERY: Final = 60.0
"""Seconds between two looks at what became of advice."""
LONGEST_PAUSE: Final = timedelta(seconds=5)
"""After trouble with the storage or the registry."""
NOT_ASKED: Final = frozenset({"resting", "no-time", "not-set-up", "address"})
"""Causes for which a Sage is not asked at all."""
_MOST_REASON: Final = 1000

_log = structlog.get_logger("hopper.router")


@dataclass(frozen=True, slots=True)
class Precedent:
    """
    A task of the past that is like the one at hand.

    Attributes:
        project: Where it belonged, as far as anybody knows; "": nobody knows.
        success: Whether that is known to be right.
        similarity: 0 to 1, of the most alike.
    """

    decision: str
    title: str
    project: str
    success: bool | None
    similarity: float


class Memory(Protocol):
    """What the adviser asks of memory, and tells it."""

    async def similar(self, task: Task) -> Sequence[Precedent]:
        """Tasks of the past that are like it, most alike first; nothing if memory does not say at once."""
        ...

    async def verdicts(self, decisions: Sequence[str]) -> Mapping[str, Verdict]:
        """
        What is known of how decisions turned out, by name.

        Raises:
            HopperError: It cannot be told now.
        """
        ...

    async def tell(self, said: advice_store.Said) -> None:
        """
        Tell what somebody said of a decision; a repeat changes nothing.

        Raises:
            HopperError: It was not told.
        """
        ...


class Sages(Protocol):
    """The Sages that policies name, or mean by no name: then it is the operator's."""

    def where(self, address: str) -> str:
        """The address of the one that policies call by that; "": there is none."""
        ...

    def at(self, address: str) -> sage.SageAdvisor:
        """
        The one at an address.

        Raises:
            SageUnavailable: That is no address of a Sage.
        """
        ...


class _File:
    """All that is known of a task when somebody is asked about it."""

    def __init__(
        self, task: Task, decision: Decision, in_force: InForce, projects: Sequence[Project]
    ) -> None:
        self.task = task
        self.decision = decision
        self.policy = in_force.policy
        self.owner = in_force.name.removesuffix("/policy")
        known = {project.name: project for project in projects}
        self.shortlist: list[tuple[Project, Candidate]] = [
            (known[one.project], one) for one in decision.candidates if one.project in known
        ]
        self.incomplete = len(self.shortlist) < len(decision.candidates)
        self.said = [opinion for opinion in decision.opinions if not Use(opinion.stage).local]
        self._own = [opinion for opinion in decision.opinions if Use(opinion.stage).local]

    def next_stage(self) -> Stage | None:
        """Who is to be asked now; None: nobody, or a person."""
        step = following(self.policy.stages, [*self._own, *self.said])
        if isinstance(step, Consult) and step.stage.use in (Use.LLM, Use.SAGE):
            return step.stage
        return None


class Adviser:
    """
    Asks for all tasks that wait for advice.

    Args:
        model: The language model, if there is one.
        budget: What Sages may be asked in a day.
    """

    def __init__(
        self,
        engine: Engine,
        memory: Memory,
        sages: Sages,
        budget: Budget,
        clock: Clock,
        model: GuardedAdvisor | None = None,
    ) -> None:
        self._engine = engine
        self._memory = memory
        self._sages = sages
        self._budget = budget
        self._clock = clock
        self._model = model
        self._scales: Mapping[tuple[str, str], Scale] = {}
        self._weigh_next = 0.0
        self._busy: set[str] = set()
        self._backoff = Backoff("advice", first=FIRST_PAUSE, longest=LONGEST_PAUSE)

    # ------------------------------------------------------------ the loop

    async def run(self) -> None:
        """Ask, until cancelled."""
        opened = self._engine.inquiries.opened
        async with asyncio.TaskGroup() as group:
            while True:
                seen = opened.count
                try:
                    await self._begin_all(group)
                    await self.tell_memory()
                    await self._weigh_if_time()
                except ShuttingDown:
                    raise
                except HopperError as error:
                    _log.warning("trouble, will try again", what="advise", reason=error.reason)
                every = LOOK_EVERY if self._engine.policies.consults or self._busy else LOOK_SELDOM
                try:
                    async with asyncio.timeout(every):
                        await opened.wait(after=seen)
                except TimeoutError:
                    continue

    async def _begin_all(self, group: asyncio.TaskGroup) -> None:
        """Begin to ask about as many tasks as may be asked about at the same time."""
        waiting = await self._engine.read(lambda unit: unit.store.asking(2 * MOST_AT_ONCE))
        for task in waiting:
            if len(self._busy) >= MOST_AT_ONCE:
                break
            if task.name not in self._busy:
                self._busy.add(task.name)
                group.create_task(self._finish(task.name))

    async def _finish(self, name: str) -> None:
        """Ask about one task, and let others have their turn."""
        try:
            await self.inquire(name)
            self._backoff.worked()
        except ShuttingDown:
            raise
        except HopperError as error:
            await asyncio.sleep(self._backoff.failed(error.reason))
        finally:
            self._busy.discard(name)
            self._engine.inquiries.opened.fire()

    # ------------------------------------------------------------ one task

    async def inquire(self, name: str) -> bool:
        """
        Ask about a task whoever is to be asked, and have it decided about; returns whether that was so.

        Raises:
            HopperError: The storage is in trouble, or there is no copy of the registry yet; the task waits on.
        """
        # Asked before the file is read: what is confirmed meanwhile is not in it.
        confirmed = self._engine.registry.confirmed
        file = await self._engine.read(lambda unit: _file_of(unit, name))
        if file is None:
            return False
        if not confirmed and (file.incomplete or not file.shortlist):
            # The copy of before a restart may be older than the task, and lack its projects.
            raise RegistryUnknown(service="registry")
        precedents: Sequence[Precedent] | None = None
        while (stage := file.next_stage()) is not None:
            if precedents is None:
                precedents = await self._memory.similar(file.task)
            started = self._clock.monotonic()
            said = await self._ask(stage, file, precedents)
            elapsed = timedelta(seconds=self._clock.monotonic() - started)
            file.said.append(_completed(said, stage, elapsed))
        decision, said_all = file.decision.name, tuple(file.said)
        return await self._engine.run(lambda unit: placing.advise(unit, name, decision, said_all))

    async def _ask(self, stage: Stage, file: _File, precedents: Sequence[Precedent]) -> Opinion:
        if not file.shortlist:
            return _failed(stage, "none of the candidates is registered any more")
        if stage.use is Use.LLM:
            return await self._ask_model(stage, file, precedents)
        return await self._ask_sage(stage, file, precedents)

    # ------------------------------------------------------------ a language model

    async def _ask_model(self, stage: Stage, file: _File, precedents: Sequence[Precedent]) -> Opinion:
        if self._model is None:
            return _failed(stage, "no LLM is set up: HOPPER_LLM_URL is not set")
        limits = Limits(stage.calls_per_day, stage.money_per_day)
        try:
            advice = await self._model.advise(
                _question(file, precedents, stage), instance=file.owner, limits=limits, timeout=stage.deadline
            )
        except (LlmUnavailable, LlmAnswerInvalid) as error:
            return _failed(stage, error.message, error.cost)
        except BudgetExhausted as error:
            return _failed(stage, error.message)
        return self._weighed(_from_model(stage, advice))

    # ------------------------------------------------------------ a Sage

    async def _ask_sage(self, stage: Stage, file: _File, precedents: Sequence[Precedent]) -> Opinion:
        try:
            reservation = await self._budget.reserve(file.owner, Limits(stage.calls_per_day), 0)
        except BudgetExhausted as error:
            return _failed(stage, error.message)
        try:
            advisor = self._sages.at(stage.address)
            advice = await advisor.decide(_sage_question(file, precedents), within=stage.deadline)
        except (SageUnavailable, SageAnswerInvalid, SageRefused) as error:
            if error.metadata.get("cause") in NOT_ASKED:
                await self._budget.release(reservation)  # it was not asked
            return _failed(stage, error.message)
        return self._weighed(_from_sage(stage, advice, file.said))

    # ------------------------------------------------------------ what their word is worth

    def _weighed(self, said: Opinion) -> Opinion:
        """A choice, as sure as those who made it have proved to be when they said the same."""
        if said.word is not Word.CHOICE:
            return said
        scale = self._scales.get((said.stage, said.model), TAKEN_AT_ITS_WORD)
        return replace(said, stated=said.confidence, confidence=scale.of(said.confidence))

    async def _weigh_if_time(self) -> None:
        now = self._clock.monotonic()
        if now < self._weigh_next or not self._engine.policies.consults:
            return
        self._weigh_next = now + WEIGH_EVERY
        await self.weigh()

    async def weigh(self) -> None:
        """
        Look at what became of the choices of those who were asked.

        Raises:
            HopperError: Memory, or the storage, does not say; what was known before stands.
        """
        given = await advice_store.given(self._engine.db)
        if given:
            verdicts = await self._memory.verdicts([one.decision for one in given])
            self._scales = await asyncio.to_thread(scales, given, verdicts)
        if len(given) == advice_store.MOST_GIVEN:
            await advice_store.forget_given(self._engine.db, given[-1].decision)

    # ------------------------------------------------------------ what people said

    async def tell_memory(self) -> None:
        """Tell memory what people said of decisions; what it does not know yet is told later."""
        for said in await advice_store.untold(self._engine.db, 100):
            try:
                await self._memory.tell(said)
            except NotFound:  # the decision itself is still on its way
                continue
            await advice_store.told(self._engine.db, said.decision)


def _file_of(unit: Unit, name: str) -> _File | None:
    """What is known of a task; None: it waits for nobody any more."""
    found = unit.tasks([name])
    if not found or found[0].state is not TaskState.SUBMITTED or not found[0].wait or not found[0].wait.on:
        return None
    task = found[0]
    decision = unit.store.decisions([task.decision])[task.decision]
    directory = unit.world.directory
    projects = [
        directory.projects[one.project] for one in decision.candidates if one.project in directory.projects
    ]
    return _File(task, decision, unit.world.policies.in_force(task.instance, directory), projects)


# ---------------------------------------------------------------- questions


def _question(file: _File, precedents: Sequence[Precedent], stage: Stage) -> llm.Question:
    spec = file.task.spec
    replies = [opinion for opinion in file.said if opinion.word is Word.ASKED and opinion.answer]
    said = "".join(f"\n\n{reply.reason}\n{reply.answer}" for reply in replies)
    return llm.Question(
        title=spec.title,
        description=spec.description + said,
        tags=spec.tags,
        shortlist=tuple(
            llm.Choice(
                project.name,
                project.display_name or project.id,
                project.description,
                tuple(sorted(project.capabilities)),
                candidate.confidence,
            )
            for project, candidate in file.shortlist
        ),
        examples=tuple(
            llm.Example(precedent.title, precedent.project) for precedent in precedents if precedent.success
        ),
        allowed=frozenset({llm.Ask.NOTHING_FITS, *_open_points(spec, stage)}),
    )


def _open_points(spec: TaskSpec, stage: Stage) -> Iterator[llm.Ask]:
    """What the policy has suggested, and the requester left open."""
    if Suggestion.TAGS in stage.suggest and not spec.tags:
        yield llm.Ask.TAGS
    if Suggestion.EFFORT in stage.suggest and spec.estimated_effort is None:
        yield llm.Ask.EFFORT


def asked_of(task: Task) -> sage.Asked:
    """A task as a Sage may see it."""
    spec = task.spec
    return sage.Asked(
        name=task.name,
        title=spec.title,
        description=spec.description,
        tags=spec.tags,
        required_capabilities=spec.required_capabilities,
        requester=spec.requester,
        priority=spec.priority,
        finish_by=spec.clocks.finish_by,
        estimated_effort=spec.estimated_effort,
        create_time=task.create_time,
    )


def _sage_question(file: _File, precedents: Sequence[Precedent]) -> sage.Question:
    task = file.task
    return sage.Question(
        decision=file.decision.name,
        instance=task.instance,
        task=asked_of(task),
        candidates=[
            sage.Candidate(
                project.name,
                project.display_name,
                project.description,
                sorted(project.capabilities),
                min(candidate.confidence, 1.0),
                [sage.Factor(factor.name, factor.value, factor.weight) for factor in candidate.factors],
            )
            for project, candidate in file.shortlist
        ],
        precedents=[
            sage.Precedent(one.decision, one.title, one.project, one.success, one.similarity)
            for one in precedents
            if one.project
        ],
        replies=[
            sage.Reply(opinion.reason, opinion.answer)
            for opinion in file.said
            if opinion.word is Word.ASKED and opinion.answer
        ],
    )


# ---------------------------------------------------------------- answers


def _failed(stage: Stage, why: str, cost: llm.Cost = llm.FREE) -> Opinion:
    return Opinion(
        stage.use.value,
        Word.FAILED,
        reason=why,
        input_tokens=cost.input_tokens,
        output_tokens=cost.output_tokens,
        money=cost.money,
    )


def _completed(said: Opinion, stage: Stage, elapsed: timedelta) -> Opinion:
    return replace(said, threshold=stage.threshold, reason=said.reason[:_MOST_REASON], elapsed=elapsed)


def _from_model(stage: Stage, advice: llm.Advice) -> Opinion:
    if advice.project is not None:
        word = Word.CHOICE
    else:
        word = Word.NOTHING_FITS if advice.confidence >= stage.threshold else Word.UNSURE
    return Opinion(
        stage.use.value,
        word,
        advice.project or "",
        advice.confidence,
        reason=advice.reason,
        model=advice.model,
        input_tokens=advice.cost.input_tokens,
        output_tokens=advice.cost.output_tokens,
        money=advice.cost.money,
        tags=advice.tags,
        effort=advice.effort,
    )


def _from_sage(stage: Stage, advice: sage.Advice, said: Sequence[Opinion]) -> Opinion:
    use, cost = stage.use.value, advice.cost
    match advice.answer:
        case sage.Choice(project, confidence, reason):
            opinion = Opinion(use, Word.CHOICE, project, confidence, reason=reason)
        case sage.Clarification() if asked_before(said) >= MOST_CLARIFICATIONS:
            return _failed(stage, f"the Sage asks for more than {MOST_CLARIFICATIONS} answers")
        case sage.Clarification(question):
            opinion = Opinion(use, Word.ASKED, reason=question)
        case sage.Abstention(kind, reason):
            word = Word.NOTHING_FITS if kind is sage.Why.NOTHING_FITS else Word.UNSURE
            opinion = Opinion(use, word, reason=reason)
    return replace(
        opinion, input_tokens=cost.input_tokens, output_tokens=cost.output_tokens, money=cost.money
    )


def request_id_of(decision: str) -> str:
    """The same for every attempt to tell of a decision."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"hopper:{decision}:person"))
