"""
A copy of an identity in one file, sealed with a passphrase, and the way back.

What is in it: the roots' keys, the signing keys and the bundle. Whoever has the file and the passphrase is this Hopper.
A root's key that was sealed with a passphrase of its own stays sealed with it.

A restored Hopper is told apart from the one that was backed up by a new `incarnation`: what it has counted since the
backup is not trusted. Its bundle goes on from a sequence made of the time, because it cannot know how far the other had
counted; peers would refuse what goes back. A rotation that was made after the backup cannot be known either: make a
backup after each.
"""

import base64
import fcntl
import json
import re
import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

from hopper_common import failpoints
from hopper_common.clock import Clock, WallClock
from hopper_common.identity import bundles, files, sealing
from hopper_common.identity.errors import IdentityDamaged, IdentityExists, IdentityLocked, IdentityNewer
from hopper_common.identity.sealing import FOR_BACKUPS, Cost
from hopper_common.identity.state import Directory, State
from hopper_common.identity.store import Identity, IdentityStore, new_incarnation
from hopper_common.startup import make_private

_VERSION: Final = 1
_PURPOSE: Final = b"hopper identity backup"
_NAME: Final = re.compile(r"identity\.json|(?:roots|signing)/[0-9a-f]{32}\.key")


def back_up(identity: Identity, passphrase: bytes, *, cost: Cost | None = None) -> bytes:
    """
    An identity as sealed bytes. Whoever uses it may go on.

    Raises:
        IdentityDamaged: A file is missing, or cannot be read.
        IdentityLocked: The root's key is not in that directory, so there is no identity to back up.
    """
    where = Directory(identity.directory)
    with files.locked(where.lock):
        roots = _names(where.roots)
        if not roots:
            raise IdentityLocked(
                f"{where.roots} has no key of a root: make the backup where the root's key is"
            )
        names = ["identity.json", *roots, *_names(where.signing)]
        content = {name: files.read_private(where.path / name) for name in names}
    said = {
        "version": _VERSION,
        "files": {name: base64.b64encode(data).decode() for name, data in content.items()},
    }
    return sealing.seal(json.dumps(said).encode(), passphrase, purpose=_PURPOSE, cost=cost or FOR_BACKUPS)


def restore(
    backup: bytes,
    passphrase: bytes,
    directory: Path,
    clock: Clock,
    *,
    name: str = "the backup",
    overwrite: bool = False,
    root_passphrase: bytes | None = None,
) -> Identity:
    """
    Make the identity of a backup this Hopper's own. No process may be using it.

    Args:
        name: Of the backup, for errors.
        overwrite: Whether it may take the place of another, which is then kept in a directory beside it.
        root_passphrase: What the root's key is sealed with, if it is.

    Raises:
        IdentityExists: There is an identity, and it is not to be replaced.
        WrongPassphrase: The passphrase does not open the backup, or the other one the root's key.
        IdentityNewer: The backup is of a newer Hopper.
        IdentityDamaged: The backup is damaged, or is none.
        IdentityLocked: The root's key is sealed, and no passphrase for it was given.
    """
    content = _opened(backup, passphrase, name)
    where, now = Directory(directory), WallClock(clock).now()
    draft = Directory(directory.with_name(directory.name + ".restoring"))
    make_private(directory.parent)
    refuse_if_running(directory.parent)
    with files.locked(where.lock):
        if directory.exists() and not overwrite:
            raise IdentityExists(
                f"{directory} is an identity already: --overwrite replaces it, and keeps it beside the new one"
            )
        for leftover in (draft.path, where.restored):  # of a process that died
            if leftover.exists():
                shutil.rmtree(leftover)
        try:
            _unpack(content, draft)
            _go_on(draft, now, root_passphrase, name)
        except BaseException:
            shutil.rmtree(draft.path)
            raise
        _swap(where, draft, now)
    return IdentityStore.open(directory, clock, passphrase=root_passphrase)


def _names(directory: Path) -> list[str]:
    return sorted(f"{directory.name}/{file.name}" for file in directory.glob("*.key"))


def _opened(backup: bytes, passphrase: bytes, name: str) -> Mapping[str, bytes]:
    content = sealing.unseal(backup, passphrase, purpose=_PURPOSE, name=name)
    try:
        said = json.loads(content)
        version = int(said["version"])
        found = {each: base64.b64decode(data, validate=True) for each, data in said["files"].items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _no_identity(name) from error
    if version > _VERSION:
        raise IdentityNewer(f"{name} was made by a newer Hopper: upgrade this one")
    # Names that stay within the directory: a backup may come from anywhere.
    if "identity.json" not in found or not all(_NAME.fullmatch(each) for each in found):
        raise _no_identity(name)
    return found


def _no_identity(name: str) -> IdentityDamaged:
    return IdentityDamaged(f"{name} holds what is no identity: take another copy")


def _unpack(content: Mapping[str, bytes], draft: Directory) -> None:
    draft.make()
    for each, data in content.items():
        files.write_private(draft.path / each, data)
    files.write_private(draft.incarnation, new_incarnation())


def _go_on(draft: Directory, now: datetime, root_passphrase: bytes | None, name: str) -> None:
    """Check what was unpacked, and let its bundle go on from a sequence that was surely never reached."""
    state = draft.read(now)
    keys = draft.read_keys(state, now, root_passphrase)
    if not keys.roots:
        raise IdentityLocked(
            f"the root's key in {name} is sealed with a passphrase of its own: set HOPPER_IDENTITY_PASSPHRASE_FILE"
        )
    bundle = bundles.successor(state.bundle, now)
    bundle.sequence = max(bundle.sequence, int(now.timestamp()))
    draft.write(State(bundles.sign_bundle(bundle, keys.roots.values()), bundle, state.since))


def _swap(where: Directory, draft: Directory, now: datetime) -> None:
    """Put the draft, which is whole, in the place of what is there; `IdentityStore.open` finishes it if we cannot."""
    draft.path.rename(where.restored)
    if where.path.exists():
        where.path.rename(where.path.with_name(f"{where.path.name}.replaced-{now:%Y%m%dT%H%M%S.%fZ}"))
    failpoints.hit("identity.done", "identity")
    where.finish_restore()


def refuse_if_running(data_dir: Path) -> None:
    """
    Check that no Hopper runs on a data directory.

    Raises:
        IdentityExists: One does; names the process.
    """
    for path in sorted(data_dir.glob("hopper*.lock")):
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = file.read(32).decode("ascii", "replace").strip() or "unknown"
                raise IdentityExists(f"process {holder} runs on {data_dir}: stop it first") from None
