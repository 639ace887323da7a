"""Certificates for one run: an authority that lives as long as the run, a server and a client of it (P-256)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_Key = ec.EllipticCurvePrivateKey


def make(directory: Path) -> None:
    """Write `ca.pem`, `server.pem`, `server.key`, `client.pem` and `client.key`, for 127.0.0.1 and a day."""
    directory.mkdir(mode=0o700)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = _certificate(
        "hopper bench", authority_key.public_key(), authority_key, "hopper bench", ca=True
    )
    (directory / "ca.pem").write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    for name in ("server", "client"):
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = _certificate(name, key.public_key(), authority_key, "hopper bench", ca=False)
        (directory / f"{name}.pem").write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
        (directory / f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )


def server_credentials(directory: Path) -> grpc.ServerCredentials:
    """What a server shows; it asks its clients for theirs."""
    ca, chain, key = _read(directory, "server")
    return grpc.ssl_server_credentials([(key, chain)], ca, require_client_auth=True)


def channel_credentials(directory: Path) -> grpc.ChannelCredentials:
    """What a client shows."""
    ca, chain, key = _read(directory, "client")
    return grpc.ssl_channel_credentials(ca, key, chain)


def _read(directory: Path, name: str) -> tuple[bytes, bytes, bytes]:
    return (
        (directory / "ca.pem").read_bytes(),
        (directory / f"{name}.pem").read_bytes(),
        (directory / f"{name}.key").read_bytes(),
    )


def _certificate(
    name: str, public_key: ec.EllipticCurvePublicKey, signer: _Key, issuer: str, *, ca: bool
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(issuer))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if not ca:
        names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    return builder.sign(signer, hashes.SHA256())


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
