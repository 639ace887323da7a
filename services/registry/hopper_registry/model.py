"""
The nouns of the registry, and the rules that hold for them whoever asks.

What the caller says about a resource is its *spec*; the registry adds the rest (state, revision, times). Two
tables hold the rules of the hierarchy, and everything else reads them:

- `LIFECYCLE`: (state, verb) -> state. A pair that is not in it is an illegal move; `move` raises and leaves
  the instance as it was.
- `SCOPE_PARENTS`: which scopes may stand under which. A parent is given at creation and never changes, and
  has to exist by then, so the tree cannot close to a ring.

A *revision* counts the changes of a resource, and its etag is a hash of that. Heartbeats change the presence
of a project, not its revision.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from hashlib import blake2b
from typing import Final, TypeVar

from hopper_common import working_hours
from hopper_common.auth.model import TrustLevel
from hopper_common.errors import EtagMismatch, FieldViolation, InvalidArgument
from hopper_common.working_hours import WorkingHours
from hopper_registry.errors import InstanceParentInvalid, InstanceWrongState

ROOT = "instances/global"
ARCHIVE_LIMIT = 100
TREE_LIMIT = 10_000
DEFAULT_TIME_TO_LIVE = timedelta(seconds=30)
DEFAULT_PERIOD = timedelta(seconds=1)


def etag_of(name: str, create_time: datetime, revision: int) -> str:
    """
    A word that is different for every revision of a resource, and of an earlier one that had its name.

    16 hexadecimal digits.
    """
    return blake2b(f"{name}\n{create_time.isoformat()}\n{revision}".encode(), digest_size=8).hexdigest()


# Projects and workers.


class ProjectState(StrEnum):
    """Whether new tasks may be routed to a project."""

    ACTIVE = "ACTIVE"
    PAUSED = "PAUSED"


class ExecutorType(StrEnum):
    """Who carries tasks out."""

    WORKERS = "WORKERS"
    AGENT = "AGENT"
    PERSON = "PERSON"
    PEER = "PEER"


@dataclass(frozen=True, slots=True)
class RateLimit:
    """So many in a period."""

    count: int
    period: timedelta = DEFAULT_PERIOD


@dataclass(frozen=True, slots=True)
class Capacity:
    """How much a project can hold, do at once, and start in a period; 0 and None are no limit."""

    max_running: int = 0
    max_open: int = 0
    max_running_per_key: int = 0
    start_rate: RateLimit | None = None
    start_rate_per_key: RateLimit | None = None


@dataclass(frozen=True, slots=True)
class Executor:
    """
    Who carries tasks out, and how.

    Attributes:
        config: A serialized `google.protobuf.Struct`, which the registry keeps and does not read.
    """

    type: ExecutorType = ExecutorType.WORKERS
    config: bytes = field(default=b"", repr=False)
    requires_live_worker: bool = False


@dataclass(frozen=True, slots=True)
class Border:
    """
    What may leave for a peer.

    Attributes:
        peer: Its install id.
        policy: Its owner's policy, which routing reads; the registry does not.
        level: The number of a `TrustLevel`.
    """

    peer: str
    policy: str
    level: int


@dataclass(frozen=True, slots=True)
class ProjectSpec:
    """What a project's owner says about it. Units and limits: project.proto."""

    display_name: str = ""
    description: str = ""
    capabilities: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    examples: tuple[str, ...] = ()
    velocity_per_day: float = 0.0
    sla: timedelta | None = None
    capacity: Capacity = Capacity()
    cost_per_task: float = 0.0
    executor: Executor = Executor()
    priority_boosts: Mapping[str, float] = field(default_factory=dict)
    state: ProjectState = ProjectState.ACTIVE
    working_hours: WorkingHours | None = None
    border: Border | None = None


@dataclass(frozen=True, slots=True)
class Presence:
    """A project's live workers, in sums."""

    live_workers: int = 0
    slots: int = 0
    running: int = 0


