"""Peers: how soon a revocation holds, a blackhole is noticed and forgotten, a Hopper is back; and whom nobody fools."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

import grpc
import grpc.aio

from hopper.federation.v1 import peer_service_pb2 as svc
from hopper_common.identity.certificates import spiffe_uris, to_pem
from hopper_common.identity.store import IdentityStore
from hopper_common.rpc.errors import from_rpc_error
from hopper_federation.model import Revocation
from hopper_federation.peer_guard import PATH
from hopper_federation.trust import Level
from hopper_testing.certificates import Authority, attacks
from hopper_testing.clock import ManualClock
from hopper_testing.processes import HopperProcess, temporary_directory
from hopper_testing.proxy import ChaosProxy
from tests.bench.bar import Result, at_least, at_most, bar
from tests.bench.rig import Rig
from tests.federation.neighbours import PATIENCE, Neighbour, neighbour, until

REVOCATION: Final = at_most(1.0, 0.2, "s")
RETURN: Final = at_most(5.0, 3.0, "s")
NOTICED: Final = at_most(15.0, 14.5, "s")
RECOVERED: Final = at_most(2.0, 1.0, "s")
REFUSED: Final = at_least(1.0, 1.0, "of all")

_REVOCATIONS: Final = 20
_BACK_AFTER: Final = timedelta(days=90)


@asynccontextmanager
async def _trio() -> AsyncIterator[tuple[Neighbour, Neighbour, Neighbour]]:
    with temporary_directory() as directory:
        async with (
            neighbour(directory / "alice") as alice,
            neighbour(directory / "bob") as bob,
            neighbour(directory / "carol") as carol,
        ):
            yield alice, bob, carol


@bar
async def federation_revocation(rig: Rig) -> list[Result]:
    """From the owner's word to the end of a stream and the refusal of a call, on a channel that stays open."""
    streams, calls = [], []
    async with _trio() as (alice, bob, _), alice.running(contact=False):
        await alice.knows(bob)
        async with bob.calling(alice) as stub:
            for _ in range(_REVOCATIONS):
                await _let_in_again(alice, bob)
                stream = stub.Listen(svc.ListenRequest())
                await stream.read()
                began = time.monotonic()
                now = alice.clock.now()
                await alice.change(
                    bob,
                    lambda peer, now=now: replace(  # type: ignore[misc]
                        peer,
                        level=Level.BLOCKED,
                        revocation=Revocation.NOW,
                        revoke_time=now,
                        revision=peer.revision + 1,
                    ),
                )
                while await _reason(stub) != "PEER_REVOKED":
                    pass
                calls.append(time.monotonic() - began)
                try:
                    while await stream.read() != grpc.aio.EOF:
                        pass
                except grpc.aio.AioRpcError:
                    streams.append(time.monotonic() - began)
    note = f"the slowest of {_REVOCATIONS}"
    return [
        REVOCATION.judge("a revocation ends streams", max(streams), {"": _spread(streams)}, note=note),
        REVOCATION.judge("a revocation refuses calls", max(calls), {"": _spread(calls)}, note=note),
    ]


async def _let_in_again(alice: Neighbour, bob: Neighbour) -> None:
    await alice.change(
        bob,
        lambda peer: replace(
            peer,
            level=Level.KNOWN,
            revocation=Revocation.NONE,
            revoke_time=None,
            revision=peer.revision + 1,
        ),
    )
    await until(lambda: alice.snapshots.current.peers[bob.install_id].level is Level.KNOWN)


async def _reason(stub: object) -> str:
    try:
        await stub.GetCapabilities(svc.GetCapabilitiesRequest(), timeout=PATIENCE)  # type: ignore[attr-defined]
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error).reason
    return ""


