"""`hopper stats routing`: how good decisions were, when, what was taken for what, and against other ways to decide."""

from typing import TYPE_CHECKING, Any, Final

from hopper_cli.cli import Cli

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from hopper.memory.v1.feedback_service_pb2 import GetRoutingStatsResponse, GetStatsResponse
    from hopper.router.v1.decision_pb2 import Decision
    from hopper.router.v1.routing_service_pb2 import PolicyEstimate, ReplayPolicyResponse

SUBJECT: Final = "routing"
_REPLAYED: Final = 1000
_PAGE: Final = 250
_WIDTH: Final = 40


def routing_stats(cli: Cli, instance: str, days: int) -> None:
    """Ask memory and the router, and show it."""
    stats = _ask_memory(cli, instance, days)
    rules = _ask_router(cli, instance)
    cost = _cost(_latest(cli, instance))
    if cli.json:
        from hopper_cli.output import to_json

        against = {"replayed": to_json(rules), **_regret(rules)}
        cli.out.document({"routing": to_json(stats), "regret": against, "cost": cost})
        return
    for part in parts(stats, rules, cost, cli):
        cli.out.say(part)


def _ask_memory(cli: Cli, instance: str, days: int) -> "GetRoutingStatsResponse":
    from hopper.memory.v1.feedback_service_pb2 import GetRoutingStatsRequest

    return cli.hopper.feedback.GetRoutingStats(GetRoutingStatsRequest(instance=instance, days=days))


def _ask_router(cli: Cli, instance: str) -> "ReplayPolicyResponse":
    """What rules alone would have come to."""
    from hopper.router.v1.routing_service_pb2 import ReplayPolicyRequest

    request = ReplayPolicyRequest(instance=instance or "instances/global", strategy="rules", limit=_REPLAYED)
    return cli.hopper.routing.ReplayPolicy(request)


