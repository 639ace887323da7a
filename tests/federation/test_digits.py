"""Two Hoppers pair by six digits: as it should be, with somebody in between, and in a flood."""

import asyncio
import secrets
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest

from hopper.common.v1.options_pb2 import TRUST_LEVEL_KNOWN
from hopper.federation.v1 import pairing_service_pb2 as psvc
from hopper.federation.v1 import peer_admin_service_pb2 as svc
from hopper.federation.v1.peer_pb2 import Pairing
from hopper_common.identity.store import Identity, IdentityStore
from hopper_common.timestamps import to_proto
from hopper_federation import dialling, transcript
from hopper_federation.errors import PairingFull, PairingWrongStep
from hopper_federation.introductions import Introductions
from hopper_federation.pairing import MOST_PENDING, MOST_PENDING_OF_SOURCE, TIME_TO_LIVE
from hopper_federation.pairing_port import Window
from hopper_federation.pairing_servicer import PairingServicer
from hopper_federation.store_sql import Federation
from hopper_testing.clock import ManualClock
from tests.federation.harness import PATIENCE, RunningFederation, refusal, violations

DENIED = grpc.StatusCode.PERMISSION_DENIED
WRONG_STEP = (grpc.StatusCode.FAILED_PRECONDITION, "PAIRING_WRONG_STEP")


async def opened(hopper: RunningFederation) -> str:
    """Let others ask; returns where."""
    return (await hopper.admin.OpenPairing(svc.OpenPairingRequest())).address


async def asked(hopper: RunningFederation, address: str, peer_id: str) -> Pairing:
    """Ask the Hopper at an address."""
    request = svc.RequestPairingRequest(address=address, peer_id=peer_id)
    return (await hopper.admin.RequestPairing(request, timeout=PATIENCE)).pairing


async def approved(hopper: RunningFederation, pairing: Pairing, code: str, peer_id: str = "") -> Pairing:
    """Approve, with the digits from the other's screen."""
    request = svc.ApprovePairingRequest(name=pairing.name, code=code, peer_id=peer_id)
    return (await hopper.admin.ApprovePairing(request, timeout=PATIENCE)).pairing


async def came_to(hopper: RunningFederation, name: str, state: Pairing.State.ValueType) -> Pairing:
    """Wait until a pairing has come to a state; the rates of the pairing port do not stand in the way."""
    async with asyncio.timeout(PATIENCE):
        while True:
            found = {pairing.name: pairing for pairing in await hopper.pairings()}
            if found[name].state == state:
                return found[name]
            hopper.clock.advance(timedelta(milliseconds=500))
            await asyncio.sleep(0.05)


async def test_both_show_the_same_digits_and_approve(
    alice: RunningFederation, bob: RunningFederation
) -> None:
    there = await asked(bob, await opened(alice), "alice")
    (here,) = await alice.pairings()
    assert here.code == there.code
    assert len(here.code) == 6
    assert (here.outgoing, there.outgoing) == (False, True)
    assert (here.claimed_name, there.claimed_name) == ("bob", "alice")
    assert await alice.peers() == await bob.peers() == []
    first = await approved(alice, here, there.code, "bob")
    assert (first.state, await alice.peers()) == (Pairing.STATE_APPROVED_HERE, [])
    await approved(bob, there, here.code)
    await came_to(bob, there.name, Pairing.STATE_DONE)
    await came_to(alice, here.name, Pairing.STATE_DONE)
    bobs, alices = await alice.peer("bob"), await bob.peer("alice")
    assert list(bobs.words) == list(alices.words)
    assert len(bobs.words) == 6
    assert bobs.level == alices.level == TRUST_LEVEL_KNOWN
    assert (here.install_id, there.install_id) == (bobs.install_id, alices.install_id)


async def test_the_one_that_asked_may_approve_first_and_be_restarted_in_between(
    alice: RunningFederation, bob: RunningFederation
) -> None:
    there = await asked(bob, await opened(alice), "alice")
    (here,) = await alice.pairings()
    await approved(bob, there, here.code)
    await bob.restart()
    await approved(alice, here, there.code, "bob")
    await came_to(bob, there.name, Pairing.STATE_DONE)
    assert (await bob.peer("alice")).words == (await alice.peer("bob")).words


async def test_digits_that_differ_end_it_on_both_sides(
    alice: RunningFederation, bob: RunningFederation
) -> None:
    there = await asked(bob, await opened(alice), "alice")
    (here,) = await alice.pairings()
    wrong = f"{(int(here.code) + 1) % 1_000_000:06}"
    assert set(await violations(approved(alice, here, wrong, "bob"))) == {"code"}
    (here,) = await alice.pairings()
    assert (here.state, here.failure) == (Pairing.STATE_FAILED, "PAIRING_COMMITMENT_BROKEN")
    await refusal(approved(alice, here, there.code, "bob"), *WRONG_STEP)  # one attempt
    await came_to(bob, there.name, Pairing.STATE_DECLINED)
    await refusal(approved(bob, there, there.code), *WRONG_STEP)
    assert await alice.peers() == await bob.peers() == []


