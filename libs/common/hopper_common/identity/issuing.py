"""
Leaves for processes that do not hold the root's key, so that a break-in there is not a break-in everywhere.

Such a process has an identity directory of its own, with the bundle and its leaf and nothing else; or it shares the
directory of a process that can open the root's key, which then renews the leaf by itself.
"""

from datetime import timedelta
from pathlib import Path

from hopper_common.identity import files
from hopper_common.identity.certificates import Leaf, key_hash
from hopper_common.identity.errors import IdentityExists
from hopper_common.identity.state import Directory, State
from hopper_common.identity.store import Identity, new_incarnation
from hopper_common.startup import make_private


def issue_into(
    identity: Identity, path: str, directory: Path, *, lifetime: timedelta | None = None
) -> tuple[Path, Leaf]:
    """
    Write a leaf where a process finds it, and what else that process needs to know.

    Args:
        path: Whose leaf: `/svc/router`.
        directory: `identity` in the data directory of that process; made if there is none.
        lifetime: Of the leaf. Default: as of all leaves.

    Returns:
        The file of the leaf, and the leaf.

    Raises:
        IdentityExists: The directory is another Hopper's, or has a root's key itself.
        IdentityWrongState: The root's key is not at hand.
    """
    leaf = identity.issue(path, lifetime)
    where = Directory(directory)
    make_private(directory.parent)
    with files.locked(where.lock):
        if directory.resolve() != identity.directory.resolve():
            _tell(identity, where)
        return where.write_leaf(path, leaf), leaf


def _tell(identity: Identity, where: Directory) -> None:
    """Write what a process needs to know besides its leaf."""
    bundle = identity.trust_bundle()
    if where.manifest.exists():
        there = where.read(identity.now())
        if there.holds_root or there.bundle.install_id != bundle.install_id:
            raise IdentityExists(f"{where.path} is an identity of its own: choose another directory")
    where.make()
    if not where.incarnation.exists():
        files.write_private(where.incarnation, new_incarnation())
    roots = identity.listed_roots()
    since = {key_hash(root): identity.stage_time(root) for root in roots}
    where.write(State(identity.bundle(), bundle, since, holds_root=False))
