"""
What memory needs of a storage engine.

Both ports are drawn so that another engine (OpenSearch for episodes, Redis for contexts) is another
implementation and nothing else: no row ids, no SQL, no proto. The suites in `tests/memory` (`suite_episodes`,
`suite_working`) are what an implementation has to pass.
"""

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple, Protocol

from hopper_memory.lessons import Lesson
from hopper_memory.model import Context, Episode, EpisodeOutcome, Feedback, Stats
from hopper_memory.routing_stats import RoutingStats, Verdict


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
    """
    Feedback as recorded.

    Attributes:
        passed_to: The decisions above that it went to, nearest first.
        lesson: The position of the last lesson it taught; 0: none, or the answer is a repeated one.
    """

    feedback: Feedback
    passed_to: Sequence[str]
    lesson: int = 0


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
        Add what is new, and join outcomes to decisions; write down what the joined ones teach.

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
        Record feedback on a decision and, as `model.passed_up` says, on every one above it that is known; write
        down what it teaches.

        Args:
            request_id: The same again gets the first answer and changes nothing. Empty: not asked for.

        Raises:
            EpisodeNotFound: The decision is not recorded, or not yet. Nothing was done.
            IdempotencyConflict: The id was used for other feedback.
        """

    async def stats(self, *, project: str, instance: str) -> Stats:
        """The score of the decisions for a project, of an instance."""

    async def routing_stats(
        self, instance: str, *, since: datetime, until: datetime, periods: int, confusions: int
    ) -> RoutingStats:
        """
        The score of the decisions from *since* until before *until*, parted.

        Args:
            periods: Into how many to part the time from the first of these decisions on.
            confusions: The most to return.
        """

    async def verdicts(self, decisions: Sequence[str]) -> list[Verdict]:
        """What is known of how these decisions turned out; those that are not recorded are left out."""


class Taught(NamedTuple):
    """Some lessons, in order, and the position of the last there is; 0 if there is none."""

    lessons: Sequence[Lesson]
    head: int


class LessonStore(Protocol):
    """
    What was taught, in the one order in which everybody learns it.

    Lessons are written by an `EpisodeStore`, in the transaction of what teaches them.
    """

    def tail(self, *, after: int) -> AsyncGenerator[Taught, None]:
        """
        The lessons after a position, for ever: what is there, then what comes.

        Yields:
            Up to 500, without a gap and without a repetition. None in the first, if there are none yet.

        Raises:
            ResumeTooOld: There never was a lesson at that position.
        """


class StoredModel(NamedTuple):
    """
    A snapshot of what lessons add up to.

    Attributes:
        position: The last lesson that is in it.
        sha256: Of all its bytes.
    """

    format: str
    position: int
    sha256: bytes


class ModelStore(Protocol):
    """The newest snapshots of each format. What is in them is not for memory to know."""

    async def newest(self, model_format: str, *, before: int = 0) -> tuple[StoredModel, AsyncIterator[bytes]]:
        """
        The newest snapshot of a format, and its bytes in parts as they were saved.

        Args:
            before: Only one of an earlier position. 0: any.

        Raises:
            ModelNotFound: There is none; from the bytes too, if it went while it was read.
        """

    async def save(self, model: StoredModel, parts: AsyncIterable[bytes]) -> int:
        """
        Keep a snapshot, whole or not at all, and of its format the three newest. One that is no newer than the newest
        is not even read.

        Returns:
            The position of the newest of the format.

        Raises:
            ModelInvalid: Its bytes have another checksum, or it is ahead of the lessons there are.
            RequestTooLarge: It has more bytes than are kept.
        """


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
