"""
What `identity.json` says, and the keys beside it: read, checked against each other, and written.

    identity/            0700
      identity.json      the signed bundle, and when each root entered its stage
      incarnation        random; another one after a restore
      roots/HASH.key     private keys of roots that are not revoked: PKCS #8, or sealed with a passphrase
      signing/ID.key     private keys that sign envelopes
      leaves/PATH.pem    leaves for processes that do not hold the root's key: key and certificate in one file

`identity.json` is what counts: keys are written before it and removed after it, so whenever a process dies, the
identity is the one before the change or the one after it. Keys that it does not refer to are leftovers, and removed.
"""

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import DecodeError

from hopper.common.v1.identity_pb2 import SignedBundle, TrustBundle
from hopper_common.identity import files, sealing
from hopper_common.identity.bundles import ACTIVE, PREPARED, TAINTED, roots_of, verify_bundle
from hopper_common.identity.certificates import Leaf, RootKey, key_hash, key_to_pem
from hopper_common.identity.errors import BundleInvalid, IdentityDamaged, IdentityLocked, IdentityNewer
from hopper_common.identity.signing import in_use, key_id_of
from hopper_common.timestamps import from_proto

_VERSION: Final = 1
_SEAL: Final = b"hopper root key"


@dataclass(frozen=True, slots=True)
class State:
    """
    What `identity.json` says.

    Attributes:
        signed: The bundle as others get it.
        bundle: The same, read and verified.
        since: When each root entered its stage, by the hash of its key.
        holds_root: Whether the keys of the roots belong into this directory. If not, it has leaves only.
    """

    signed: SignedBundle
    bundle: TrustBundle
    since: Mapping[bytes, datetime]
    holds_root: bool = True

    @property
    def signers(self) -> list[x509.Certificate]:
        """The roots that sign the bundle, and whose keys must be here."""
        return roots_of(self.bundle, (PREPARED, ACTIVE, TAINTED))

    @property
    def issuer(self) -> x509.Certificate:
        """The root that issues leaves: the latest that is active."""
        return roots_of(self.bundle, (ACTIVE,))[-1]


@dataclass(frozen=True, slots=True)
class Keys:
    """
    The private keys that this process has.

    Attributes:
        roots: By the hash of their keys; empty if they are kept elsewhere, or sealed and no passphrase is known.
        signing: By their ids.
        sealed: Whether the roots' files are sealed.
    """

    roots: Mapping[bytes, RootKey]
    signing: Mapping[str, Ed25519PrivateKey]
    sealed: bool = False


