"""
Nonsense for the two ports that others reach, as much as there is time for: `make fuzz MINUTES=10 SEED=1`.

    requests    valid ones of every method, with some of their bytes changed, cut out, doubled or made up
    frames      HTTP/2 of any type, flags and length, on a connection that has shaken hands
    bytes       anything at all instead of a handshake, or half of one

Afterwards the process must run and serve, have told nothing of its inside, have logged nothing of what it was sent, and
be no bigger than it was.
"""

import argparse
import asyncio
import base64
import logging
import random
import secrets
import ssl
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import h2.exceptions
from google.protobuf.message import Message

from hopper.common.v1.identity_pb2 import SignedBundle
from hopper.federation.v1 import pairing_service_pb2 as pairing
from hopper.federation.v1 import peer_service_pb2 as peers
from hopper_common.identity.certificates import Leaf
from hopper_common.timestamps import to_proto
from hopper_testing.processes import temporary_directory
from tests.federation.alone import Alone
from tests.federation.neighbours import Neighbour, neighbour
from tests.federation.wire import connected, framed

CANARY: Final = "CANARYb7d1"
ROOM: Final = 40_000_000
"""How much bigger a process may be than it was after the first thousand requests: allocators keep some."""

_TRACES: Final = ("Traceback", "Error:", "Exception", ".py", "site-packages", "hopper_", CANARY)
_HELLO: Final = bytes.fromhex("16030102000100 01fc0303".replace(" ", "")) + bytes(64)
_SECONDS: Final = 10.0


@dataclass
class Found:
    """
    What came of it.

    Attributes:
        sent: How much of each kind.
        statuses: gRPC's codes in the answers; None: there was none.
        problems: What must not be; empty: nothing.
        rss: Of the process, in bytes: when it had warmed up, and at the end.
    """

    sent: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int | None] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    rss: tuple[int, int] = (0, 0)


