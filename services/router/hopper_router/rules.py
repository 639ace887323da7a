"""
The policy of an instance, as values: conditions, rules, weights, and which rules fire for a task.

How a policy is written, and what each part of it means, is in `policy_yaml`.

Cost. A policy is compiled when it is made: for every rule the smallest set of keywords, tags and capabilities of
which one must be there for it to fire, and from each of these to the rules that hang on it. A task evaluates the rules
that its words lead to, and the few that nothing can be said of in advance (`not`, bare `priority`): what matches is
paid for, not what exists. Rules that ask for one of some words and nothing else are not even evaluated: the word leads
to them, and they fire.
"""

from __future__ import annotations

import copy
import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hopper_router.cascade import Stage
from hopper_router.words import Text

BoolArray = NDArray[np.bool_]

MAX_NESTING: Final = 20
"""How deep conditions may be nested."""


class OnUnsure(enum.Enum):
    """What to do with a task when nobody is sure enough."""

    ROUTE = "route"
    ASK = "ask"
    REJECT = "reject"


class OnDuplicate(enum.Enum):
    """What to do with a task that looks like the same work as an open one."""

    OFF = "off"
    WARN = "warn"
    LINK = "link"
    REFUSE = "refuse"


class Place(NamedTuple):
    """Where something stands in the YAML, from 1; 0: it was not written there."""

    line: int = 0
    column: int = 0


# ---------------------------------------------------------------- conditions


@dataclass(frozen=True, slots=True)
class Facts:
    """What conditions ask about: which of the policy's keywords, tags and capabilities a task has, its priority."""

    atoms: frozenset[str]
    priority: int


class Kind(enum.Enum):
    """What a task can have."""

    KEYWORD = "keyword"
    TAG = "tag"
    CAPABILITY = "capability"


@dataclass(frozen=True, slots=True)
class Has:
    """The task has one of `values`; keywords are words joined by one space, tags are case-folded."""

    kind: Kind
    values: tuple[str, ...]
    atoms: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "atoms", frozenset(_atom(self.kind, value) for value in self.values))

    def holds(self, facts: Facts) -> bool:
        """Whether the task has one of them."""
        return not self.atoms.isdisjoint(facts.atoms)


@dataclass(frozen=True, slots=True)
class PriorityRange:
    """The task's priority lies between two bounds, both included."""

    at_least: int = 0
    at_most: int = 100

    def holds(self, facts: Facts) -> bool:
        """Whether it does."""
        return self.at_least <= facts.priority <= self.at_most


