"""
The nouns of routing, as plain frozen values.

Nothing here knows gRPC, SQL or the clock: time arrives as an argument, names are strings
(`instances/i/tasks/t`), durations are timedeltas, instants are aware UTC datetimes.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Final, NamedTuple

from hopper_common.working_hours import WorkingHours
from hopper_router.fairness import lane

ROOT_INSTANCE: Final = "instances/global"
DEFAULT_PRIORITY: Final = 50
DEFAULT_LEASE: Final = timedelta(seconds=60)
MAX_LEASE: Final = timedelta(hours=1)
MIN_LEASE: Final = timedelta(seconds=1)
MAX_PATH: Final = 16
"""Deepest nesting of delegations, decompositions in place included."""

EMPTY: Final[Mapping[str, str]] = MappingProxyType({})


# ---------------------------------------------------------------- tasks


class TaskState(enum.Enum):
    """Where a task is in its life; the values are what is stored."""

    SUBMITTED = "SUBMITTED"
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    INPUT_REQUIRED = "INPUT_REQUIRED"
    DELEGATED = "DELEGATED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    REJECTED = "REJECTED"
    CANCELLED = "CANCELLED"

    @property
    def final(self) -> bool:
        """Whether nothing can happen to the task any more."""
        return self in FINAL_STATES


FINAL_STATES: Final = frozenset(
    {TaskState.SUCCEEDED, TaskState.FAILED, TaskState.REJECTED, TaskState.CANCELLED}
)
OPEN_STATES: Final = frozenset(TaskState) - FINAL_STATES


class WaitReason(enum.Enum):
    """Why an open task is not running; the first that applies, in this order."""

    APPROVAL = "APPROVAL"
    DEPENDENCY = "DEPENDENCY"
    PERSON = "PERSON"
    SCHEDULE = "SCHEDULE"
    BACKOFF = "BACKOFF"
    NO_ELIGIBLE_EXECUTOR = "NO_ELIGIBLE_EXECUTOR"
    UNSURE = "UNSURE"
    INSTANCE = "INSTANCE"
    PROJECT = "PROJECT"
    CAPACITY = "CAPACITY"
    RATE_LIMIT = "RATE_LIMIT"
    WORKER = "WORKER"
    DELEGATION = "DELEGATION"
    PEER = "PEER"


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a task is not running, and whom it waits for."""

    reason: WaitReason
    on: tuple[str, ...] = ()
    until: datetime | None = None
    message: str = ""
    exclusions: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Clocks:
    """Four clocks, each of its own; None: it does not run."""

    start_after: datetime | None = None
    start_by: datetime | None = None
    run_for: timedelta | None = None
    finish_by: datetime | None = None
    heartbeat: timedelta | None = None


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """What to do when an attempt fails."""

    max_attempts: int = 3
    first_backoff: timedelta = timedelta(seconds=1)
    factor: float = 2.0
    max_backoff: timedelta = timedelta(hours=1)
    non_retryable_reasons: frozenset[str] = frozenset()

    def backoff(self, failures: int) -> timedelta:
        """How long to wait after that many failed attempts, from 1."""
        # A float overflows at factor 100 long before max_attempts does; the cap is the answer then.
        try:
            seconds = self.first_backoff.total_seconds() * self.factor ** (failures - 1)
        except OverflowError:
            return self.max_backoff
        return min(timedelta(seconds=min(seconds, self.max_backoff.total_seconds())), self.max_backoff)


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """What the requester asks for."""

    title: str
    description: str = ""
    tags: tuple[str, ...] = ()
    required_capabilities: tuple[str, ...] = ()
    required_labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    priority: int = DEFAULT_PRIORITY
    project: str = ""
    requester: str = "anonymous"
    dependencies: tuple[str, ...] = ()
    payload: bytes = b""
    clocks: Clocks = Clocks()
    retry: RetryPolicy = RetryPolicy()
    estimated_effort: timedelta | None = None
    before_event: timedelta | None = None
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    fairness_key: str = ""
    fairness_weight: float = 1.0
    concurrency_key: str = ""
    slots: int = 1
    exclusive: bool = False
    wire: bytes = field(default=b"", init=False, compare=False, repr=False)
    """What `convert` made of it, or made it of, if it did; a changed spec has none."""

    @property
    def turn_of(self) -> str:
        """Whose turn it takes."""
        return self.fairness_key or self.requester


