"""What can go wrong in memory, beyond what may go wrong anywhere."""

from datetime import timedelta

from hopper_common.errors import InvalidArgument, NotFound, Overloaded


class EpisodeNotFound(NotFound):
    """Memory has no episode of that decision, or not yet."""

    reason = "EPISODE_NOT_FOUND"
    # The router sends episodes a moment after it decided, so a moment later it may well be here.
    retry_after = timedelta(seconds=1)


class ContextNotFound(NotFound):
    """Working memory holds nothing under that key, or its time has run out."""

    reason = "CONTEXT_NOT_FOUND"


class WorkingMemoryFull(Overloaded):
    """Working memory holds as many contexts as it may: let some run out, or put them for a shorter time."""


class ModelNotFound(NotFound):
    """Memory keeps no snapshot of that format: learn from the beginning."""

    reason = "MODEL_NOT_FOUND"


class ModelInvalid(InvalidArgument):
    """The snapshot is not what its checksum says, or ahead of the lessons there are."""

    reason = "MODEL_INVALID"


class TooManyWatchers(Overloaded):
    """As many as may be are told of lessons already."""
