"""
SPIFFE ids, and the install ids that Hopper's are made of.

An install id is the hash of a key, 160 bits as 32 letters and digits in base 32. Its trust domain is
`<install id>.hopper`, so that a name proves itself: nobody can have a certificate for it that is signed by another key.
The ids below it are `spiffe://<trust domain>/svc/<service>`, `/agent/<id>` and `/node/<id>`.

Parsing is strict, because two programs that read an id differently are a way in: an id that has an upper-case letter, a
port, a query, an escape, an empty segment or a dot segment is none, and neither is one longer than 255 bytes. SPIFFE
itself allows upper case in paths; Hopper makes no such ids and takes none.

No cryptography here, so that cores may import it.
"""

import re
from dataclasses import dataclass
from typing import Final, Self

MOST_BYTES: Final = 255
_DOMAIN_SUFFIX: Final = ".hopper"
_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz234567"
_GROUP: Final = 4
_CHECKED: Final = 8  # characters that one check character is for

_DOMAIN: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?")
_PATH: Final = re.compile(r"(?:/[a-z0-9._-]+)*")
_INSTALL: Final = re.compile(rf"[{_ALPHABET}]{{32}}")
# What people misread in base 32, which has no 0, 1 and 8.
_MISREAD: Final = str.maketrans("018", "olb", " -\t\n")


class SpiffeInvalid(ValueError):
    """Not a SPIFFE id, trust domain or install id of the strict form."""


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """
    The name in a certificate.

    Attributes:
        trust_domain: Lower case, such as `<install id>.hopper`.
        path: Such as `/svc/router`; empty for the trust domain itself, as in a root.
    """

    trust_domain: str
    path: str = ""

    def __post_init__(self) -> None:
        _check(self)

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}{self.path}"

    @classmethod
    def parse(cls, uri: str) -> Self:
        """
        Read an id.

        Raises:
            SpiffeInvalid: It is not of the strict form; the message says where.
        """
        scheme, found, rest = uri.partition("://")
        if not found or scheme != "spiffe":
            raise SpiffeInvalid(f"{_cut(uri)} does not begin with spiffe://")
        domain, slash, path = rest.partition("/")
        return cls(domain, slash + path)


def _check(name: SpiffeId) -> None:
    uri = str(name)
    if len(uri.encode(errors="replace")) > MOST_BYTES:
        raise SpiffeInvalid(f"{_cut(uri)} is longer than {MOST_BYTES} bytes")
    if not _DOMAIN.fullmatch(name.trust_domain) or ".." in name.trust_domain:
        raise SpiffeInvalid(f"{_cut(uri)} has no trust domain of lower-case letters, digits, dots and dashes")
    if not _PATH.fullmatch(name.path):
        raise SpiffeInvalid(f"{_cut(uri)} has a path that is not of lower-case letters, digits and . _ -")
    if any(segment in (".", "..") for segment in name.path.split("/")):
        raise SpiffeInvalid(f"{_cut(uri)} has a dot segment")


def _cut(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")


def trust_domain_of(install_id: str) -> str:
    """The trust domain of an install."""
    return f"{check_install_id(install_id)}{_DOMAIN_SUFFIX}"


def install_id_of_domain(trust_domain: str) -> str:
    """
    The install whose trust domain it is.

    Raises:
        SpiffeInvalid: It is no Hopper's.
    """
    if not trust_domain.endswith(_DOMAIN_SUFFIX):
        raise SpiffeInvalid(f"{_cut(trust_domain)} is not a Hopper's trust domain")
    return check_install_id(trust_domain.removesuffix(_DOMAIN_SUFFIX))


def check_install_id(text: str) -> str:
    """
    The text, if it has the form of an install id.

    Raises:
        SpiffeInvalid: It has not.
    """
    if not _INSTALL.fullmatch(text):
        raise SpiffeInvalid(f"{_cut(text)} is not an install id: 32 of a-z and 2-7")
    return text


# For people.


def shown(install_id: str) -> str:
    """
    An install id as people compare and type it: eight groups of four, and a ninth of check characters.

    Each check character is for two groups, so a slip is found, and which groups it is in.
    """
    check_install_id(install_id)
    checks = "".join(_check_character(part) for part in _split(install_id, _CHECKED))
    return "-".join(_split(install_id + checks, _GROUP))


def read_shown(text: str) -> str:
    """
    The install id that somebody typed: case, spaces and dashes do not matter, and 0, 1, 8 are read as o, l, b.

    Raises:
        SpiffeInvalid: It is not one; the message says which groups have a slip.
    """
    plain = text.lower().translate(_MISREAD)
    install_id, checks = plain[:32], plain[32:]
    if len(plain) != 36 or not _INSTALL.fullmatch(install_id):
        raise SpiffeInvalid("an install id is nine groups of four characters, of a-z and 2-7")
    for number, (part, check) in enumerate(zip(_split(install_id, _CHECKED), checks, strict=True)):
        if _check_character(part) != check:
            first = 2 * number + 1
            raise SpiffeInvalid(f"there is a slip in the groups {first} and {first + 1}, or in the ninth")
    return install_id


def _split(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def _check_character(part: str) -> str:
    """Luhn's algorithm in base 32: finds every single slip and nearly every swap of neighbours."""
    total = 0
    for position, character in enumerate(reversed(part)):
        value = _ALPHABET.index(character) * (2 - position % 2)
        total += value // 32 + value % 32
    return _ALPHABET[-total % 32]
