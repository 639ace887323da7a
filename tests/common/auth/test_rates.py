"""Token buckets, and by what strangers are counted."""

import pytest

from hopper_common.auth.model import Kind, Principal, RateClass
from hopper_common.auth.rates import Bucket, Limiter, Rate, Rates, network_of

ADA = Principal("principals/ada", Kind.PERSON)


def test_a_bucket_lets_a_burst_through_then_a_steady_rate() -> None:
    bucket = Bucket(Rate(10, 3), now=0)
    assert [bucket.take(0) for _ in range(3)] == [0, 0, 0]
    assert bucket.take(0) == pytest.approx(0.1)
    assert bucket.take(0.05) == pytest.approx(0.05)
    assert bucket.take(0.1) == 0
    assert [bucket.take(100) for _ in range(4)] == [
        0,
        0,
        0,
        pytest.approx(0.1),
    ]  # no more than a burst is saved


def test_each_principal_and_class_has_a_bucket_of_its_own() -> None:
    limiter = Limiter(Rates(read=Rate(1, 1), write=Rate(1, 1), services=Rate(1, 2)))
    router = Principal("spiffe://x/svc/router", Kind.SERVICE)
    assert limiter.take(ADA, RateClass.READ, 0) == 0
    assert limiter.take(ADA, RateClass.READ, 0) == 1
    assert limiter.take(ADA, RateClass.WRITE, 0) == 0
    assert [limiter.take(router, RateClass.READ, 0) for _ in range(3)] == [0, 0, 1]
    owner = Principal("owner", Kind.OWNER)
    assert not any(limiter.take(owner, RateClass.ADMIN, 0) for _ in range(100_000))


def test_strangers_push_nobody_out() -> None:
    limiter = Limiter(Rates(read=Rate(0.001, 1)))
    assert limiter.take(ADA, RateClass.READ, 0) == 0
    for number in range(30_000):
        limiter.take_stranger(str(number), 0)
    assert limiter.take(ADA, RateClass.READ, 0) > 0


def test_open_streams_are_counted_up_and_down() -> None:
    limiter = Limiter(Rates(open_streams=2))
    assert [limiter.open(ADA) for _ in range(3)] == [True, True, False]
    limiter.close(ADA)
    assert limiter.open(ADA)
    router = Principal("spiffe://x/svc/router", Kind.SERVICE)
    assert all(limiter.open(router) for _ in range(10))


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.77", "192.0.2.0/24"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.77", "192.0.2.0/24"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix", "unix"),
        ("", ""),
    ],
)
def test_strangers_are_counted_by_their_network(address: str, network: str) -> None:
    assert network_of(address) == network
