"""Names that come from anybody, and end up in somebody's directory."""

import unicodedata

import pytest

from hopper_federation.artifacts.errors import ArtifactInvalid, QuotaReached
from hopper_federation.artifacts.model import Limits, check_claims, free_name, name_problem

GOOD = ["report.pdf", "a", "Übersicht 2026.csv", "日本.txt", "x" * 200, "a..b", "CON", "-rf", "a b"]
BAD = [
    "",
    ".",
    "..",
    ".profile",
    "../../etc/passwd",
    "a/b",
    "/etc/passwd",
    "a\\b",
    "C:\\x",
    "a\nb",
    "a\x00b",
    "a\x1b[31mb",
    "a\u202eb",
    "a\u200bb",
    " a",
    "a ",
    "x" * 201,
    "é" * 101,
    unicodedata.normalize("NFD", "é"),
]


@pytest.mark.parametrize("name", GOOD)
def test_a_name(name: str) -> None:
    assert name_problem(name) == ""


@pytest.mark.parametrize("name", BAD, ids=ascii)
def test_no_name(name: str) -> None:
    assert name_problem(name)
    with pytest.raises(ArtifactInvalid):
        check_claims(name, b"", 0, "")


@pytest.mark.parametrize(
    ("sha256", "size", "media_type"),
    [(b"short", 1, ""), (b"x" * 33, 1, ""), (b"", -1, ""), (b"", 1, "a\nb"), (b"", 1, "x" * 101)],
)
def test_other_claims_that_cannot_be(sha256: bytes, size: int, media_type: str) -> None:
    with pytest.raises(ArtifactInvalid):
        check_claims("a", sha256, size, media_type)


def test_a_taken_name_gets_a_number() -> None:
    assert free_name("a.txt", set()) == "a.txt"
    assert free_name("a.txt", {"a.txt"}) == "2-a.txt"
    assert free_name("a.txt", {"a.txt", "2-a.txt"}) == "3-a.txt"
    long = "é" * 100
    free = free_name(long, {long})
    assert name_problem(free) == ""
    assert free.startswith("2-é")


def test_limits_are_said_with_their_setting() -> None:
    limits = Limits(file=10, peer=20, total=30)
    for check, setting in (
        (limits.check_file, "HOPPER_ARTIFACT_FILE_BYTES"),
        (limits.check_peer, "HOPPER_ARTIFACT_PEER_BYTES"),
        (limits.check_total, "HOPPER_ARTIFACT_TOTAL_BYTES"),
    ):
        check(10, "a")
        with pytest.raises(QuotaReached) as caught:
            check(31, "a")
        assert caught.value.metadata["rule"] == setting
