"""Roots and leaves have what they must have, and prove who issued them."""

import ssl
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from hopper_common.identity.certificates import (
    Leaf,
    check_root,
    constrained_anchor,
    install_id_of,
    issue_leaf,
    issued_by,
    key_hash,
    new_root,
    spiffe_id_of,
    spiffe_uris,
)
from hopper_common.identity.spiffe import SpiffeInvalid, trust_domain_of
from hopper_testing.certificates import Authority, attacks

NOW = datetime(2026, 5, 1, tzinfo=UTC)
ROOT = new_root(NOW)
DOMAIN = trust_domain_of(install_id_of(ROOT.certificate))


def dns_names(certificate: x509.Certificate) -> list[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.DNSName)


def test_a_root_names_the_trust_domain_of_its_own_key() -> None:
    check_root(ROOT.certificate, DOMAIN)
    assert spiffe_uris(ROOT.certificate) == [f"spiffe://{DOMAIN}"]
    constraints = ROOT.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)
    assert ROOT.certificate.not_valid_before_utc == NOW - timedelta(minutes=10)
    assert ROOT.certificate.not_valid_after_utc > NOW + timedelta(days=3650)


def test_a_further_root_names_the_first_ones_trust_domain() -> None:
    second = new_root(NOW, DOMAIN)
    check_root(second.certificate, DOMAIN)
    assert install_id_of(second.certificate) != install_id_of(ROOT.certificate)
    assert second.certificate.subject != ROOT.certificate.subject


@pytest.mark.parametrize(
    ("path", "dns"),
    [
        ("/svc/router", [f"router.{DOMAIN}"]),
        ("/svc/federation", [f"federation.{DOMAIN}"]),
        ("/agent/x", []),
        ("/node/a/b", []),
        ("/svc/a/b", []),
    ],
)
def test_a_leaf_has_one_name_and_services_a_dns_name(path: str, dns: list[str]) -> None:
    leaf = issue_leaf(ROOT, DOMAIN, path, now=NOW)
    assert str(spiffe_id_of(leaf.certificate)) == f"spiffe://{DOMAIN}{path}"
    assert dns_names(leaf.certificate) == dns
    usage = leaf.certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    constraints = leaf.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert not constraints.ca
    assert isinstance(leaf.certificate.public_key(), ec.EllipticCurvePublicKey)


def test_a_leaf_lives_for_three_days_and_ten_minutes_of_the_past() -> None:
    leaf = issue_leaf(ROOT, DOMAIN, "/svc/router", now=NOW)
    assert leaf.issue_time == NOW
    assert (leaf.not_before, leaf.not_after) == (NOW - timedelta(minutes=10), NOW + timedelta(hours=72))
    assert leaf.valid_at(NOW)
    assert not leaf.valid_at(leaf.not_after)


def test_a_leaf_never_outlives_its_root() -> None:
    late = ROOT.certificate.not_valid_after_utc - timedelta(hours=1)
    leaf = issue_leaf(ROOT, DOMAIN, "/svc/router", now=late)
    assert leaf.not_after == ROOT.certificate.not_valid_after_utc


@pytest.mark.parametrize("path", ["", "svc/router", "/svc/Router", "/../x"])
def test_a_leaf_of_no_proper_path_is_not_issued(path: str) -> None:
    with pytest.raises(ValueError, match=r"path|letters|segment|domain"):
        issue_leaf(ROOT, DOMAIN, path, now=NOW)


def test_who_issued_a_leaf_is_a_matter_of_keys_not_of_names() -> None:
    leaf = issue_leaf(ROOT, DOMAIN, "/svc/router", now=NOW).certificate
    poser = Authority.posing_as(ROOT.certificate, DOMAIN, NOW)
    other = new_root(NOW, DOMAIN).certificate
    assert issued_by(leaf, [other, ROOT.certificate])
    assert not issued_by(leaf, [other])
    assert not issued_by(leaf, [])
    assert not issued_by(poser.leaf(path="/svc/router").certificate, [ROOT.certificate])
    assert not issued_by(leaf, [poser.root.certificate])
    assert not issued_by(Authority.new(NOW).intermediate().leaf().certificate, [ROOT.certificate])


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("leaf", "not signed by itself"),
        ("other domain", "not of the trust domain"),
        ("poser's name", "not of the trust domain"),
    ],
)
def test_what_is_no_root_is_not_taken_for_one(kind: str, why: str) -> None:
    made = {
        "leaf": issue_leaf(ROOT, DOMAIN, "/svc/router", now=NOW).certificate,
        "other domain": new_root(NOW).certificate,
        "poser's name": Authority.new(NOW).root.certificate,
    }
    with pytest.raises(ValueError, match=why):
        check_root(made[kind], DOMAIN)


def test_a_constrained_anchor_has_the_peers_name_and_key_and_one_trust_domain() -> None:
    signer = new_root(NOW)
    anchor = x509.load_pem_x509_certificate(constrained_anchor(ROOT.certificate, DOMAIN, signer, NOW))
    assert anchor.subject == ROOT.certificate.subject
    assert key_hash(anchor) == key_hash(ROOT.certificate)
    assert issued_by(anchor, [signer.certificate])
    leaf = issue_leaf(ROOT, DOMAIN, "/svc/federation", now=NOW)
    assert issued_by(leaf.certificate, [anchor])
    constraints = anchor.extensions.get_extension_for_class(x509.NameConstraints)
    assert constraints.critical
    permitted = constraints.value.permitted_subtrees or []
    assert {name.value for name in permitted} == {DOMAIN}


REFUSED_BY_NAME = {
    "two URIs",
    "own URI twice",
    "no URI",
    "no names",
    "no path",
    "its own root",
    "root as leaf",
    *(kind for kind in attacks(Authority.new(NOW), ROOT.certificate, DOMAIN) if kind.startswith("malformed")),
}


@pytest.fixture(scope="module")
def forged() -> dict[str, Leaf]:
    return attacks(Authority.new(NOW), ROOT.certificate, DOMAIN)


def test_names_that_are_not_one_spiffe_id_are_refused(forged: dict[str, Leaf]) -> None:
    refused = set()
    for kind, leaf in forged.items():
        try:
            spiffe_id_of(leaf.certificate)
        except SpiffeInvalid:
            refused.add(kind)
    assert refused == REFUSED_BY_NAME


def test_none_of_the_attacks_is_issued_by_the_victim(forged: dict[str, Leaf]) -> None:
    assert [kind for kind, leaf in forged.items() if issued_by(leaf.certificate, [ROOT.certificate])] == []


def test_every_forged_certificate_can_be_shown_in_a_handshake(
    forged: dict[str, Leaf], tmp_path: object
) -> None:
    # What openssl cannot even load would test nothing.
    import pathlib

    assert isinstance(tmp_path, pathlib.Path)
    for leaf in forged.values():
        file = tmp_path / "leaf.pem"
        file.write_bytes(leaf.key_pem + leaf.chain_pem)
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(file)