FEDERATION: Final = "federation"
"""
The worker id of the federation service, and of nobody else. What it holds is a peer's to do: a lease that ran out says
that the service was away, not that an attempt failed, and how long the attempt takes is the peer's to watch.
"""


@dataclass(frozen=True, slots=True)
class Claim:
    """Who has a task. `lease_end` is None while the lease is stopped: the worker waits for an answer."""

    worker: str
    token: int
    lease: timedelta
    lease_end: datetime | None
    start: datetime


@dataclass(frozen=True, slots=True)
class Failure:
    """How an attempt, or the task, failed."""

    reason: str
    message: str = ""
    permanent: bool = False


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt that failed; `start` is None where nobody had begun."""

    attempt: int
    worker: str
    start: datetime | None
    end: datetime
    failure: Failure


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a worker is: `fraction` from 0 to 1."""

    fraction: float
    message: str = ""


@dataclass(frozen=True, slots=True)
class InputRequest:
    """A question and, later, its answer; one where a task goes may have to be answered by a time."""

    question: str
    from_: str = ""
    answer: str = ""
    answered_by: str = ""
    answer_by: datetime | None = None


@dataclass(frozen=True, slots=True)
class Hold:
    """A task held back by hand."""

    by: str = ""
    reason: str = ""


@dataclass(slots=True, unsafe_hash=True)
class Task:
    """
    A unit of work, in exactly one instance. Never changed; freezing it would make making one five times as dear.

    `token` is the last fencing token given out for it; it only grows, also while nobody has the task.
    `failures` counts failed attempts; `attempt` counts claims that were not given back.
    `ready_time` is when it may be claimed at the earliest: its schedule, or the end of a back-off.
    `blockers` is how many of its dependencies have not succeeded yet.
    `queue_time` is when it was placed, `first_start` when it was first claimed after that.
    `offered` says that the instance has not accepted the delegation that brought it.
    `rank` orders equal priorities: see fairness.py. `affinity` is the worker that did what it depended on.
    """

    name: str
    instance: str
    spec: TaskSpec
    state: TaskState
    create_time: datetime
    update_time: datetime
    ready_time: datetime
    generation: int = 0
    spec_version: int = 1
    project: str = ""
    decision: str = ""
    claim: Claim | None = None
    token: int = 0
    attempt: int = 0
    failures: int = 0
    failure: Failure | None = None
    progress: Progress | None = None
    result: bytes = b""
    delegation: str = ""
    input: InputRequest | None = None
    hold: Hold | None = None
    blockers: int = 0
    offered: bool = False
    queue_time: datetime | None = None
    first_start: datetime | None = None
    finish_time: datetime | None = None
    rank: int = 0
    affinity: str = ""
    wait: Wait | None = None
    """
    What deciding left it waiting for: NO_ELIGIBLE_EXECUTOR or UNSURE; with UNSURE, `on` names the adviser that is to be
    asked. The rest is derived: waiting.py.
    """

    @property
    def id(self) -> str:
        """The last segment of its name."""
        return self.name.rpartition("/")[2]

    @property
    def lane(self) -> str:
        """Among whom it takes turns."""
        return lane(self.project or self.instance, self.spec.priority)

    @property
    def etag(self) -> str:
        """Changes with every change of the spec."""
        return f"s{self.spec_version}"


# ---------------------------------------------------------------- who could do it


class ExecutorType(enum.Enum):
    """The kind of executor behind a project."""

    WORKERS = "WORKERS"
    AGENT = "AGENT"
    PERSON = "PERSON"
    PEER = "PEER"


@dataclass(frozen=True, slots=True)
class RateLimit:
    """So many in a period."""

    count: int
    period: timedelta


@dataclass(frozen=True, slots=True)
class Border:
    """What may leave for a peer, as its Hopper's install id, the policy's text and the level's number say."""

    peer: str
    policy: str = ""
    level: int = 0


