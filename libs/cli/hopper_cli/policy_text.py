"""Policies as texts: how two of them differ, and one put into another as its shadow."""

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from hopper_cli import yamls
from hopper_cli.problems import UsageProblem

_TOP_LEVEL: Final = re.compile(r"[^\s#]")
_BUILT_IN: Final = "as built in"
_ADDED: Final = frozenset({"shadow", "stages", "default_project"})
"""What a policy does not have unless it says so."""
_SHADOW: Final = re.compile(r"""["']?shadow["']?\s*:""")


def text_diff(before: str, after: str, *, names: tuple[str, str]) -> list[str]:
    """The lines of a unified diff; none where nothing differs."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), *names, lineterm="")
    return list(lines)


def changes(before: str, after: str, file: str) -> list[str]:
    """What a policy says otherwise than another one, a sentence for each thing; comments are nothing."""
    old, new = _read(before, "the policy in force"), _read(after, file)
    return list(_changes(old, new))


def _read(source: str, file: str) -> Mapping[str, Any]:
    content = yamls.load(source, file) if source.strip() else {}
    return content if isinstance(content, Mapping) else {}


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted({*old, *new} - {"rules", "weights"}):
        if old.get(key) != new.get(key):
            absent = "none" if key in _ADDED else _BUILT_IN
            yield f"{key}: {_said(old.get(key), absent)} → {_said(new.get(key), absent)}"
    weights = _mapping(old.get("weights")), _mapping(new.get("weights"))
    for key in sorted({*weights[0], *weights[1]}):
        if weights[0].get(key) != weights[1].get(key):
            yield f"weight of {key}: {_said(weights[0].get(key))} → {_said(weights[1].get(key))}"
    rules = _rules(old), _rules(new)
    for verb, names in (
        ("removed", rules[0].keys() - rules[1].keys()),
        ("added", rules[1].keys() - rules[0].keys()),
        ("changed", {name for name in rules[0].keys() & rules[1].keys() if rules[0][name] != rules[1][name]}),
    ):
        if names:
            yield f"{verb}: {'rule' if len(names) == 1 else f'{len(names)} rules'} {', '.join(sorted(names))}"


def _said(value: Any, absent: str = _BUILT_IN) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_said(item)}" for key, item in value.items())
    if isinstance(value, list):
        return f"{len(value)} of them"
    return absent if value is None else str(value)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _rules(policy: Mapping[str, Any]) -> dict[str, Any]:
    rules = policy.get("rules")
    listed = rules if isinstance(rules, list) else []
    return {str(rule.get("name")): rule for rule in listed if isinstance(rule, Mapping)}


def with_shadow(source: str, shadow: str) -> str:
    """
    A policy with another one as its shadow, in place of the one it has; "": with none.

    Raises:
        UsageProblem: The policy is written in one line, in which nothing can be put.
    """
    if source.lstrip().startswith("{"):
        raise UsageProblem("the policy in force is written as {...}: write it line by line first")
    kept = list(_without_shadow(source))
    if not shadow.strip():
        return "".join(f"{line}\n" for line in kept)
    lines = [line for line in shadow.splitlines() if line.rstrip() != "---"]
    indented = ["shadow:", *(f"  {line}".rstrip() for line in lines)]
    return "".join(f"{line}\n" for line in [*kept, *indented])


def _without_shadow(source: str) -> Iterator[str]:
    inside = False
    for line in source.splitlines():
        if _TOP_LEVEL.match(line):
            inside = bool(_SHADOW.match(line))
        if not inside:
            yield line
