"""How sources gain and lose trust."""

from hopper_learning.sources import FLOOR, Sources


def test_all_sources_begin_alike_and_one_alone_stays_trusted_however_wrong_the_model() -> None:
    sources = Sources()
    assert sources.trust("new") == 1.0
    for _ in range(200):
        sources.record("only", 0.0001, 10)
    assert sources.trust("only") == 1.0


def test_who_says_what_cannot_be_true_is_believed_little_and_can_return() -> None:
    sources = Sources()
    for _ in range(60):
        for _ in range(19):
            sources.record("honest", 0.8, 10)
        sources.record("liar", 0.0001, 10)
    assert sources.trust("honest") == 1.0
    assert sources.trust("liar") == FLOOR
    for _ in range(300):
        sources.record("liar", 0.8, 10)
        sources.record("honest", 0.8, 10)
    assert sources.trust("liar") == 1.0


def test_who_only_corrects_is_believed() -> None:
    sources = Sources()
    for number in range(300):
        sources.record("outcomes", 0.9, 10)
        sources.record("corrects", 0.0001 if number % 3 == 0 else 0.1, 10)
    assert sources.trust("corrects") == 1.0


def test_the_number_of_sources_is_bounded() -> None:
    sources = Sources()
    for number in range(10_000):
        sources.record(f"s{number}", 0.5, 10)
    assert len(sources.seen) <= 4096
