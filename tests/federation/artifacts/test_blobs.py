"""Bytes by their hash: whole or not there, private, without links, and gone on with after anything."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

from hopper_common.errors import StorageFull, StorageUnavailable
from hopper_common.startup import DirectoryShared
from hopper_federation.artifacts.blobs import PIECE, BlobStore, RealDisk
from hopper_federation.artifacts.errors import BlobRefused
from hopper_testing.disks import may_mount, small_disk

NOW = 1_800_000_000.0


def digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def file_of(root: Path, content: bytes) -> Path:
    name = digest(content).hex()
    return root / name[:2] / name[2:]


def keep(store: BlobStore, content: bytes, now: float = NOW) -> bytes:
    incoming = store.incoming()
    incoming.write(content)
    incoming.keep(now)
    return digest(content)


def content_of(store: BlobStore, sha256: bytes) -> bytes:
    reader = store.open(sha256)
    assert reader is not None
    found = bytearray()
    while piece := reader.read(len(found)):
        found += piece
    reader.close()
    return bytes(found)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture
def store(root: Path) -> BlobStore:
    return BlobStore(root)


@pytest.mark.parametrize("content", [b"", b"a", b"b" * (2 * PIECE + 3)])
def test_what_is_kept_comes_back(store: BlobStore, root: Path, content: bytes) -> None:
    sha256 = keep(store, content)
    assert store.size(sha256) == len(content)
    assert content_of(store, sha256) == content
    assert file_of(root, content).read_bytes() == content
    assert list((root / "incoming").iterdir()) == []


def test_it_is_for_this_user_alone(store: BlobStore, root: Path) -> None:
    keep(store, b"secret")
    found = [root, *root.rglob("*")]
    assert len(found) == 4
    for path in found:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_the_same_bytes_are_there_once(store: BlobStore, root: Path) -> None:
    assert keep(store, b"a") == keep(store, b"a")
    assert [path for path in root.rglob("*") if path.is_file()] == [file_of(root, b"a")]


def test_what_is_not_here_is_not(store: BlobStore) -> None:
    absent = digest(b"never")
    assert store.size(absent) is None
    assert store.open(absent) is None
    assert store.partial(absent) == 0
    assert not store.touch(absent, 5, NOW)


def test_what_was_thrown_away_is_gone(store: BlobStore, root: Path) -> None:
    incoming = store.incoming()
    incoming.write(b"half")
    incoming.discard()
    incoming.discard()
    assert [path for path in root.rglob("*") if path.is_file()] == []


def test_what_came_in_part_is_gone_on_with_by_another_process(store: BlobStore, root: Path) -> None:
    content = os.urandom(2 * PIECE)
    sha256 = digest(content)
    incoming = store.resumed(sha256)
    incoming.write(content[: PIECE + 7])
    incoming.close()
    assert (store.partial(sha256), store.size(sha256)) == (PIECE + 7, None)
    after = BlobStore(root)
    incoming = after.resumed(sha256)
    assert incoming.size == PIECE + 7
    incoming.write(content[incoming.size :])
    assert incoming.digest == sha256
    incoming.keep(NOW)
    assert content_of(after, sha256) == content
    assert after.partial(sha256) == 0


def test_what_was_being_put_is_forgotten_at_the_next_start(store: BlobStore, root: Path) -> None:
    incoming = store.incoming()
    incoming.write(b"half")
    incoming.close()
    assert len(list((root / "incoming").iterdir())) == 1
    BlobStore(root)
    assert list((root / "incoming").iterdir()) == []


def test_nothing_is_written_to_what_was_closed(store: BlobStore) -> None:
    incoming = store.incoming()
    incoming.close()
    with pytest.raises(StorageUnavailable):
        incoming.write(b"late")
    reader_of = keep(store, b"x")
    reader = store.open(reader_of)
    assert reader is not None
    reader.close()
    reader.close()
    assert reader.read(0) == b""


# Links.


def test_a_link_in_place_of_a_blob_is_refused_and_what_it_leads_to_stays(
    store: BlobStore, root: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    sha256 = keep(store, b"a")
    file_of(root, b"a").unlink()
    file_of(root, b"a").symlink_to(secret)
    for use in (store.open, store.size):
        with pytest.raises(BlobRefused, match="remove it"):
            use(sha256)
    with pytest.raises(BlobRefused):
        store.touch(sha256, 1, NOW)
    keep(store, b"a")  # takes the link's place
    assert content_of(store, sha256) == b"a"
    assert secret.read_bytes() == b"secret"


def test_a_link_in_place_of_a_part_or_a_directory_is_refused(
    store: BlobStore, root: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    sha256 = digest(b"a")
    part = file_of(root, b"a").with_name(file_of(root, b"a").name + ".part")
    part.parent.mkdir(mode=0o700)
    part.symlink_to(secret)
    with pytest.raises(BlobRefused):
        store.resumed(sha256)
    part.unlink()
    part.parent.rmdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    part.parent.symlink_to(elsewhere)
    for use in (store.resumed, store.size, store.open):
        with pytest.raises(BlobRefused):
            use(sha256)
    with pytest.raises(BlobRefused):
        keep(store, b"a")
    assert list(elsewhere.iterdir()) == []
    assert secret.read_bytes() == b"secret"


def test_a_store_that_is_a_link_or_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(BlobRefused):
        BlobStore(tmp_path / "link")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(DirectoryShared):
        BlobStore(tmp_path / "open")


def test_a_directory_in_place_of_a_blob_is_refused(store: BlobStore, root: Path) -> None:
    file_of(root, b"a").mkdir(parents=True)
    with pytest.raises(BlobRefused):
        store.open(digest(b"a"))


# A full disk.


class FullDisk(RealDisk):
    """Has no room, or cannot be synced, when told so."""

    def __init__(self) -> None:
        self.full = False
        self.broken = False

    def write(self, descriptor: int, data: bytes) -> None:
        if self.full:
            super().write(descriptor, data[: len(data) // 2])  # as much as there is room for
            raise OSError(errno.ENOSPC, "no space left on device")
        super().write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        if self.broken:
            raise OSError(errno.EIO, "input/output error")
        super().sync(descriptor)


def test_a_full_disk_is_told_and_gone_on_from_when_there_is_room(root: Path) -> None:
    disk = FullDisk()
    store = BlobStore(root, disk)
    content = os.urandom(100_000)
    incoming = store.resumed(digest(content))
    incoming.write(content[:50_000])
    disk.full = True
    with pytest.raises(StorageFull):
        incoming.write(content[50_000:])
    incoming.close()
    disk.full = False
    again = store.resumed(digest(content))
    assert again.size == 75_000  # what was written is what should be there
    again.write(content[75_000:])
    again.keep(NOW)
    assert content_of(store, digest(content)) == content


def test_what_is_not_durable_is_not_there(root: Path) -> None:
    disk = FullDisk()
    store = BlobStore(root, disk)
    disk.broken = True
    incoming = store.incoming()
    incoming.write(b"a")
    with pytest.raises(StorageUnavailable):
        incoming.keep(NOW)
    assert store.size(digest(b"a")) is None


@pytest.mark.skipif(not may_mount(), reason="this user may not mount")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    with small_disk(tmp_path, megabytes=2):
        store = BlobStore(tmp_path / "blobs")
        first = keep(store, b"a" * 100_000)
        incoming = store.incoming()
        with pytest.raises(StorageFull):
            incoming.write(bytes(3 * PIECE))
        incoming.discard()
        assert content_of(store, first) == b"a" * 100_000
        second = keep(store, b"b" * 100_000)
        assert content_of(store, second) == b"b" * 100_000


# What nobody names.


def test_only_what_is_old_is_found_and_removed(store: BlobStore, root: Path) -> None:
    old, new = keep(store, b"old"), keep(store, b"new", NOW + 10)
    (root / "ab").mkdir(exist_ok=True)
    (root / "ab" / "notes.txt").write_text("not ours")
    assert store.old(NOW + 5) == {old}
    assert store.remove(old, NOW + 5)
    assert not store.remove(old, NOW + 5)
    assert not store.remove(new, NOW + 5)
    assert (store.size(old), store.size(new)) == (None, 3)


def test_what_is_used_again_is_no_longer_old(store: BlobStore) -> None:
    old = keep(store, b"old")
    assert store.touch(old, 3, NOW + 10)
    assert store.old(NOW + 5) == set()
    assert not store.remove(old, NOW + 5)


def test_parts_are_removed_too(store: BlobStore, root: Path) -> None:
    sha256 = digest(b"whole")
    incoming = store.resumed(sha256)
    incoming.write(b"wh")
    incoming.close()
    (part,) = root.rglob("*.part")
    os.utime(part, (NOW, NOW))
    assert store.old(NOW + 1) == {sha256}
    assert store.remove(sha256, NOW + 1)
    assert not part.exists()


def test_what_has_another_size_does_not_count_as_here(store: BlobStore, root: Path) -> None:
    sha256 = keep(store, b"whole")
    file_of(root, b"whole").write_bytes(b"who")
    assert not store.touch(sha256, 5, NOW)
    keep(store, b"whole")
    assert store.touch(sha256, 5, NOW)


def test_links_are_not_collected(store: BlobStore, root: Path, tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"x")
    place = file_of(root, b"a")
    place.parent.mkdir(mode=0o700)
    place.symlink_to(tmp_path / "target")
    (root / "ff").symlink_to(tmp_path)
    assert store.old(4e9) == set()
