"""
What is done to a Hopper while callers use it: one fault a round, the router killed in each.

Each fault is a function of the stage and of chance. It leaves everything running again when it returns, and has noted
the time in which nothing could be expected of the stage.
"""

import random
import time
from collections.abc import Callable, Sequence
from typing import Final

from hopper_testing.processes import HopperProcess
from tests.faults.stage import Stage

Fault = Callable[[Stage, random.Random], str]
"""Does it, and returns what it did in a few words."""

_PEACE: Final = 0.5  # seconds in which a fault comes, once callers are at work
_PATIENCE: Final = 4.0  # seconds in which a failpoint should be reached
_AROUND_COMMIT: Final = ("unit.after", "commit.before", "commit.sent", "commit.after")
_AROUND_STATEMENT: Final = ("statement.before", "statement.sent", "statement.after")
PLACES: Final[dict[str, Sequence[str]]] = {
    "sqlite": ("transaction.begun", "sql.after", *_AROUND_COMMIT),
    "postgresql": ("transaction.begun", "sql.after", *_AROUND_COMMIT, *_AROUND_STATEMENT),
}


def strike(stage: Stage, chance: random.Random) -> str:
    """One fault: what a failpoint has been set for, or else what chance picks."""
    armed = [router for router in stage.routers if stage.failpoints(router)]
    if armed:
        return reach_failpoint(stage, armed[0], chance)
    faults, weights = zip(*FAULTS[stage.engine], strict=True)
    fault: Fault = chance.choices(faults, weights=weights)[0]
    return fault(stage, chance)


def reach_failpoint(stage: Stage, router: HopperProcess, chance: random.Random) -> str:
    """SIGKILL at a place around a commit; or by hand, while connections are cut there, or commits are slow."""
    failpoints = stage.failpoints(router)
    if "kill" not in failpoints:
        _peace(stage, chance)
    died = stage.dies(router, _PATIENCE if "kill" in failpoints else 0.01)
    with stage.outage():
        _start_again(stage, router, chance)
    place, _, what = failpoints.partition("=")
    if died:
        return f"killed at {place.removeprefix('router:')}"
    return f"killed with {what.partition('@')[0].partition(':')[0]} at {place.removeprefix('router:')}"


def _peace(stage: Stage, chance: random.Random) -> None:
    stage.wait_for_work()
    time.sleep(chance.uniform(0, _PEACE))


def _start_again(stage: Stage, router: HopperProcess, chance: random.Random) -> None:
    """Start a router; as likely as not with a failpoint for the round that comes."""
    others_armed = any(stage.failpoints(other) for other in stage.routers if other is not router)
    failpoint = ""
    if not others_armed and chance.random() < 0.6:
        place = chance.choice(PLACES[stage.engine])
        failpoint = f"router:{place}={_action(place, chance)}"
    stage.start(router, failpoint)


def _action(place: str, chance: random.Random) -> str:
    """Mostly a kill. Inside of a unit nothing else can go wrong: an error there is the unit's own."""
    action = "kill"
    if place not in ("unit.after", "sql.after"):
        action = chance.choices(("kill", "drop", "sleep"), weights=(8, 2, 1))[0]
    if action == "sleep":
        return f"sleep:{chance.uniform(0.05, 0.2):.3f}"
    return f"{action}@{chance.choice((3, 8, 20, 50))}"


def kill_at_random(stage: Stage, chance: random.Random) -> str:
    """SIGKILL of a router at any moment."""
    router = chance.choice(stage.routers)
    _peace(stage, chance)
    with stage.outage():
        router.kill()
        _start_again(stage, router, chance)
    return "killed at random"


def kill_all_at_random(stage: Stage, chance: random.Random) -> str:
    """SIGKILL of every router at once."""
    _peace(stage, chance)
    with stage.outage():
        for router in stage.routers:
            router.kill()
        for router in stage.routers:
            _start_again(stage, router, chance)
    return "all killed at random"


def backends_terminated(stage: Stage, chance: random.Random) -> str:
    """An administrator ends all connections of PostgreSQL, again and again; then SIGKILL of a router."""
    assert stage.server is not None
    with stage.outage():
        for _ in range(chance.randint(1, 3)):
            time.sleep(chance.uniform(0.05, 0.4))
            stage.server.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE datname LIKE 'hopper%' AND pid <> pg_backend_pid()"
            )
        stage.all_answer()
    return f"backends terminated; {kill_at_random(stage, chance)}"


def server_crashed(stage: Stage, chance: random.Random) -> str:
    """SIGKILL of all of PostgreSQL, which recovers; then SIGKILL of a router."""
    assert stage.server is not None
    _peace(stage, chance)
    with stage.outage():
        stage.server.crash()
        stage.server.start()
        stage.all_answer()
    return f"server crashed; {kill_at_random(stage, chance)}"


def server_restarted(stage: Stage, chance: random.Random) -> str:
    """PostgreSQL is stopped in an orderly way, and started again; then SIGKILL of a router."""
    assert stage.server is not None
    _peace(stage, chance)
    with stage.outage():
        stage.server.stop(chance.choice(("fast", "immediate")))
        stage.server.start()
        stage.all_answer()
    return f"server restarted; {kill_at_random(stage, chance)}"


FAULTS: Final[dict[str, Sequence[tuple[Fault, int]]]] = {
    "sqlite": ((kill_at_random, 1),),
    "postgresql": (
        *((kill_at_random, 4), (kill_all_at_random, 2)),
        *((backends_terminated, 1), (server_crashed, 1), (server_restarted, 1)),
    ),
}
"""What may happen on each engine besides failpoints, and how often beside the others."""
