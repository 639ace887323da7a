"""
What can go wrong with identities: with this Hopper's files, for whoever runs it, and with what others send, for them.
"""

from hopper_common.errors import LostRace, PermissionDenied, WrongState
from hopper_common.startup import StartupError

# What somebody sent. Reasons and metadata: `hopper.common.v1.ErrorReason`.


class SignatureInvalid(PermissionDenied):
    """A signature does not verify, or is by a key that is not the signer's."""

    reason = "SIGNATURE_INVALID"


class BundleInvalid(SignatureInvalid):
    """The bundle does not prove what it says."""


class BundleRollback(LostRace):
    """The bundle is older than the one known, or does not follow from it."""

    reason = "BUNDLE_ROLLBACK"


# What somebody asked of this Hopper's identity.


class IdentityWrongState(WrongState):
    """This Hopper's identity does not allow the move."""

    reason = "IDENTITY_WRONG_STATE"


# The files. Every message names the path and the remedy.


class IdentityRefused(StartupError):
    """The files of the identity are not as they must be; without a sound identity nothing is served."""

    exit_code = 5


class IdentityShared(IdentityRefused):
    """Others may read or write what must be this user's alone."""


class IdentityDamaged(IdentityRefused):
    """A file is missing, cut short, or does not belong to the others."""


class IdentityNewer(IdentityRefused):
    """The files, or the backup, are of a newer Hopper."""


class IdentityLocked(IdentityRefused):
    """A key is needed that cannot be used here: sealed with a passphrase, kept elsewhere, or in use."""


class IdentityExists(IdentityRefused):
    """There is an identity already, or somebody uses it."""


class WrongPassphrase(IdentityRefused):
    """The passphrase does not open what was sealed."""
