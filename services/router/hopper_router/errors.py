"""What can go wrong in the router, in its own words. Reasons and metadata: `hopper.common.v1.ErrorReason`."""

from __future__ import annotations

from datetime import timedelta

from hopper_common.errors import (
    AlreadyExists,
    LostRace,
    NotFound,
    PermissionDenied,
    Unavailable,
    WrongState,
)


class TaskNotFound(NotFound):
    """There is no such task."""

    reason = "TASK_NOT_FOUND"


class ProjectNotFound(NotFound):
    """There is no such project: register it first, or leave the choice to the router."""

    reason = "PROJECT_NOT_FOUND"


class InstanceNotFound(NotFound):
    """There is no such instance."""

    reason = "INSTANCE_NOT_FOUND"


class RegistryUnknown(Unavailable):
    """The registry has not been heard of, so that nobody knows what there is."""

    reason = "SERVICE_UNAVAILABLE"
    retry_after = timedelta(milliseconds=200)


class DecisionNotFound(NotFound):
    """There is no such decision."""

    reason = "DECISION_NOT_FOUND"


class ScheduleNotFound(NotFound):
    """There is no such schedule."""

    reason = "SCHEDULE_NOT_FOUND"


class ScheduleExists(AlreadyExists):
    """There is a schedule of that name."""

    reason = "SCHEDULE_EXISTS"


class PolicyVersionNotFound(NotFound):
    """The instance never had that version of a policy of its own: `hopper policy history` lists them."""

    reason = "POLICY_VERSION_NOT_FOUND"


class TaskWrongState(WrongState):
    """The task's state does not allow this."""

    reason = "TASK_WRONG_STATE"


class TaskNotReady(WrongState):
    """The task cannot be claimed yet."""

    reason = "TASK_NOT_READY"


class TaskClaimed(LostRace):
    """Another worker has the task."""

    reason = "TASK_CLAIMED"


class StaleToken(LostRace):
    """The claim was lost: its lease ran out or it was taken away; drop the work."""

    reason = "STALE_TOKEN"


class DependencyCycle(WrongState):
    """The task would wait for itself."""

    reason = "DEPENDENCY_CYCLE"


class DuplicateTask(WrongState):
    """An open task looks like the same work: see to that one, or submit with allow_duplicate."""

    reason = "DUPLICATE_TASK"


class InstanceNotRunning(WrongState):
    """The instance does not take work now: start it, or submit elsewhere."""

    reason = "INSTANCE_NOT_RUNNING"


class ProjectPaused(WrongState):
    """The project is paused: its tasks wait until it is active again."""

    reason = "PROJECT_PAUSED"


class FederationUnavailable(WrongState):
    """The instance stands for a peer that the federation service does not keep: pair with it, or go elsewhere."""

    reason = "FEDERATION_UNAVAILABLE"


class NotAMember(PermissionDenied):
    """Only the instance's members may claim its tasks."""

    reason = "NOT_A_MEMBER"


class DelegationLoop(WrongState):
    """The work would come back to an instance that had it, or nest too deep."""

    reason = "DELEGATION_LOOP"


class DelegationTargetInvalid(WrongState):
    """That kind of delegation cannot go there."""

    reason = "DELEGATION_TARGET_INVALID"
