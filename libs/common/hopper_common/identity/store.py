"""
This Hopper's identity as a running process has it: opened, kept fresh, changed.

A process that has the root's key issues its own leaves: they live in its memory, never on the disk, so a Hopper that
was off for months has a fresh one before it listens. A process that has not (the key is elsewhere, or sealed with a
passphrase that this process is not told) shows leaves that `hopper identity issue` made for it.

Several processes share one directory. Who changes it holds a lock meanwhile and reads anew before; the others look
every second, and take over what has changed. What they find wrong they do not take over: they go on with what they had,
and say what is wrong in `problem`, until it is mended.

gRPC asks for leaves and roots on threads of its own, in the middle of handshakes: it gets what is in memory.
"""

import asyncio
import secrets
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hopper.common.v1.identity_pb2 import SignedBundle, SigningKey, TrustBundle
from hopper_common import failpoints
from hopper_common.clock import Clock, WallClock
from hopper_common.identity import bundles, files, rotation, signing
from hopper_common.identity.certificates import (
    LEAF_LIFETIME,
    Leaf,
    RootKey,
    issue_leaf,
    issued_by,
    key_hash,
    new_root,
)
from hopper_common.identity.errors import (
    IdentityDamaged,
    IdentityLocked,
    IdentityRefused,
    IdentityWrongState,
)
from hopper_common.identity.rotation import Step, Verb
from hopper_common.identity.signing import Signature
from hopper_common.identity.spiffe import trust_domain_of
from hopper_common.identity.state import Directory, Keys, State
from hopper_common.startup import make_private

log = structlog.get_logger(__name__)

LOOK_EVERY: Final = 1.0
"""Seconds between two looks at the files and the clock."""

_JITTER_STEPS: Final = 1000


@dataclass(frozen=True, slots=True)
class _View:
    """What this process has read: replaced as a whole, never changed."""

    state: State
    keys: Keys
    roots: tuple[x509.Certificate, ...]
    incarnation: str
    stamp: object

    @property
    def issuer(self) -> RootKey | None:
        """The root that issues, if its key is here."""
        return self.keys.roots.get(key_hash(self.state.issuer))


def renew_time(leaf: Leaf) -> datetime:
    """
    When a leaf is to be replaced: half through its life, a tenth earlier or later.

    The same for the same leaf, and different for leaves issued together, so that they are not all renewed at once.
    """
    jitter = leaf.certificate.serial_number % _JITTER_STEPS / _JITTER_STEPS
    return leaf.issue_time + (leaf.not_after - leaf.issue_time) * (0.45 + 0.1 * jitter)


class IdentityStore:
    """Where identities come from."""

    @classmethod
    def open(
        cls,
        directory: Path,
        clock: Clock,
        *,
        passphrase: bytes | None = None,
        leaf_lifetime: timedelta = LEAF_LIFETIME,
        create: bool = True,
    ) -> "Identity":
        """
        Open this Hopper's identity.

        Args:
            directory: `identity` in the data directory.
            passphrase: Opens the root's key; a key that is not sealed yet is sealed with it.
            leaf_lifetime: Of the leaves that are issued.
            create: Whether to make an identity where there is none.

        Raises:
            IdentityRefused: The files are not as they must be. Names the path and the remedy.
        """
        make_private(directory.parent)
        where = Directory(directory)
        with files.locked(where.lock):
            where.finish_restore()
            if create and not directory.exists():
                _create(where, WallClock(clock).now(), passphrase)
        identity = Identity(where, clock, passphrase=passphrase, leaf_lifetime=leaf_lifetime)
        identity._maintain()
        return identity


def read_passphrase(path: Path) -> bytes:
    """
    The passphrase in a file of this user's, without a line end.

    Raises:
        IdentityRefused: There is none, or others may read it.
    """
    passphrase = files.read_private(path).rstrip(b"\r\n")
    if not passphrase:
        raise IdentityDamaged(f"{path} has no passphrase in it")
    return passphrase


