"""
Several Hoppers as processes of their own, paired in a line or a ring, with a proxy on every way between two of them.

     ann ◄──proxies──► bob ◄──proxies──► cid (◄──proxies──► dan ◄──proxies──► ann)

Each can do what no other can, so that what `ann` wants of `cid` goes through `bob`. `bob` has its data in PostgreSQL,
the others in SQLite; `ann`'s are on a small disk where this user may mount one. Each has a wall clock of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from hopper.common.v1.options_pb2 import TRUST_LEVEL_TRUSTED
from hopper.federation.v1 import peer_admin_service_pb2 as peers
from hopper.registry.v1 import project_service_pb2 as psvc
from hopper.registry.v1.project_pb2 import Executor, Project
from hopper_client import AsyncHopper
from hopper_common.errors import HopperError
from hopper_testing.disks import may_mount, small_disk
from hopper_testing.postgres import NoServerError, OwnServer, private_server
from hopper_testing.proxy import ChaosProxy
from tests.faults.stepping import SteppedProcess

NAMES: Final = ("ann", "bob", "cid", "dan")
LEASE_SECONDS: Final = 6
PATIENCE: Final = 60.0
DISK_MEGABYTES: Final = 96
POLICY: Final = """
[[rule]]
name = "whatever is to be done"
effect = "allow"
direction = "both"
capabilities = ["do.*"]
transit = "any"
exclusive = true
in_flight = 1000
"""


def capability(name: str) -> str:
    """What only one Hopper can do."""
    return f"do.{name}"


@dataclass
class Member:
    """
    One Hopper, with whoever works there.

    Attributes:
        install_id: Who it is to others.
        client: To its socket; goes on after a restart.
        small_disk: Its data are on a disk that can be made full.
        revoked: Names of members it has revoked, or was revoked by.
        shut_out: Names of those of them that have revoked it as compromised: they let it in no more, so that to it they
            are away.
    """

    name: str
    process: SteppedProcess
    ledger: Path
    database: str = ""
    small_disk: bool = False
    client: AsyncHopper = field(init=False)
    install_id: str = ""
    baseline: tuple[int, int] = (0, 0)
    revoked: set[str] = field(default_factory=set)
    shut_out: set[str] = field(default_factory=set)
    kills: int = 0
    _worker: subprocess.Popen[bytes] | None = None

    def start_worker(self) -> None:
        """Have somebody work there."""
        command = [sys.executable, "-m", "tests.faults.federation.working", self.process.address, self.name]
        with self.ledger.with_suffix(".log").open("ab") as log:
            self._worker = subprocess.Popen(
                [*command, f"projects/{self.name}", str(self.ledger)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill_worker(self) -> None:
        """SIGKILL: what it has begun has no end in the ledger."""
        if self._worker is not None:
            self._worker.kill()
            self._worker.wait()

    def signal_worker(self, number: signal.Signals) -> None:
        """Send a signal to whoever works there."""
        if self._worker is not None:
            self._worker.send_signal(number)

    def usage(self) -> tuple[int, int]:
        """Memory in bytes, and open files."""
        return self.process.rss_bytes(), len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def rows(self, query: str, server: OwnServer | None) -> list[dict[str, Any]]:
        """What a query finds in the database of its federation; `{s}` stands before each table."""
        if not self.database:
            return _sqlite_rows(self.process.data_dir / "federation.db", query.format(s=""))
        assert server is not None
        statement = (
            f"SELECT coalesce(json_agg(t), '[]')::text FROM ({query.format(s='hopper_federation.')}) t"
        )
        name = urlsplit(self.database).path[1:]
        found: list[dict[str, Any]] = json.loads(server.execute(statement, database=name))
        return found


def _sqlite_rows(path: Path, query: str) -> list[dict[str, Any]]:
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(query)]


@dataclass
class Link:
    """Two members that are peers; `ways[name]` is how that one reaches the other."""

    one: Member
    other: Member
    ways: dict[str, ChaosProxy]

    @property
    def name(self) -> str:
        return f"{self.one.name}-{self.other.name}"

    def heal(self) -> None:
        """As if nothing had been."""
        for proxy in self.ways.values():
            proxy.up()
            proxy.flow()
            for way in (proxy.there, proxy.back):
                way.delay, way.bytes_per_second, way.slices = 0.0, 0.0, 0


@dataclass
class Stage:
    """All of it."""

    directory: Path
    members: list[Member]
    links: list[Link] = field(default_factory=list)
    server: OwnServer | None = None

    def member(self, name: str) -> Member:
        """By its name."""
        return next(each for each in self.members if each.name == name)

    def peers_of(self, member: Member) -> list[Member]:
        """Whom it is paired with."""
        return [
            link.other if link.one is member else link.one
            for link in self.links
            if member in (link.one, link.other)
        ]


async def until(look: Callable[[], Awaitable[bool]], problem: str, *, seconds: float = PATIENCE) -> None:
    """
    Wait for something that must come.

    Raises:
        AssertionError: It did not.
    """
    try:
        async with asyncio.timeout(seconds):
            while True:
                with suppress(HopperError):
                    if await look():
                        return
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(problem) from None


@asynccontextmanager
async def set_up(directory: Path, *, hoppers: int, postgres: bool = True) -> AsyncIterator[Stage]:
    """
    Hoppers that run, know what the others can do, and have workers.

    Args:
        directory: Short, empty; for data, logs and ledgers. Left as it is.
        hoppers: Two to four; four are a ring.
        postgres: Whether the second one is on PostgreSQL.
    """
    async with AsyncExitStack() as stack:
        server = stack.enter_context(_server()) if postgres else None
        members = [_member(directory, name, server, stack) for name in NAMES[:hoppers]]
        for member in members:
            stack.callback(member.process.close)
            stack.callback(member.kill_worker)
        await asyncio.gather(*(asyncio.to_thread(member.process.start) for member in members))
        for member in members:
            member.client = await stack.enter_async_context(AsyncHopper(member.process.address))
        stage = Stage(directory, members, server=server)
        pairs = list(pairwise(members))
        if hoppers > 3:
            pairs.append((members[-1], members[0]))
        for one, other in pairs:
            stage.links.append(await _pair(one, other, stack))
        for member in members:
            await _settle(member)
        for member in members:
            await _knows_all(stage, member)
            member.baseline = member.usage()
        yield stage


@contextmanager
def _server() -> Iterator[OwnServer | None]:
    """None: there is none here, and all are on SQLite."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(private_server(max_connections="60"))
        except NoServerError:
            server = None
        yield server