async def test_the_other_hears_that_the_one_who_asked_saw_other_digits(
    alice: RunningFederation, bob: RunningFederation
) -> None:
    there = await asked(bob, await opened(alice), "alice")
    (here,) = await alice.pairings()
    assert set(await violations(approved(bob, there, "000000" if there.code != "000000" else "1"))) == {
        "code"
    }
    await came_to(alice, here.name, Pairing.STATE_DECLINED)
    assert await alice.peers() == await bob.peers() == []


@pytest.mark.parametrize("who", ["alice", "bob"])
async def test_either_may_decline(alice: RunningFederation, bob: RunningFederation, who: str) -> None:
    there = await asked(bob, await opened(alice), "alice")
    (here,) = await alice.pairings()
    hopper, pairing = (alice, here) if who == "alice" else (bob, there)
    await hopper.admin.DeclinePairing(svc.DeclinePairingRequest(name=pairing.name))
    await came_to(alice, here.name, Pairing.STATE_DECLINED)
    await came_to(bob, there.name, Pairing.STATE_DECLINED)
    await refusal(approved(alice, here, there.code, "bob"), *WRONG_STEP)


async def test_who_stands_in_between_cannot_make_the_digits_agree(
    alice: RunningFederation, bob: RunningFederation, eve: RunningFederation
) -> None:
    """Bob asks at an address that is eve's, and eve asks alice: two pairings, each with digits of its own."""
    with_eve = await asked(bob, await opened(eve), "alice")
    eve.clock.advance(timedelta(seconds=10))
    with_alice = await asked(eve, await opened(alice), "alice")
    (here,) = await alice.pairings()
    assert here.code == with_alice.code
    assert with_eve.code != here.code
    assert set(await violations(approved(alice, here, with_eve.code, "bob"))) == {"code"}
    assert await alice.peers() == []


async def test_it_ends_when_nobody_answers(
    alice: RunningFederation, bob: RunningFederation, clock: ManualClock
) -> None:
    there = await asked(bob, await opened(alice), "alice")
    (here,) = await alice.pairings()
    clock.advance(TIME_TO_LIVE)
    for hopper, pairing in ((alice, here), (bob, there)):
        over = await came_to(hopper, pairing.name, Pairing.STATE_FAILED)
        assert over.failure == "DEADLINE_EXCEEDED"
        await refusal(approved(hopper, pairing, here.code, "x"), *WRONG_STEP)


async def test_nobody_is_heard_while_pairing_is_not_open(
    alice: RunningFederation, bob: RunningFederation
) -> None:
    address = await opened(alice)
    await alice.invite("carol")  # the port stays open for this
    await alice.admin.OpenPairing(svc.OpenPairingRequest(lifetime=to_proto(timedelta())))
    await refusal(asked(bob, address, "alice"), *WRONG_STEP)
    assert await alice.pairings() == []


async def test_what_cannot_be_approved(alice: RunningFederation, bob: RunningFederation) -> None:
    there = await asked(bob, await opened(alice), "alice")
    (here,) = await alice.pairings()
    assert set(await violations(approved(alice, here, there.code))) == {"peer_id"}  # bob asked
    assert set(await violations(approved(alice, here, "", "bob"))) == {"code"}
    await refusal(approved(alice, Pairing(name="pairings/none"), "123456", "bob"), *WRONG_STEP)
    assert set(await violations(asked(bob, "nowhere", "alice"))) == {"address"}
    await refusal(asked(bob, "127.0.0.1:1", "alice"), grpc.StatusCode.UNAVAILABLE, "PEER_UNREACHABLE")


# Those who do not keep to the steps.


class Stranger:
    """Speaks to a pairing port, step by step."""

    def __init__(self, identity: Identity, introductions: Introductions, shown: dialling.Shown) -> None:
        self.identity = identity
        self.introductions = introductions
        self.shown = shown
        self.nonce = secrets.token_bytes(32)
        self.ours = introductions.ours()
        self.told = introductions.read_ours(self.ours)

    async def start(self) -> psvc.StartPairingResponse:
        request = psvc.StartPairingRequest(
            introduction=self.ours, commitment=transcript.commitment(self.nonce, self.told.side)
        )
        async with dialling.pinned(self.shown) as pairing:
            return await pairing.StartPairing(request, timeout=PATIENCE)

    async def reveal(self, started: psvc.StartPairingResponse, nonce: bytes, **changes: Any) -> Any:
        answerer = (await self.introductions.read(started.introduction)).told
        binding = transcript.digits_binding(
            started.session, nonce, started.nonce, self.told, answerer, self.shown.leaf
        )
        data = transcript.revealed_signed(binding, asker=True)
        fields = {"session": started.session, "nonce": nonce, "signature": self.identity.sign_with_root(data)}
        async with dialling.pinned(self.shown) as pairing:
            return await pairing.RevealPairing(
                psvc.RevealPairingRequest(**{**fields, **changes}), timeout=PATIENCE
            )

    async def confirm(self, session: bytes) -> Any:
        request = psvc.ConfirmPairingRequest(session=session, verdict=psvc.PAIRING_VERDICT_APPROVED)
        async with dialling.pinned(self.shown) as pairing:
            return await pairing.ConfirmPairing(request, timeout=PATIENCE)


