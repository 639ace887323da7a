"""
Certificates that no Hopper would issue, for tests that try to get in with them.

An `Authority` is a root in an attacker's hands, and issues whatever it is told: in another's name, with two names or
none, for a time that is over, as a root, through an intermediate. `attacks` has one of each kind, by name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hopper_common.identity.certificates import (
    BACKDATED,
    LEAF_LIFETIME,
    ROOT_LIFETIME,
    Leaf,
    RootKey,
    install_id_of,
    key_to_pem,
    new_root,
    to_pem,
)
from hopper_common.identity.spiffe import trust_domain_of

BOTH: Final = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH)
SERVER_ONLY: Final = (ExtendedKeyUsageOID.SERVER_AUTH,)
FEDERATION: Final = "/svc/federation"

MALFORMED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "upper case": "spiffe://{domain_upper}{path}",
        "port": "spiffe://{domain}:443{path}",
        "userinfo": "spiffe://a@{domain}{path}",
        "query": "spiffe://{domain}{path}?x=1",
        "fragment": "spiffe://{domain}{path}#x",
        "empty segment": "spiffe://{domain}/{path}",
        "dot segment": "spiffe://{domain}/svc/x/..{path}",
        "trailing slash": "spiffe://{domain}{path}/",
        "escape": "spiffe://{domain}/svc%2ffederation",
        "other scheme": "https://{domain}{path}",
        "scheme in upper case": "SPIFFE://{domain}{path}",
        "too long": "spiffe://{domain}{path}/{long}",
    }
)
"""What almost is a SPIFFE id: fill in with `malformed`."""


def malformed(kind: str, trust_domain: str, path: str = FEDERATION) -> str:
    """A URI that is no SPIFFE id, in a certain way."""
    return MALFORMED[kind].format(
        domain=trust_domain, domain_upper=trust_domain.upper(), path=path, long="x" * 255
    )


@dataclass(frozen=True, slots=True)
class Authority:
    """
    A root that issues anything.

    Attributes:
        root: Its key and certificate.
        trust_domain: The one it may speak for.
        now: When it lives: what it issues is good from a little before.
        chain: What it sends after its leaves: intermediates.
    """

    root: RootKey
    trust_domain: str
    now: datetime
    chain: bytes = b""

    @classmethod
    def new(cls, now: datetime) -> Self:
        """An authority whose name is the hash of its key, as a Hopper's."""
        root = new_root(now)
        return cls(root, trust_domain_of(install_id_of(root.certificate)), now)

    @classmethod
    def posing_as(cls, victim: x509.Certificate, trust_domain: str, now: datetime) -> Self:
        """One that has the victim's name, and the victim's key identifier, but a key of its own."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(victim.subject, victim.subject, key, now - BACKDATED, now + ROOT_LIFETIME)
        for extension in victim.extensions:
            builder = builder.add_extension(extension.value, extension.critical)
        return cls(RootKey(key, builder.sign(key, hashes.SHA256())), trust_domain, now)

    @property
    def pem(self) -> bytes:
        """Its certificate, as gRPC takes it."""
        return to_pem([self.root.certificate])

    def intermediate(self) -> "Authority":
        """One that this one has signed; its leaves come with its certificate."""
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = self.root.certificate
        builder = _builder(
            _name("intermediate"), issuer.subject, key, self.now - BACKDATED, self.now + LEAF_LIFETIME
        )
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        builder = builder.add_extension(
            x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
        )
        builder = builder.add_extension(_authority(issuer), critical=False)
        certificate = builder.sign(self.root.key, hashes.SHA256())
        return Authority(
            RootKey(key, certificate), self.trust_domain, self.now, to_pem([certificate]) + self.chain
        )

    def leaf(
        self,
        *,
        uris: Sequence[str] | None = None,
        dns: Sequence[str] | None = None,
        path: str = FEDERATION,
        begins: timedelta = -BACKDATED,
        ends: timedelta = LEAF_LIFETIME,
        purposes: Sequence[x509.ObjectIdentifier] = BOTH,
        is_root: bool = False,
    ) -> Leaf:
        """
        A leaf, as bad as wanted; by default a good one.

        Args:
            uris: All of its URIs. Default: the SPIFFE id of *path* in its trust domain.
            dns: All of its DNS names. Default: that of the service.
            begins: When it begins to be valid, from now.
            ends: When it ends, from now.
            is_root: Whether it says that it may issue certificates itself.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = self.root.certificate
        names = [
            *(
                x509.UniformResourceIdentifier(uri)
                for uri in _or(uris, f"spiffe://{self.trust_domain}{path}")
            ),
            *(x509.DNSName(name) for name in _or(dns, f"{path.rpartition('/')[2]}.{self.trust_domain}")),
        ]
        builder = _builder(_name("leaf"), issuer.subject, key, self.now + begins, self.now + ends)
        builder = builder.add_extension(x509.BasicConstraints(ca=is_root, path_length=None), critical=True)
        if purposes:
            builder = builder.add_extension(x509.ExtendedKeyUsage(list(purposes)), critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(_authority(issuer), critical=False)
        certificate = builder.sign(self.root.key, hashes.SHA256())
        return Leaf(key_to_pem(key), to_pem([certificate]) + self.chain, certificate)


def attacks(attacker: Authority, victim: x509.Certificate, victim_domain: str) -> dict[str, Leaf]:
    """
    One certificate of each kind with which a paired attacker may try to pass for somebody, the victim above all.

    Each has to be refused; where, in the handshake or at the call, is for the test to say.
    """
    day = timedelta(days=1)
    stranger = Authority.new(attacker.now)
    poser = Authority.posing_as(victim, victim_domain, attacker.now)
    own, other = (f"spiffe://{domain}{FEDERATION}" for domain in (attacker.trust_domain, victim_domain))
    other_dns = [f"federation.{victim_domain}"]
    made = {
        "unknown CA": stranger.leaf(),
        "another's name": attacker.leaf(uris=[other]),
        "another's name and DNS name": attacker.leaf(uris=[other], dns=other_dns),
        "another's DNS name": attacker.leaf(dns=other_dns),
        "another's SPIFFE id as a DNS name": attacker.leaf(dns=[other]),
        "another's name through an intermediate": attacker.intermediate().leaf(uris=[other]),
        "own name through an intermediate": attacker.intermediate().leaf(),
        "same-name CA": poser.leaf(),
        "two URIs": attacker.leaf(uris=[own, other]),
        "own URI twice": attacker.leaf(uris=[own, own]),
        "no URI": attacker.leaf(uris=[]),
        "no names": attacker.leaf(uris=[], dns=[]),
        "agent": attacker.leaf(path="/agent/x"),
        "no path": attacker.leaf(uris=[f"spiffe://{attacker.trust_domain}"]),
        "expired": attacker.leaf(begins=-2 * day, ends=-day),
        "not yet valid": attacker.leaf(begins=day, ends=2 * day),
        "server only": attacker.leaf(purposes=SERVER_ONLY),
        "root as leaf": attacker.leaf(is_root=True),
        "its own root": Leaf(key_to_pem(attacker.root.key), attacker.pem, attacker.root.certificate),
    }
    for kind in MALFORMED:
        made[f"malformed: {kind}"] = attacker.leaf(uris=[malformed(kind, attacker.trust_domain)])
    return made


def _or(given: Sequence[str] | None, default: str) -> Sequence[str]:
    return [default] if given is None else given


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, begins: datetime, ends: datetime
) -> x509.CertificateBuilder:
    return x509.CertificateBuilder(
        subject_name=subject,
        issuer_name=issuer,
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=begins,
        not_valid_after=ends,
    )


def _authority(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    known = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(known)
