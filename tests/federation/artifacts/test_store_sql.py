"""What is known of files, on each engine; what results name, and what is kept for how long."""

import os
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy import delete

from hopper.federation.v1 import delegation_pb2 as pb
from hopper_common.database import Database
from hopper_federation.artifacts.blobs import BlobStore
from hopper_federation.artifacts.keeping import UNNAMED_FOR, ArtifactKeeper
from hopper_federation.artifacts.manifests import expect, manifest_of
from hopper_federation.artifacts.model import KEPT_FOR, MOST_FILES, File, Problem
from hopper_federation.artifacts.store_sql import Artifacts, ArtifactStore
from hopper_federation.artifacts.tables import ARTIFACTS
from hopper_federation.delegation.model import Role
from hopper_federation.tables import METADATA, MIGRATIONS
from hopper_testing.clock import ManualClock
from hopper_testing.postgres import postgres_server
from tests.federation.artifacts.stage import (
    CHILD,
    DELEGATION,
    TASK,
    SaidTasks,
    artifact,
    digest,
    handed_over,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["sqlite", "postgresql"])
async def database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Database]:
    sqlite = request.param == "sqlite"
    url = (
        str(tmp_path_factory.mktemp("files") / "federation.db")
        if sqlite
        else postgres_server().create_database()
    )
    db = await Database.open(url, metadata=METADATA, migrations=MIGRATIONS, service="federation")
    yield db
    await db.close()


@pytest_asyncio.fixture(loop_scope="module")
async def files(database: Database, clock: ManualClock) -> Artifacts:
    """No files."""
    await database.write(lambda conn: conn.execute(delete(ARTIFACTS)))
    return Artifacts(database, clock)


def file(clock: ManualClock, name: str = "a.txt", task: str = TASK, size: int = 1, **fields: object) -> File:
    made: dict[str, object] = {"sha256": digest(name.encode()), "media_type": "", "create_time": clock.now()}
    return File(task=task, name=name, size=size, **(made | fields))  # type: ignore[arg-type]


async def save(files: Artifacts, *made: File) -> None:
    def work(store: ArtifactStore) -> None:
        for each in made:
            store.save(each)

    await files.write(work)


async def beside(files: Artifacts, task: str = CHILD) -> dict[str, File]:
    return {each.name: each for each in await files.read(lambda store: store.beside([task]))}


async def expected(files: Artifacts, artifacts: Iterable[pb.Artifact]) -> int:
    result = handed_over(Role.OUT, "bob", artifacts)
    return await files.write(lambda store: expect(store, result))


async def test_what_is_saved_comes_back_and_is_replaced(files: Artifacts, clock: ManualClock) -> None:
    first = file(clock, peer="bob", delegation="d", stored=False, problem=Problem.QUOTA)
    await save(files, first, file(clock, "b.txt"))
    assert await files.read(lambda store: store.file(TASK, "a.txt")) == first
    await save(files, file(clock, size=7))
    assert (await beside(files, TASK))["a.txt"].size == 7
    assert list(await beside(files, TASK)) == ["a.txt", "b.txt"]
    assert await files.read(lambda store: store.file(CHILD, "a.txt")) is None


async def test_what_is_here_is_counted_by_peer_and_in_all(files: Artifacts, clock: ManualClock) -> None:
    assert await files.read(lambda store: store.used()) == 0
    await save(
        files,
        file(clock, "here", size=1),
        file(clock, "bobs", size=20, peer="bob"),
        file(clock, "carols", size=300, peer="carol"),
        file(clock, "coming", size=4000, peer="bob", stored=False),
    )
    assert await files.read(lambda store: (store.used(), store.used("bob"), store.used("dave"))) == (
        321,
        20,
        0,
    )


