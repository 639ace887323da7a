"""What another policy would have come to, as people read it."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Protocol

from rich.text import Text

from hopper.router.v1.routing_service_pb2 import PolicyEstimate, ReplayChange
from hopper_cli.names import bare, short
from hopper_cli.output import one_line
from hopper_cli.render import facts, grid

_METHODS: Final = {
    PolicyEstimate.METHOD_KNOWN: "all outcomes are known",
    PolicyEstimate.METHOD_DIRECT: "direct method",
    PolicyEstimate.METHOD_DOUBLY_ROBUST: "doubly robust",
}


class Comparison(Protocol):
    """A ReplayPolicyResponse, or a CompareShadowResponse."""

    @property
    def changed(self) -> int: ...
    @property
    def changes(self) -> Sequence[ReplayChange]: ...
    @property
    def estimate(self) -> PolicyEstimate: ...
    @property
    def notes(self) -> Iterable[str]: ...
    def HasField(self, field_name: Any) -> bool: ...


def comparison_parts(answer: Comparison) -> Iterator[Any]:
    """The estimate, what it takes for granted, and the tasks that would go elsewhere, part by part."""
    if answer.HasField("estimate"):
        yield ""
        yield estimate_facts(answer.estimate)
    for note in answer.notes:
        yield Text(f"  {one_line(note)}", style="dim")
    if answer.changes:
        yield ""
        yield change_table(answer.changes)


def estimate_facts(estimate: PolicyEstimate) -> Any:
    """How many tasks would go well, and how sure that is."""
    gain = f"{100 * estimate.gain:+.1f} points"
    how = _METHODS.get(estimate.method, "")
    modelled = f", {estimate.modelled} of them modelled" if estimate.modelled else ""
    return facts(
        [
            ("went well", f"{estimate.recorded:.1%} of {estimate.judged} tasks whose outcome is known"),
            (
                "would go well",
                f"{estimate.value:.1%}, with 95 % confidence {estimate.lower:.1%} to {estimate.upper:.1%}",
            ),
            (
                "gain",
                f"{gain}, with 95 % confidence {100 * estimate.gain_lower:+.1f} to {100 * estimate.gain_upper:+.1f}",
            ),
            ("chosen blindly", f"{estimate.random:.1%}"),
            ("the same", f"{estimate.agreement:.1%} of decisions"),
            ("estimated by", f"{how}{modelled}"),
        ]
    )


def change_table(changes: Iterable[ReplayChange]) -> Any:
    """Tasks that would go elsewhere, with how that went and would go."""
    table = grid("task", "went to", "#sure", "how it went", "would go to", "#sure", "#would go well")
    for change in changes:
        went = ("well" if change.went else "not well") if change.HasField("went") else ""
        table.add_row(
            Text(short(change.task), style="bold"),
            bare(change.from_project) or "nobody",
            f"{change.from_confidence:.0%}",
            Text(went, style="green" if change.went else "red"),
            bare(change.to_project) or "nobody",
            f"{change.to_confidence:.0%}",
            f"{change.expected:.0%}" if change.HasField("expected") else "",
        )
    return table