def _latest(cli: Cli, instance: str) -> "Iterator[Decision]":
    from hopper.router.v1.routing_service_pb2 import ListDecisionsRequest

    request = ListDecisionsRequest(instance=instance, page_size=_PAGE)
    for _ in range(_REPLAYED // _PAGE):
        page = cli.hopper.routing.ListDecisions(request)
        yield from page.decisions
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def _regret(rules: "ReplayPolicyResponse") -> dict[str, Any]:
    """How much less went well than by rules alone, and by choosing blindly; below 0: more did."""
    if not rules.HasField("estimate"):
        return {}
    estimate = rules.estimate
    return {
        "against_rules": estimate.gain,
        "against_rules_lower": estimate.gain_lower,
        "against_rules_upper": estimate.gain_upper,
        "against_random": estimate.random - estimate.recorded,
    }


def _cost(decisions: "Iterable[Decision]") -> dict[str, Any]:
    """What the latest decisions cost: time, and what those who were asked took for it."""
    from hopper_common.timestamps import from_proto

    seconds: list[float] = []
    stages: dict[str, dict[str, float]] = {}
    for decision in decisions:
        seconds.append(from_proto(decision.elapsed).total_seconds())
        for opinion in decision.opinions:
            stage = stages.setdefault(
                opinion.stage,
                {"asked": 0, "input_tokens": 0, "output_tokens": 0, "money": 0.0, "seconds": 0.0},
            )
            stage["asked"] += 1
            stage["input_tokens"] += opinion.input_tokens
            stage["output_tokens"] += opinion.output_tokens
            stage["money"] += opinion.money_micros / 1e6
            stage["seconds"] += from_proto(opinion.elapsed).total_seconds()
    seconds.sort()
    return {
        "decisions": len(seconds),
        "seconds_p50": _quantile(seconds, 0.5),
        "seconds_p99": _quantile(seconds, 0.99),
        "stages": stages,
    }


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


# ---------------------------------------------------------------- for people


def parts(
    stats: "GetRoutingStatsResponse", rules: "ReplayPolicyResponse", cost: dict[str, Any], cli: Cli
) -> "Iterator[Any]":
    """Everything, part by part."""
    from hopper_cli.commands.stats import memory_lines

    yield from memory_lines(stats.total)
    if stats.total.judged:
        yield from _part("Accuracy over time", period_table(stats, cli))
        yield from _part("Calibration: how sure, and how often right", calibration_plot(stats.total))
    if stats.strategies:
        yield from _part("What decided", strategy_table(stats))
    if stats.confusions:
        yield from _part("What was taken for what", confusion_table(stats))
    if rules.HasField("estimate"):
        yield from _part("Against other ways to decide", regret_facts(rules.estimate))
    yield from _part("Cost", cost_facts(cost))
    if cost["stages"]:
        yield cost_table(cost)


def _part(heading: str, content: Any) -> "Iterator[Any]":
    from rich.text import Text

    yield ""
    yield Text(heading, style="bold")
    yield content


def period_table(stats: "GetRoutingStatsResponse", cli: Cli) -> Any:
    """Accuracy of one period after the other."""
    from hopper_cli.render import bar, grid, plain
    from hopper_cli.times import format_time
    from hopper_common.timestamps import from_proto

    table = grid("from", "#decisions", "#judged", "#right", "#sure", "")
    for period in stats.periods:
        score = period.score
        told = score.judged > 0
        table.add_row(
            format_time(from_proto(period.start_time), cli.now),
            str(score.decisions),
            str(score.judged),
            f"{score.accuracy:.1%}" if told else "-",
            f"{score.mean_confidence:.0%}" if told else "-",
            plain(bar(score.accuracy)) if told else "",
        )
    return table


def calibration_plot(total: "GetStatsResponse") -> Any:
    """A line for each bin: a bar as long as it was right, and a mark where it should end."""
    from rich.text import Text

    from hopper_cli.render import grid

    table = grid("confidence", "#judged", "#sure", "#right", "#off", "0 % ... 100 %")
    for each in total.bins:
        if not each.count:
            continue
        off = each.accuracy - each.mean_confidence
        right, sure = round(each.accuracy * _WIDTH), min(round(each.mean_confidence * _WIDTH), _WIDTH - 1)
        line = ["█" if at < right else " " for at in range(_WIDTH)]
        line[sure] = "│"
        table.add_row(
            f"{getattr(each, 'from'):.1f} to {each.to:.1f}",
            str(each.count),
            f"{each.mean_confidence:.0%}",
            f"{each.accuracy:.0%}",
            f"{100 * off:+.0f}",
            Text("".join(line), style="green" if abs(off) <= _NEAR else "yellow"),
        )
    return table


_NEAR: Final = 0.1


def strategy_table(stats: "GetRoutingStatsResponse") -> Any:
    """Decisions by what decided."""
    from hopper_cli.render import bar, grid, plain

    table = grid("strategy", "#decisions", "#judged", "#right", "#sure", "")
    largest = max(each.score.decisions for each in stats.strategies) or 1
    for each in stats.strategies:
        score = each.score
        table.add_row(
            plain(each.strategy or "(none)"),
            str(score.decisions),
            str(score.judged),
            f"{score.accuracy:.1%}" if score.judged else "-",
            f"{score.mean_confidence:.0%}" if score.judged else "-",
            plain(bar(score.decisions / largest)),
        )
    return table


def confusion_table(stats: "GetRoutingStatsResponse") -> Any:
    """Pairs of where tasks went and where they belonged."""
    from hopper_cli.names import bare
    from hopper_cli.render import bar, grid, plain

    table = grid("went to", "belonged to", "#tasks", "#of all mistakes", "")
    for pair in stats.confusions:
        share = pair.count / stats.confused
        table.add_row(
            plain(bare(pair.chosen) or "nobody"),
            plain(bare(pair.right) or "nobody"),
            str(pair.count),
            f"{share:.0%}",
            plain(bar(share)),
        )
    return table


def regret_facts(estimate: "PolicyEstimate") -> Any:
    """How the decisions compare with rules alone, and with chance."""
    from hopper_cli.render import facts

    between = f"{100 * estimate.gain_lower:+.1f} to {100 * estimate.gain_upper:+.1f}"
    rules = (
        f"{estimate.value:.1%}, {100 * estimate.lower:.1f} to {100 * estimate.upper:.1f} with 95 % confidence: "
        f"regret {100 * estimate.gain:+.1f} points ({between})"
    )
    blind = f"{estimate.random:.1%}: regret {100 * (estimate.random - estimate.recorded):+.1f} points"
    return facts(
        [
            ("as decided", f"{estimate.recorded:.1%} of {estimate.judged} went well"),
            ("rules alone", rules),
            ("blindly", blind),
        ]
    )


def cost_facts(cost: dict[str, Any]) -> Any:
    """What a decision costs the router."""
    from hopper_cli.render import facts

    fast, slow = 1000 * cost["seconds_p50"], 1000 * cost["seconds_p99"]
    said = f"{fast:.2f} ms in the middle, {slow:.2f} ms for the slowest of a hundred"
    return facts([("deciding took", f"{said}, over the latest {cost['decisions']}")])


def cost_table(cost: dict[str, Any]) -> Any:
    """What each stage of a cascade took."""
    from hopper_cli.render import grid, plain

    table = grid("stage", "#asked", "#tokens in", "#tokens out", "#money", "#mean")
    for name, stage in cost["stages"].items():
        table.add_row(
            plain(name),
            f"{stage['asked']:.0f}",
            f"{stage['input_tokens']:.0f}",
            f"{stage['output_tokens']:.0f}",
            f"{stage['money']:.4f}",
            f"{1000 * stage['seconds'] / stage['asked']:.1f} ms",
        )
    return table
