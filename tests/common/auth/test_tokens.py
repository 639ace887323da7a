"""Tokens: what is accepted, and every known way to pass off one that should not be (case F58)."""

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hopper_common.auth import tokens
from hopper_common.auth.model import TokenKey
from hopper_common.errors import CredentialsExpired, Unauthenticated

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
ROUTER = "spiffe://here.hopper/svc/router"
KEY = ec.generate_private_key(ec.SECP256R1())
FOREIGN = ec.generate_private_key(ec.SECP256R1())


def public(key: Any) -> bytes:
    data: bytes = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return data


KEYS = {"k1": TokenKey("k1", public(KEY), NOW + timedelta(days=1))}


def verify(token: str, *, now: datetime = NOW) -> tokens.Claims:
    return tokens.verify(token, KEYS, audiences={ROUTER}, issuer="here.hopper", now=now)


def issue(**changes: Any) -> str:
    given: dict[str, Any] = {
        "subject": "principals/ada",
        "audience": ROUTER,
        "issuer": "here.hopper",
        "now": NOW,
    }
    token, _ = tokens.issue(KEY, "k1", **given | changes)
    return token


def payload(**changes: Any) -> dict[str, Any]:
    plain = {
        "sub": "principals/ada",
        "aud": ROUTER,
        "iss": "here.hopper",
        "iat": int(NOW.timestamp()),
        "exp": int(NOW.timestamp()) + 300,
        "jti": "1",
    }
    return {name: value for name, value in (plain | changes).items() if value is not None}


def signed(key: Any = KEY, algorithm: str = "ES256", kid: Any = "k1", **changes: Any) -> str:
    return jwt.encode(payload(**changes), key, algorithm=algorithm, headers={"kid": kid})


def test_a_token_says_whom_it_is_for_and_with_what_it_was_got() -> None:
    token = issue(actor="principals/bot", api_key="k123")
    claims = verify(token)
    assert (claims.subject, claims.actor, claims.key) == ("principals/ada", "principals/bot", "k123")
    assert claims.expires - claims.issued == timedelta(minutes=5)


def test_no_two_tokens_have_the_same_id() -> None:
    assert verify(issue()).id != verify(issue()).id


def test_it_runs_out_after_five_minutes() -> None:
    token = issue()
    verify(token, now=NOW + timedelta(minutes=5, seconds=-1))
    with pytest.raises(CredentialsExpired) as caught:
        verify(token, now=NOW + timedelta(minutes=5))
    assert caught.value.metadata == {"expire_time": "2026-11-23T12:05:00+00:00"}


def none_algorithm() -> str:
    return jwt.encode(payload(), "", algorithm="none", headers={"kid": "k1"})


def mixed_up_with_a_shared_secret() -> str:
    # The public key, which everybody may know, as the secret of an HMAC.
    head = {"alg": "HS256", "typ": "JWT", "kid": "k1"}
    text = ".".join(
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
        for part in (head, payload())
    )
    signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(
        text.encode(), public(KEY)
    )
    return f"{text}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def brings_its_own_key() -> str:
    jwk = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(FOREIGN.public_key()))
    return jwt.encode(
        payload(),
        FOREIGN,
        algorithm="ES256",
        headers={"kid": "k1", "jwk": jwk, "jku": "https://evil.test/keys"},
    )


RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
P384 = ec.generate_private_key(ec.SECP384R1())

FORGED = {
    "no algorithm": (none_algorithm, "algorithm"),
    "RS/HS mix-up": (mixed_up_with_a_shared_secret, "algorithm"),
    "RSA": (lambda: signed(RSA, "RS256"), "algorithm"),
    "another curve": (lambda: signed(P384, "ES384"), "algorithm"),
    "its own key": (brings_its_own_key, "signature"),
    "foreign key": (lambda: signed(FOREIGN), "signature"),
    "foreign kid": (lambda: signed(kid="k2"), "kid"),
    "no kid": (lambda: jwt.encode(payload(), KEY, algorithm="ES256"), "kid"),
    "wrong audience": (lambda: issue(audience="spiffe://here.hopper/svc/memory"), "audience"),
    "many audiences": (lambda: signed(aud=[ROUTER, "spiffe://here.hopper/svc/memory"]), "claims"),
    "no audience": (lambda: signed(aud=None), "claims"),
    "another Hopper": (lambda: issue(issuer="there.hopper"), "issuer"),
    "no end": (lambda: signed(exp=None), "claims"),
    "no id": (lambda: signed(jti=None), "claims"),
    "a year long": (lambda: signed(exp=int(NOW.timestamp()) + 31_536_000), "lifetime"),
    "from the future": (lambda: issue(now=NOW + timedelta(minutes=2)), "lifetime"),
    "odd actor": (lambda: signed(act="principals/bot"), "claims"),
    "odd subject": (lambda: signed(sub=7), "claims"),
    "endless number": (lambda: signed(exp=1e300), "claims"),
    "no token": (lambda: "a.b.c", "form"),
    "too long": (lambda: "a" * 5000, "size"),
}


@pytest.mark.parametrize("how", FORGED)
def test_a_forged_token_is_refused(how: str) -> None:
    make, problem = FORGED[how]
    with pytest.raises(Unauthenticated) as caught:
        verify(make())
    assert caught.value.metadata == {"problem": problem}
    assert caught.value.reason == "UNAUTHENTICATED"


def test_a_changed_claim_breaks_the_signature() -> None:
    head, _, signature = issue().split(".")
    raised = (
        base64.urlsafe_b64encode(json.dumps(payload(sub="principals/root")).encode()).rstrip(b"=").decode()
    )
    with pytest.raises(Unauthenticated, match="get another") as caught:
        verify(f"{head}.{raised}.{signature}")
    assert caught.value.metadata == {"problem": "signature"}


def test_a_key_that_signs_tokens_runs_out_too() -> None:
    late = NOW + timedelta(days=1)
    with pytest.raises(Unauthenticated) as caught:
        verify(issue(now=late), now=late)
    assert caught.value.metadata == {"problem": "kid"}


def test_only_keys_of_p256_verify() -> None:
    with pytest.raises(ValueError, match="P-256"):
        tokens.load_public_key(public(P384))
