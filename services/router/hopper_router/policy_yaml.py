"""
The policy of an instance as its author writes it: YAML, read into the values of `rules`, every error with its place.

The whole form, with the defaults (every key is optional but those of a rule)::

    strategy: rules              # how to decide: rules | learned (from outcomes and feedback; rules stay in front) |
                                 # hybrid (by `stages`) | llm | sage (asked about every task; else as learned)
    threshold: 0.0               # least confidence to route without asking, 0 to 1
    on_unsure: route             # below the threshold: route | ask | reject
    duplicates: off              # a task that looks like the same work as an open one of its instance:
                                 # off | warn (says so) | link (labels it duplicate-of, too) | refuse
    duplicates_above: 0.8        # how alike, 0.5 to 1: see `duplicates`; 1 is the same words
    default_project: inbox       # where tasks go when nothing speaks for anybody; default: nowhere special
    weights:                     # what each factor counts, 0 to 10; those left out keep these defaults
      {rules: 1.0, tags: 0.6, capability: 0.3, text: 0.5, workload: 0.15,
       velocity: 0.05, cost: 0.05, sla: 0.05, boost: 1.0, deadline: 0.9, hours: 0.9}
                                 # Where what was learned decides, those that are not said, or said as here, are
                                 # learned too, but for rules, which stand in front: three times what they say
    rules:                       # at most 10,000
      - name: payments           # required, unique: decisions cite it
        when:                    # required: one condition
          all:
            - keyword: [invoice, refund, "credit card"]
            - any: [{tag: billing}, {capability: payments}]
            - not: {keyword: test}
            - priority: {at_least: 70}
        then: {project: payments, weight: 2.0}   # weight -10 to 10, default 1; below 0 speaks against it
        priority: 10             # default 0
        enabled: true            # default

A shadow decides about the same tasks beside the policy, and never acts; `hopper policy shadow` compares the two::

    shadow:                      # what it does not say is as in the policy itself
      strategy: learned          # rules | learned; and threshold, on_unsure, default_project, weights, rules

With `hybrid`, `llm` and `sage`, these say who is asked, one after the other, until one is sure enough::

    wait: 0s                     # how long SubmitTask waits for advice, so that its answer has the project; to 30s
    answer_within: 4h            # how long people have to answer where a task goes; 1s to 90d; default: for ever
    if_unanswered: route         # what becomes of it then: route (the best of what was said) | reject; default:
                                 # reject where on_unsure says so, else route
    stages:                      # each at most once; who judges at once comes first, a person last
      - {use: rules, threshold: 0.8}
      - {use: learned, threshold: 0.8}           # least confidence for its word to count, 0 to 1
      - use: llm
        threshold: 0.5
        deadline: 5s             # for its answer; 10ms to 10m
        calls_per_day: 500       # default: no limit; a day is one of UTC
        money_per_day: 2.50      # default: no limit; in the currency of HOPPER_LLM_PRICE_IN and _OUT
        suggest: [tags, effort]  # default: nothing. A task that has none gets them; with subtasks,
                                 # `hopper decompose --propose` may ask for parts
      - use: sage
        address: "unix:/run/sage.sock"           # default: HOPPER_SAGE_ADDRESS
        threshold: 0.5
        deadline: 5s
        calls_per_day: 500
        prioritize: false        # true: it orders what waits in the instance, within a priority and a requester's turn
      - {use: person, desk: instances/ann}       # whose question it is; default: anybody's

A task that nobody who judges at once is sure of is taken in, waits, and is placed when somebody is. Who is down, too
slow, out of budget, or answers what cannot be used is passed over. If nobody is sure enough in the end, the best of
what was said stands, and `on_unsure` says what becomes of it. Budgets are those of the policy, for all instances that
decide by it. `strategy: llm` alone is one stage, `{use: llm}`, and `sage` one `{use: sage}`; `hybrid` needs its stages.

Conditions:

========== ========================== ==================================================================
key        value                      holds when
========== ========================== ==================================================================
keyword    a word or phrase, or list  the title or description has one of them: whole words, any case
tag        a tag, or list             the task carries one of them, any case
capability a capability, or list      the task requires one of them, exactly
priority   {at_least: n, at_most: n}  the task's priority, 0 to 100, lies there; either bound may be left out
all        list of conditions         every one holds
any        list of conditions         at least one holds
not        a condition                it does not hold
========== ========================== ==================================================================

Several keys in one condition mean `all` of them. Conditions nest at most 20 deep. `project` is an id, or a name
`projects/{id}`.

What fired rules do: of those that fired for a project that can take the task, only the ones of the greatest
`priority` count; each adds its weight to its project's `rules` factor.

The YAML is composed, never constructed, so that every error has its place and no tag can run anything; anchors and
aliases are refused, because a page of them can stand for terabytes.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import yaml

from hopper_common.errors import FieldViolation, PolicyInvalid
from hopper_router.cascade import Stage, Suggestion, Use
from hopper_router.rules import (
    FACTORS,
    MAX_NESTING,
    AllOf,
    AnyOf,
    Condition,
    Has,
    Kind,
    Not,
    OnDuplicate,
    OnUnsure,
    Place,
    Policy,
    PriorityRange,
    Rule,
    Weights,
)
from hopper_router.words import tokens

MAX_RULES: Final = 10_000
MAX_PROBLEMS: Final = 100
MAX_NAME: Final = 100
STRATEGIES: Final = ("rules", "learned", "hybrid", "llm", "sage")
MOST_WAIT: Final = timedelta(seconds=30)
MOST_CALLS: Final = 1_000_000_000
MOST_MONEY: Final = 1_000_000
_MAX_YAML_NESTING: Final = 3 * MAX_NESTING + 20
_PROJECT: Final = re.compile(r"(?:projects/)?([a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?)")
_FORBIDDEN: Final = re.compile("[^\t\n\r -~\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class PolicyProblem(NamedTuple):
    """Something wrong in a policy: where (from 1), the path to it, and what would be right."""

    line: int
    column: int
    path: str
    message: str


# ---------------------------------------------------------------- reading


def load_policy(source: str) -> Policy:
    """
    The policy that *source* stands for.

    Raises:
        PolicyInvalid: With every error, at most 100, each with its path, line and column.
    """
    policy, errors, _ = check_policy(source)
    if policy is None:
        raise PolicyInvalid.of(
            [
                FieldViolation(error.path, f"line {error.line}, column {error.column}: {error.message}")
                for error in errors
            ]
        )
    return policy


def check_policy(
    source: str,
) -> tuple[Policy | None, tuple[PolicyProblem, ...], tuple[PolicyProblem, ...]]:
    """
    Read *source* and say everything that is wrong with it.

    Returns:
        The policy, None if it does not load; the errors; the warnings: what would load but is surely not meant. At
        most 100 of each.
    """
    forbidden = _forbidden_character(source)
    if forbidden is not None:
        return None, (forbidden,), ()
    reader = _Reader()
    policy = None
    try:
        _refuse_machinery(source, reader)
        if not reader.errors:
            policy = reader.policy(yaml.compose(source, Loader=_LOADER))
    except yaml.YAMLError as error:
        reader.errors.append(_syntax_problem(error))
    if policy is None or reader.errors:
        return None, tuple(sorted(reader.errors)[:MAX_PROBLEMS]), ()
    return policy, (), tuple(_suspicious(policy))[:MAX_PROBLEMS]


def unknown_projects(policy: Policy, known: Collection[str]) -> tuple[PolicyProblem, ...]:
    """Warnings for the projects that *policy* names and that are not among *known* (names, `projects/{id}`)."""
    named = [("default_project", policy.default_project, policy.default_place)]
    named += [
        (f"rules[{i}].then.project", rule.project, rule.project_place) for i, rule in enumerate(policy.rules)
    ]
    return tuple(
        PolicyProblem(*place, path, f"{project} is not registered: register it, or correct the id")
        for path, project, place in named
        if project and project not in known
    )[:MAX_PROBLEMS]


def _refuse_machinery(source: str, reader: _Reader) -> None:
    """Refuse what must not be composed: composing resolves aliases and recurses."""
    depth = documents = 0
    for event in yaml.parse(source, Loader=_LOADER):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            reader.wrong(event, "", "anchors (&) and aliases (*) are not allowed: write it out")
        tag = getattr(event, "tag", None)
        if tag is not None:
            reader.wrong(event, "", f"YAML tags ({tag}) are not allowed: leave it out")
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                reader.wrong(event, "", "a policy is one YAML document: remove what follows `---`")
                return
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_YAML_NESTING:
            reader.wrong(event, "", f"nested too deep: conditions may nest at most {MAX_NESTING} deep")
            return


def _syntax_problem(error: yaml.YAMLError) -> PolicyProblem:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        what = ", ".join(part for part in (error.context, error.problem) if part)
        return PolicyProblem(
            error.problem_mark.line + 1, error.problem_mark.column + 1, "", f"not YAML: {what}"
        )
    return PolicyProblem(1, 1, "", f"not YAML: {error}")


def _forbidden_character(source: str) -> PolicyProblem | None:
    found = _FORBIDDEN.search(source)
    if found is None:
        return None
    before = source[: found.start()]
    place = Place(before.count("\n") + 1, len(before) - before.rfind("\n"))
    return PolicyProblem(*place, "", f"the character U+{ord(found[0]):04X} is not allowed in YAML: remove it")


class _Reader:
    """Turns nodes into values; what cannot be turned is noted, and reading goes on."""

    def __init__(self) -> None:
        self.errors: list[PolicyProblem] = []

    def wrong(self, at: yaml.Node | yaml.Event, path: str, message: str) -> None:
        self.errors.append(PolicyProblem(*_place(at), path, message))

    # -- the parts of a policy

    def policy(self, node: yaml.Node | None) -> Policy | None:
        if node is None or node.tag == "tag:yaml.org,2002:null":
            self.errors.append(PolicyProblem(1, 1, "", "the policy is empty: the least is `strategy: rules`"))
            return None
        given = self.mapping(node, "", _POLICY_KEYS)
        policy: dict[str, Any] = {key: _POLICY_KEYS[key](self, value, key) for key, value in given.items()}
        self.cascade(node, given, policy)
        if self.errors:
            return None
        place = _place(given["default_project"]) if "default_project" in given else Place()
        shadow = policy.pop("shadow", None)
        made = Policy(**policy, default_place=place)
        return made if shadow is None else replace(made, shadow=_shadowed(made, shadow))

    def shadow(self, node: yaml.Node, path: str) -> dict[str, Any]:
        given = self.mapping(node, path, tuple(_SHADOW_KEYS))
        return {key: _SHADOW_KEYS[key](self, value, f"{path}.{key}") for key, value in given.items()}

    def shadow_strategy(self, node: yaml.Node, path: str) -> str:
        return self.one_of(node, path, _OF_SHADOWS)

    def weights(self, node: yaml.Node, path: str) -> Weights:
        given = self.mapping(node, path, FACTORS)
        values = {key: self.number(value, f"{path}.{key}", 0, 10) for key, value in given.items()}
        return Weights(**values)

    def rules(self, node: yaml.Node, path: str) -> tuple[Rule, ...]:
        items = self.sequence(node, path, "rules, each with name, when and then")
        if len(items) > MAX_RULES:
            self.wrong(items[MAX_RULES], path, f"{len(items)} rules: at most {MAX_RULES} are allowed")
            return ()
        rules: list[Rule] = []
        names: dict[str, Place] = {}
        for i, item in enumerate(items):
            rule = self.rule(item, f"{path}[{i}]", names)
            if rule is not None:
                rules.append(rule)
        return tuple(rules)

    def rule(self, node: yaml.Node, path: str, names: dict[str, Place]) -> Rule | None:
        given = self.mapping(node, path, ("name", "when", "then", "priority", "enabled"))
        if not isinstance(node, yaml.MappingNode) or not self.require(
            node, path, given, ("name", "when", "then")
        ):
            return None
        name = self.rule_name(given["name"], f"{path}.name", names)
        when = self.condition(given["when"], f"{path}.when", 1)
        effect = self.effect(given["then"], f"{path}.then")
        priority = self.integer(given.get("priority"), f"{path}.priority", -1_000_000, 1_000_000, 0)
        enabled = self.boolean(given.get("enabled"), f"{path}.enabled", default=True)
        if not name or when is None or effect is None:
            return None
        project, weight, place = effect
        return Rule(name, when, project, weight, priority, enabled, _place(given["name"]), place)

    def effect(self, node: yaml.Node, path: str) -> tuple[str, float, Place] | None:
        given = self.mapping(node, path, ("project", "weight"))
        if not isinstance(node, yaml.MappingNode) or not self.require(node, path, given, ("project",)):
            return None
        project = self.project(given["project"], f"{path}.project")
        weight = self.number(given["weight"], f"{path}.weight", -10, 10) if "weight" in given else 1.0
        return (project, weight, _place(given["project"])) if project else None

    # -- stages

    def cascade(self, node: yaml.Node, given: Mapping[str, yaml.Node], policy: dict[str, Any]) -> None:
        """Complete the stages of a policy, and say what of them its strategy does not go with."""
        strategy, stages = policy.get("strategy", STRATEGIES[0]), policy.get("stages")
        if strategy not in _CASCADES:
            for key in given.keys() & {"stages", "wait", "answer_within", "if_unanswered"}:
                message = f"goes with strategy hybrid, llm or sage: with {strategy} nobody else is asked"
                self.wrong(given[key], key, message)
            return
        at = given.get("stages", given.get("strategy", node))
        if stages is None and strategy != "hybrid":
            stages = (Stage(Use(strategy)),)
        if stages is None:
            self.wrong(at, "stages", f"'stages' is missing: {strategy} needs to know whom to ask")
            return
        if strategy != "hybrid" and [stage.use.value for stage in stages] != [strategy]:
            self.wrong(at, "stages", f"with strategy {strategy} there is one stage, {{use: {strategy}, ...}}")
        if not any(stage.use.local for stage in stages):
            # Never sure: somebody has to make the shortlist, and to say where it goes when nobody answers.
            stages = (Stage(Use.LEARNED, threshold=1.0), *stages)
        policy["stages"] = stages
        if policy.get("on_unsure") is OnUnsure.REJECT:
            policy.setdefault("if_unanswered", OnUnsure.REJECT)

    def stages(self, node: yaml.Node, path: str) -> tuple[Stage, ...]:
        items = self.sequence(node, path, "stages, each with use")
        if isinstance(node, yaml.SequenceNode) and not items:
            self.wrong(node, path, "the list is empty: give at least one stage")
        stages: list[Stage] = []
        for i, item in enumerate(items):
            stage = self.stage(item, f"{path}[{i}]")
            if stage is None:
                continue
            if any(other.use is stage.use for other in stages):
                self.wrong(item, f"{path}[{i}].use", f"{stage.use.value} is there already: it is asked once")
            elif stage.use.local and any(not other.use.local for other in stages):
                self.wrong(item, f"{path}[{i}].use", f"{stage.use.value} judges at once: it comes first")
            elif any(other.use is Use.PERSON for other in stages):
                self.wrong(item, f"{path}[{i}].use", "a person comes last")
            stages.append(stage)
        return tuple(stages)

    def stage(self, node: yaml.Node, path: str) -> Stage | None:
        if not isinstance(node, yaml.MappingNode):
            self.wrong(node, path, f"must be a mapping of use, threshold, ..., not {_what(node)}")
            return None
        named = [
            value for key, value in node.value if isinstance(key, yaml.ScalarNode) and key.value == "use"
        ]
        if not named:
            self.wrong(node, f"{path}.use", "'use' is missing")
            return None
        text = self.text(named[0], f"{path}.use")
        known = [use.value for use in Use]
        if text not in known:
            if text is not None:
                message = f"unknown stage {text!r}{_meant(text, known)}: must be {_either(known)}"
                self.wrong(named[0], f"{path}.use", message)
            return None
        use = Use(text)
        given = self.mapping(node, path, ("use", *_STAGE_KEYS[use]))
        fields: dict[str, Any] = {"threshold": _THRESHOLDS[use]}
        for key, value in given.items():
            if key != "use":
                fields[key] = _STAGE_READERS[key](self, value, f"{path}.{key}")
        return Stage(use, **fields)

    def deadline(self, node: yaml.Node, path: str) -> timedelta:
        return self.duration(node, path, timedelta(milliseconds=10), timedelta(minutes=10))

    def wait(self, node: yaml.Node, path: str) -> timedelta:
        return self.duration(node, path, timedelta(0), MOST_WAIT)

    def answer_within(self, node: yaml.Node, path: str) -> timedelta:
        return self.duration(node, path, timedelta(seconds=1), timedelta(days=90))

    def if_unanswered(self, node: yaml.Node, path: str) -> OnUnsure:
        return OnUnsure(self.one_of(node, path, [OnUnsure.ROUTE.value, OnUnsure.REJECT.value]))

    def suggest(self, node: yaml.Node, path: str) -> frozenset[Suggestion]:
        items = self.sequence(node, path, "what it may suggest: tags, effort, subtasks")
        known = [suggestion.value for suggestion in Suggestion]
        return frozenset(Suggestion(self.one_of(item, f"{path}[{i}]", known)) for i, item in enumerate(items))

    def prioritize(self, node: yaml.Node, path: str) -> bool:
        return self.boolean(node, path, default=False)

    def duration(self, node: yaml.Node, path: str, low: timedelta, high: timedelta) -> timedelta:
        found = _DURATION.fullmatch(str(node.value)) if isinstance(node, yaml.ScalarNode) else None
        if found is None:
            self.wrong(node, path, "must be a length of time such as 500ms, 5s, 2m or 4h")
            return low
        value = float(found[1]) * _UNITS[found[2] or "s"]
        if not low <= value <= high:
            lowest, highest = low.total_seconds(), high.total_seconds()
            self.wrong(node, path, f"must be from {lowest:g}s to {highest:g}s, not {node.value}")
            return low
        return value

    def calls(self, node: yaml.Node, path: str) -> int:
        return self.integer(node, path, 0, MOST_CALLS, 0)

    def money(self, node: yaml.Node, path: str) -> int:
        return math.floor(self.number(node, path, 0, MOST_MONEY) * _MILLION)

    def sage_address(self, node: yaml.Node, path: str) -> str:
        text = self.text(node, path)
        if text is not None and not _ADDRESS.fullmatch(text):
            self.wrong(
                node, path, "must be unix:/path/of/a/socket, or a port of this machine: 127.0.0.1:7000"
            )
            return ""
        return text or ""

    def desk(self, node: yaml.Node, path: str) -> str:
        text = self.text(node, path, numbers=True)
        found = _INSTANCE.fullmatch(text) if text is not None else None
        if text is not None and found is None:
            self.wrong(node, path, "must be an instance: instances/{id}")
        return f"instances/{found[1]}" if found else ""

    # -- conditions

    def condition(self, node: yaml.Node, path: str, depth: int) -> Condition | None:
        if depth > MAX_NESTING:
            self.wrong(node, path, f"nested too deep: conditions may nest at most {MAX_NESTING} deep")
            return None
        given = self.mapping(node, path, _CONDITION_KEYS)
        if isinstance(node, yaml.MappingNode) and not node.value:
            self.wrong(node, path, f"the condition is empty: give one of {', '.join(_CONDITION_KEYS)}")
        read = [self.part(key, value, f"{path}.{key}", depth) for key, value in given.items()]
        parts = tuple(part for part in read if part is not None)
        return (parts[0] if len(parts) == 1 else AllOf(parts)) if parts else None

    def part(self, key: str, node: yaml.Node, path: str, depth: int) -> Condition | None:
        match key:
            case "all" | "any":
                items = self.sequence(node, path, "conditions")
                if isinstance(node, yaml.SequenceNode) and not items:
                    self.wrong(node, path, "the list is empty: give at least one condition")
                read = [self.condition(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(items)]
                parts = tuple(part for part in read if part is not None)
                return (AllOf(parts) if key == "all" else AnyOf(parts)) if parts else None
            case "not":
                negated = self.condition(node, path, depth + 1)
                return None if negated is None else Not(negated)
            case "priority":
                return self.priority_range(node, path)
            case _:
                return self.has(Kind(key), node, path)

    def has(self, kind: Kind, node: yaml.Node, path: str) -> Has | None:
        items = node.value if isinstance(node, yaml.SequenceNode) else [node]
        if not items:
            self.wrong(node, path, f"the list is empty: give at least one {kind.value}")
        paths = [f"{path}[{i}]" for i in range(len(items))] if items and items[0] is not node else [path]
        read = [self.value(kind, item, where) for item, where in zip(items, paths, strict=False)]
        values = tuple(dict.fromkeys(value for value in read if value))
        return Has(kind, values) if values else None

    def value(self, kind: Kind, node: yaml.Node, path: str) -> str:
        text = self.text(node, path, numbers=True)
        if text is None:
            return ""
        if kind is Kind.KEYWORD:
            words = " ".join(tokens(text))
            if not words:
                self.wrong(node, path, "a keyword needs a letter or digit")
            return words
        if not text or len(text.split()) != 1 or text != text.strip() or not text.isprintable():
            self.wrong(node, path, f"a {kind.value} is one word without spaces")
            return ""
        return text.casefold() if kind is Kind.TAG else text

    def priority_range(self, node: yaml.Node, path: str) -> PriorityRange:
        given = self.mapping(node, path, ("at_least", "at_most"))
        if isinstance(node, yaml.MappingNode) and not node.value:
            self.wrong(node, path, "give at_least, at_most or both")
        return PriorityRange(
            self.integer(given.get("at_least"), f"{path}.at_least", 0, 100, 0),
            self.integer(given.get("at_most"), f"{path}.at_most", 0, 100, 100),
        )

    # -- collections

    def mapping(self, node: yaml.Node, path: str, known: Collection[str]) -> dict[str, yaml.Node]:
        """The values under known keys; unknown and repeated keys are noted."""
        if not isinstance(node, yaml.MappingNode):
            self.wrong(node, path, f"must be a mapping of {', '.join(known)}, not {_what(node)}")
            return {}
        given: dict[str, yaml.Node] = {}
        for key_node, value in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else ""
            where = f"{path}.{key}" if path and key else path or key
            if key not in known:
                self.wrong(key_node, where, _unknown_key(key, known))
            elif key in given:
                self.wrong(key_node, where, f"{key!r} is there twice: YAML would drop the first")
            else:
                given[key] = value
        return given

    def sequence(self, node: yaml.Node, path: str, of: str) -> list[yaml.Node]:
        if not isinstance(node, yaml.SequenceNode):
            self.wrong(node, path, f"must be a list of {of}, not {_what(node)}")
            return []
        items: list[yaml.Node] = node.value
        return items

    def require(
        self, node: yaml.Node, path: str, given: Mapping[str, yaml.Node], keys: Iterable[str]
    ) -> bool:
        missing = [key for key in keys if key not in given]
        for key in missing:
            self.wrong(node, f"{path}.{key}", f"{key!r} is missing")
        return not missing

    # -- scalars

    def text(self, node: yaml.Node, path: str, *, numbers: bool = False) -> str | None:
        kind = _what(node)
        if kind == "text" or (numbers and kind in ("an integer", "a number")):
            return str(node.value)
        hint = f": put it in quotes, YAML reads it as {kind}" if isinstance(node, yaml.ScalarNode) else ""
        self.wrong(node, path, f"must be text, not {kind}{hint}")
        return None

    def number(self, node: yaml.Node, path: str, low: float, high: float) -> float:
        value = _number(node) if _what(node) in ("an integer", "a number") else None
        if value is None:
            self.wrong(node, path, f"must be a number from {low:g} to {high:g}, not {_what(node)}")
            return low
        if not low <= value <= high:
            self.wrong(node, path, f"must be from {low:g} to {high:g}, not {node.value}")
        return value

    def integer(self, node: yaml.Node | None, path: str, low: int, high: int, default: int) -> int:
        if node is None:
            return default
        value = _number(node) if _what(node) == "an integer" else None
        if value is None:
            self.wrong(node, path, f"must be an integer from {low} to {high}, not {_what(node)}")
            return default
        if not low <= value <= high:
            self.wrong(node, path, f"must be from {low} to {high}, not {node.value}")
            return default
        return int(value)

    def boolean(self, node: yaml.Node | None, path: str, *, default: bool) -> bool:
        if node is None:
            return default
        if _what(node) != "true or false":
            self.wrong(node, path, f"must be true or false, not {_what(node)}")
            return default
        return str(node.value).lower() in ("true", "yes", "on")

    def one_of(self, node: yaml.Node, path: str, known: Sequence[str]) -> str:
        text = self.text(node, path)
        if text is not None and text not in known:
            self.wrong(node, path, f"unknown {path} {text!r}{_meant(text, known)}: must be {_either(known)}")
            return known[0]
        return text or known[0]

    def strategy(self, node: yaml.Node, path: str) -> str:
        return self.one_of(node, path, STRATEGIES)

    def threshold(self, node: yaml.Node, path: str) -> float:
        return self.number(node, path, 0, 1)

    def on_unsure(self, node: yaml.Node, path: str) -> OnUnsure:
        return OnUnsure(self.one_of(node, path, [choice.value for choice in OnUnsure]))

    def duplicates(self, node: yaml.Node, path: str) -> OnDuplicate:
        if _what(node) == "true or false" and not self.boolean(node, path, default=True):
            return OnDuplicate.OFF  # `off` without quotes
        return OnDuplicate(self.one_of(node, path, [choice.value for choice in OnDuplicate]))

    def duplicates_above(self, node: yaml.Node, path: str) -> float:
        return self.number(node, path, 0.5, 1)

    def project(self, node: yaml.Node, path: str) -> str:
        text = self.text(node, path, numbers=True)
        if text is None:
            return ""
        found = _PROJECT.fullmatch(text)
        if found is None:
            self.wrong(
                node, path, "must be a project's id: lower-case letters, digits, '.', '_', '-', at most 63"
            )
            return ""
        return f"projects/{found[1]}"

    def rule_name(self, node: yaml.Node, path: str, names: dict[str, Place]) -> str:
        text = self.text(node, path, numbers=True)
        if text is not None and not (0 < len(text) <= MAX_NAME and text.isprintable() and text.strip()):
            self.wrong(node, path, f"must be one line of 1 to {MAX_NAME} printable characters")
            return ""
        if text in names:
            first = f"line {names[text].line}"
            self.wrong(node, path, f"{first} has a rule {text!r} already: decisions cite rules by name")
        names.setdefault(text or "", _place(node))
        return text or ""


_POLICY_KEYS: Final = MappingProxyType(
    {
        "strategy": _Reader.strategy,
        "threshold": _Reader.threshold,
        "on_unsure": _Reader.on_unsure,
        "default_project": _Reader.project,
        "weights": _Reader.weights,
        "rules": _Reader.rules,
        "duplicates": _Reader.duplicates,
        "duplicates_above": _Reader.duplicates_above,
        "stages": _Reader.stages,
        "wait": _Reader.wait,
        "answer_within": _Reader.answer_within,
        "if_unanswered": _Reader.if_unanswered,
        "shadow": _Reader.shadow,
    }
)
_SHADOW_KEYS: Final = MappingProxyType(
    {
        "strategy": _Reader.shadow_strategy,
        "threshold": _Reader.threshold,
        "on_unsure": _Reader.on_unsure,
        "default_project": _Reader.project,
        "weights": _Reader.weights,
        "rules": _Reader.rules,
    }
)
_OF_SHADOWS: Final = ("rules", "learned")


def _shadowed(policy: Policy, given: Mapping[str, Any]) -> Policy:
    """The shadow of a policy: what it does not say is as in the policy."""
    strategy = policy.judges[-1] if policy.judges else _OF_SHADOWS[0]
    return replace(policy, **{"strategy": strategy, "stages": (), **given})


_CASCADES: Final = ("hybrid", "llm", "sage")
_STAGE_KEYS: Final = MappingProxyType(
    {
        Use.RULES: ("threshold",),
        Use.LEARNED: ("threshold",),
        Use.LLM: ("threshold", "deadline", "calls_per_day", "money_per_day", "suggest"),
        Use.SAGE: ("address", "threshold", "deadline", "calls_per_day", "prioritize"),
        Use.PERSON: ("desk",),
    }
)
_STAGE_READERS: Final[Mapping[str, Callable[[_Reader, yaml.Node, str], Any]]] = MappingProxyType(
    {
        "threshold": _Reader.threshold,
        "deadline": _Reader.deadline,
        "calls_per_day": _Reader.calls,
        "money_per_day": _Reader.money,
        "address": _Reader.sage_address,
        "desk": _Reader.desk,
        "suggest": _Reader.suggest,
        "prioritize": _Reader.prioritize,
    }
)
_THRESHOLDS: Final = MappingProxyType(
    {Use.RULES: 0.8, Use.LEARNED: 0.8, Use.LLM: 0.5, Use.SAGE: 0.5, Use.PERSON: 0.0}
)
_DURATION: Final = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)(ms|s|m|h|d)?")
_UNITS: Final = MappingProxyType(
    {
        "ms": timedelta(milliseconds=1),
        "s": timedelta(seconds=1),
        "m": timedelta(minutes=1),
        "h": timedelta(hours=1),
        "d": timedelta(days=1),
    }
)
_INSTANCE: Final = re.compile(r"(?:instances/)?([a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?)")
_ADDRESS: Final = re.compile(r"unix:/\S{1,105}|(?:127\.0\.0\.1|localhost|\[::1\]):[0-9]{1,5}")
_MILLION: Final = 1_000_000
_CONDITION_KEYS: Final = ("keyword", "tag", "capability", "priority", "all", "any", "not")
_KINDS: Final = MappingProxyType(
    {
        "str": "text",
        "int": "an integer",
        "float": "a number",
        "bool": "true or false",
        "null": "nothing",
        "timestamp": "a date",
        "map": "a mapping",
        "seq": "a list",
    }
)


def _place(at: yaml.Node | yaml.Event) -> Place:
    mark = at.start_mark
    return Place() if mark is None else Place(mark.line + 1, mark.column + 1)


def _what(node: yaml.Node) -> str:
    """What YAML takes the node for, in words."""
    tag = str(node.tag)
    return _KINDS.get(tag.removeprefix("tag:yaml.org,2002:"), f"{tag}, which is not allowed here")


def _number(node: yaml.Node) -> float | None:
    """The number a node spells, None if YAML and Python do not agree that it is one (`1:30`, `0b1`, `.nan`)."""
    try:
        value = float(node.value)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _unknown_key(key: str, known: Collection[str]) -> str:
    return f"unknown key {key!r}{_meant(key, known)}; known are {', '.join(known)}"


def _meant(word: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(word.lower(), known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _either(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


# ---------------------------------------------------------------- warnings


def _suspicious(policy: Policy) -> Iterator[PolicyProblem]:
    for i, rule in enumerate(policy.rules):
        if not rule.enabled:
            yield PolicyProblem(*rule.place, f"rules[{i}].enabled", f"the rule {rule.name!r} is disabled")
        elif never(rule.when):
            message = f"the rule {rule.name!r} can never fire: its condition contradicts itself"
            yield PolicyProblem(*rule.place, f"rules[{i}].when", message)
        elif rule.weight == 0:
            message = f"the rule {rule.name!r} changes nothing: its weight is 0"
            yield PolicyProblem(*rule.place, f"rules[{i}].then.weight", message)


def never(condition: Condition) -> bool:
    """Whether no task can fulfil *condition*; finds the contradictions people write, not every one there is."""
    match condition:
        case PriorityRange(at_least, at_most):
            return at_least > at_most
        case AnyOf(parts):
            return all(map(never, parts))
        case AllOf():
            parts = tuple(_conjuncts(condition))
            return any(map(never, parts)) or _contradictory(parts)
        case Not(part):
            return isinstance(part, PriorityRange) and part == PriorityRange()
        case Has():
            return False


def _conjuncts(condition: AllOf) -> Iterator[Condition]:
    for part in condition.parts:
        if isinstance(part, AllOf):
            yield from _conjuncts(part)
        else:
            yield part


def _contradictory(parts: Sequence[Condition]) -> bool:
    """Whether conditions that must hold together exclude each other."""
    ranges = [part for part in parts if isinstance(part, PriorityRange)]
    if ranges and max(r.at_least for r in ranges) > min(r.at_most for r in ranges):
        return True
    refused = [part.part for part in parts if isinstance(part, Not) and isinstance(part.part, Has)]
    return any(
        all(any(_implies(has.kind, value, no) for no in refused) for value in has.values)
        for has in parts
        if isinstance(has, Has)
    )


def _implies(kind: Kind, value: str, other: Has) -> bool:
    """Whether a task that has *value* has one of *other*: a phrase brings its words along."""
    if kind is not other.kind:
        return False
    if kind is Kind.KEYWORD:
        return any(f" {phrase} " in f" {value} " for phrase in other.values)
    return value in other.values


BUILT_IN_SOURCE: Final = """\
# The built-in policy, in force where no instance above has one of its own.
strategy: rules
threshold: 0.0
on_unsure: route
weights:
  rules: 1.0        # rules that fired
  tags: 0.6         # tags the task and the project share
  capability: 0.3   # a specialist before a generalist
  text: 0.5         # words the task and the project share
  workload: 0.15    # the idle before the busy
  velocity: 0.05    # the fast before the slow, for what is urgent
  cost: 0.05        # the cheap before the dear
  sla: 0.05         # the short promise before the long one
  boost: 1.0        # what projects add for a tag
  deadline: 0.9     # who can do it in time before who cannot
  hours: 0.9        # who works now before who opens later, for what is urgent
rules: []
"""
BUILT_IN: Final = load_policy(BUILT_IN_SOURCE)