@dataclass(frozen=True, slots=True)
class Project:
    """A registered executor of tasks. `name` is `projects/{id}`; `revision` counts from 1."""

    name: str
    spec: ProjectSpec
    revision: int
    create_time: datetime
    update_time: datetime
    presence: Presence = Presence()

    @property
    def etag(self) -> str:
        """See `etag_of`."""
        return etag_of(self.name, self.create_time, self.revision)

    def updated(self, spec: ProjectSpec, now: datetime) -> "Project":
        """
        The project with another spec; itself if it is the same one.

        Raises:
            InvalidArgument: See `check_border`, and `check_hours`; that only of hours that are new, since time zones
                come and go.
        """
        spec = with_display_name(spec, self.name)
        if spec == self.spec:
            return self
        if spec.working_hours != self.spec.working_hours:
            check_hours(spec)
        check_border(spec)
        return replace(self, spec=spec, revision=self.revision + 1, update_time=now)


@dataclass(frozen=True, slots=True)
class Worker:
    """
    A live process or person that claims tasks for a project.

    Attributes:
        name: `projects/{id}/workers/{worker}`.
        live: False once its time to live has run out.
    """

    name: str
    slots: int = 1
    running: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    time_to_live: timedelta = DEFAULT_TIME_TO_LIVE
    last_heartbeat_time: datetime | None = None
    live: bool = True

    @property
    def project(self) -> str:
        """The name of the project it works for."""
        return self.name.rsplit("/", 2)[0]

    @property
    def next_heartbeat(self) -> timedelta:
        """How long it may wait before its next sign of life, so that two may get lost."""
        return self.time_to_live / 3


# Instances.


class Scope(StrEnum):
    """What kind of node an instance is."""

    GLOBAL = "GLOBAL"
    PROJECT = "PROJECT"
    ORCHESTRATION = "ORCHESTRATION"
    PERSONAL = "PERSONAL"
    FAMILY = "FAMILY"
    EVENT = "EVENT"
    FEDERATED = "FEDERATED"


SCOPE_PARENTS: Mapping[Scope, frozenset[Scope]] = {
    Scope.GLOBAL: frozenset(),
    Scope.PROJECT: frozenset({Scope.GLOBAL}),
    Scope.ORCHESTRATION: frozenset({Scope.PROJECT, Scope.EVENT}),
    Scope.PERSONAL: frozenset({Scope.GLOBAL, Scope.FAMILY}),
    Scope.FAMILY: frozenset({Scope.GLOBAL}),
    Scope.EVENT: frozenset({Scope.GLOBAL, Scope.PROJECT, Scope.PERSONAL, Scope.FAMILY}),
    Scope.FEDERATED: frozenset({Scope.GLOBAL}),
}

# Who may stand for a project; PROJECT must.
SCOPES_WITH_PROJECT = frozenset({Scope.PROJECT, Scope.PERSONAL, Scope.FAMILY, Scope.EVENT, Scope.FEDERATED})


class State(StrEnum):
    """Where an instance is in its life."""

    CREATED = "CREATED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    ERROR = "ERROR"
    TERMINATED = "TERMINATED"


class Verb(StrEnum):
    """What moves an instance. The names are sent as `verb` in errors."""

    START = "START"
    RUN = "RUN"  # it is up
    PAUSE = "PAUSE"
    RESUME = "RESUME"
    STOP = "STOP"
    FINISH = "FINISH"  # no task runs there any more
    TERMINATE = "TERMINATE"
    FAIL = "FAIL"


