"""A moment of `make fuzz`, so that it keeps working; and that it would notice what it is for."""

import random

from tests.federation.fuzz import CANARY, Fuzz, fuzz


async def test_nonsense_is_refused_and_nothing_is_told_of_it() -> None:
    found = await fuzz(seconds=300, rounds=40, seed=1)
    assert found.problems == []
    assert found.sent["requests"] > 50
    assert found.sent["frames"] > 0
    assert len(found.statuses) > 2


def test_changes_are_the_same_for_a_seed_and_of_every_kind() -> None:
    def made(seed: int) -> list[bytes]:
        fuzzing = Fuzz(None, None, (), random.Random(seed))  # type: ignore[arg-type]
        return [fuzzing.mutated(b"0123456789") for _ in range(200)]

    assert made(1) == made(1) != made(2)
    lengths = {len(content) for content in made(1)}
    assert min(lengths) < 10 < max(lengths)
    assert any(CANARY.encode() in content for content in made(1))
    assert b"0123456789" in made(1)


def test_what_must_not_be_told_is_noticed() -> None:
    fuzzing = Fuzz(None, None, (), random.Random(1))  # type: ignore[arg-type]
    fuzzing._look("here", "ValueError: invalid literal")
    assert len(fuzzing.found.problems) == 1
