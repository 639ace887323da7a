"""
Two Hoppers on two networks with a cable between them, which is pulled out, or carries packets one way only.

The kernel's own network namespaces, and so in `make faults` alone (`HOPPER_FAULTS_NETWORK=1`), where they can be made.
"""

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

import grpc
import pytest

from hopper.federation.v1 import peer_admin_service_pb2 as svc
from hopper.federation.v1.peer_admin_service_pb2_grpc import PeerAdminServiceStub
from hopper.federation.v1.peer_pb2 import PeerStatus
from hopper_testing.processes import HopperProcess, temporary_directory
from tests.faults.promises import NOTICED, RECOVERED

PATIENCE: Final = 120
CUT_SECONDS: Final = 20.0
NOWHERE: Final = "02:00:00:00:00:99"
"""A network card that nobody has."""


def _why_not() -> str:
    """Why there can be no networks of our own here; empty: there can."""
    if not os.environ.get("HOPPER_FAULTS_NETWORK"):
        return "`make faults` does this (HOPPER_FAULTS_NETWORK=1)"
    if shutil.which("ip") is None:
        return "there is no `ip` (iproute2)"
    name = f"hop-{secrets.token_hex(4)}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"network namespaces cannot be made: {made.stderr.strip()}"
    ip("netns", "del", name)
    return ""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@dataclass
class Place:
    """One end of the cable, and the Hopper there, which calls the other `other`."""

    network: str
    device: str
    address: str
    hopper: HopperProcess

    @contextmanager
    def owner(self) -> Iterator[PeerAdminServiceStub]:
        """Its owner, on its socket: sockets in the file system are on no network."""
        with grpc.insecure_channel(self.hopper.address) as channel:
            yield PeerAdminServiceStub(channel)

    def status(self) -> PeerStatus:
        """How the other is doing."""
        with self.owner() as owner:
            return owner.GetPeer(svc.GetPeerRequest(name="peers/other"), timeout=PATIENCE).status

    def carrier(self, state: str) -> None:
        """Put the cable in (`up`) or pull it out (`down`), at this end."""
        ip("-n", self.network, "link", "set", self.device, state)

    def loses(self, other: "Place") -> None:
        """Send what is meant for the other to nobody, and hear nothing of that."""
        entry = (other.address, "lladdr", NOWHERE, "dev", self.device, "nud", "permanent")
        ip("-n", self.network, "neigh", "replace", *entry)

    def finds(self, other: "Place") -> None:
        """Ask again where the other is."""
        ip("-n", self.network, "neigh", "del", other.address, "dev", self.device)


@pytest.fixture(scope="module")
def places() -> Iterator[tuple[Place, Place]]:
    """Two that are paired across the cable, and in touch."""
    if why := _why_not():
        pytest.skip(why)
    with temporary_directory() as directory, ExitStack() as stack:
        here, there = (
            _place(stack, directory / name, f"10.77.0.{number}")
            for number, name in enumerate(("alice", "bob"), 1)
        )
        ip(*("link", "add", here.device, "netns", here.network, "type", "veth"),
           *("peer", "name", there.device, "netns", there.network))  # fmt: skip
        for place in (here, there):
            ip("-n", place.network, "address", "add", f"{place.address}/24", "dev", place.device)
            place.carrier("up")
            stack.enter_context(place.hopper)
        with here.owner() as ours, there.owner() as theirs:
            invited = ours.CreateInvitation(svc.CreateInvitationRequest(peer_id="other"), timeout=PATIENCE)
            theirs.Join(svc.JoinRequest(token=invited.token, peer_id="other"), timeout=PATIENCE)
        for place in (here, there):
            until(lambda place=place: in_touch(place))  # type: ignore[misc]  # bound now
        yield here, there
        for place in (here, there):
            print(f"{place.hopper.log.name} ends:", place.hopper.log_text()[-8000:])  # shown if a test failed


def _place(stack: ExitStack, directory: Path, address: str) -> Place:
    """A network of its own, which is gone when the stack is closed."""
    name = f"hop-{secrets.token_hex(4)}"
    ip("netns", "add", name)
    stack.callback(ip, "netns", "del", name)
    ip("-n", name, "link", "set", "lo", "up")
    environment = {"HOPPER_FEDERATION": "1", "HOPPER_HOSTS": address, "HOPPER_LOG_LEVEL": "debug"}
    hopper = HopperProcess(
        directory, service="federation", environment=environment, within=("ip", "netns", "exec", name)
    )
    return Place(name, f"v{name[4:]}", address, hopper)


def in_touch(place: Place) -> bool:
    status = place.status()
    return status.HasField("last_reached") and not status.last_failure


def until(condition: Callable[[], bool]) -> float:
    """Wait for what must come; returns how many seconds that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < PATIENCE, "it has not come"
        time.sleep(0.02)
    return time.monotonic() - began


@contextmanager
def lasting(seconds: float) -> Iterator[None]:
    """For at least that long."""
    end = time.monotonic() + seconds
    yield
    while (left := end - time.monotonic()) > 0:
        time.sleep(left)


def test_a_cable_that_is_out_for_twenty_seconds(
    places: tuple[Place, Place], figure: Callable[[str, object], None]
) -> None:
    _, there = places
    with lasting(CUT_SECONDS):
        there.carrier("down")
        noticed = [until(lambda place=place: not in_touch(place)) for place in places]  # type: ignore[misc]  # bound now
    there.carrier("up")
    recovered = [until(lambda place=place: in_touch(place)) for place in places]  # type: ignore[misc]  # bound now
    figure("noticed on either side after (s)", [round(each, 2) for each in noticed])
    figure("in touch again after (s)", [round(each, 2) for each in recovered])
    assert timedelta(seconds=sum(noticed)) <= NOTICED
    assert timedelta(seconds=sum(recovered)) <= RECOVERED


@pytest.mark.parametrize("deaf", ["who called", "who was called"])
def test_packets_go_one_way_only(
    places: tuple[Place, Place], deaf: str, figure: Callable[[str, object], None]
) -> None:
    """Both call and are called; each in turn hears nothing, and is heard."""
    loser, other = places if deaf == "who called" else reversed(places)
    loser.loses(other)
    noticed = [until(lambda place=place: not in_touch(place)) for place in places]  # type: ignore[misc]  # bound now
    loser.finds(other)
    recovered = [until(lambda place=place: in_touch(place)) for place in places]  # type: ignore[misc]  # bound now
    figure("noticed on either side after (s)", [round(each, 2) for each in noticed])
    figure("in touch again after (s)", [round(each, 2) for each in recovered])
    assert timedelta(seconds=sum(noticed)) <= NOTICED
    assert timedelta(seconds=sum(recovered)) <= RECOVERED
