"""
What two Hoppers agree on while they pair, byte for byte, and what is proved over it.

Everything that is proved is a SHA-256 over length-prefixed parts under a label of its own, so that no proof of one kind
passes for one of another, and no two lists of parts have the same bytes:

    H(label, part, part, …) = SHA-256("hopper pairing 1 " label 0x00, 8-byte length, part, 8-byte length, part, …)

By invitation (the redeemer knows the secret, from which the invitation's key is made):

    binding   = H("invitation", id, inviter's side, redeemer's side, redeemer's nonce)
    proof     = HMAC(key, H("redeem", binding, H(what the redeemer says of itself)))
    signature = redeemer's root over H("redeem signed", binding, H(what the redeemer says of itself))
    answer    = HMAC(key, H("answer", binding, inviter's nonce, H(what the inviter says of itself)))
    words     = six words of H("words", binding, inviter's nonce)

The inviter draws its nonce after it has seen the redeemer's and answers one redeemer once, so nobody in between can
choose nonces until the words on both sides are the same, short of trying 2^66.

By digits (nobody knows anything of the other), the asker commits first and reveals last:

    commitment = H("commitment", asker's nonce, asker's side)
    binding    = H("digits", session, asker's nonce, answerer's nonce, H(asker says), H(answerer says), certificate)
    digits     = H("code", binding) modulo a million
    signature  = each root over H("revealed", role, binding), and later over H("verdict", role, binding, verdict)

where *certificate* is the TLS leaf that the answerer showed. Whoever stands in between has to commit to a nonce towards
one side before it knows the other's: the digits agree by luck alone, once in a million attempts, and each is seen.
"""

import hashlib
import hmac
from dataclasses import dataclass
from typing import Final

from hopper_federation import words

NONCE_BYTES: Final = 32
SESSION_BYTES: Final = 16
DIGITS: Final = 6

_LABEL: Final = b"hopper pairing 1 "


def _hash(label: str, *parts: bytes) -> bytes:
    digest = hashlib.sha256(_LABEL + label.encode() + b"\0")
    for part in parts:
        digest.update(len(part).to_bytes(8))
        digest.update(part)
    return digest.digest()


@dataclass(frozen=True, slots=True)
class Side:
    """
    Who one of the two is.

    Attributes:
        install_id: Hash of its first root's key.
        root_key: Its active root's public key, a compressed point of P-256.
    """

    install_id: str
    root_key: bytes

    @property
    def digest(self) -> bytes:
        """For other hashes."""
        return _hash("side", self.install_id.encode(), self.root_key)


@dataclass(frozen=True, slots=True)
class Versions:
    """The versions of the protocol that a Hopper speaks: one major, minors from the least to the greatest."""

    major: int = 1
    least_minor: int = 0
    greatest_minor: int = 0
    features: tuple[str, ...] = ()

    def __str__(self) -> str:
        least, greatest = f"{self.major}.{self.least_minor}", f"{self.major}.{self.greatest_minor}"
        return least if least == greatest else f"{least} to {greatest}"


OURS: Final = Versions()


@dataclass(frozen=True, slots=True)
class Told:
    """
    What one of the two says of itself, as the other has checked it.

    Attributes:
        bundle: Its signed bundle's payload, as it was sent.
        now: What time it has, in microseconds since 1970.
    """

    side: Side
    bundle: bytes
    claimed_name: str
    addresses: tuple[str, ...]
    versions: Versions
    now: int

    @property
    def digest(self) -> bytes:
        """For other hashes."""
        versions = self.versions
        numbers = (versions.major, versions.least_minor, versions.greatest_minor, self.now)
        return _hash(
            "told",
            self.side.digest,
            self.bundle,
            self.claimed_name.encode(),
            _list(self.addresses),
            _list(versions.features),
            *(number.to_bytes(8) for number in numbers),
        )


def _list(texts: tuple[str, ...]) -> bytes:
    return _hash("list", *(text.encode() for text in texts))


# By invitation.


def key_of(secret: bytes) -> bytes:
    """What an invitation's proofs are made with: kept instead of the secret, so that no store has a token in it."""
    return _hash("key", secret)


def invitation_binding(invitation: bytes, inviter: Side, redeemer: Side, nonce: bytes) -> bytes:
    """What an invitation's redemption is about."""
    return _hash("invitation", invitation, inviter.digest, redeemer.digest, nonce)


def redeem_proof(key: bytes, binding: bytes, told: Told) -> bytes:
    """Proves that the redeemer knows the secret."""
    return hmac.digest(key, _hash("redeem", binding, told.digest), "sha256")


def redeem_signed(binding: bytes, told: Told) -> bytes:
    """What the redeemer's root signs."""
    return _hash("redeem signed", binding, told.digest)


def answer_proof(key: bytes, binding: bytes, nonce: bytes, told: Told) -> bytes:
    """Proves that who answers knows the secret too."""
    return hmac.digest(key, _hash("answer", binding, nonce, told.digest), "sha256")


def same(one: bytes, other: bytes) -> bool:
    """Whether two proofs are the same, in a time that does not tell where they differ."""
    return hmac.compare_digest(one, other)


def invitation_words(binding: bytes, nonce: bytes) -> tuple[str, ...]:
    """The six words that both owners see."""
    return words.words_of(_hash("words", binding, nonce))


# By digits.


def commitment(nonce: bytes, side: Side) -> bytes:
    """What the asker says before it knows the answerer's nonce."""
    return _hash("commitment", nonce, side.digest)


def digits_binding(
    session: bytes, asker_nonce: bytes, answerer_nonce: bytes, asker: Told, answerer: Told, leaf: bytes
) -> bytes:
    """
    What a pairing by digits is about.

    Args:
        leaf: The certificate that the answerer showed, DER.
    """
    return _hash("digits", session, asker_nonce, answerer_nonce, asker.digest, answerer.digest, leaf)


def code_of(binding: bytes) -> str:
    """The digits that both owners see."""
    return f"{int.from_bytes(_hash('code', binding)) % 10**DIGITS:0{DIGITS}}"


def digits_words(binding: bytes) -> tuple[str, ...]:
    """The six words of a peer that was paired by digits."""
    return words.words_of(_hash("words", binding))


def revealed_signed(binding: bytes, *, asker: bool) -> bytes:
    """What each side's root signs when the nonces are known."""
    return _hash("revealed", b"asker" if asker else b"answerer", binding)


def verdict_signed(binding: bytes, verdict: str, *, asker: bool) -> bytes:
    """What each side's root signs when its owner has decided."""
    return _hash("verdict", b"asker" if asker else b"answerer", binding, verdict.encode())