class Directory:
    """
    The files of one identity. Knows their names and forms, not what is done with them.

    Args:
        path: The directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = path / "identity.json"
        self.incarnation = path / "incarnation"
        self.roots = path / "roots"
        self.signing = path / "signing"
        self.leaves = path / "leaves"
        self.lock = path.with_name(path.name + ".lock")
        self.restored = path.with_name(path.name + ".restored")

    def root_file(self, certificate: x509.Certificate) -> Path:
        """Where a root's key is."""
        return self.roots / f"{key_hash(certificate)[:16].hex()}.key"

    def signing_file(self, key_id: str) -> Path:
        """Where a signing key is."""
        return self.signing / f"{key_id}.key"

    def leaf_file(self, path: str) -> Path:
        """Where a leaf for another process is."""
        return self.leaves / f"{path.removeprefix('/').replace('/', '+')}.pem"

    def leaf_paths(self) -> list[str]:
        """The paths of all leaves for other processes."""
        names = sorted(file.name for file in self.leaves.glob("*.pem"))
        return ["/" + name.removesuffix(".pem").replace("+", "/") for name in names]

    def make(self) -> None:
        """Make the directories that are not there, and check those that are."""
        for directory in (self.path, self.roots, self.signing, self.leaves):
            files.make_directory(directory)

    def exists(self) -> bool:
        """Whether there is an identity, sound or not."""
        return self.path.exists() or self.restored.exists()

    def finish_restore(self) -> None:
        """Give a restored identity its name, if there is one that has not got it yet."""
        if self.restored.exists() and not self.path.exists():
            self.restored.rename(self.path)
            files.sync_directory(self.path.parent)

    def stamp(self) -> tuple[tuple[str, int, int, int, int], ...]:
        """Changes whenever a file does, its owner or its mode."""
        return tuple(_stamps(self.path))

    # Reading.

    def read(self, now: datetime) -> State:
        """
        Read and verify `identity.json`.

        Raises:
            IdentityRefused: Of the kind that says what is wrong with it.
        """
        for directory in (self.path, self.roots, self.signing, self.leaves):
            files.check_directory(directory)
        said = self._json(files.read_private(self.manifest))
        try:
            signed = SignedBundle.FromString(base64.b64decode(said["bundle"], validate=True))
            since = {bytes.fromhex(key): datetime.fromisoformat(time) for key, time in said["since"].items()}
            state = State(signed, verify_bundle(signed, now=now), since, bool(said["holds_root"]))
            missing = [
                root for root in state.bundle.roots if key_hash(_certificate(root.certificate)) not in since
            ]
        except (
            KeyError,
            TypeError,
            AttributeError,
            ValueError,
            binascii.Error,
            DecodeError,
            BundleInvalid,
        ) as error:
            raise self._damaged(str(error)) from error
        if missing:
            raise self._damaged("a root without a time")
        return state

    def _json(self, content: bytes) -> dict[str, Any]:
        try:
            said: dict[str, Any] = json.loads(content)
            version = int(said["version"])
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged("it is cut short or not ours") from error
        if version > _VERSION:
            raise IdentityNewer(f"{self.manifest} was written by a newer Hopper: upgrade this one")
        return said

    def _damaged(self, what: str) -> IdentityDamaged:
        return IdentityDamaged(
            f"{self.manifest} is damaged ({what}): restore a backup with `hopper identity restore`"
        )

    def read_keys(self, state: State, now: datetime, passphrase: bytes | None) -> Keys:
        """
        Read the private keys that the state refers to.

        Raises:
            IdentityRefused: One is missing, damaged, shared, or not the one it should be.
            WrongPassphrase: The passphrase does not open the roots.
        """
        if not state.holds_root:
            return Keys({}, {})
        contents = [(root, files.read_private(self.root_file(root))) for root in state.signers]
        sealed = any(sealing.is_sealed(content) for _, content in contents)
        if sealed and passphrase is None:
            return Keys({}, self._signing_keys(state, now), sealed=True)
        roots = {key_hash(root): self._root(root, content, passphrase) for root, content in contents}
        return Keys(roots, self._signing_keys(state, now), sealed=sealed)

    def _root(self, certificate: x509.Certificate, content: bytes, passphrase: bytes | None) -> RootKey:
        path = self.root_file(certificate)
        if sealing.is_sealed(content):
            content = sealing.unseal(content, passphrase or b"", purpose=_SEAL, name=str(path))
        try:
            key = serialization.load_pem_private_key(content, password=None)
        except (ValueError, TypeError) as error:
            raise _damaged_key(path) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise _foreign_key(path)
        return RootKey(key, certificate)

    def _signing_keys(self, state: State, now: datetime) -> dict[str, Ed25519PrivateKey]:
        """Those that may be needed from now on: the one in use, and later ones."""
        current = in_use(state.bundle.signing_keys, now)
        first = from_proto(current.not_before) if current is not None else now
        listed = state.bundle.signing_keys
        return {
            key.key_id: self._signing_key(key.key_id) for key in listed if from_proto(key.not_before) >= first
        }

    def _signing_key(self, key_id: str) -> Ed25519PrivateKey:
        path = self.signing_file(key_id)
        try:
            key = serialization.load_pem_private_key(files.read_private(path), password=None)
        except (ValueError, TypeError) as error:
            raise _damaged_key(path) from error
        if not isinstance(key, Ed25519PrivateKey) or key_id_of(key.public_key().public_bytes_raw()) != key_id:
            raise _foreign_key(path)
        return key

    def read_leaf(self, path: str) -> Leaf:
        """
        Read a leaf that was issued for this process.

        Raises:
            IdentityRefused: Missing, damaged or shared, or its key is another's.
        """
        file = self.leaf_file(path)
        if not file.exists():
            raise IdentityLocked(
                f"{file} is missing and the root's key is not at hand: `hopper identity issue {path}` where it is, or "
                "set HOPPER_IDENTITY_PASSPHRASE_FILE"
            )
        content = files.read_private(file)
        try:
            key = serialization.load_pem_private_key(content, password=None)
            certificate = x509.load_pem_x509_certificate(content)
        except (ValueError, TypeError) as error:
            raise _damaged_leaf(file, path, "is damaged") from error
        if key.public_key() != certificate.public_key() or not isinstance(key, ec.EllipticCurvePrivateKey):
            raise _damaged_leaf(file, path, "has a key that is not its certificate's")
        return Leaf(key_to_pem(key), certificate.public_bytes(serialization.Encoding.PEM), certificate)

    def read_incarnation(self) -> str:
        """The random name of this installation of the identity."""
        return files.read_private(self.incarnation).decode("ascii", "replace").strip()

    # Writing.

    def write(self, state: State) -> None:
        """Replace `identity.json`: what it refers to must be there."""
        said = {
            "version": _VERSION,
            "holds_root": state.holds_root,
            "bundle": base64.b64encode(state.signed.SerializeToString()).decode(),
            "since": {key.hex(): time.isoformat() for key, time in state.since.items()},
        }
        files.write_private(self.manifest, json.dumps(said, indent=2).encode() + b"\n")

    def write_root(self, root: RootKey, passphrase: bytes | None) -> None:
        """Write a root's key, sealed if there is a passphrase."""
        content = key_to_pem(root.key)
        if passphrase is not None:
            content = sealing.seal(content, passphrase, purpose=_SEAL, cost=sealing.AT_EVERY_START)
        files.write_private(self.root_file(root.certificate), content)

    def write_signing_key(self, key: Ed25519PrivateKey) -> None:
        """Write a signing key."""
        content = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        files.write_private(self.signing_file(key_id_of(key.public_key().public_bytes_raw())), content)

    def write_leaf(self, path: str, leaf: Leaf) -> Path:
        """Write a leaf for another process."""
        file = self.leaf_file(path)
        files.write_private(file, leaf.key_pem + leaf.chain_pem)
        return file

    def leftovers(self, state: State, keys: Keys) -> list[Path]:
        """What a process that died has left, and the keys that nothing refers to."""
        kept = {self.signing_file(key_id) for key_id in keys.signing}
        kept.update(self.root_file(root) for root in state.signers)
        found = [
            file
            for directory in (self.path, self.roots, self.signing, self.leaves)
            for file in directory.iterdir()
        ]
        return [
            file for file in found if files.is_draft(file) or (file.suffix == ".key" and file not in kept)
        ]


def _certificate(der: bytes) -> x509.Certificate:
    return x509.load_der_x509_certificate(der)


def _stamps(directory: Path) -> Iterator[tuple[str, int, int, int, int]]:
    try:
        found = directory.lstat()
        yield str(directory), found.st_ino, 0, found.st_mode, found.st_uid
        for path in sorted(directory.iterdir()):
            if path.is_dir():
                yield from _stamps(path)
            elif not files.is_draft(path):
                found = path.lstat()
                yield str(path), found.st_ino, found.st_mtime_ns, found.st_mode, found.st_uid
    except OSError as error:
        # Gone, or being replaced: different from any time when it could be read.
        yield str(directory), 0, 0, 0, error.errno or 0


def _damaged_key(path: Path) -> IdentityDamaged:
    return IdentityDamaged(f"{path} is damaged: restore a backup with `hopper identity restore`")


def _foreign_key(path: Path) -> IdentityDamaged:
    return IdentityDamaged(
        f"{path} has another key than its name says: restore a backup with `hopper identity restore`"
    )


def _damaged_leaf(file: Path, path: str, what: str) -> IdentityDamaged:
    return IdentityDamaged(f"{file} {what}: issue a new one with `hopper identity issue {path}`")
