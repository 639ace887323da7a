"""
The keys that sign tokens: ES256, each for a week, the next one known everywhere before it signs.

    sign_time ──────────── a week: signs ──────────── next sign_time ── an hour: still verifies ── expire_time
                                      next one made and told ─┘ (ten minutes before)

The public part is a row, which every process hears of. The private part is a file of the process that made it, readable
by its user alone: it is in no database, so in no backup or replica of one. Registries that share a database sign with a
key each. A key whose file is lost signs no more, and another one is made.
"""

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Final

import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from hopper_common.auth import tokens
from hopper_common.auth.model import TokenKey
from hopper_common.clock import Clock
from hopper_common.errors import Overloaded, StorageFull, StorageUnavailable
from hopper_common.identity.files import make_directory, read_private, write_private
from hopper_registry.access_store import SigningKey
from hopper_registry.store_sql import Registry

log = structlog.get_logger(__name__)

SIGNS_FOR: Final = timedelta(days=7)
TOLD_BEFORE: Final = timedelta(minutes=10)
VERIFIES_AFTER: Final = timedelta(hours=1)
"""Longer than any token lives."""
LOOK_EVERY: Final = 60.0
"""Seconds."""

_SUFFIX: Final = ".pem"


@dataclass(frozen=True, slots=True)
class _Pair:
    """A key of ours. Shown without its private part."""

    public: SigningKey
    private: ec.EllipticCurvePrivateKey

    def __repr__(self) -> str:
        return f"_Pair({self.public.key.kid!r})"


class TokenSigner:
    """
    Signs tokens in the name of this Hopper.

    Args:
        directory: For the private parts; made if missing.
        issuer: The trust domain of this Hopper.
    """

    def __init__(self, registry: Registry, clock: Clock, directory: Path, issuer: str) -> None:
        self._registry = registry
        self._clock = clock
        self._directory = directory
        self._issuer = issuer
        self._pairs: list[_Pair] = []

    async def open(self) -> None:
        """
        Read the keys of earlier runs, and make one if none of them signs now.

        Raises:
            StartupError: Others may read the directory or a key in it.
        """
        make_directory(self._directory)
        await self.rotate()

    async def rotate(self) -> None:
        """Make the next key when it is time, and drop those that have run out. Cheap when there is nothing to do."""
        now = self._clock.now()
        if not self._pairs or now >= self._next_time() - TOLD_BEFORE:
            self._pairs = self._read(await self._registry.read(lambda store: store.signing_keys()))
            if not self._pairs or now >= self._next_time() - TOLD_BEFORE:
                await self._make(max(now, self._next_time()) if self._pairs else now)
            await self._registry.write(lambda store: store.forget_signing_keys())
            self._forget_files()

    async def run(self) -> None:
        """`rotate` each minute, for ever. What the storage refuses is done by a later round."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            try:
                await self.rotate()
            except (StorageFull, StorageUnavailable, Overloaded) as error:
                log.warning("a key to sign tokens is made later", reason=error.reason)

    def sign(
        self, *, subject: str, audience: str, actor: str = "", api_key: str = ""
    ) -> tuple[str, datetime]:
        """
        A token, and when it runs out; see `hopper_common.auth.tokens.issue`.

        `open` has been called, and `rotate` now and then.
        """
        now = self._clock.now()
        # A clock that was set back finds none: then the oldest is nearest.
        pair = ([pair for pair in self._pairs if pair.public.sign_time <= now] or self._pairs[:1])[-1]
        token, claims = tokens.issue(
            pair.private,
            pair.public.key.kid,
            subject=subject,
            audience=audience,
            issuer=self._issuer,
            now=now,
            actor=actor,
            api_key=api_key,
        )
        return token, claims.expires

    def _next_time(self) -> datetime:
        return self._pairs[-1].public.sign_time + SIGNS_FOR

    async def _make(self, sign_time: datetime) -> None:
        private = ec.generate_private_key(ec.SECP256R1())
        der = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        key = TokenKey(sha256(der).hexdigest()[:32], der, sign_time + SIGNS_FOR + VERIFIES_AFTER)
        public = SigningKey(key, sign_time)
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        # The file first: a row without one would tell everybody of a key that never signs.
        write_private(self._directory / f"{key.kid}{_SUFFIX}", pem)
        await self._registry.write(lambda store: store.add_signing_key(public))
        self._pairs.append(_Pair(public, private))
        log.info("a key to sign tokens was made", kid=key.kid, signs_from=sign_time.isoformat())

    def _read(self, keys: list[SigningKey]) -> list[_Pair]:
        """Those whose private part is here."""
        pairs = []
        for public in keys:
            path = self._directory / f"{public.key.kid}{_SUFFIX}"
            if not path.exists():
                continue  # of another registry, or lost
            try:
                private = load_pem_private_key(read_private(path), None)
            except ValueError:
                log.warning("a key to sign tokens is damaged, going without it", path=str(path))
                continue
            if isinstance(private, ec.EllipticCurvePrivateKey):
                pairs.append(_Pair(public, private))
        return pairs

    def _forget_files(self) -> None:
        kept = {f"{pair.public.key.kid}{_SUFFIX}" for pair in self._pairs}
        for path in self._directory.iterdir():
            if path.name not in kept:
                path.unlink()