async def test_what_is_wanted_is_neither_here_nor_refused(files: Artifacts, clock: ManualClock) -> None:
    await save(
        files,
        file(clock, "here"),
        file(clock, "coming", peer="bob", stored=False),
        file(clock, "full", peer="bob", stored=False, problem=Problem.QUOTA),
        file(clock, "wrong", peer="bob", stored=False, problem=Problem.WRONG),
        file(clock, "gone", peer="carol", stored=False, problem=Problem.GONE),
    )
    assert await files.read(lambda store: store.wanted_from()) == ["bob"]
    wanted = await files.read(lambda store: store.wanted("bob"))
    assert [each.name for each in wanted] == ["coming", "full"]
    hashes = [digest(name.encode()) for name in ("here", "coming", "full", "wrong", "gone", "never")]
    named = await files.read(lambda store: store.named(hashes))
    assert named == set(hashes[:3])
    assert await files.read(lambda store: [store.coming(sha256) for sha256 in hashes[:3]]) == [
        False,
        True,
        True,
    ]


# What results name.


async def test_what_a_result_names_is_expected_once(files: Artifacts) -> None:
    named = [artifact("a.txt", b"a"), artifact("b.txt", b"b")]
    assert await expected(files, named) == 2
    assert await expected(files, named) == 0
    found = await beside(files)
    assert {name: each.sha256 for name, each in found.items()} == {
        "a.txt": digest(b"a"),
        "b.txt": digest(b"b"),
    }
    assert all(
        each.wanted and each.peer == "bob" and each.delegation == DELEGATION for each in found.values()
    )


async def test_a_result_without_files_writes_nothing(files: Artifacts) -> None:
    assert await expected(files, []) == 0
    assert await beside(files) == {}


async def test_what_cannot_be_a_file_is_written_down_as_refused(files: Artifacts) -> None:
    lies: Sequence[dict[str, object]] = [
        {"name": "../../.ssh/authorized_keys"},
        {"name": "/etc/passwd"},
        {"name": ""},
        {"name": ".."},
        {"name": "a\x1b[2Jb"},
        {"sha256": b""},
        {"sha256": b"short"},
        {"size": -1},
        {"media_type": "a\nb"},
    ]
    await expected(files, [artifact("fine", b"fine"), *(artifact("bad", b"bad", **said) for said in lies)])
    found = await beside(files)
    refused = [each for name, each in found.items() if name.endswith("refused")]
    assert len(refused) == len(lies) == len(found) - 1
    assert {(each.problem, each.wanted) for each in refused} == {(Problem.MALFORMED, False)}
    assert found["fine"].wanted


async def test_nothing_that_is_there_is_replaced_by_what_a_peer_names(
    files: Artifacts, clock: ManualClock
) -> None:
    await save(files, file(clock, "a.txt", CHILD))
    await expected(files, [artifact("a.txt", b"theirs"), artifact("a.txt", b"theirs too")])
    found = await beside(files)
    assert sorted(found) == ["2-a.txt", "3-a.txt", "a.txt"]
    assert found["a.txt"].peer == ""


async def test_a_result_names_so_many_files_and_no_more(files: Artifacts) -> None:
    named = [artifact(f"{number}", b"x") for number in range(MOST_FILES + 5)]
    assert await expected(files, named) == MOST_FILES
    assert len(await beside(files)) == MOST_FILES


async def test_a_manifest_has_the_files_of_the_whole_chain(files: Artifacts, clock: ManualClock) -> None:
    tasks = SaidTasks()
    await save(
        files,
        file(clock, "both", TASK, 1),
        file(clock, "both", CHILD, 2),
        file(clock, "below", CHILD, 3),
        file(clock, "coming", CHILD, 4, peer="bob", stored=False),
        file(clock, "wrong", CHILD, 5, peer="bob", stored=False, problem=Problem.WRONG),
        file(clock, "other", "instances/global/tasks/o", 6),
    )
    assert [(each.name, each.size) for each in await manifest_of(files, tasks, TASK)] == [
        ("below", 3),
        ("both", 1),
        ("coming", 4),
    ]
    below = await manifest_of(files, tasks, CHILD)
    assert [(each.name, each.size) for each in below] == [("below", 3), ("both", 2), ("coming", 4)]


