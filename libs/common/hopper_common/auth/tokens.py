"""
Tokens: JWTs of five minutes, by which a service passes a call on in the name of who made it.

A token is ES256 whatever its header says; its key is one of ours by `kid`, never one that the token brings along. It is
for one audience, the SPIFFE id of a service, and runs out. Its claims:

    sub   whom the call is for: principals/ada
    act   {"sub": ...}: the agent that acts for them, if one does (RFC 8693)
    key   the id of the API key it was got with: the token may do no more, and ends with it
    aud, iss, iat, exp, jti

Nothing here looks at a clock.
"""

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key
from jwt.types import Options

from hopper_common.auth.model import TokenKey
from hopper_common.errors import CredentialsExpired, Unauthenticated

LIFETIME: Final = timedelta(minutes=5)
MOST_LIFETIME: Final = timedelta(minutes=10)
"""A token that says it lives longer is refused, whoever signed it."""
SKEW: Final = timedelta(seconds=30)
"""How far in the future a token may have been issued: processes of one Hopper may run on two machines."""
MOST_BYTES: Final = 4096

_ALGORITHM: Final = "ES256"
_REQUIRED: Final = ("sub", "aud", "iss", "iat", "exp", "jti")


@dataclass(frozen=True, slots=True)
class Claims:
    """
    What a token says.

    Attributes:
        subject: Whom the call is for: `principals/{principal}`.
        actor: The agent that acts for them; empty: they act themselves.
        key: The id of the API key the token was got with; empty: none.
        id: `jti`: no two tokens have the same.
    """

    subject: str
    actor: str
    key: str
    audience: str
    issuer: str
    issued: datetime
    expires: datetime
    id: str


def issue(
    key: ec.EllipticCurvePrivateKey,
    kid: str,
    *,
    subject: str,
    audience: str,
    issuer: str,
    now: datetime,
    actor: str = "",
    api_key: str = "",
) -> tuple[str, Claims]:
    """
    Sign a token.

    Args:
        key: Of P-256.
        audience: The SPIFFE id of the service it is for.
        issuer: The trust domain of this Hopper.
    """
    issued = now.replace(microsecond=0)
    claims = Claims(
        subject, actor, api_key, audience, issuer, issued, issued + LIFETIME, secrets.token_hex(16)
    )
    payload: dict[str, Any] = {
        "sub": subject,
        "aud": audience,
        "iss": issuer,
        "iat": int(claims.issued.timestamp()),
        "exp": int(claims.expires.timestamp()),
        "jti": claims.id,
    }
    if actor:
        payload["act"] = {"sub": actor}
    if api_key:
        payload["key"] = api_key
    return jwt.encode(payload, key, algorithm=_ALGORITHM, headers={"kid": kid}), claims


def verify(
    token: str, keys: Mapping[str, TokenKey], *, audiences: Collection[str], issuer: str, now: datetime
) -> Claims:
    """
    Check a token, in everything but whom it is from: that there is such a principal is the directory's to say.

    Args:
        keys: By `kid`; only these count.
        audiences: The SPIFFE ids of the services that are called here.

    Raises:
        CredentialsExpired: It was good once.
        Unauthenticated: Anything else is wrong; which is told in the metadata `problem`, not to be shown to strangers
            in more detail than that.
    """
    claims = _claims(_decode(token, _key_for(token, keys, now)))
    if claims.issuer != issuer:
        raise _refused("issuer")
    if claims.audience not in audiences:
        raise _refused("audience")
    if claims.issued > now + SKEW or claims.expires - claims.issued > MOST_LIFETIME:
        raise _refused("lifetime")
    if claims.expires <= now:
        raise CredentialsExpired("the token has run out", expire_time=claims.expires.isoformat())
    return claims


def looks_like_one(text: str) -> bool:
    """Whether it has the three parts of a JWT."""
    return text.count(".") == 2


def _key_for(token: str, keys: Mapping[str, TokenKey], now: datetime) -> ec.EllipticCurvePublicKey:
    if len(token) > MOST_BYTES:
        raise _refused("size")
    try:
        header = jwt.get_unverified_header(token)
    except jwt.InvalidTokenError as error:
        raise _refused("form") from error
    # The library is given the one algorithm too; looking first makes the reason plain.
    if header.get("alg") != _ALGORITHM:
        raise _refused("algorithm")
    kid = header.get("kid")
    known = keys.get(kid) if isinstance(kid, str) else None
    if known is None or known.expires <= now:
        raise _refused("kid")
    return load_public_key(known.public_key)


def _decode(token: str, key: ec.EllipticCurvePublicKey) -> Mapping[str, Any]:
    # Times and audience are compared here, with the clock that was given.
    options: Options = {
        "verify_exp": False,
        "verify_iat": False,
        "verify_nbf": False,
        "verify_aud": False,
        "require": list(_REQUIRED),
    }
    try:
        payload: Mapping[str, Any] = jwt.decode(token, key, algorithms=[_ALGORITHM], options=options)
    except jwt.InvalidSignatureError as error:
        raise _refused("signature") from error
    except jwt.InvalidTokenError as error:
        raise _refused("claims") from error
    return payload


def _claims(payload: Mapping[str, Any]) -> Claims:
    actor = payload.get("act", {"sub": ""})
    try:
        texts = [payload["sub"], actor["sub"], payload.get("key", ""), payload["aud"], payload["iss"]]
        times = [datetime.fromtimestamp(payload[name], UTC) for name in ("iat", "exp")]
        texts.append(payload["jti"])
    except (TypeError, KeyError, ValueError, OverflowError, OSError) as error:
        raise _refused("claims") from error
    if not all(isinstance(text, str) for text in texts):
        raise _refused("claims")  # a list of audiences too: a token is for one
    subject, acting, key, audience, issuer, token_id = texts
    return Claims(subject, acting, key, audience, issuer, times[0], times[1], token_id)


def _refused(problem: str) -> Unauthenticated:
    return Unauthenticated("the token is not accepted: get another", problem=problem)


@lru_cache(64)
def load_public_key(der: bytes) -> ec.EllipticCurvePublicKey:
    """
    Load a key that verifies tokens.

    Raises:
        ValueError: Not a key of P-256.
    """
    try:
        key = load_der_public_key(der)
    except UnsupportedAlgorithm as error:
        raise ValueError("the token key is of a kind that is not known") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("the token key is not of P-256")
    return key
