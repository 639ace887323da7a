"""The hierarchy of errors, and that it agrees with the catalogue in the contract."""

import inspect
import re
from datetime import timedelta
from pathlib import Path

import pytest

from hopper_common import errors
from hopper_common.errors import FieldViolation, HopperError, InvalidArgument, NotFound, StorageFull

CATALOGUE = Path(__file__).parents[2] / "protos" / "hopper" / "common" / "v1" / "error_reason.proto"
ENTRY = re.compile(r"((?:  //.*\n)+)  ERROR_REASON_(\w+) = \d+;")

CODES = {
    errors.InvalidArgument: "INVALID_ARGUMENT",
    errors.OutOfRange: "OUT_OF_RANGE",
    errors.Unauthenticated: "UNAUTHENTICATED",
    errors.PermissionDenied: "PERMISSION_DENIED",
    errors.NotFound: "NOT_FOUND",
    errors.AlreadyExists: "ALREADY_EXISTS",
    errors.WrongState: "FAILED_PRECONDITION",
    errors.LostRace: "ABORTED",
    errors.ResourceExhausted: "RESOURCE_EXHAUSTED",
    errors.Unavailable: "UNAVAILABLE",
    errors.Internal: "INTERNAL",
}
RAISABLE = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, HopperError) and hasattr(kind, "reason")
]


class ShelfMissingError(NotFound):
    """
    No such shelf.

    It may have been moved.
    """

    reason = "SHELF_NOT_FOUND"


class TopShelfMissingError(ShelfMissingError):
    reason = "TOP_SHELF_NOT_FOUND"


@pytest.mark.parametrize("kind", [ShelfMissingError, TopShelfMissingError])
def test_the_nearest_docstrings_first_line_is_the_message(kind: type[HopperError]) -> None:
    assert str(kind(shelf="7")) == "no such shelf"


def test_facts_are_metadata_and_cannot_be_changed() -> None:
    error = ShelfMissingError("shelf 7 has been moved: ask for 8", shelf="7")
    assert (error.reason, error.message, dict(error.metadata)) == (
        "SHELF_NOT_FOUND",
        "shelf 7 has been moved: ask for 8",
        {"shelf": "7"},
    )
    with pytest.raises(TypeError):
        error.metadata["shelf"] = "8"  # type: ignore[index]


def test_a_kind_without_a_reason_cannot_be_raised() -> None:
    with pytest.raises(TypeError, match="NotFound is a kind of error"):
        NotFound("no such shelf")


def test_violations_make_the_message_when_there_is_no_better_one() -> None:
    violations = [FieldViolation("title", "is required"), FieldViolation("tags[3]", "is too long")]
    error = InvalidArgument(violations=violations)
    assert error.message == "title: is required; tags[3]: is too long"
    assert error.violations == tuple(violations)


def test_a_retry_delay_can_be_set_on_one_error() -> None:
    error = StorageFull(service="router")
    error.retry_after = timedelta(minutes=1)
    assert StorageFull(service="router").retry_after == timedelta(seconds=5)


@pytest.mark.parametrize("kind", RAISABLE)
def test_the_catalogue_knows_each_reason_with_its_code_and_whether_to_retry(kind: type[HopperError]) -> None:
    catalogue = {reason: comment for comment, reason in ENTRY.findall(CATALOGUE.read_text())}
    comment = catalogue[kind.reason].strip().removeprefix("// ")
    (code,) = {CODES[base] for base in kind.__mro__ if base in CODES}
    assert ("*retry*" in comment) == (kind.retry_after is not None)
    assert comment.startswith(code)


@pytest.mark.parametrize("kind", RAISABLE)
def test_messages_start_lower_case_and_have_no_final_period(kind: type[HopperError]) -> None:
    message = kind.default_message()
    assert message[0].islower()
    assert not message.endswith(".")