@pytest.fixture
async def introductions(federation: Federation, clock: ManualClock, place: Any) -> Introductions:
    identity = IdentityStore.open(place / "stranger", clock)
    return Introductions(identity, federation, clock, name="stranger", peer_addresses=lambda: ())


@pytest.fixture
def database_url(tmp_path: Any) -> str:
    """A stranger needs one engine only."""
    return str(tmp_path / "stranger.db")


async def stranger_at(introductions: Introductions, address: str) -> Stranger:
    return Stranger(introductions.identity, introductions, await dialling.look(address))


async def test_a_commitment_that_is_broken_ends_it(
    alice: RunningFederation, introductions: Introductions
) -> None:
    """Whoever could choose the nonce after having seen the other's could look for digits that agree."""
    stranger = await stranger_at(introductions, await opened(alice))
    started = await stranger.start()
    chosen = secrets.token_bytes(32)
    await refusal(stranger.reveal(started, chosen), DENIED, "PAIRING_COMMITMENT_BROKEN")
    await refusal(stranger.reveal(started, stranger.nonce), *WRONG_STEP)  # one attempt
    (over,) = await alice.pairings()
    assert (over.state, over.code) == (Pairing.STATE_FAILED, "")
    assert over.failure == "PAIRING_COMMITMENT_BROKEN"


async def test_a_signature_by_another_root_ends_it(
    alice: RunningFederation, introductions: Introductions
) -> None:
    stranger = await stranger_at(introductions, await opened(alice))
    started = await stranger.start()
    await refusal(stranger.reveal(started, stranger.nonce, signature=b"0" * 70), DENIED, "SIGNATURE_INVALID")
    (over,) = await alice.pairings()
    assert over.failure == "SIGNATURE_INVALID"


async def test_steps_come_in_their_order(alice: RunningFederation, introductions: Introductions) -> None:
    stranger = await stranger_at(introductions, await opened(alice))
    started = await stranger.start()
    await refusal(stranger.confirm(started.session), *WRONG_STEP)  # nothing is revealed
    await refusal(stranger.confirm(b"x" * 16), *WRONG_STEP)
    await stranger.reveal(started, stranger.nonce)
    alice.clock.advance(timedelta(seconds=10))
    again = await stranger.reveal(started, stranger.nonce)  # the answer was lost
    assert again.signature
    await refusal(stranger.confirm(started.session), DENIED, "SIGNATURE_INVALID")  # it was not signed
    (pairing,) = await alice.pairings()
    assert pairing.state == Pairing.STATE_COMPARE


async def test_a_flood_over_the_wire_leaves_the_port_usable(
    alice: RunningFederation, bob: RunningFederation, introductions: Introductions
) -> None:
    address = await opened(alice)
    stranger = await stranger_at(introductions, address)
    request = psvc.StartPairingRequest(introduction=stranger.ours, commitment=bytes(32))
    async with dialling.pinned(stranger.shown) as pairing:
        came = await asyncio.gather(
            *(pairing.StartPairing(request, timeout=PATIENCE) for _ in range(200)), return_exceptions=True
        )
    let_in = [each for each in came if not isinstance(each, BaseException)]
    codes = {each.code() for each in came if isinstance(each, grpc.aio.AioRpcError)}
    assert len(let_in) == MOST_PENDING_OF_SOURCE
    # Refused by the guard, or by gRPC as one stream too many.
    assert codes <= {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE}
    alice.clock.advance(timedelta(minutes=1))
    token = await alice.invite("bob")
    assert (await bob.join(token, "alice")).name == "peers/alice"


async def test_a_thousand_requests_from_everywhere_leave_twenty_pending(
    federation: Federation, introductions: Introductions, clock: ManualClock, place: Any
) -> None:
    """Past the guard, which counts networks, as if a thousand networks had one caller each."""
    asker = Introductions(
        IdentityStore.open(place / "asker", clock), federation, clock, name="flood", peer_addresses=lambda: ()
    )
    window = Window(clock)
    window.set(clock.now() + timedelta(minutes=5))
    servicer = PairingServicer(federation, introductions, clock, window)
    request = psvc.StartPairingRequest(introduction=asker.ours(), commitment=bytes(32))
    let_in, full = 0, 0
    for number in range(1000):
        context: Any = SimpleNamespace(peer=_at(f"ipv4:10.{number // 256}.{number % 256}.7:50000"))
        try:
            await servicer.StartPairing(request, context)
            let_in += 1
        except PairingFull:
            full += 1
    assert (let_in, full) == (MOST_PENDING, 1000 - MOST_PENDING)
    assert await federation.read(lambda store: store.pending()) == MOST_PENDING
    clock.advance(TIME_TO_LIVE)
    with pytest.raises(PairingWrongStep):  # the window has closed meanwhile
        await servicer.StartPairing(request, context)


def _at(peer: str) -> Callable[[], str]:
    return lambda: peer
