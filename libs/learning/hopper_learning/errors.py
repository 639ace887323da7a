"""What can go wrong in the model, in its own words."""

from __future__ import annotations


class LearningError(Exception):
    """The model refuses."""

    def __init__(self, message: str = "", /) -> None:
        super().__init__(message or (self.__doc__ or "").strip().rstrip("."))


class UnknownTarget(LearningError):
    """the model has no target of that name; add it first."""


class SnapshotCorrupt(LearningError):
    """the snapshot is damaged; take an older one, or fold the log from its start."""


class SnapshotTooNew(LearningError):
    """the snapshot was written by newer code; upgrade this process, or fold the log from its start."""


class SnapshotOfOtherEncoder(LearningError):
    """the snapshot was learned with other vectors; fold the log from its start."""


class EncoderMissing(LearningError):
    """the vectors are not installed; install hopper-mesh[learned], or go on with words alone."""