@dataclass(frozen=True, slots=True)
class AllOf:
    """Every part holds."""

    parts: tuple[Condition, ...]

    def holds(self, facts: Facts) -> bool:
        """Whether every one does."""
        for part in self.parts:  # noqa: SIM110 -- a generator costs more than the parts
            if not part.holds(facts):
                return False
        return True


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one part holds."""

    parts: tuple[Condition, ...]

    def holds(self, facts: Facts) -> bool:
        """Whether one does."""
        for part in self.parts:  # noqa: SIM110 -- as above
            if part.holds(facts):
                return True
        return False


@dataclass(frozen=True, slots=True)
class Not:
    """The part does not hold."""

    part: Condition

    def holds(self, facts: Facts) -> bool:
        """Whether it does not."""
        return not self.part.holds(facts)


Condition = Has | PriorityRange | AllOf | AnyOf | Not


def _atom(kind: Kind, value: str) -> str:
    return f"{kind.value} {value}"


# ---------------------------------------------------------------- the policy


@dataclass(frozen=True, slots=True)
class Rule:
    """When its condition holds, `weight` is added to the `rules` factor of `project` (`projects/{id}`)."""

    name: str
    when: Condition
    project: str
    weight: float = 1.0
    priority: int = 0
    enabled: bool = True
    place: Place = field(default=Place(), compare=False, repr=False)
    project_place: Place = field(default=Place(), compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Weights:
    """What each factor counts, in the order in which decisions list them."""

    rules: float = 1.0
    tags: float = 0.6
    capability: float = 0.3
    text: float = 0.5
    workload: float = 0.15
    velocity: float = 0.05
    cost: float = 0.05
    sla: float = 0.05
    boost: float = 1.0
    deadline: float = 0.9
    hours: float = 0.9


FACTORS: Final = tuple(factor.name for factor in fields(Weights))


@dataclass(frozen=True, slots=True)
class Policy:
    """
    How an instance decides. `default_project` is a name, or empty.

    Attributes:
        stages: Who is asked, one after the other; none: `strategy` decides alone. See `cascade`.
        wait: How long who submits a task waits for advice about it.
        answer_within: How long a question where a task goes waits for its answer. None: for ever.
        if_unanswered: What becomes of the task then, if nobody else is to be asked.
        shadow: A policy that decides about the same tasks, and never acts.
    """

    strategy: str = "rules"
    threshold: float = 0.0
    on_unsure: OnUnsure = OnUnsure.ROUTE
    default_project: str = ""
    weights: Weights = Weights()
    rules: tuple[Rule, ...] = ()
    duplicates: OnDuplicate = OnDuplicate.OFF
    duplicates_above: float = 0.8
    stages: tuple[Stage, ...] = ()
    wait: timedelta = timedelta(0)
    answer_within: timedelta | None = None
    if_unanswered: OnUnsure = OnUnsure.ROUTE
    shadow: Policy | None = None
    default_place: Place = field(default=Place(), compare=False, repr=False)
    _index: _RuleIndex = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_index", _RuleIndex.of(self.rules))

    def weighing(self, weights: Weights) -> Policy:
        """The same with other weights; cheap, however many rules there are."""
        other = copy.copy(self)
        object.__setattr__(other, "weights", weights)
        return other

    @property
    def judges(self) -> tuple[str, ...]:
        """The strategies that it judges by in memory, those asked first coming first."""
        if not self.stages:
            return (self.strategy,)
        return tuple(stage.use.value for stage in self.stages if stage.use.local)

    def fired(
        self, text: Text, *, tags: Iterable[str], capabilities: Iterable[str], priority: int
    ) -> list[Rule]:
        """The enabled rules whose condition holds for such a task, in the order of the policy."""
        firing = self.firing(text, tags=tags, capabilities=capabilities, priority=priority)
        return [] if firing is None else [self.rules[i] for i in firing.nonzero()[0].tolist()]

    def firing(
        self, text: Text, *, tags: Iterable[str], capabilities: Iterable[str], priority: int
    ) -> BoolArray | None:
        """The same as a mask over the rules, the caller's own; None: not one of them."""
        index = self._index
        firing = index.simple(text)
        if index.conditional:
            facts = Facts(index.atoms(text, tags, capabilities), priority)
            held = [i for i in index.awake(facts.atoms) if self.rules[i].when.holds(facts)]
            if held:
                firing = np.zeros(len(self.rules), dtype=np.bool_) if firing is None else firing
                firing[held] = True
        return firing