LIFECYCLE: Mapping[tuple[State, Verb], State] = {
    (State.CREATED, Verb.START): State.STARTING,
    (State.STOPPED, Verb.START): State.STARTING,
    (State.ERROR, Verb.START): State.STARTING,
    (State.STARTING, Verb.RUN): State.RUNNING,
    (State.RUNNING, Verb.PAUSE): State.PAUSED,
    (State.PAUSED, Verb.RESUME): State.RUNNING,
    (State.RUNNING, Verb.STOP): State.STOPPING,
    (State.PAUSED, Verb.STOP): State.STOPPING,
    (State.STARTING, Verb.STOP): State.STOPPING,
    (State.ERROR, Verb.STOP): State.STOPPING,
    (State.STOPPING, Verb.FINISH): State.STOPPED,
    (State.CREATED, Verb.TERMINATE): State.TERMINATED,
    (State.STOPPED, Verb.TERMINATE): State.TERMINATED,
    (State.ERROR, Verb.TERMINATE): State.TERMINATED,
    (State.STARTING, Verb.FAIL): State.ERROR,
    (State.RUNNING, Verb.FAIL): State.ERROR,
    (State.PAUSED, Verb.FAIL): State.ERROR,
    (State.STOPPING, Verb.FAIL): State.ERROR,
}

# What the root is exempt from: without it there is no place for a task to arrive.
ROOT_REFUSES = frozenset({Verb.STOP, Verb.TERMINATE})


@dataclass(frozen=True, slots=True)
class InstanceConfig:
    """Settings of an instance; which of them matter depends on its scope. None: the contract's default."""

    max_workers: int = 0
    complex_effort: timedelta | None = None
    members: tuple[str, ...] = ()
    event_time: datetime | None = None
    manual_accept: bool = False
    offer_timeout: timedelta | None = None
    peer: str = ""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """How a run of an ORCHESTRATION went."""

    instance: str
    succeeded: int = 0
    failed: int = 0
    returned: int = 0
    start_time: datetime | None = None
    end_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class InstanceSpec:
    """What an admin says about an instance. `parent` and `scope` never change."""

    scope: Scope
    parent: str = ""
    display_name: str = ""
    project: str = ""
    config: InstanceConfig = InstanceConfig()


@dataclass(frozen=True, slots=True)
class Instance:
    """A node of the hierarchy. `name` is `instances/{id}`; `archive` is newest first."""

    name: str
    spec: InstanceSpec
    revision: int
    create_time: datetime
    update_time: datetime
    state: State = State.CREATED
    state_reason: str = ""
    archive: tuple[RunSummary, ...] = ()

    @property
    def etag(self) -> str:
        """See `etag_of`."""
        return etag_of(self.name, self.create_time, self.revision)

    def updated(self, spec: InstanceSpec, now: datetime) -> "Instance":
        """
        The instance with another spec; itself if it is the same one.

        Raises:
            InvalidArgument: See `check_spec`.
        """
        spec = with_display_name(spec, self.name)
        if spec == self.spec:
            return self
        check_spec(spec)
        return replace(self, spec=spec, revision=self.revision + 1, update_time=now)

    def moved(self, verb: Verb, now: datetime, reason: str = "") -> "Instance":
        """
        The instance after *verb*.

        Args:
            reason: Why, for those who wait; replaces the former one.

        Raises:
            InstanceWrongState: Not in this state, or not the root.
        """
        if self.name == ROOT and verb in ROOT_REFUSES:
            raise InstanceWrongState(
                f"{ROOT} is the root and cannot be stopped or terminated: pause it to hold tasks back",
                **self._move(verb),
            )
        state = LIFECYCLE.get((self.state, verb))
        if state is None:
            raise InstanceWrongState(
                f"{self.name} is {self.state}, and {verb} is allowed only from {_states(verb)}",
                **self._move(verb),
            )
        return replace(self, state=state, state_reason=reason, revision=self.revision + 1, update_time=now)

    def archived(self, run: RunSummary, now: datetime) -> "Instance":
        """The instance with a child's run on top of its archive; the oldest falls off at `ARCHIVE_LIMIT`."""
        archive = (run, *self.archive)[:ARCHIVE_LIMIT]
        return replace(self, archive=archive, revision=self.revision + 1, update_time=now)

    def can(self, verb: Verb) -> bool:
        """Whether its state allows *verb*."""
        return (self.state, verb) in LIFECYCLE

    def _move(self, verb: Verb) -> dict[str, str]:
        return {"instance": self.name, "state": self.state, "verb": verb}