def _member(directory: Path, name: str, server: OwnServer | None, stack: AsyncExitStack) -> Member:
    environment = {
        "HOPPER_NAME": name,
        "HOPPER_FEDERATION": "1",
        "HOPPER_PEER_LISTEN": "127.0.0.1:0",
        "HOPPER_PAIRING_LISTEN": "127.0.0.1:0",
        "HOPPER_DELEGATION_LEASE": str(LEASE_SECONDS),
        "HOPPER_LOG_LEVEL": "info",
    }
    process = SteppedProcess(directory / name, directory / f"{name}.wrong_by", environment=environment)
    member = Member(name, process, directory / f"{name}.jsonl")
    if name == "bob" and server is not None:
        member.database = server.create_database()
        for service in ("ROUTER", "REGISTRY", "FEDERATION"):
            member.process.environment[f"HOPPER_{service}_DATABASE"] = member.database
    if name == "ann" and may_mount():
        (directory / name).mkdir(mode=0o700)
        stack.enter_context(small_disk(directory / name, megabytes=DISK_MEGABYTES))
        member.small_disk = True
    return member


async def _pair(one: Member, other: Member, stack: AsyncExitStack) -> Link:
    """Each finds the other through a proxy of its own, and listens where it does from now on."""

    async def joined() -> bool:  # its pairing port may just be closing, and opens as another
        invited = await one.client.peers.CreateInvitation(peers.CreateInvitationRequest(peer_id=other.name))
        await other.client.peers.Join(peers.JoinRequest(token=invited.token, peer_id=one.name))
        return True

    await until(joined, f"{one.name} and {other.name} are not paired")
    ways = {}
    for here, there in ((one, other), (other, one)):
        peer = (await there.client.peers.GetPeer(peers.GetPeerRequest(name=f"peers/{here.name}"))).peer
        known = peer.addresses[0]
        here.install_id = peer.install_id
        here.process.environment["HOPPER_PEER_LISTEN"] = known
        proxy = ways[there.name] = await stack.enter_async_context(ChaosProxy(known))
        await there.client.peers.SetPeerAddresses(
            peers.SetPeerAddressesRequest(name=peer.name, addresses=[proxy.address])
        )
        await there.client.peers.SetTrust(
            peers.SetTrustRequest(name=peer.name, level=TRUST_LEVEL_TRUSTED, policy=POLICY)
        )
    return Link(one, other, ways)


async def _settle(member: Member) -> None:
    """What it can do, and somebody who does it."""
    project = Project(
        display_name=member.name,
        capabilities=[capability(member.name)],
        executor=Executor(requires_live_worker=True),
    )
    await member.client.projects.RegisterProject(
        psvc.RegisterProjectRequest(project_id=member.name, project=project)
    )
    member.start_worker()


async def _knows_all(stage: Stage, member: Member) -> None:
    """Until it has heard, from peer to peer, what each of the others can do."""

    async def knows() -> bool:
        listed = (await member.client.projects.ListProjects(psvc.ListProjectsRequest())).projects
        there = {each for project in listed if project.presence.live_workers for each in project.capabilities}
        return there >= {capability(each.name) for each in stage.members}

    await until(knows, f"{member.name} does not hear what all others can do")


@contextmanager
def directory_kept_if(keep: Callable[[], bool]) -> Iterator[Path]:
    """A directory whose path is short; gone afterwards, unless it is to be looked at."""
    directory = Path(tempfile.mkdtemp(prefix="hop-", dir="/tmp"))
    try:
        yield directory
    finally:
        if not keep():
            shutil.rmtree(directory, ignore_errors=True)
