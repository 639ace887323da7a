"""
Work that crosses: how long a hand-over takes beside the least it could, and whether a dead peer slows others.

Two federation services in this process, over loopback, mTLS and SQLite with `synchronous=FULL`. What belongs to routers
is left out: the task that is handed over is said at one desk, its end at the other.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
from sqlalchemy import Connection, insert

from hopper_common import logs
from hopper_common.auth.rates import Rate
from hopper_common.database import Database
from hopper_common.host import collect_seldom
from hopper_common.ids import new_id
from hopper_federation.delegation import receiver
from hopper_federation.delegation.model import Delegation, State
from hopper_federation.delegation.tables import INBOX
from hopper_testing.certificates import Authority
from hopper_testing.processes import temporary_directory
from hopper_testing.proxy import ChaosProxy
from tests.bench.bar import Result, at_most, bar
from tests.bench.rig import Rig
from tests.federation.handing import ends_taken, offer, trusts
from tests.federation.neighbours import Neighbour, neighbour

ROUND_TRIP: Final = at_most(2.0, 1.5)
THROUGHPUT: Final = at_most(2.0, 1.5)
UNDISTURBED: Final = at_most(1.10, 1.05)

_SERIAL: Final = 40
_ROUNDS: Final = 5
_AT_ONCE: Final = 32
_OF_THEM: Final = 320
_PEERS: Final = 50
_DEAD_ROUNDS: Final = 6


# ---------------------------------------------------------------- a hand-over, from offer to acknowledged result


class _Couple:
    """Alice hands over, Bob does it at once."""

    def __init__(self, alice: Neighbour, bob: Neighbour) -> None:
        self.alice = alice
        self.bob = bob
        self._here = _Seen(alice)
        self._there = _Seen(bob)

    async def round_trip(self) -> None:
        """Until Alice has the result and Bob knows that she has: durable at both ends."""
        (made,) = await offer(self.alice, self.bob)
        taken = await self._there.when(made, lambda each: each.state is State.ACCEPTED)
        await ends_taken(self.bob, taken)
        await self._here.when(made, lambda each: each.state is State.COMPLETED)
        await self._there.when(made, lambda each: each.settled)


class _Seen:
    """What each hand-over is at one side, as of its newest durable transaction, without asking the database."""

    def __init__(self, one: Neighbour) -> None:
        self._newest: dict[str, Delegation] = {}
        self._wanted: dict[str, tuple[Enough, asyncio.Future[Delegation]]] = {}
        one.desks.on_saved(self._saved)

    def _saved(self, each: Delegation) -> None:
        self._newest[each.id] = each
        enough, future = self._wanted.get(each.id, (None, None))
        if enough is not None and future is not None and enough(each):
            del self._wanted[each.id]
            future.set_result(each)

    async def when(self, delegation: str, enough: Enough) -> Delegation:
        newest = self._newest.get(delegation)
        if newest is not None and enough(newest):
            return newest
        future: asyncio.Future[Delegation] = asyncio.get_running_loop().create_future()
        self._wanted[delegation] = enough, future
        return await future


Enough = Callable[[Delegation], bool]


@asynccontextmanager
async def _couple(directory: Path) -> AsyncIterator[_Couple]:
    async with (
        neighbour(directory / "alice") as alice,
        neighbour(directory / "bob") as bob,
        alice.running(contact=False, sending=True),
        bob.running(contact=False, sending=True),
    ):
        await trusts(alice, bob, policy=_POLICY)
        await trusts(bob, alice, policy=_POLICY)
        yield _Couple(alice, bob)


_POLICY: Final = """
[[rule]]
name = "docs"
effect = "allow"
direction = "both"
capabilities = ["docs.*"]
in_flight = 10000
"""


# ---------------------------------------------------------------- the least it could take


class _Floor:
    """Two mTLS calls that do nothing, and four commits of a row, one after the other."""

    def __init__(self, call: Callable[[bytes], Awaitable[bytes]], here: Database, there: Database) -> None:
        self._call = call
        self._databases = (here, there, there, here)

    async def round_trip(self) -> None:
        for number, database in enumerate(self._databases):
            await database.write(_insert)
            if number % 2 == 0:
                await self._call(b"x" * 1000)


def _insert(conn: Connection) -> None:
    row = {"peer": "floor", "message": new_id(datetime.now(UTC)), "digest": b"x" * 32, "receipt": b"x" * 200}
    conn.execute(insert(INBOX), {**row, "take_time": 0.0})


class _Echo(grpc.GenericRpcHandler):
    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        return grpc.unary_unary_rpc_method_handler(_same)


async def _same(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
    return request


@asynccontextmanager
async def _floor(couple: _Couple) -> AsyncIterator[_Floor]:
    authority = Authority.new(datetime.now(UTC))
    server_leaf, client_leaf = authority.leaf(path="/svc/router"), authority.leaf(path="/svc/federation")
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([_Echo()])
    port = server.add_secure_port(
        "127.0.0.1:0",
        grpc.ssl_server_credentials(
            [(server_leaf.key_pem, server_leaf.chain_pem)], authority.pem, require_client_auth=True
        ),
    )
    await server.start()
    credentials = grpc.ssl_channel_credentials(authority.pem, client_leaf.key_pem, client_leaf.chain_pem)
    options = (("grpc.ssl_target_name_override", f"router.{authority.trust_domain}"),)
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options) as channel:
        call: Any = channel.unary_unary("/floor/Echo")
        try:
            yield _Floor(lambda request: call(request, timeout=10), couple.alice.db, couple.bob.db)
        finally:
            await server.stop(0)


# ---------------------------------------------------------------- bars


@bar
async def delegation_round_trip(rig: Rig) -> list[Result]:
    """Delegate, accept, complete, acknowledge: beside two bare mTLS calls and four durable commits."""
    logs.configure(level="warning", form="json")
    _without_rates()
    with temporary_directory() as directory:
        async with _couple(directory) as couple, _floor(couple) as floor:
            collect_seldom()
            sides = {"hand-over": couple.round_trip, "floor": floor.round_trip}
            for make in sides.values():
                await _serially(make, 10)
            serial: dict[str, list[float]] = {name: [] for name in sides}
            rates: dict[str, list[float]] = {name: [] for name in sides}
            for _ in range(_ROUNDS):
                for name, make in sides.items():
                    serial[name] += await _serially(make, _SERIAL)
                for name, make in sides.items():
                    rates[name].append(await _together(make))
    middle = {name: statistics.median(values) for name, values in serial.items()}
    rate = {name: statistics.median(values) for name, values in rates.items()}
    shown = {
        name: {"p50_ms": middle[name] * 1e3, "p99_ms": _p99(serial[name]) * 1e3, "per_s": rate[name]}
        for name in sides
    }
    return [
        ROUND_TRIP.judge(
            "a hand-over / two mTLS calls and four commits, p50", middle["hand-over"] / middle["floor"], shown
        ),
        THROUGHPUT.judge(
            f"the same, {_AT_ONCE} at once: floor's throughput / hand-overs'",
            rate["floor"] / rate["hand-over"],
            shown,
        ),
    ]


def _without_rates() -> None:
    """What is measured is the work, not the limits for strangers."""
    receiver.OFFERS = Rate(1e6, 1e6)  # type: ignore[misc]
    receiver.MESSAGES = Rate(1e7, 1e7)  # type: ignore[misc]


async def _serially(make: Callable[[], Awaitable[None]], count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        await make()
        seconds.append(time.perf_counter() - began)
    return seconds


async def _together(make: Callable[[], Awaitable[None]]) -> float:
    """How many a second, with so many at once."""
    left = iter(range(_OF_THEM))

    async def some() -> None:
        for _ in left:
            await make()

    began = time.perf_counter()
    await asyncio.gather(*(some() for _ in range(_AT_ONCE)))
    return _OF_THEM / (time.perf_counter() - began)


def _p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]


# ---------------------------------------------------------------- one dead peer among many


@bar
async def delegation_dead_peer(rig: Rig) -> list[Result]:
    """Offers to 49 peers while the fiftieth swallows everything: from the desk until they are accepted, p99."""
    logs.configure(level="warning", form="json")
    _without_rates()
    with temporary_directory() as directory:
        async with _crowd(directory) as crowd:
            await crowd.round()
            alive, dead = [], []
            for _ in range(_DEAD_ROUNDS):
                crowd.proxy.flow()
                await crowd.offer_to_first(wait=True)
                alive += await crowd.round()
                crowd.proxy.hold()
                for _ in range(5):
                    await crowd.offer_to_first(wait=False)
                dead += await crowd.round()
    shown = {
        name: {"p50_ms": statistics.median(each) * 1e3, "p99_ms": _p99(each) * 1e3, "count": len(each)}
        for name, each in (("all there", alive), ("one swallows", dead))
    }
    return [
        UNDISTURBED.judge(
            f"offers to {_PEERS - 1} peers while one is dead / while none is, p99",
            _p99(dead) / _p99(alive),
            shown,
        ),
        UNDISTURBED.judge("the same, p50", statistics.median(dead) / statistics.median(alive), shown),
    ]


class _Crowd:
    """Alice and her peers; the way to the first leads through a proxy."""

    def __init__(self, alice: Neighbour, peers: list[Neighbour], proxy: ChaosProxy) -> None:
        self.alice = alice
        self.peers = peers
        self.proxy = proxy
        self._seen = _Seen(alice)

    async def offer_to_first(self, *, wait: bool) -> None:
        (made,) = await offer(self.alice, self.peers[0])
        if wait:
            await self._seen.when(made, lambda each: each.state is State.ACCEPTED)

    async def round(self) -> list[float]:
        """How long an offer to each of the others takes until it is accepted."""
        seconds = []
        for peer in self.peers[1:]:
            began = time.perf_counter()
            (made,) = await offer(self.alice, peer)
            await self._seen.when(made, lambda each: each.state is State.ACCEPTED)
            seconds.append(time.perf_counter() - began)
        return seconds


@asynccontextmanager
async def _crowd(directory: Path) -> AsyncIterator[_Crowd]:
    async with AsyncExitStack() as stack:
        alice, *peers = [
            await stack.enter_async_context(neighbour(directory / f"h{number}"))
            for number in range(_PEERS + 1)
        ]
        for each in peers:
            await stack.enter_async_context(each.running(contact=False))
        proxy = await stack.enter_async_context(ChaosProxy(peers[0].address))
        await stack.enter_async_context(alice.running(contact=False, sending=True))
        for each in peers:
            await trusts(each, alice, policy=_POLICY)
            await trusts(alice, each, address=proxy.address if each is peers[0] else "", policy=_POLICY)
        yield _Crowd(alice, peers, proxy)
