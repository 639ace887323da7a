"""
What is known of a file beside a task, and what it may be called: plain values.

A name comes from somebody else, and ends up in somebody's directory: so it is no path, shows all that is in it, and is
written in one way only.
"""

import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from hopper_federation.artifacts.errors import ArtifactInvalid, QuotaReached

MOST_FILES: Final = 100
"""Beside one task, and in one manifest."""

NAME_BYTES: Final = 200
MEDIA_TYPE_BYTES: Final = 100
HASH_BYTES: Final = 32
KEPT_FOR: Final = timedelta(days=30)
"""How long after its task has ended a file is kept."""


class Problem(StrEnum):
    """Why a file that a peer told of is not here."""

    NONE = ""
    QUOTA = "QUOTA"
    """There is no room: tried again later."""
    WRONG = "WRONG"
    """What came is not what the peer had signed. Final."""
    MALFORMED = "MALFORMED"
    """What the peer had signed is no name, hash or size. Final."""
    GONE = "GONE"
    """The peer does not have it. Final."""


@dataclass(frozen=True, slots=True)
class File:
    """
    A file beside a task.

    Attributes:
        sha256: Of its bytes: 32 bytes.
        size: In bytes.
        media_type: A claim.
        stored: All of it is here.
        peer: Install id of the Hopper that it comes from; empty: it was put here.
        delegation: The hand-over whose result named it.
    """

    task: str
    name: str
    sha256: bytes
    size: int
    media_type: str
    create_time: datetime
    stored: bool = True
    problem: Problem = Problem.NONE
    peer: str = ""
    delegation: str = ""

    @property
    def wanted(self) -> bool:
        """Whether it is still to be pulled."""
        return not self.stored and self.problem in (Problem.NONE, Problem.QUOTA)


@dataclass(frozen=True, slots=True)
class Limits:
    """
    How much is kept, in bytes.

    Attributes:
        file: The largest file.
        peer: All files of one peer.
        total: All files.
    """

    file: int = 1 << 30
    peer: int = 256 << 20
    total: int = 16 << 30

    def check_file(self, size: int, name: str) -> None:
        """
        Check that a file is not too large.

        Raises:
            QuotaReached: It is.
        """
        self._check("file", size, self.file, name)

    def check_total(self, used: int, name: str) -> None:
        """
        Check that all files, the new one too, are not too much.

        Raises:
            QuotaReached: They are.
        """
        self._check("total", used, self.total, name)

    def check_peer(self, used: int, name: str) -> None:
        """
        Check that all files of a peer, the new one too, are not too much.

        Raises:
            QuotaReached: They are.
        """
        self._check("peer", used, self.peer, name)

    def _check(self, quota: str, used: int, limit: int, name: str) -> None:
        if used > limit:
            raise QuotaReached(
                f"there is no room for {name}: at most {limit} bytes ({_NAMES[quota]})",
                rule=_NAMES[quota],
                quota=quota,
                limit=str(limit),
            )


_NAMES: Final = {
    "file": "HOPPER_ARTIFACT_FILE_BYTES",
    "peer": "HOPPER_ARTIFACT_PEER_BYTES",
    "total": "HOPPER_ARTIFACT_TOTAL_BYTES",
}


def name_problem(name: str) -> str:
    """What is wrong with a name; empty: nothing."""
    return next((problem for problem, found in _PROBLEMS.items() if found(name)), "")


_PROBLEMS: Final[Mapping[str, Callable[[str], bool]]] = {
    "must not be empty": lambda name: not name,
    f"must have at most {NAME_BYTES} bytes": lambda name: len(name.encode()) > NAME_BYTES,
    "must be a name without a path": lambda name: "/" in name or "\\" in name,
    "must not begin with a dot": lambda name: name.startswith("."),
    "must have printable characters only, and no space at its ends": lambda name: (
        not name.isprintable() or name.strip() != name
    ),
    "must be in Unicode's form NFC": lambda name: unicodedata.normalize("NFC", name) != name,
}


def check_claims(name: str, sha256: bytes, size: int, media_type: str) -> None:
    """
    Check what somebody says of a file.

    Args:
        sha256: Empty: they do not say.

    Raises:
        ArtifactInvalid: That cannot be.
    """
    problem = name_problem(name)
    if problem:
        raise ArtifactInvalid(f"the artifact's name {problem}", artifact="")
    if sha256 and len(sha256) != HASH_BYTES:
        raise ArtifactInvalid(f"the SHA-256 of {name} must have {HASH_BYTES} bytes", artifact=name)
    if size < 0:
        raise ArtifactInvalid(f"the size of {name} is negative", artifact=name)
    if not media_type.isprintable() or len(media_type.encode()) > MEDIA_TYPE_BYTES:
        raise ArtifactInvalid(f"the media type of {name} is none", artifact=name)


def free_name(name: str, taken: set[str]) -> str:
    """The name; with a number before it, where another file has it already."""
    free, number = name, 2
    while free in taken:
        prefix = f"{number}-"
        kept = name.encode()[: NAME_BYTES - len(prefix)].decode(errors="ignore").rstrip()
        free, number = prefix + unicodedata.normalize("NFC", kept), number + 1
    return free
