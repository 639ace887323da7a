"""Reading YAML that people wrote: every complaint says where."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml

from hopper_cli.problems import UsageProblem


def load(text: str, file: str) -> Any:
    """
    The content of a YAML (or JSON) document. Every value is a text, as it was written: YAML would make a number of
    17:00, and false of `no`.

    Raises:
        UsageProblem: It is none; says in which line.
    """
    try:
        return yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506 - makes texts, lists and mappings, nothing else
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        at = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark is not None else file
        raise UsageProblem(f"{at}: {error.problem or 'no YAML'}") from None
    except yaml.YAMLError as error:
        raise UsageProblem(f"{file}: no YAML: {error}") from None


class Entry:
    """
    One mapping of a document, read field by field.

    Args:
        at: Where it is, for complaints: `parts.yaml: part 2`.
    """

    def __init__(self, content: Any, at: str, known: Iterable[str]) -> None:
        if not isinstance(content, Mapping):
            raise UsageProblem(f"{at} is no mapping of names to values")
        unknown = sorted(set(map(str, content)) - set(known))
        if unknown:
            raise UsageProblem(
                f"{at} has {', '.join(unknown)}, which means nothing here",
                remedy=f"known: {', '.join(sorted(known))}",
            )
        self._content = content
        self.at = at

    def text(self, name: str) -> str | None:
        """A text; None where there is none."""
        value = self._content.get(name)
        if value is None or isinstance(value, str):
            return value
        raise self.wrong(name, "text")

    def texts(self, name: str) -> list[str]:
        """A list of texts; a single one is a list of one."""
        value = self._content.get(name)
        items = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(item, str) for item in items):
            raise self.wrong(name, "list of texts")
        return items

    def number(self, name: str) -> float | None:
        """A number."""
        value = self.text(name)
        try:
            return None if value is None else float(value)
        except ValueError:
            raise self.wrong(name, "number") from None

    def flag(self, name: str) -> bool:
        """`true` or `false`, the latter where it is not said."""
        value = (self.text(name) or "false").lower()
        if value not in ("true", "false"):
            raise self.wrong(name, "true or false")
        return value == "true"

    def pairs(self, name: str) -> dict[str, str]:
        """A mapping of texts to texts."""
        value = self._content.get(name) or {}
        if not isinstance(value, Mapping) or not all(isinstance(item, str) for item in value.values()):
            raise self.wrong(name, "mapping of names to values")
        return dict(value)

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Say where, about a value that is refused in the body."""
        try:
            yield
        except UsageProblem as problem:
            raise UsageProblem(f"{self.at}: {problem.message}", remedy=problem.remedy) from None

    def wrong(self, name: str, expected: str) -> UsageProblem:
        """The complaint that a field is not what it should be."""
        return UsageProblem(f"{self.at}: {name} is no {expected}")
