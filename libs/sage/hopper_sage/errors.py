"""What can go wrong in a Sage, beyond what may go wrong anywhere."""

from hopper_common.errors import FieldViolation, IdempotencyConflict, InvalidArgument


class QuestionConflict(IdempotencyConflict):
    """The decision was asked about with another question: ask a new question under a new decision."""


class NamedTwice(InvalidArgument):
    """
    A list of things that differ has one of them twice.

    Args:
        path: Where, e.g. `candidates[3].project`.
    """

    def __init__(self, path: str) -> None:
        super().__init__(violations=[FieldViolation(path, "is in the list already")])


class TimeReversed(InvalidArgument):
    """A time ends before it begins."""

    def __init__(self) -> None:
        super().__init__(violations=[FieldViolation("end_time", "must not be before start_time")])