class Fuzz:
    """
    Sends nonsense.

    Args:
        leaf: Of a peer.
        valid: Requests to begin with, by path; those of the peer port with the leaf.
    """

    def __init__(
        self, process: Alone, leaf: Leaf, valid: Sequence[tuple[str, Message]], chance: random.Random
    ) -> None:
        self.found = Found()
        self._process = process
        self._leaf = leaf
        self._valid = valid
        self._chance = chance

    async def round(self) -> None:
        """One connection of some kind."""
        kind = self._chance.choices((self._requests, self._frames, self._bytes), (6, 2, 1))[0]
        try:
            async with asyncio.timeout(_SECONDS):
                await kind()
        except (OSError, ssl.SSLError, TimeoutError, h2.exceptions.ProtocolError):
            self.found.sent["connections that were ended"] += 1

    def _port(self) -> tuple[str, Leaf | None]:
        at_peers = self._chance.random() < 0.5
        return (self._process.peers, self._leaf) if at_peers else (self._process.pairing, None)

    async def _requests(self) -> None:
        address, leaf = self._port()
        service = "PeerService" if leaf else "PairingService"
        ours = [(path, message) for path, message in self._valid if service in path]
        async with connected(address, leaf) as wire:
            for _ in range(20):
                path, message = self._chance.choice(ours)
                content = self.mutated(message.SerializeToString())
                answer = await wire.call(path, framed(content), **{"grpc-timeout": "2S"})
                self.found.sent["requests"] += 1
                self.found.statuses[answer.status] += 1
                self._look(path, answer.message)
                details = answer.headers.get("grpc-status-details-bin", "")
                self._look(path, base64.b64decode(details + "==").decode("utf-8", "replace"))
                if wire.closed:
                    return

    async def _frames(self) -> None:
        address, leaf = self._port()
        async with connected(address, leaf) as wire:
            for _ in range(self._chance.randrange(1, 30)):
                payload = self._chance.randbytes(self._chance.choice((0, 4, 5, 8, 30, 3_000)))
                head = len(payload).to_bytes(3, "big") + bytes(
                    (self._chance.randrange(12), self._chance.randrange(256))
                )
                stream = self._chance.choice((0, 1, 2, 3, 0x7FFFFFFF)).to_bytes(4, "big")
                await wire.send_raw(self.mutated(head + stream + payload))
                self.found.sent["frames"] += 1

    async def _bytes(self) -> None:
        host, _, port = self._port()[0].rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            begin = self._chance.choice(
                (b"", _HELLO, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\n")
            )
            writer.write(self.mutated(begin + self._chance.randbytes(self._chance.randrange(400))))
            self.found.sent["beginnings"] += 1
            await writer.drain()
            if self._chance.random() < 0.8:
                async with asyncio.timeout(0.05):
                    self._look("a beginning", (await reader.read(4_096)).decode("latin-1"))
        except TimeoutError:
            return
        finally:
            writer.transport.abort()

    def mutated(self, content: bytes) -> bytes:
        """The same with a few changes; now and then with none."""
        chance, made = self._chance, bytearray(content)
        for _ in range(chance.choice((0, 1, 1, 2, 5, 20))):
            place = chance.randrange(len(made) + 1)
            match chance.randrange(6):
                case 0 if place < len(made):
                    made[place] ^= 1 << chance.randrange(8)
                case 1:
                    made[place:place] = chance.randbytes(chance.randrange(1, 9))
                case 2:
                    del made[place : place + chance.randrange(1, 9)]
                case 3:
                    end = place + chance.randrange(1, 60)
                    made[place:place] = made[place:end]
                case 4:
                    made[place : place + 1] = b"\xff" * chance.randrange(1, 11)
                case _:
                    made[place:place] = CANARY.encode()
        return bytes(made)

    def _look(self, where: str, told: str) -> None:
        for trace in _TRACES:
            if trace in told and len(self.found.problems) < 20:
                self.found.problems.append(f"{where}: {trace!r} in {told[:300]!r}")

    def end(self, rss: int) -> Found:
        """Look at what is left."""
        found, process = self.found, self._process
        if not process.running:
            found.problems.append(f"the process has ended:\n{process.log_text()[-3_000:]}")
            return found
        found.rss = rss, process.rss_bytes()
        if found.rss[1] - found.rss[0] > ROOM:
            found.problems.append(f"memory grew from {found.rss[0]} to {found.rss[1]} bytes")
        found.problems += [f"in the log: {line}" for line in process.troubles()[:5]]
        log = process.log_text()
        if CANARY in log:
            found.problems.append(
                f"the canary is in the log: {log[max(0, log.index(CANARY) - 1_000) :][:2_000]}"
            )
        return found


def _valid(bob: Neighbour) -> list[tuple[str, Message]]:
    """A request of every method, as a Hopper would send it."""
    introduction = bob.introductions.ours()
    introduction.claimed_name = CANARY
    nonce = secrets.token_bytes(32)
    bundle: SignedBundle = bob.identity.bundle()
    made: list[Message] = [
        peers.HelloRequest(introduction=introduction, nonce=nonce),
        peers.GetBundleRequest(known_sequence=1),
        peers.PushBundleRequest(bundle=bundle),
        peers.GetCapabilitiesRequest(),
        pairing.IntroduceRequest(),
        pairing.GetRotationRequest(),
        pairing.RedeemRequest(
            invitation=nonce[:16], introduction=introduction, nonce=nonce, proof=nonce, signature=bytes(70)
        ),
        pairing.StartPairingRequest(introduction=introduction, commitment=nonce),
        pairing.RevealPairingRequest(session=nonce[:16], nonce=nonce),
        pairing.ConfirmPairingRequest(session=nonce[:16]),
    ]
    introduction.now.CopyFrom(to_proto(bob.clock.now()))
    return [
        (
            f"/{message.DESCRIPTOR.file.package}."
            f"{'PeerService' if message.DESCRIPTOR.file is peers.DESCRIPTOR else 'PairingService'}/"
            f"{message.DESCRIPTOR.name.removesuffix('Request')}",
            message,
        )
        for message in made
    ]


async def fuzz(*, seconds: float, rounds: int, seed: int, workers: int = 4) -> Found:
    """
    Send nonsense for some time, or so many rounds, whichever comes first.

    Args:
        rounds: 0: as many as there is time for.
    """
    with temporary_directory() as directory:
        async with neighbour(directory / "bob") as bob:
            async with neighbour(directory / "alice") as alice:
                await alice.knows(bob, address="127.0.0.1:1")
            with Alone(directory / "alice") as process:
                leaf, valid = bob.identity.leaf("/svc/federation"), _valid(bob)
                running = Fuzz(process, leaf, valid, random.Random(seed))
                for _ in range(20):
                    await running.round()
                rss, end = process.rss_bytes(), time.monotonic() + seconds
                left = iter(range(rounds) if rounds else iter(int, 1))

                async def work() -> None:
                    while process.running and time.monotonic() < end and next(left, None) is not None:
                        await running.round()

                await asyncio.gather(*(work() for _ in range(workers)))
                found = running.end(rss)
                if process.running:  # and serves
                    async with connected(process.peers, leaf) as wire:
                        answer = await wire.call(
                            "/hopper.federation.v1.PeerService/GetCapabilities", framed(b"")
                        )
                    if answer.status != 0:
                        found.problems.append(f"afterwards it answers {answer}")
                return found


def main() -> int:
    """Fuzz, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of writing to connections that were ended
    found = asyncio.run(fuzz(seconds=arguments.minutes * 60, rounds=0, seed=arguments.seed))
    print("sent:", ", ".join(f"{count} {kind}" for kind, count in sorted(found.sent.items())))
    print("answers:", ", ".join(f"{count} x {status}" for status, count in found.statuses.most_common()))
    print("memory: {:.1f} MB before, {:.1f} MB after".format(*(rss / 1e6 for rss in found.rss)))
    for problem in found.problems:
        print("PROBLEM", problem)
    print("failed" if found.problems else "ok")
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())