@dataclass(frozen=True, slots=True)
class Project:
    """A registered executor, as far as routing cares; `velocity` in tasks per day, 0: unknown."""

    name: str
    display_name: str = ""
    description: str = ""
    capabilities: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    examples: tuple[str, ...] = ()
    velocity: float = 0.0
    sla: timedelta | None = None
    max_running: int = 0
    max_open: int = 0
    max_running_per_key: int = 0
    start_rate: RateLimit | None = None
    start_rate_per_key: RateLimit | None = None
    cost: float = 0.0
    executor: ExecutorType = ExecutorType.WORKERS
    requires_live_worker: bool = False
    boosts: Mapping[str, float] = field(default_factory=dict)
    working_hours: WorkingHours | None = None
    paused: bool = False
    live_workers: int = 0
    border: Border | None = None

    @property
    def id(self) -> str:
        """The last segment of its name."""
        return self.name.rpartition("/")[2]

    @property
    def has_limits(self) -> bool:
        """Whether anything limits what of it may run or start."""
        return bool(
            self.max_running or self.max_running_per_key or self.start_rate or self.start_rate_per_key
        )


class Scope(enum.Enum):
    """What kind of node an instance is."""

    GLOBAL = "GLOBAL"
    PROJECT = "PROJECT"
    ORCHESTRATION = "ORCHESTRATION"
    PERSONAL = "PERSONAL"
    FAMILY = "FAMILY"
    EVENT = "EVENT"
    FEDERATED = "FEDERATED"


class InstanceState(enum.Enum):
    """Where an instance is in its life."""

    CREATED = "CREATED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    ERROR = "ERROR"
    TERMINATED = "TERMINATED"


@dataclass(frozen=True, slots=True)
class Instance:
    """A node of the hierarchy, as far as the router cares."""

    name: str
    scope: Scope
    state: InstanceState
    parent: str = ""
    project: str = ""
    max_workers: int = 0
    complex_effort: timedelta = timedelta(hours=4)
    members: frozenset[str] = frozenset()
    event_time: datetime | None = None
    manual_accept: bool = False
    offer_timeout: timedelta = timedelta(hours=24)
    start_time: datetime | None = None


# ---------------------------------------------------------------- decisions


class Outcome(enum.Enum):
    """What came of deciding."""

    ROUTED = "ROUTED"
    NO_CANDIDATE = "NO_CANDIDATE"
    UNSURE = "UNSURE"
    REJECTED = "REJECTED"
    QUEUED = "QUEUED"


class WeightOrigin(enum.Enum):
    """Where the weight of a factor comes from."""

    SHIPPED = "UNSPECIFIED"
    POLICY = "POLICY"
    LEARNED = "LEARNED"


@dataclass(slots=True, unsafe_hash=True)
class Factor:
    """One part of a score: `value * weight`. Never changed; freezing it would double what making one costs."""

    name: str
    value: float
    weight: float
    evidence: tuple[str, ...] = ()
    origin: WeightOrigin = WeightOrigin.SHIPPED
    lessons: int = 0
    """How many lessons the weight was learned from."""
    wire: bytes = field(default=b"", init=False, compare=False, repr=False)
    """What `convert` made of it, if it did: many decisions share the same one."""

    def of(self, value: float, evidence: tuple[str, ...] = ()) -> Factor:
        """The same factor of somebody else."""
        return Factor(self.name, value, self.weight, evidence, self.origin, self.lessons)


@dataclass(slots=True, unsafe_hash=True)
class Candidate:
    """A project that could have the task, with what its score is made of. Never changed, as Factor."""

    project: str
    score: float
    confidence: float
    factors: tuple[Factor, ...] = ()


