"""What can go wrong in memory, beyond what may go wrong anywhere."""

from datetime import timedelta

from hopper_common.errors import NotFound, Overloaded


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
