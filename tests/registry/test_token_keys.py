"""The keys that sign tokens: a new one each week, known to all before it signs, and secret."""

import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from hopper_common.auth.directory import Directory
from hopper_common.auth.tokens import Claims, verify
from hopper_common.errors import StorageUnavailable
from hopper_common.startup import StartupError
from hopper_registry.own_feed import OwnFeed
from hopper_registry.store_sql import Registry
from hopper_registry.token_keys import SIGNS_FOR, TOLD_BEFORE, VERIFIES_AFTER, TokenSigner
from hopper_testing.clock import ManualClock
from hopper_testing.database import FaultyDatabase

ISSUER = "x.hopper"
AUDIENCE = "spiffe://x.hopper/svc/router"


class Signing:
    """A signer, and a process that believes it."""

    def __init__(self, db: FaultyDatabase, directory: Path) -> None:
        self.clock = ManualClock()
        self.registry = Registry(db, self.clock)
        self.directory = directory
        self.known = Directory(self.clock.monotonic)
        self.signer = self.another()
        self._feed = OwnFeed(self.registry, self.known)

    def another(self, directory: Path | None = None) -> TokenSigner:
        return TokenSigner(self.registry, self.clock, directory or self.directory, ISSUER)

    async def learn(self) -> None:
        await self._feed.catch_up()

    def sign(self, signer: TokenSigner | None = None) -> str:
        token, _ = (signer or self.signer).sign(subject="principals/ada", audience=AUDIENCE, api_key="k")
        return token

    def verify(self, token: str) -> Claims:
        keys = self.known.token_keys
        return verify(token, keys, audiences=[AUDIENCE], issuer=ISSUER, now=self.clock.now())

    def files(self) -> list[Path]:
        return sorted(self.directory.iterdir())


@pytest.fixture
async def signing(db: FaultyDatabase, tmp_path: Path) -> Signing:
    signing = Signing(db, tmp_path / "token_keys")
    await signing.signer.open()
    await signing.learn()
    return signing


async def test_what_is_signed_is_believed(signing: Signing) -> None:
    claims = signing.verify(signing.sign())
    assert (claims.subject, claims.key, claims.issuer) == ("principals/ada", "k", ISSUER)
    assert claims.expires - claims.issued == timedelta(minutes=5)


async def test_the_next_key_is_known_before_it_signs(signing: Signing) -> None:
    (first,) = signing.known.token_keys
    signing.clock.advance(SIGNS_FOR - TOLD_BEFORE - timedelta(seconds=1))
    await signing.signer.rotate()
    await signing.learn()
    assert set(signing.known.token_keys) == {first}  # too early
    signing.clock.advance(timedelta(seconds=1))
    await signing.signer.rotate()
    await signing.learn()
    assert len(signing.known.token_keys) == 2
    old = signing.sign()
    assert _kid(old) == first
    signing.clock.advance(TOLD_BEFORE)
    new = signing.sign()
    assert _kid(new) != first
    assert signing.verify(new).id != signing.verify(signing.sign()).id


def _kid(token: str) -> str:
    import jwt

    return str(jwt.get_unverified_header(token)["kid"])


async def test_a_restart_goes_on_with_the_same_key(signing: Signing) -> None:
    another = signing.another()
    await another.open()
    assert _kid(signing.sign(another)) == _kid(signing.sign())


async def test_after_a_long_rest_there_is_a_key_at_once(signing: Signing) -> None:
    signing.clock.advance(SIGNS_FOR + VERIFIES_AFTER + timedelta(days=30))
    another = signing.another()
    await another.open()
    await signing.learn()
    signing.verify(signing.sign(another))
    assert len(signing.files()) == 1  # the old one is gone, here and in the table
    assert len(await signing.registry.read(lambda store: store.signing_keys())) == 1


async def test_a_key_whose_file_is_lost_or_damaged_signs_no_more(signing: Signing) -> None:
    (file,) = signing.files()
    file.write_bytes(b"no key")
    another = signing.another()
    await another.open()
    await signing.learn()
    token = signing.sign(another)
    assert _kid(token) != file.stem
    signing.verify(token)


async def test_registries_on_one_database_sign_with_keys_of_their_own(
    signing: Signing, tmp_path: Path
) -> None:
    other = signing.another(tmp_path / "elsewhere")
    await other.open()
    await signing.learn()
    tokens = [signing.sign(), signing.sign(other)]
    assert len({_kid(token) for token in tokens}) == 2
    for token in tokens:
        signing.verify(token)


async def test_the_private_part_is_this_users_alone_and_in_no_database(
    signing: Signing, db: FaultyDatabase, tmp_path: Path
) -> None:
    (file,) = signing.files()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(signing.directory.stat().st_mode) == 0o700
    private = load_pem_private_key(file.read_bytes(), None)
    (stored,) = await signing.registry.read(lambda store: store.signing_keys())
    assert stored.key.public_key == private.public_key().public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )


async def test_a_key_that_others_may_read_stops_the_start(signing: Signing) -> None:
    (file,) = signing.files()
    file.chmod(0o640)
    with pytest.raises(StartupError, match=str(file)):
        await signing.another().open()


async def test_a_rotation_that_cannot_be_stored_is_made_later(signing: Signing, db: FaultyDatabase) -> None:
    """Nothing is signed with what nobody has heard of."""
    before = _kid(signing.sign())
    signing.clock.advance(SIGNS_FOR)
    db.set_next_error(StorageUnavailable(service="registry"))
    with pytest.raises(StorageUnavailable):
        await signing.signer.rotate()
    assert _kid(signing.sign()) == before
    await signing.signer.rotate()
    await signing.learn()
    token = signing.sign()
    assert _kid(token) != before
    signing.verify(token)
