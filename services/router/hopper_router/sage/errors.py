"""What can go wrong in asking a Sage. Reasons and metadata: `hopper.common.v1.ErrorReason`."""

from __future__ import annotations

from datetime import timedelta

from hopper_common.errors import Unavailable, WrongState


class SageUnavailable(Unavailable):
    """The Sage does not answer, or not in time."""

    reason = "SAGE_UNAVAILABLE"
    retry_after: timedelta | None = timedelta(seconds=1)


class SageAnswerInvalid(Unavailable):
    """The Sage answered something that cannot be used."""

    reason = "SAGE_ANSWER_INVALID"


class SageRefused(WrongState):
    """The Sage refused the question: it is of another version, or does not offer this."""

    reason = "SAGE_REFUSED"