def _states(verb: Verb) -> str:
    return ", ".join(state for state, allowed in LIFECYCLE if allowed is verb)


# What holds for any of them.


_Spec = TypeVar("_Spec", ProjectSpec, InstanceSpec)


def with_display_name(spec: _Spec, name: str) -> _Spec:
    """The spec with a name for people: the id, if they gave none."""
    return spec if spec.display_name else replace(spec, display_name=name.rsplit("/", 1)[-1])


def check_etag(resource: Project | Instance, etag: str) -> None:
    """
    Refuse a change by somebody who has not seen the resource as it is.

    Args:
        etag: What the caller has seen; empty if it does not matter.

    Raises:
        EtagMismatch: With the etag of now.
    """
    if etag and etag != resource.etag:
        raise EtagMismatch(resource=resource.name, etag=resource.etag)


def check_hours(spec: ProjectSpec) -> None:
    """
    Check when a project works.

    Raises:
        InvalidArgument: Every violation, with its path in a request that has the field `project`.
    """
    hours = spec.working_hours
    if hours is None:
        return
    if violations := list(working_hours.violations(hours, "project.working_hours")):
        raise InvalidArgument(violations=violations)


def check_border(spec: ProjectSpec) -> None:
    """
    Check what a peer's project says of its border, as far as the registry reads that.

    Raises:
        InvalidArgument: Every violation, with its path in a request that has the field `project`.
    """
    if violations := list(_violations_of_border(spec)):
        raise InvalidArgument(violations=violations)


def _violations_of_border(spec: ProjectSpec) -> Iterator[FieldViolation]:
    if spec.border is None:
        return
    if not spec.border.peer:
        yield FieldViolation("project.border.peer", "is required")
    if spec.border.level not in _LEVELS:
        yield FieldViolation("project.border.level", "is required")
    if spec.executor.type is not ExecutorType.PEER:
        yield FieldViolation("project.executor.type", "must be PEER where there is a border")


_LEVELS: Final = frozenset(level.value for level in TrustLevel)


def check_spec(spec: InstanceSpec) -> None:
    """
    Check an instance's spec as far as that goes without looking at other instances.

    Raises:
        InvalidArgument: Every violation, with its path in a request that has the field `instance`.
    """
    if violations := list(_violations(spec)):
        raise InvalidArgument(violations=violations)


def _violations(spec: InstanceSpec) -> Iterator[FieldViolation]:
    scope, members = spec.scope, len(spec.config.members)
    if scope is not Scope.GLOBAL and not spec.parent:
        yield FieldViolation("instance.parent", "is required; instances/global is the top of the tree")
    if scope is Scope.PROJECT and not spec.project:
        yield FieldViolation("instance.project", "is required for the scope PROJECT")
    if spec.project and scope not in SCOPES_WITH_PROJECT:
        yield FieldViolation("instance.project", f"is not for the scope {scope}: leave it out")
    if scope is Scope.PERSONAL and members != 1:
        yield FieldViolation(
            "instance.config.members", f"must name the one person of the scope PERSONAL, has {members}"
        )
    if scope is Scope.FAMILY and not members:
        yield FieldViolation("instance.config.members", "must name at least one member for the scope FAMILY")


def check_parent_scope(scope: Scope, parent_scope: Scope | None) -> None:
    """
    Refuse a scope under a parent that is not in `SCOPE_PARENTS` for it.

    Args:
        parent_scope: None at the top of the tree, where nothing can be added.

    Raises:
        InstanceParentInvalid: With the scopes that would do.
    """
    allowed = SCOPE_PARENTS[scope]
    if parent_scope in allowed:
        return
    remedy = f"choose a parent of scope {', '.join(sorted(allowed))}" if allowed else f"the root is {ROOT}"
    raise InstanceParentInvalid(
        f"an instance of scope {scope} cannot stand under {parent_scope or 'nothing'}: {remedy}",
        scope=scope,
        parent_scope=parent_scope or "",
        allowed=", ".join(sorted(allowed)),
    )