@dataclass(slots=True, unsafe_hash=True)
class Exclusion:
    """A filter, how many it ruled out, and the first 20 of them by name. Never changed, as Factor."""

    filter: str
    count: int
    projects: tuple[str, ...] = ()
    detail: str = ""
    wire: bytes = field(default=b"", init=False, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Basis:
    """The versions of everything a decision used."""

    projects_version: int = 0
    instances_version: int = 0
    policy: str = ""
    policy_version: int = 0


class Word(enum.Enum):
    """What kind of answer a stage of a cascade gave."""

    CHOICE = "CHOICE"
    """A project."""
    NOTHING_FITS = "NOTHING_FITS"
    """None of those who could have it should."""
    UNSURE = "UNSURE"
    """It does not know."""
    ASKED = "ASKED"
    """It asked the requester first."""
    FAILED = "FAILED"
    """It was not asked, or did not answer."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """
    What one stage of a cascade said, and what asking it cost; see `cascade`.

    Attributes:
        stage: `rules`, `learned`, `llm`, `sage` or `person`.
        confidence: Of those who are asked: what their own account, `stated`, has proved to be worth.
        threshold: How sure it had to be.
        reason: For people; with ASKED the question, and then `answer` is what the requester said.
        money: In millionths.
        tags: What it suggests, besides a place, as `effort`.
    """

    stage: str
    word: Word
    project: str = ""
    confidence: float = 0.0
    threshold: float = 0.0
    reason: str = ""
    answer: str = ""
    model: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    money: int = 0
    elapsed: timedelta = timedelta(0)
    stated: float = 0.0
    tags: tuple[str, ...] = ()
    effort: timedelta | None = None


@dataclass(slots=True, unsafe_hash=True)
class Decision:
    """
    Where a task goes, and why; `name`, `task`, `instance` and the times are filled in by the recorder.

    Never changed, as Factor.
    """

    outcome: Outcome
    project: str = ""
    confidence: float = 0.0
    strategy: str = ""
    reasoning: str = ""
    candidates: tuple[Candidate, ...] = ()
    exclusions: tuple[Exclusion, ...] = ()
    eligible_count: int = 0
    basis: Basis = Basis()
    name: str = ""
    task: str = ""
    instance: str = ""
    elapsed: timedelta = timedelta(0)
    create_time: datetime | None = None
    opinions: tuple[Opinion, ...] = ()


# ---------------------------------------------------------------- delegations


class DelegationKind(enum.Enum):
    """Why a task is handed over."""

    ROUTE = "ROUTE"
    DECOMPOSE = "DECOMPOSE"
    ESCALATE = "ESCALATE"
    REASSIGN = "REASSIGN"


class DelegationState(enum.Enum):
    """Where a delegation is in its life."""

    OFFERED = "OFFERED"
    ACCEPTED = "ACCEPTED"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    RETURNED = "RETURNED"
    EXPIRED = "EXPIRED"
    CANCELLED = "CANCELLED"

    @property
    def open(self) -> bool:
        """Whether the other side still has it."""
        return self in (DelegationState.OFFERED, DelegationState.ACCEPTED)


@dataclass(frozen=True, slots=True)
class Delegation:
    """One hand-over of one task; `path` has every instance the work has been in, the newest last."""

    name: str
    kind: DelegationKind
    state: DelegationState
    task: str
    from_instance: str
    to_instance: str
    path: tuple[str, ...]
    child_tasks: tuple[str, ...]
    create_time: datetime
    update_time: datetime
    reason: str = ""
    offer_end: datetime | None = None
    depth: int = 1


# ---------------------------------------------------------------- lessons


class Truth(enum.Enum):
    """What a lesson says of a project."""

    RIGHT = "RIGHT"
    """The task belonged there."""
    WRONG = "WRONG"
    """It did not."""
    NONE = "NONE"
    """It belonged to nobody."""
    LATE = "LATE"
    """It was done there, later than promised."""
    FAILED = "FAILED"
    """It failed there, which says nothing of where it belonged."""


class Weighed(NamedTuple):
    """
    What a candidate had when it was decided.

    Attributes:
        rest: Its score without these factors.
        factors: Those whose weights are learned, with how much it had of each.
    """

    project: str
    rest: float
    factors: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Lesson:
    """
    What one decision's outcome, or feedback on it, teaches.

    Attributes:
        position: Its place in the one order in which everybody learns, from 1.
        instance: Who had decided.
        description: Its beginning.
        project: Whom the truth is about; "" with NONE.
        source: Who says so: an author of feedback, a worker, `anonymous` or `router`.
        weight: How much it counts, 0 to 1; feedback counts 1.
        sent_to: Where the decision sent the task; "": nowhere.
        candidates: What the decision weighed, where there is something to learn of it.
    """

    position: int
    instance: str
    decision: str
    title: str
    description: str
    tags: tuple[str, ...]
    truth: Truth
    project: str
    source: str
    weight: float
    create_time: datetime
    sent_to: str = ""
    candidates: tuple[Weighed, ...] = ()
