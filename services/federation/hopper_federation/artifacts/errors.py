"""What can go wrong with files beside tasks. Reasons and metadata: `hopper.common.v1.ErrorReason`."""

from datetime import timedelta

from hopper_common.errors import InvalidArgument, NotFound, ResourceExhausted, StorageUnavailable, WrongState


class ArtifactNotFound(NotFound):
    """There is no such file beside the task."""

    reason = "ARTIFACT_NOT_FOUND"


class ArtifactInvalid(InvalidArgument):
    """The bytes are not what was said of them."""

    reason = "ARTIFACT_INVALID"


class QuotaReached(ResourceExhausted):
    """There is no room left for such files: raise the limit, or wait until older ones are forgotten."""

    reason = "QUOTA"
    retry_after = timedelta(minutes=5)


class TaskOver(WrongState):
    """The task is over: files are put beside it before it ends."""

    reason = "TASK_WRONG_STATE"


class BlobRefused(StorageUnavailable):
    """Something else is where a file's bytes should be."""
