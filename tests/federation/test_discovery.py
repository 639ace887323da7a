"""Looking for others with real packets: multicast DNS on the loopback interface, and a name server."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import dns.message
import dns.rcode
import dns.rrset
import pytest

from hopper_common.clock import SystemClock
from hopper_federation.discovery import mdns, srv
from hopper_federation.discovery.mdns import Announcer, look
from hopper_federation.discovery.sightings import Sighting
from hopper_federation.errors import DiscoveryUnavailable

CLOCK = SystemClock()
LOOPBACK = ("127.0.0.1",)
GROUP = ("224.0.0.251", 5353)


def _multicast_works() -> bool:
    """Whether a packet to the group comes back on the loopback interface."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        try:
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            receiver.bind(("", 0))
            where = socket.inet_aton(GROUP[0]) + socket.inet_aton(LOOPBACK[0])
            receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, where)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(LOOPBACK[0]))
            receiver.settimeout(2)
            sender.sendto(b"there?", (GROUP[0], receiver.getsockname()[1]))
            return receiver.recv(16) == b"there?"
        except OSError:
            return False


needs_multicast = pytest.mark.skipif(
    not _multicast_works(), reason="no multicast on the loopback interface here"
)


@asynccontextmanager
async def announcing(install_id: str, **ports: int) -> AsyncIterator[Announcer]:
    announcer = Announcer(install_id, interfaces=LOOPBACK)
    announcer.tell(**ports)
    running = asyncio.create_task(announcer.run())
    try:
        yield announcer
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def found(install_id: str, pairing_port: int) -> Sighting:
    """Look until that one is seen so."""
    async with asyncio.timeout(60):
        while True:
            sightings, _ = await look(timedelta(seconds=1), CLOCK, LOOPBACK)
            for sighting in sightings:
                if (sighting.claimed_install_id, sighting.pairing_address) == (
                    install_id,
                    f"127.0.0.1:{pairing_port}" if pairing_port else "",
                ):
                    return sighting


@needs_multicast
async def test_one_who_announces_is_found_with_what_it_says_now() -> None:
    install_id = "m" * 32
    async with announcing(install_id, peer_port=4001, pairing_port=0) as announcer:
        assert (await found(install_id, 0)).peer_address == "127.0.0.1:4001"
        announcer.tell(peer_port=4001, pairing_port=4002)
        assert (await found(install_id, 4002)).peer_address == "127.0.0.1:4001"


def _answer(name: bytes, txt: bytes) -> bytes:
    """A multicast answer with one instance and its TXT record, as raw bytes."""

    def encoded(*labels: bytes) -> bytes:
        return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"

    service = encoded(b"_hopper", b"_tcp", b"local")
    instance = bytes([len(name)]) + name + service
    records = [
        service + struct.pack("!HHIH", 12, 1, 120, len(instance)) + instance,
        instance + struct.pack("!HHIH", 16, 0x8001, 120, len(txt)) + txt,
    ]
    return struct.pack("!HHHHHH", 0, 0x8400, 0, len(records), 0, 0) + b"".join(records)


@needs_multicast
async def test_junk_on_the_network_harms_nobody() -> None:
    """Labels and texts that are none, and packets that are no DNS at all, while another is looked for."""
    install_id = "n" * 32
    junk = [
        b"",
        b"\xff" * 300,
        struct.pack("!HHHHHH", 0, 0x8400, 0, 500, 0, 0),
        _answer(b"a" * 64, b"\x00"),
        _answer(b"\xff\xfe", b"\xff" + b"x" * 9),
        _answer(b"big", b"".join(b"\xff" + bytes([65 + number]) * 255 for number in range(32))),
    ]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(LOOPBACK[0]))
        async with announcing(install_id, peer_port=4003, pairing_port=4004):

            async def pester() -> None:
                while True:
                    for packet in junk:
                        sender.sendto(packet, GROUP)
                    await asyncio.sleep(0.05)

            pestering = asyncio.create_task(pester())
            try:
                await found(install_id, 4004)
            finally:
                pestering.cancel()


@needs_multicast
async def test_a_flood_of_names_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mdns, "MOST_NAMES", 20)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(LOOPBACK[0]))

        async def flood() -> None:
            while True:
                for number in range(200):
                    sender.sendto(_answer(b"flood-%d" % number, b"\x00"), GROUP)
                    await asyncio.sleep(0)

        flooding = asyncio.create_task(flood())
        try:
            async with asyncio.timeout(60):
                left_out = 0
                while not left_out:
                    sightings, left_out = await look(timedelta(seconds=1), CLOCK, LOOPBACK)
                    assert not [one for one in sightings if "flood" in one.claimed_install_id]
        finally:
            flooding.cancel()


async def test_an_interface_that_is_not_there_is_said() -> None:
    with pytest.raises(DiscoveryUnavailable) as caught:
        await look(timedelta(0), CLOCK, ("203.0.113.77",))
    assert caught.value.metadata["missing"] == "network"


class _NameServer(asyncio.DatagramProtocol):
    """Answers SRV questions about `example.test`, and refuses the rest."""

    def __init__(self, records: dict[str, list[str]]) -> None:
        self._records = records

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        query = dns.message.from_wire(data)
        answer = dns.message.make_response(query)
        (question,) = query.question
        records = self._records.get(question.name.to_text())
        if records is None:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        elif records:
            answer.answer.append(dns.rrset.from_text_list(question.name, 60, "IN", "SRV", records))
        self._transport.sendto(answer.to_wire(), addr)


@asynccontextmanager
async def name_server(records: dict[str, list[str]]) -> AsyncIterator[tuple[str, int]]:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(
        lambda: _NameServer(records), local_addr=("127.0.0.1", 0)
    )
    try:
        yield transport.get_extra_info("sockname")
    finally:
        transport.close()


async def test_a_domain_says_where_its_hopper_is() -> None:
    records = {
        "_hopper-peer._tcp.example.test.": ["20 0 8470 b.example.test.", "10 1 8470 a.example.test."],
        "_hopper-pair._tcp.example.test.": [],
    }
    async with name_server(records) as server:
        sightings = await srv.ask("example.test", CLOCK, timeout=timedelta(seconds=20), nameserver=server)
    assert [sighting.peer_address for sighting in sightings] == ["a.example.test:8470", "b.example.test:8470"]


async def test_a_domain_without_a_hopper() -> None:
    async with name_server({}) as server:
        assert await srv.ask("example.test", CLOCK, timeout=timedelta(seconds=20), nameserver=server) == []


async def test_a_name_server_that_does_not_answer() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        with pytest.raises(DiscoveryUnavailable) as caught:
            await srv.ask(
                "example.test", CLOCK, timeout=timedelta(seconds=0.5), nameserver=silent.getsockname()
            )
    assert caught.value.metadata["missing"] == "answer"
