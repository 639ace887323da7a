"""
What memory needs of a storage engine.

Both ports are drawn so that another engine (OpenSearch for episodes, Redis for contexts) is another
implementation and nothing else: no row ids, no SQL, no proto. The suites in `tests/memory` (`suite_episodes`,
`suite_working`) are what an implementation has to pass.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple, Protocol

from hopper_memory.model import Context, Episode, EpisodeOutcome, Feedback, Stats


class Recorded(NamedTuple):
    """How much of what was sent was new."""

    new_episodes: int
    new_outcomes: int


class Similar(NamedTuple):
    """An episode and how like it is; scores compare within one answer only."""

    episode: Episode
    score: float


class Position(NamedTuple):
    """The place of an episode in a list, newest first."""

    decide_time: datetime
    decision: str


class Given(NamedTuple):
    """Feedback as recorded, and the decisions above that it went to, nearest first."""

    feedback: Feedback
    passed_to: Sequence[str]


@dataclass(frozen=True, slots=True)
class Activity:
    """What happened lately: the newest decisions, and how many each project was sent."""

    decisions: Sequence[Episode]
    by_project: Mapping[str, int]


class EpisodeStore(Protocol):
    """
    Every decision, and what came of it.

    Each call is one transaction. An empty `instance` or `project` means any.
    """

    async def record(self, episodes: Sequence[Episode], outcomes: Sequence[EpisodeOutcome]) -> Recorded:
        """
        Add what is new, and join outcomes to decisions.

        An outcome whose decision is not known waits for it, for as long as it takes. What is known already
        changes nothing, except as `model.prevails` says.

        Args:
            episodes: Their `outcome` and `feedback` are ignored.
        """

    async def get(self, decision: str) -> Episode:
        """
        The episode of a decision.

        Raises:
            EpisodeNotFound: Not recorded, or not yet.
        """

    async def search(self, text: str, *, limit: int, project: str = "", instance: str = "") -> list[Similar]:
        """
        Find episodes that share words with *text*, best first. Any text is fine; one that has no words in
        it is like nothing.
        """

    async def history(self, project: str, *, limit: int, after: Position | None) -> list[Episode]:
        """The episodes of a project, newest first, from just behind *after* on."""

    async def mistakes(self, instance: str, *, limit: int, after: Position | None) -> list[Episode]:
        """The episodes that went wrong, newest first: judged wrong, failed, or rerouted."""

    async def recent(self, instance: str, *, since: datetime, limit: int) -> Activity:
        """What was decided after *since*. The episodes come without feedback."""

    async def add_feedback(
        self, decision: str, feedback: Feedback, *, request_id: str, now: datetime
    ) -> Given:
        """
        Record feedback on a decision and, as `model.passed_up` says, on every one above it that is known.

        Args:
            request_id: The same again gets the first answer and changes nothing. Empty: not asked for.

        Raises:
            EpisodeNotFound: The decision is not recorded, or not yet. Nothing was done.
            IdempotencyConflict: The id was used for other feedback.
        """

    async def stats(self, *, project: str, instance: str) -> Stats:
        """The score of the decisions for a project, of an instance."""


class WorkingMemory(Protocol):
    """Small contexts that are forgotten after a while."""

    async def get(self, key: str) -> Context:
        """
        The context under a key.

        Raises:
            ContextNotFound: Nothing was put there, or its time has run out.
        """

    async def put(self, key: str, value: bytes, time_to_live: timedelta) -> Context:
        """
        Store a value, replacing what is there.

        Raises:
            WorkingMemoryFull: There is no room for another key. Replacing always works.
        """