def _create(where: Directory, now: datetime, passphrase: bytes | None) -> None:
    """Make an identity under another name, so that a directory of the right name is whole or damaged."""
    draft = Directory(where.path.with_name(where.path.name + ".new"))
    if draft.path.exists():  # its process died
        shutil.rmtree(draft.path)
    draft.make()
    root, (key, listed) = new_root(now), signing.first_key(now)
    bundle = bundles.new_bundle(root, [listed], now)
    draft.write_root(root, passphrase)
    draft.write_signing_key(key)
    files.write_private(draft.incarnation, new_incarnation())
    failpoints.hit("identity.keys", "identity")
    draft.write(State(bundles.sign_bundle(bundle, [root]), bundle, {key_hash(root.certificate): now}))
    draft.path.rename(where.path)
    files.sync_directory(where.path.parent)
    log.info("this Hopper has an identity now", install_id=bundle.install_id, directory=str(where.path))


def new_incarnation() -> bytes:
    """The content of a new `incarnation` file."""
    return secrets.token_hex(16).encode() + b"\n"


class Identity:
    """
    Who this Hopper is. Threads may share it.

    Made by `IdentityStore.open`.

    Attributes:
        install_id: The hash of the first root's key: this Hopper's name for ever.
        trust_domain: `<install_id>.hopper`.
    """

    def __init__(
        self, where: Directory, clock: Clock, *, passphrase: bytes | None, leaf_lifetime: timedelta
    ) -> None:
        self._where = where
        self._clock = WallClock(clock)  # by which TLS looks at certificates
        self._passphrase = passphrase
        self._lifetime = leaf_lifetime
        self._mutex = threading.RLock()
        self._callbacks: list[Callable[[], None]] = []
        self._leaves: Mapping[str, Leaf] = {}
        self._problem: str | None = None
        self._generation = 0
        self._told = 0
        self._view = self._read()
        self.install_id = self._view.state.bundle.install_id
        self.trust_domain = trust_domain_of(self.install_id)

    # What it is.

    @property
    def directory(self) -> Path:
        """Where its files are."""
        return self._where.path

    @property
    def incarnation(self) -> str:
        """Random; another one after a restore from a backup, so that what was counted before is not trusted."""
        return self._view.incarnation

    @property
    def generation(self) -> int:
        """Grows whenever a leaf, a root, a signing key or `problem` changes."""
        return self._generation

    @property
    def problem(self) -> str | None:
        """What is wrong with the files: this process goes on with what it had, and is not ready. None: nothing."""
        return self._problem

    @property
    def has_root(self) -> bool:
        """Whether this process can issue leaves and rotate."""
        return self._view.issuer is not None

    @property
    def sealed(self) -> bool:
        """Whether the root's key needs a passphrase."""
        return self._view.keys.sealed

    def roots(self) -> Sequence[x509.Certificate]:
        """What this Hopper's own services trust: the roots that are active, prepared or tainted."""
        return self._view.roots

    def bundle(self) -> SignedBundle:
        """What others are told."""
        return self._view.state.signed

    def trust_bundle(self) -> TrustBundle:
        """The same, read. Not to be changed."""
        return self._view.state.bundle

    def next_step(self) -> Step:
        """The next move of the rotation, and when it is made by itself."""
        state = self._view.state
        return rotation.next_step(state.bundle, state.since, self._lifetime)

    def listed_roots(self) -> Sequence[x509.Certificate]:
        """All roots of the bundle, also those that are trusted no longer."""
        return bundles.roots_of(self._view.state.bundle, bundles.LISTED)

    def stage_time(self, root: x509.Certificate) -> datetime:
        """When a root entered its stage."""
        return self._view.state.since[key_hash(root)]

    def now(self) -> datetime:
        """The time on this identity's clock."""
        return self._clock.now()

    # Leaves.

    def leaf(self, path: str = "/svc/router") -> Leaf:
        """
        The current leaf of a path.

        Raises:
            IdentityRefused: The root's key is not at hand, and no good leaf was issued for this process.
        """
        leaf = self._leaves.get(path)
        if leaf is not None and leaf.valid_at(self._clock.now()):
            return leaf
        with self._mutex:
            leaf = self._leaves.get(path)
            if leaf is None or not leaf.valid_at(self._clock.now()):
                leaf = self._obtain(path)
                self._keep(path, leaf)
            return leaf

    def held_leaf(self, path: str) -> Leaf | None:
        """The leaf in memory, even if it has run out. For handshakes, which must not wait for a disk."""
        return self._leaves.get(path)

    def issue(self, path: str, lifetime: timedelta | None = None) -> Leaf:
        """
        Issue a leaf for another process.

        Raises:
            IdentityWrongState: The root's key is not at hand.
        """
        return issue_leaf(
            self._need_root("issue"),
            self.trust_domain,
            path,
            now=self._clock.now(),
            lifetime=self._lifetime if lifetime is None else lifetime,
        )

    def issued_leaves(self) -> Mapping[str, Leaf]:
        """The leaves in the directory, which were issued for other processes, by path."""
        return {path: self._where.read_leaf(path) for path in self._where.leaf_paths()}

    def _obtain(self, path: str) -> Leaf:
        if self.has_root:
            return self.issue(path)
        leaf, now = self._where.read_leaf(path), self._clock.now()
        file = self._where.leaf_file(path)
        if not leaf.valid_at(now):
            raise IdentityLocked(
                f"{file} is good from {leaf.not_before} to {leaf.not_after} only, and it is {now} here: "
                f"`hopper identity issue {path}` where the root's key is"
            )
        if not issued_by(leaf.certificate, self.roots()):
            raise IdentityDamaged(
                f"{file} was not issued by this Hopper's roots: `hopper identity issue {path}`"
            )
        return leaf

    def _keep(self, path: str, leaf: Leaf) -> None:
        self._generation += path in self._leaves  # the first one changes nothing for anybody
        self._leaves = {**self._leaves, path: leaf}

    # Signing.

    def sign(self, data: bytes) -> Signature:
        """
        Sign an envelope or a result.

        Raises:
            IdentityWrongState: This process has no signing key.
        """
        view = self._view
        listed = signing.in_use(view.state.bundle.signing_keys, self._clock.now())
        key = None if listed is None else view.keys.signing.get(listed.key_id)
        if key is None:
            raise IdentityWrongState("this process has no signing key", stage="leaves only", verb="sign")
        return signing.sign(key, data)

    def sign_with_root(self, data: bytes) -> bytes:
        """
        Sign with the active root, as pairing does; `bundles.verify_data` verifies it.

        Raises:
            IdentityWrongState: The root's key is not at hand.
        """
        return bundles.sign_data(self._need_root("sign"), data)

    def _need_root(self, verb: str) -> RootKey:
        root = self._view.issuer
        if root is None:
            raise IdentityWrongState(
                "the root's key is not at hand in this process: it is elsewhere, or sealed "
                "(HOPPER_IDENTITY_PASSPHRASE_FILE)",
                stage="leaves only",
                verb=verb,
            )
        return root

    # Rotation.

    def prepare(self) -> None:
        """Make the next root, and tell of it. Raises IdentityWrongState if another move is next; so do the others."""
        self.move(Verb.PREPARE)

    def activate(self) -> None:
        """Issue from the next root."""
        self.move(Verb.ACTIVATE)

    def awaits_peers(self) -> bool:
        """Whether a root is prepared here that waits for nothing but that all peers know it."""
        state = self._view.state
        return self.has_root and rotation.settled(state.bundle, state.since, self._clock.now())

    def peers_know(self, sequence: int) -> bool:
        """
        Take note that all peers have the bundle of that sequence, and activate the root that has waited for it.

        Returns:
            Whether one was activated: the bundle is still that one, and nothing else is to be waited for.
        """
        with self._mutex, files.locked(self._where.lock):
            self._reread()
            if self.trust_bundle().sequence != sequence or not self.awaits_peers():
                return False
            self._move(Verb.ACTIVATE)
        self._renew()
        self._tell()
        return True

    def taint(self) -> None:
        """Replace what the old root has issued."""
        self.move(Verb.TAINT)

    def revoke(self) -> None:
        """Trust the old root no longer, and destroy its key."""
        self.move(Verb.REVOKE)

    def move(self, verb: Verb) -> None:
        """
        Make a move of the rotation now.

        Raises:
            IdentityWrongState: Another move is the next one, or the root's key is not at hand.
        """
        with self._mutex, files.locked(self._where.lock):
            self._reread()
            self._move(verb)
        self._renew()
        self._tell()

    def _move(self, verb: Verb) -> None:
        now, state = self._clock.now(), self._view.state
        issuer = self._need_root(verb)
        rotation.check_turn(state.bundle, state.since, verb)
        if verb is Verb.PREPARE:
            root = new_root(now, self.trust_domain)
            bundle = rotation.prepared(state.bundle, root, now)
            bundle.rotations.append(bundles.state_rotation(issuer, root, state.bundle, now))
            self._commit(bundle, {key_hash(root.certificate): now}, root=root)
        else:
            bundle, which = rotation.moved(state.bundle, verb, now)
            self._commit(bundle, {which: now})
        log.info("a root was rotated", verb=verb, sequence=bundle.sequence)

    # Staying fresh.

    def on_change(self, callback: Callable[[], None]) -> None:
        """
        Call back after each change of `generation`.

        By `keep_fresh`, on its event loop; and by whoever moves or refreshes by hand.
        """
        self._callbacks.append(callback)

    async def keep_fresh(self, *, look_every: float = LOOK_EVERY) -> None:
        """
        Renew what is due and take over what others change, until cancelled.

        Args:
            look_every: Seconds between two looks.
        """
        while True:
            await asyncio.to_thread(self._refresh)
            self._tell()
            await asyncio.sleep(look_every)

    def refresh(self) -> None:
        """Look once: take over what others have changed, and renew what is due."""
        self._refresh()
        self._tell()

    def _refresh(self) -> None:
        problems: list[str] = []
        with self._mutex:
            # Leaves are renewed from what was read before, even if it could not be read again.
            for step in (self._look, self._renew):
                try:
                    step()
                except (IdentityRefused, OSError) as error:
                    problems.append(str(error))
        self._say_problem(problems[0] if problems else None)

    def _look(self) -> None:
        if self._problem is not None or self._where.stamp() != self._view.stamp:
            self._reread()
        self._maintain()

    def _reread(self) -> None:
        view = self._read()
        if view.state.bundle.install_id != self.install_id:
            raise IdentityDamaged(
                f"{self._where.path} is another Hopper's identity now: restart this process to take it over"
            )
        changed = view.state.signed != self._view.state.signed
        self._view = view
        self._generation += changed

    def _read(self) -> _View:
        # Before reading: what changes meanwhile is read again at the next look.
        stamp = self._where.stamp()
        now = self._clock.now()
        state = self._where.read(now)
        keys = self._where.read_keys(state, now, self._passphrase)
        roots = tuple(bundles.roots_of(state.bundle))
        return _View(state, keys, roots, self._where.read_incarnation(), stamp)

    def _say_problem(self, problem: str | None) -> None:
        if problem == self._problem:
            return
        self._problem = problem
        self._generation += 1
        if problem is None:
            log.info("the identity's files are sound again")
        else:
            log.error(
                "the identity's files are not as they must be; going on with what was read", problem=problem
            )

    def _tell(self) -> None:
        if self._told == self._generation:
            return
        self._told = self._generation
        for callback in list(self._callbacks):
            callback()

    def _renew(self) -> None:
        """Replace the leaves in memory that are due, and those issued for other processes in this directory."""
        with self._mutex:
            for path, leaf in self._leaves.items():
                if self._leaf_due(leaf):
                    self._renew_held(path, leaf)
            if self.has_root:
                self._renew_files()

    def _renew_held(self, path: str, leaf: Leaf) -> None:
        if self.has_root:
            self._keep(path, self.issue(path))
        elif (fresh := self._obtain(path)).certificate != leaf.certificate:
            self._keep(path, fresh)

    def _renew_files(self) -> None:
        for path in self._where.leaf_paths():
            if self._leaf_due(self._where.read_leaf(path)):
                with files.locked(self._where.lock):
                    self._where.write_leaf(path, self.issue(path))

    def _leaf_due(self, leaf: Leaf) -> bool:
        now = self._clock.now()
        if not leaf.not_before <= now < renew_time(leaf):
            return True
        return not issued_by(leaf.certificate, bundles.roots_of(self._view.state.bundle, (bundles.ACTIVE,)))

    # Changing the files.

    def _maintain(self) -> None:
        """Whatever is due by itself: a signing key, a move of the rotation, a root to forget, a key to seal."""
        with self._mutex:
            if not self._due():
                return
            with files.locked(self._where.lock):
                self._reread()
                self._seal_roots()
                self._change_signing_keys()
                self._forget_roots()
                while self.has_root and self.next_step().due <= self._clock.now():
                    self._move(self.next_step().verb)
                self._prune()

    def _due(self) -> bool:
        now, state = self._clock.now(), self._view.state
        if not self.has_root:
            return False
        return (
            self._unsealed()
            or self._next_signing_keys(now) is not None
            or len(rotation.without_forgotten(state.bundle, state.since, now)) < len(state.bundle.roots)
            or self.next_step().due <= now
            or any(self._where.leftovers(state, self._view.keys))
        )

    def _unsealed(self) -> bool:
        return self._passphrase is not None and not self._view.keys.sealed

    def _seal_roots(self) -> None:
        if self._unsealed():
            for root in self._view.keys.roots.values():
                self._where.write_root(root, self._passphrase)
            self._view = replace(self._view, keys=replace(self._view.keys, sealed=True))

    def _next_signing_keys(self, now: datetime) -> tuple[list[SigningKey], Ed25519PrivateKey | None] | None:
        """The list of signing keys as it should be now, with a new key if it has one; None: as it is."""
        listed = list(self._view.state.bundle.signing_keys)
        kept = signing.without_forgotten(listed, now)
        made = signing.made_if_due(kept, now)
        if made is None:
            return (kept, None) if len(kept) < len(listed) else None
        key, described = made
        return [*kept, described], key

    def _change_signing_keys(self) -> None:
        now = self._clock.now()
        change = self._next_signing_keys(now)
        if change is None:
            return
        keys, made = change
        bundle = bundles.successor(self._view.state.bundle, now)
        del bundle.signing_keys[:]
        bundle.signing_keys.extend(keys)
        self._commit(bundle, {}, signing_key=made)

    def _forget_roots(self) -> None:
        now, state = self._clock.now(), self._view.state
        kept = rotation.without_forgotten(state.bundle, state.since, now)
        if len(kept) == len(state.bundle.roots):
            return
        bundle = bundles.successor(state.bundle, now)
        del bundle.roots[:]
        bundle.roots.extend(kept)
        self._commit(bundle, {})

    def _commit(
        self,
        bundle: TrustBundle,
        since: Mapping[bytes, datetime],
        *,
        root: RootKey | None = None,
        signing_key: Ed25519PrivateKey | None = None,
    ) -> None:
        """Write new keys, then what refers to them; then remove those that nothing refers to any more."""
        roots = dict(self._view.keys.roots)
        if root is not None:
            roots[key_hash(root.certificate)] = root
            self._where.write_root(root, self._passphrase)
        if signing_key is not None:
            self._where.write_signing_key(signing_key)
        failpoints.hit("identity.keys", "identity")
        listed = {key_hash(bundles.certificate_of(each.certificate)) for each in bundle.roots}
        times = {key: time for key, time in {**self._view.state.since, **since}.items() if key in listed}
        signers = [roots[key_hash(each)] for each in bundles.roots_of(bundle)]
        self._where.write(State(bundles.sign_bundle(bundle, signers), bundle, times))
        failpoints.hit("identity.done", "identity")
        self._reread()
        self._prune()

    def _prune(self) -> None:
        for file in self._where.leftovers(self._view.state, self._view.keys):
            file.unlink()
        self._view = replace(self._view, stamp=self._where.stamp())
