"""
What a client shows, and whom it trusts: from the environment, read when a client is made.

| variable | |
|---|---|
| `HOPPER_API_KEY` | a key, or a token |
| `HOPPER_API_KEY_FILE` | the file it is in, if not there; nobody else may read that |
| `HOPPER_CA_FILE` | the root certificates of the Hopper, as PEM: TLS is spoken with it, and with nobody else |

A Unix socket needs none of these: whoever can open it is the owner.
"""

import os
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from cryptography import x509

from hopper_common.errors import Unauthenticated

_HEADER = "authorization"
_MOST_BYTES = 16_384


@dataclass(frozen=True, slots=True)
class Credentials:
    """
    What calls to one address are made with.

    Attributes:
        key: Sent with every call; empty: none.
        roots: PEM of the roots that vouch for the server; empty: plain text.
        server_name: By which the server's certificate must be good; empty: that of the address.
    """

    key: str = field(default="", repr=False)
    roots: bytes = b""
    server_name: str = ""

    def options(self) -> tuple[tuple[str, str], ...]:
        """Options for the channel."""
        return (("grpc.ssl_target_name_override", self.server_name),) if self.server_name else ()

    def channel_credentials(self) -> grpc.ChannelCredentials | None:
        """Those of the channel; None: plain text."""
        return grpc.ssl_channel_credentials(self.roots) if self.roots else None

    def on(self, details: Any) -> Any:
        """The details of a call, with the key in its metadata."""
        if not self.key:
            return details
        header = (_HEADER, f"Bearer {self.key}")
        # Of grpc.aio, `details` is a named tuple with Metadata; of blocking grpc, whatever the caller before made.
        return details._replace(metadata=[*(details.metadata or ()), header])


def credentials_for(address: str, key_file: Path | None = None) -> Credentials:
    """
    What the environment says about calls to *address*.

    Args:
        key_file: The file a key is in, whatever the environment says of that.

    Raises:
        Unauthenticated: A file cannot be read, or is not what it should be; names it.
    """
    if address.startswith("unix:"):
        return Credentials()
    credentials = Credentials(key=_key(key_file))
    file = os.environ.get("HOPPER_CA_FILE")
    return replace(credentials, **_trusting(Path(file).expanduser())) if file else credentials


def _key(key_file: Path | None) -> str:
    if key_file is not None:
        return _one_word(_read_private(key_file, "--key-file"), str(key_file))
    key = os.environ.get("HOPPER_API_KEY", "")
    file = os.environ.get("HOPPER_API_KEY_FILE", "")
    if not key and file:
        return _one_word(_read_private(Path(file), "HOPPER_API_KEY_FILE"), file)
    return _one_word(key, "HOPPER_API_KEY") if key else ""


def _one_word(text: str, where: str) -> str:
    key = text.strip()
    if not (key and key.isascii() and key.isprintable()):
        raise Unauthenticated(f"the key in {where} must be one word of plain text")
    return key


def _read_private(file: Path, said_by: str) -> str:
    """A file that nobody else may read: a key that others have read is theirs, too."""
    try:
        with file.expanduser().open("rb") as opened:
            found = os.fstat(opened.fileno())
            if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise Unauthenticated(
                    f"others may get at {file} ({said_by}, mode {stat.S_IMODE(found.st_mode):04o}): chmod 600 {file}, "
                    "and if anybody else may have read it, `hopper auth key rotate`"
                )
            return opened.read(_MOST_BYTES).decode("ascii", "replace")
    except OSError as error:
        raise Unauthenticated(f"cannot read {file} ({said_by}): {error.strerror}") from error


def _trusting(file: Path) -> dict[str, Any]:
    roots = _read(file, "HOPPER_CA_FILE")
    try:
        certificates = x509.load_pem_x509_certificates(roots)
    except ValueError as error:
        raise Unauthenticated(f"{file} (HOPPER_CA_FILE) has no certificates in it") from error
    return {"roots": roots, "server_name": _server_name(certificates[0])}


def _server_name(root: x509.Certificate) -> str:
    """Of a Hopper's own root, the name by which its port for people is known; of any other, none."""
    try:
        names = root.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ""
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    domains = [uri.removeprefix("spiffe://") for uri in uris if uri.startswith("spiffe://")]
    return f"api.{domains[0]}" if len(domains) == 1 and "/" not in domains[0] else ""


def _read(file: Path, variable: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise Unauthenticated(f"cannot read {file} ({variable}): {error.strerror}") from error
