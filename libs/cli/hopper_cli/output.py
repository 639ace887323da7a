"""
What a command says: one JSON document, JSON lines, or text for people.

Text that people wrote comes from anywhere, and a terminal obeys escape sequences: `clean` is between the two.
"""

import json
import re
import sys
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from rich.console import Console, RenderableType

    from hopper_cli.problems import Problem

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_WIDE: Final = 10_000
"""Columns where nobody looks: a pipe gets whole lines."""


def clean(text: str) -> str:
    """Text without control characters, which a terminal would obey. Tabs and line ends stay."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: str) -> str:
    """The same on one line."""
    return " ".join(clean(text).split())


def to_json(message: "Message") -> dict[str, Any]:
    """
    A message in protobuf's JSON form, with the field names of the contract.

    Every field without presence is there, also when empty: programs need not ask whether. 64-bit numbers are
    strings and bytes are base 64, as protobuf prescribes.
    """
    from google.protobuf import json_format

    made: dict[str, Any] = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return made


class ReaderGone(Exception):
    """
    Whoever read standard output has left, as in `hopper list | head`.

    Not an OSError: typer and rich each have their own idea of what to do about those.
    """


class Output:
    """
    Standard output and standard error of one command.

    Attributes:
        json: Programs read: one JSON document, or one line for each of a stream.
    """

    def __init__(self, *, json: bool, color: bool = True) -> None:
        self.json = json
        self._color = color

    @cached_property
    def console(self) -> "Console":
        """For people. Wide where it is not a terminal, so that nothing is cut for a program's eyes."""
        return self._console(stderr=False)

    @cached_property
    def errors(self) -> "Console":
        """For people, on standard error."""
        return self._console(stderr=True)

    def _console(self, *, stderr: bool) -> "Console":
        from rich.console import Console

        class OurConsole(Console):
            def on_broken_pipe(self) -> None:
                raise ReaderGone

        stream = sys.stderr if stderr else sys.stdout
        return OurConsole(
            stderr=stderr,
            highlight=False,
            markup=False,
            emoji=False,
            no_color=None if self._color else True,
            width=None if stream.isatty() else _WIDE,
        )

    def document(self, data: "Message | Mapping[str, Any]") -> None:
        """Print the one JSON document of this command."""
        print(json.dumps(_plain(data), ensure_ascii=False, indent=2))

    def record(self, data: "Message | Mapping[str, Any]") -> None:
        """Print one line of a stream, at once."""
        try:
            print(json.dumps(_plain(data), ensure_ascii=False, separators=(",", ":")), flush=True)
        except BrokenPipeError:
            raise ReaderGone from None

    def line(self, text: str) -> None:
        """Print a line that programs read, as it is."""
        try:
            print(text)
        except BrokenPipeError:
            raise ReaderGone from None

    def say(self, text: "RenderableType" = "", *, style: str | None = None) -> None:
        """Print something for people."""
        if isinstance(text, str):
            self.console.print(clean(text), style=style, soft_wrap=True)
        else:
            self.console.print(text)

    def note(self, text: str) -> None:
        """Say something that is not the answer: on standard error, so that pipes carry answers only."""
        if not self.json:
            self.errors.print(clean(text), style="dim", soft_wrap=True)

    def complain(self, problem: "Problem") -> None:
        """Tell what went wrong, on standard error."""
        if self.json:
            print(json.dumps(problem.as_json(), ensure_ascii=False), file=sys.stderr, flush=True)
            return
        self.errors.print(f"hopper: {clean(problem.message)}", style="red", soft_wrap=True)
        for where, what in problem.violations:
            if what not in problem.message:
                self.errors.print(f"  {clean(where)}: {clean(what)}", soft_wrap=True)
        if problem.remedy:
            self.errors.print(f"  {clean(problem.remedy)}", style="dim", soft_wrap=True)


def _plain(data: "Message | Mapping[str, Any]") -> Mapping[str, Any]:
    return data if isinstance(data, Mapping) else to_json(data)
