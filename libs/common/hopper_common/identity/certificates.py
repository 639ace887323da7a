"""
Roots and leaves: made, issued, and compared. Functions of their arguments: no file, no clock.

A root is a P-256 key and its own certificate, good for ten years, that issues leaves and nothing else (path length 0).
A leaf is good for three days and names exactly one SPIFFE id; a service's has a DNS name besides, because gRPC's Python
client can verify no other. Leaves are issued by the root directly: who issued one is a single signature to check.

Ed25519 would be smaller, but gRPC's handshake refuses it.
"""

import base64
import hashlib
import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hopper_common.identity.spiffe import SpiffeId, SpiffeInvalid, trust_domain_of

ROOT_LIFETIME: Final = timedelta(days=3653)
LEAF_LIFETIME: Final = timedelta(hours=72)
BACKDATED: Final = timedelta(minutes=10)
"""How far a certificate's validity begins before it was made: other machines' clocks are behind ours."""

_SERVICE: Final = "/svc/"
# Not there, there twice, or not to be read: in each case it says nothing.
_NO_EXTENSION: Final = (
    x509.ExtensionNotFound,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    ValueError,
)
_EVERY_ADDRESS: Final = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))


@dataclass(frozen=True, slots=True)
class RootKey:
    """A root that can sign: its private key and its certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


@dataclass(frozen=True, slots=True)
class Leaf:
    """
    What one end of a connection shows, and proves to be its own.

    Attributes:
        key_pem: The private key.
        chain_pem: The certificate.
    """

    key_pem: bytes
    chain_pem: bytes
    certificate: x509.Certificate

    @property
    def not_before(self) -> datetime:
        """Not valid before."""
        return self.certificate.not_valid_before_utc

    @property
    def not_after(self) -> datetime:
        """Not valid after."""
        return self.certificate.not_valid_after_utc

    @property
    def issue_time(self) -> datetime:
        """When it was issued."""
        return self.not_before + BACKDATED

    def valid_at(self, now: datetime) -> bool:
        """Whether it can be shown."""
        return self.not_before <= now < self.not_after


# Keys and names.


def key_hash(certificate: x509.Certificate) -> bytes:
    """SHA-256 of a certificate's public key (SubjectPublicKeyInfo)."""
    return hashlib.sha256(_spki(certificate.public_key())).digest()


def install_id_of(root: x509.Certificate) -> str:
    """The install whose first root it is: 160 bits of its key's hash, in lower-case base 32."""
    return _install_id(key_hash(root))


def _install_id(digest: bytes) -> str:
    return base64.b32encode(digest[:20]).decode().lower()