# For how long.


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def put(blobs: BlobStore, content: bytes, clock: ManualClock) -> bytes:
    incoming = blobs.incoming()
    incoming.write(content)
    incoming.keep(clock.now().timestamp())
    return digest(content)


async def test_files_are_kept_for_a_while_after_their_task_has_ended(
    files: Artifacts, blobs: BlobStore, clock: ManualClock
) -> None:
    tasks = SaidTasks()
    keeper = ArtifactKeeper(files, blobs, tasks, clock)
    kept = put(blobs, b"kept", clock)
    await save(files, file(clock, "kept", TASK, 4, sha256=kept), file(clock, "child", CHILD))
    tasks.over[CHILD] = clock.now()
    clock.advance(KEPT_FOR)
    await keeper.keep()
    assert await beside(files, CHILD)
    clock.advance(timedelta(seconds=1))
    await keeper.keep()
    assert not await beside(files, CHILD)
    assert await beside(files, TASK)  # its task is open
    assert blobs.size(kept) == 4
    tasks.over[TASK] = clock.now()
    clock.advance(KEPT_FOR + timedelta(seconds=1))
    await keeper.keep()
    assert not await beside(files, TASK)
    assert blobs.size(kept) is None


async def test_files_of_a_task_that_nobody_knows_any_more_are_forgotten(
    files: Artifacts, blobs: BlobStore, clock: ManualClock
) -> None:
    await save(files, file(clock, "a", "instances/global/tasks/archived"))
    clock.advance(KEPT_FOR + timedelta(seconds=1))
    await ArtifactKeeper(files, blobs, SaidTasks(), clock).keep()
    assert not await beside(files, "instances/global/tasks/archived")


async def test_many_old_tasks_that_are_open_hide_none_that_is_over(
    files: Artifacts, blobs: BlobStore, clock: ManualClock
) -> None:
    tasks = SaidTasks()
    names = [f"instances/global/tasks/{number:04}" for number in range(250)]
    tasks.chain |= dict.fromkeys(names, ())
    await save(files, *(file(clock, "a", name) for name in names))
    tasks.over[names[-1]] = clock.now()
    clock.advance(KEPT_FOR + timedelta(seconds=1))
    await ArtifactKeeper(files, blobs, tasks, clock).keep()
    assert not await beside(files, names[-1])
    assert await beside(files, names[0])


async def test_bytes_that_no_file_names_are_removed_after_a_while(
    files: Artifacts, blobs: BlobStore, clock: ManualClock
) -> None:
    keeper = ArtifactKeeper(files, blobs, SaidTasks(), clock)
    named, unnamed = put(blobs, b"named", clock), put(blobs, b"unnamed", clock)
    await save(files, file(clock, sha256=named))
    await keeper.keep()
    assert blobs.size(unnamed) == 7
    clock.advance(UNNAMED_FOR + timedelta(seconds=1))
    await keeper.keep()
    assert (blobs.size(named), blobs.size(unnamed)) == (5, None)


async def test_the_beginning_of_what_is_to_come_is_kept(
    files: Artifacts, blobs: BlobStore, clock: ManualClock, tmp_path: Path
) -> None:
    for name in ("coming", "refused"):
        incoming = blobs.resumed(digest(name.encode()))
        incoming.write(b"begun")
        incoming.close()
    long_ago = (clock.now() - timedelta(days=1)).timestamp()
    for part in tmp_path.rglob("*.part"):  # noqa: ASYNC240 - nobody else waits
        os.utime(part, (long_ago, long_ago))
    await save(
        files,
        file(clock, "coming", peer="bob", stored=False),
        file(clock, "refused", peer="bob", stored=False, problem=Problem.WRONG),
    )
    await ArtifactKeeper(files, blobs, SaidTasks(), clock).keep()
    assert [blobs.partial(digest(name)) for name in (b"coming", b"refused")] == [5, 0]
