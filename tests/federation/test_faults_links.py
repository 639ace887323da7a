"""Links that die without a word, and come back."""

from pathlib import Path

import pytest

from hopper_federation import peer_links
from hopper_testing.proxy import ChaosProxy
from tests.federation.neighbours import neighbour, until

# How long each takes with the real ones is measured by `make bench BARS=federation_blackhole`.
SOON = {"grpc.keepalive_time_ms": 1_000, "grpc.keepalive_timeout_ms": 500, "grpc.http2.ping_timeout_ms": 500}


@pytest.mark.parametrize("kind", ["both ways", "answers only", "closed", "reset"])
async def test_a_link_that_dies_is_noticed_and_used_again_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    assert set(SOON) <= {name for name, _ in peer_links.OPTIONS}
    monkeypatch.setattr(peer_links, "OPTIONS", tuple({**dict(peer_links.OPTIONS), **SOON}.items()))
    async with (
        neighbour(tmp_path / "alice") as alice,
        neighbour(tmp_path / "bob") as bob,
        bob.running(contact=False),
        ChaosProxy(bob.address) as proxy,
        alice.running(),
    ):
        await bob.knows(alice)
        await alice.knows(bob, address=proxy.address)
        await until(lambda: alice.status(bob).reached)
        connections = proxy.accepted
        match kind:
            case "closed":
                proxy.down()
            case "reset":
                proxy.reset()
            case _:
                proxy.there.held, proxy.back.held = kind == "both ways", True
        if kind != "reset":  # after that it may be back before anybody has looked
            await until(lambda: alice.status(bob).failure)
        reached = alice.status(bob).reached
        proxy.flow()
        proxy.up()
        await until(lambda: not alice.status(bob).failure and alice.status(bob).reached != reached)
        # What had come before the reset may be read after it: the new connection is a moment later then.
        await until(lambda: proxy.accepted > connections)
