"""What can go wrong in the registry, in its words. Reasons and metadata: `hopper.common.v1.ErrorReason`."""

from hopper_common.errors import AlreadyExists, NotFound, WrongState


class ProjectNotFound(NotFound):
    """There is no such project: register it first."""

    reason = "PROJECT_NOT_FOUND"


class ProjectExists(AlreadyExists):
    """The project id is taken: choose another, or update the project that has it."""

    reason = "PROJECT_EXISTS"


class InstanceNotFound(NotFound):
    """There is no such instance."""

    reason = "INSTANCE_NOT_FOUND"


class InstanceExists(AlreadyExists):
    """The instance id is taken, or the project has an instance already; metadata names the one there is."""

    reason = "INSTANCE_EXISTS"


class InstanceWrongState(WrongState):
    """The instance's state does not allow the move."""

    reason = "INSTANCE_WRONG_STATE"


class InstanceParentInvalid(WrongState):
    """An instance of that scope may not stand under that parent."""

    reason = "INSTANCE_PARENT_INVALID"


class InstanceCycle(WrongState):
    """The instance would become its own ancestor: choose another parent."""

    reason = "INSTANCE_CYCLE"


class InstanceHasChildren(WrongState):
    """The instance has children: terminate them first."""

    reason = "INSTANCE_HAS_CHILDREN"


class ParentNotRunning(WrongState):
    """The parent does not run: start it first."""

    reason = "PARENT_NOT_RUNNING"


# Who may call.


class PrincipalNotFound(NotFound):
    """There is no such principal: add it first."""

    reason = "PRINCIPAL_NOT_FOUND"


class PrincipalExists(AlreadyExists):
    """The principal id is taken: choose another, or update the one that has it."""

    reason = "PRINCIPAL_EXISTS"


class ApiKeyNotFound(NotFound):
    """There is no such key in use."""

    reason = "API_KEY_NOT_FOUND"


class TooManyApiKeys(WrongState):
    """Two keys are in use already, as while one replaces the other: revoke one."""

    reason = "TOO_MANY_API_KEYS"


class AlreadyBootstrapped(WrongState):
    """This Hopper has its first admin already; an admin makes further ones."""

    reason = "ALREADY_BOOTSTRAPPED"