@dataclass(frozen=True, slots=True)
class _RuleIndex:
    """
    From what a task has to the rules worth evaluating.

    Most rules ask for one of some words and for nothing else: `by_word` leads from a word straight to those that fire
    with it, as the bytes of an array of their numbers; `words` are all there are.

    For all others, `anchors` leads from one word of each keyword to the atoms of all keywords it is the anchor of, each
    with what else to look for in the spelled text: the phrase, or nothing for a single word. `rules_of` leads from an
    atom to the rules that cannot fire without it or one of its siblings; `always` has the rules of which nothing is
    necessary.
    """

    size: int
    by_word: Mapping[str, bytes]
    words: frozenset[str]
    anchors: Mapping[str, tuple[tuple[str, str], ...]]
    anchor_words: frozenset[str]
    known: frozenset[str]
    rules_of: Mapping[str, tuple[int, ...]]
    always: tuple[int, ...]

    @classmethod
    def of(cls, rules: Sequence[Rule]) -> _RuleIndex:
        by_word: dict[str, list[int]] = {}
        anchors: dict[str, set[tuple[str, str]]] = {}
        rules_of: dict[str, list[int]] = {}
        always: list[int] = []
        known: set[str] = set()
        for i, rule in enumerate(rules):
            if not rule.enabled:
                continue
            words = _only_words(rule.when)
            if words is not None:
                for word in words:
                    by_word.setdefault(word, []).append(i)
                continue
            for leaf in _leaves(rule.when):
                known |= leaf.atoms
                for phrase in leaf.values if leaf.kind is Kind.KEYWORD else ():
                    # The longest word is the rarest, more often than not.
                    anchor = max(phrase.split(), key=len)
                    rest = "" if phrase == anchor else f" {phrase} "
                    anchors.setdefault(anchor, set()).add((rest, _atom(leaf.kind, phrase)))
            necessary = _necessary(rule.when)
            if necessary is None:
                always.append(i)
            for atom in necessary or ():
                rules_of.setdefault(atom, []).append(i)
        return cls(
            size=len(rules),
            by_word={word: np.array(found, dtype=np.intp).tobytes() for word, found in by_word.items()},
            words=frozenset(by_word),
            anchors={word: tuple(sorted(phrases)) for word, phrases in anchors.items()},
            anchor_words=frozenset(anchors),
            known=frozenset(known),
            rules_of={atom: tuple(indexes) for atom, indexes in rules_of.items()},
            always=tuple(always),
        )

    @property
    def conditional(self) -> bool:
        """Whether there are rules that take more than a word."""
        return bool(self.rules_of or self.always)

    def simple(self, text: Text) -> BoolArray | None:
        """A mask over all rules, with those that a word of the text is enough for; None: there is no such word."""
        found = text.among(self.words) if self.words else None
        if not found:
            return None
        firing = np.zeros(self.size, dtype=np.bool_)
        firing[np.frombuffer(b"".join(map(self.by_word.__getitem__, found)), dtype=np.intp)] = True
        return firing

    def atoms(self, text: Text, tags: Iterable[str], capabilities: Iterable[str]) -> frozenset[str]:
        """What of all that the rules ask for the task has."""
        found = [_atom(Kind.TAG, tag.casefold()) for tag in tags]
        found += [_atom(Kind.CAPABILITY, capability) for capability in capabilities]
        spelled = ""
        for word in text.among(self.anchor_words):
            for phrase, atom in self.anchors[word]:
                if phrase and not spelled:
                    spelled = text.spelled()
                if phrase in spelled:
                    found.append(atom)
        return self.known.intersection(found)

    def awake(self, atoms: Iterable[str]) -> list[int]:
        """The conditional rules that may fire, in order."""
        awake = set(self.always)
        for atom in atoms:
            awake.update(self.rules_of.get(atom, ()))
        return sorted(awake)


def _only_words(condition: Condition) -> frozenset[str] | None:
    """The single words of which any one is all that *condition* asks for; None: it asks for something else."""
    match condition:
        case Has(Kind.KEYWORD, values) if not any(" " in value for value in values):
            return frozenset(values)
        case AnyOf(parts):
            each = [_only_words(part) for part in parts]
            return frozenset().union(*(words or () for words in each)) if None not in each else None
        case _:
            return None


def _leaves(condition: Condition) -> Iterator[Has]:
    match condition:
        case Has():
            yield condition
        case AllOf(parts) | AnyOf(parts):
            for part in parts:
                yield from _leaves(part)
        case Not(part):
            yield from _leaves(part)
        case PriorityRange():
            pass


def _necessary(condition: Condition) -> frozenset[str] | None:
    """Atoms of which the task must have at least one for *condition* to hold; None: none can be named."""
    match condition:
        case Has():
            return condition.atoms
        case AllOf(parts):
            return min(filter(None, map(_necessary, parts)), key=len, default=None)
        case AnyOf(parts):
            each = [_necessary(part) for part in parts]
            return frozenset().union(*(atoms or () for atoms in each)) if None not in each else None
        case _:
            return None