def _spki(key: object) -> bytes:
    encoded: bytes = key.public_bytes(  # type: ignore[attr-defined]  # every kind of public key has it
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded


def spiffe_uris(certificate: x509.Certificate) -> list[str]:
    """All URIs that a certificate names, SPIFFE ids or not."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except _NO_EXTENSION:
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def spiffe_id_of(leaf: x509.Certificate) -> SpiffeId:
    """
    The one SPIFFE id that a leaf names. Who issued the leaf is another question: `issued_by`.

    Raises:
        SpiffeInvalid: It names none or several, one that is not of the strict form, or a trust domain alone; or it may
            issue certificates itself, which TLS lets pass as a leaf.
    """
    uris = spiffe_uris(leaf)
    if len(uris) != 1:
        raise SpiffeInvalid(f"the certificate names {len(uris)} URIs instead of one")
    name = SpiffeId.parse(uris[0])
    if not name.path:
        raise SpiffeInvalid(f"{name} is a trust domain, not a name in it")
    if may_issue(leaf):
        raise SpiffeInvalid(f"the certificate of {name} may issue others: it is no leaf")
    return name


def to_pem(certificates: Iterable[x509.Certificate]) -> bytes:
    """Certificates as text, as gRPC takes them."""
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certificates)


def to_der(certificate: x509.Certificate) -> bytes:
    """A certificate as bytes, as messages carry it."""
    return certificate.public_bytes(serialization.Encoding.DER)


def key_to_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as text, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


# Making them.


def new_root(now: datetime, trust_domain: str = "") -> RootKey:
    """
    A new root.

    Args:
        trust_domain: Of the Hopper it is a further root of. Default: it is a first root, and gives the Hopper its name.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    digest = hashlib.sha256(_spki(key.public_key())).digest()
    name = _name(f"hopper root {digest[:16].hex()}")  # of its own: chains are built by the names of issuers
    builder = (
        _builder(name, name, key.public_key(), now - BACKDATED, now + ROOT_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(
            _names(SpiffeId(trust_domain or trust_domain_of(_install_id(digest))), ()), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return RootKey(key, builder.sign(key, hashes.SHA256()))


def issue_leaf(
    root: RootKey,
    trust_domain: str,
    path: str,
    *,
    now: datetime,
    lifetime: timedelta = LEAF_LIFETIME,
    dns: Sequence[str] = (),
) -> Leaf:
    """
    Issue a leaf with a key of its own.

    Args:
        path: `/svc/router`. A service's leaf also has the DNS name `router.<trust domain>`.
        dns: Further DNS names.

    Raises:
        SpiffeInvalid: The path is none.
    """
    if not path:
        raise ValueError("a leaf has a path; the trust domain itself is its root's name")
    name = SpiffeId(trust_domain, path)
    key = ec.generate_private_key(ec.SECP256R1())
    until = min(now + lifetime, root.certificate.not_valid_after_utc)
    builder = (
        _builder(_name(path[-64:]), root.certificate.subject, key.public_key(), now - BACKDATED, until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
            critical=False,
        )
        .add_extension(_names(name, (*service_names(name), *dns)), critical=False)
        .add_extension(_issued_with(root.certificate), critical=False)
    )
    certificate = builder.sign(root.key, hashes.SHA256())
    return Leaf(key_to_pem(key), to_pem([certificate]), certificate)


def service_names(name: SpiffeId) -> tuple[str, ...]:
    """The DNS names by which a client finds out that it talks to that service."""
    service = name.path.removeprefix(_SERVICE)
    return (
        (f"{service}.{name.trust_domain}",) if name.path.startswith(_SERVICE) and "/" not in service else ()
    )


def constrained_anchor(root: x509.Certificate, trust_domain: str, signer: RootKey, now: datetime) -> bytes:
    """
    A copy of another Hopper's root that vouches for its own trust domain only, as PEM.

    gRPC has one pool of roots for all peers, and so would let any of them issue a certificate in another's name. Put
    these in the pool instead of the roots: same subject and key, so that what the peer issues verifies, but signed by
    *signer* and constrained to the one trust domain. Never put the plain root of the same key beside it.

    Args:
        signer: Any root; a throw-away one, which is trusted nowhere.
    """
    # As long as the root: our clock may be set back later, or the peer's be ahead of it.
    since, until = min(root.not_valid_before_utc, now - BACKDATED), root.not_valid_after_utc
    constraints = x509.NameConstraints(
        permitted_subtrees=[x509.UniformResourceIdentifier(trust_domain), x509.DNSName(trust_domain)],
        excluded_subtrees=[x509.IPAddress(network) for network in _EVERY_ADDRESS],
    )
    builder = (
        _builder(root.subject, signer.certificate.subject, _p256(root), since, until)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(constraints, critical=True)
        .add_extension(_key_id(root), critical=False)  # the peer's leaves refer to it
        .add_extension(_issued_with(signer.certificate), critical=False)
    )
    return to_pem([builder.sign(signer.key, hashes.SHA256())])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    not_before: datetime,
    not_after: datetime,
) -> x509.CertificateBuilder:
    return x509.CertificateBuilder(
        subject_name=subject,
        issuer_name=issuer,
        public_key=key,
        serial_number=x509.random_serial_number(),
        not_valid_before=not_before,
        not_valid_after=not_after,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _names(name: SpiffeId, dns: Sequence[str]) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName(
        [x509.UniformResourceIdentifier(str(name)), *(x509.DNSName(each) for each in dns)]
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,  # a root also signs bundles
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_id(certificate: x509.Certificate) -> x509.SubjectKeyIdentifier:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except _NO_EXTENSION:
        return x509.SubjectKeyIdentifier.from_public_key(_p256(certificate))


def _issued_with(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(_key_id(issuer))


def _p256(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("the certificate's key is not of P-256")
    return key


# Checking them.


def issued_by(leaf: x509.Certificate, roots: Iterable[x509.Certificate]) -> bool:
    """Whether one of the roots issued the certificate itself. About 70 microseconds for each: keep the answer."""
    return any(_issued_by(leaf, root) for root in roots)


def _issued_by(leaf: x509.Certificate, root: x509.Certificate) -> bool:
    try:
        leaf.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def may_issue(certificate: x509.Certificate) -> bool:
    """Whether a certificate says that it may issue others: then it is no leaf. One that cannot be read may, too."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False
    except _NO_EXTENSION:
        return True


def check_root(root: x509.Certificate, trust_domain: str) -> None:
    """
    Check that a certificate is a root as Hoppers make them, of that trust domain. Not whether it is still valid.

    Raises:
        ValueError: It is not; says why.
    """
    _p256(root)
    if not _issued_by(root, root):
        raise ValueError("the root is not signed by itself")
    if not may_issue(root):
        raise ValueError("the root may not issue certificates")
    if spiffe_uris(root) != [str(SpiffeId(trust_domain))]:
        raise ValueError(f"the root is not of the trust domain {trust_domain} alone")


def sign_with(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """A signature by a root: ECDSA with SHA-256, DER."""
    return key.sign(data, ec.ECDSA(hashes.SHA256()))


def signed_with(root: x509.Certificate, signature: bytes, data: bytes) -> bool:
    """Whether the signature is by that root's key."""
    try:
        _p256(root).verify(signature, data, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True