def _spread(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {"median_ms": ordered[len(ordered) // 2] * 1e3, "max_ms": ordered[-1] * 1e3}


@bar
async def federation_return(rig: Rig) -> list[Result]:
    """A whole Hopper that was off for ninety days: from its launch until it serves, with no hands."""
    seconds = []
    for _ in range(rig.pace.rounds):
        with temporary_directory() as directory:
            place = directory / "data"
            place.mkdir(mode=0o700)
            then = datetime.now(UTC) - _BACK_AFTER
            identity = IdentityStore.open(place / "identity", ManualClock(then))
            assert identity.leaf(PATH).not_after < datetime.now(UTC)
            loopback = {"HOPPER_PEER_LISTEN": "127.0.0.1:0", "HOPPER_PAIRING_LISTEN": "127.0.0.1:0"}
            with HopperProcess(place, environment=loopback) as hopper:
                seconds.append(hopper.start_seconds)
    return [RETURN.judge("back after 90 days off", max(seconds), {"": _spread(seconds)}, note="the slowest")]


@bar
async def federation_blackhole(rig: Rig) -> list[Result]:
    """A link on which nothing passes any more, both ways and one way; and then it does again."""
    noticed: dict[str, float] = {}
    recovered: dict[str, float] = {}
    async with _trio() as (alice, bob, _), bob.running(contact=False):  # noqa: SIM117 - its address is known then
        async with ChaosProxy(bob.address) as proxy, alice.running():
            await bob.knows(alice)
            await alice.knows(bob, address=proxy.address)
            for kind in ("both ways", "answers only"):
                await until(lambda: alice.status(bob).reached and not alice.status(bob).failure)
                began = time.monotonic()
                proxy.there.held, proxy.back.held = kind == "both ways", True
                await until(lambda: alice.status(bob).failure)
                noticed[kind] = time.monotonic() - began
                began = time.monotonic()
                proxy.flow()
                await until(lambda: not alice.status(bob).failure)
                recovered[kind] = time.monotonic() - began
    return [
        NOTICED.judge("a blackhole is noticed", max(noticed.values()), {"": noticed}, note="seconds"),
        RECOVERED.judge("and forgotten", max(recovered.values()), {"": recovered}, note="seconds"),
    ]


@bar
async def federation_rogue_root(rig: Rig) -> list[Result]:
    """Certificates that a paired attacker's root can sign: refused by the anchors, and without them by the guard."""
    results = []
    async with _trio() as (alice, bob, carol), alice.running(contact=False):
        await alice.knows(bob)
        await alice.knows(carol)
        root = next(iter(bob.identity._view.keys.roots.values()))
        attacker = Authority(root, bob.identity.trust_domain, datetime.now(UTC))
        for layer, pool in (
            ("with constrained anchors", alice.peering.anchors.pool),
            ("by the guard alone", to_pem([*bob.identity.roots(), *carol.identity.roots()])),
        ):
            outcomes: Counter[str] = Counter()
            own = [f"spiffe://{bob.identity.trust_domain}{PATH}"]
            for leaf in attacks(attacker, carol.identity.roots()[0], carol.identity.trust_domain).values():
                await _let_in_again(alice, bob)  # an impersonation blocks its author
                alice.peering.anchors.pool = pool
                async with bob.calling(alice, leaf) as stub:
                    outcome = await _outcome(stub)
                # Whose only SPIFFE id is its own may be let in, as what it is: other names in it are not read.
                as_itself = outcome == "let in" and spiffe_uris(leaf.certificate) == own
                outcomes["let in as itself" if as_itself else outcome] += 1
            tried = outcomes.total()
            results.append(
                REFUSED.judge(
                    f"a rogue root is refused, {layer}",
                    (tried - outcomes["let in"]) / tried,
                    {"": {"tried": tried, **outcomes}},
                )
            )
    return results


async def _outcome(stub: object) -> str:
    try:
        await stub.GetCapabilities(svc.GetCapabilitiesRequest(), timeout=PATIENCE)  # type: ignore[attr-defined]
    except grpc.aio.AioRpcError as error:
        return "at the call" if error.trailing_metadata() else "in the handshake"
    return "let in"
