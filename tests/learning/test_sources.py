"""How sources gain and lose trust."""

from hopper_learning.sources import Sources


def test_all_sources_begin_alike_and_one_alone_stays_trusted_however_wrong_the_model() -> None:
    sources = Sources()
    assert sources.trust("new") == 1.0
    for _ in range(200):
        sources.record("only", 0.02, 0.5)
    assert sources.trust("only") > 0.9
    assert sources.trust("new") == 1.0


def test_who_contradicts_everybody_is_believed_little_and_who_returns_to_the_truth_again() -> None:
    sources = Sources()
    for _ in range(60):
        for _ in range(19):
            sources.record("honest", 0.8, 0.8)
        sources.record("liar", 0.02, 0.8)
    assert sources.trust("honest") > 0.9
    assert sources.trust("liar") < 0.2
    for _ in range(600):
        sources.record("liar", 0.8, 0.8)
    assert sources.trust("liar") > 0.9


def test_the_number_of_sources_is_bounded() -> None:
    sources = Sources()
    for number in range(10_000):
        sources.record(f"s{number}", 0.5, 0.5)
    assert len(sources.seen) <= 4096
