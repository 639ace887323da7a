"""The audit log as it is asked for."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import grpc.aio
import pytest

from hopper.common.v1 import audit_service_pb2 as pb
from hopper.common.v1.audit_service_pb2_grpc import AuditServiceStub
from hopper_common.audit.chain import ChainCheck, Head
from hopper_common.audit.convert import record_from_proto
from hopper_common.audit.model import Handling, Happened
from hopper_common.audit.store import AuditStore
from hopper_common.audit.tables import RECORDS
from hopper_common.errors import StorageFull
from hopper_common.rpc.address import listen_tcp
from hopper_common.rpc.channel import open_channel
from hopper_common.rpc.errors import from_rpc_error
from hopper_common.rpc.server import build_server
from hopper_common.timestamps import to_proto
from tests.common.audit.harness import DECISION, HOT, REFUSED, Log, open_log, remove, row, tamper


@dataclass(frozen=True, slots=True)
class Served:
    """A log, and a client of its service."""

    log: Log
    stub: Any

    async def page(self, **request: Any) -> list[pb.AuditRecord]:
        """The first page."""
        return list((await self.stub.ListAuditRecords(pb.ListAuditRecordsRequest(**request))).records)

    async def verify(self, anchor: Head | None = None) -> pb.VerifyAuditResponse:
        """What it says of itself."""
        request = pb.VerifyAuditRequest()
        if anchor is not None:
            request.anchor_sequence, request.anchor_hash = anchor.sequence, anchor.hash
        found: pb.VerifyAuditResponse = await self.stub.VerifyAudit(request)
        return found

    async def export(self, after: int = 0) -> list[pb.AuditRecord]:
        """All that follows."""
        stream = self.stub.ExportAudit(pb.ExportAuditRequest(after_sequence=after))
        return [record async for part in stream for record in part.records]


@asynccontextmanager
async def serving(url: str) -> AsyncIterator[Served]:
    async with open_log(url) as log:
        server = build_server([log.audit.registered])
        address = listen_tcp(server, "127.0.0.1:0")
        await server.start()
        try:
            async with open_channel(address) as channel:
                yield Served(log, AuditServiceStub(channel))
        finally:
            await server.stop(None)


@asynccontextmanager
async def serving_ten(url: str) -> AsyncIterator[Served]:
    """With ten records: one of the process, nine of calls a minute apart."""
    async with serving(url) as made:
        for n in range(3):
            for decision in (DECISION, REFUSED, HOT._replace(principal=f"principals/p{n}")):
                made.log.clock.advance(timedelta(minutes=1))
                await made.log.put(decision, Handling.AWAITED)
        yield made


@pytest.fixture
async def served(file_url: str) -> AsyncIterator[Served]:
    async with serving_ten(file_url) as made:
        yield made


@pytest.fixture
async def served_by_each(url: str) -> AsyncIterator[Served]:
    """On each engine in turn."""
    async with serving_ten(url) as made:
        yield made


async def refused(call: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


# Listing.


async def test_the_newest_comes_first(served_by_each: Served) -> None:
    records = await served_by_each.page()
    assert [record.sequence for record in records] == list(range(10, 0, -1))
    newest = record_from_proto(records[0])
    assert newest.decision == HOT._replace(principal="principals/p2")
    assert newest == (await served_by_each.log.all_records())[-1]


async def test_records_are_found_by_who_what_whether_and_when(served_by_each: Served) -> None:
    begin = (await served_by_each.log.all_records())[0].time
    wanted: list[tuple[dict[str, Any], list[int]]] = [
        ({"principal": "principals/p1"}, [7]),
        ({"principal": "principals/p"}, []),
        ({"refused_only": True}, [9, 6, 3]),
        ({"method_prefix": "/hopper.router.v1.WorkService/"}, [10, 7, 4]),
        ({"method_prefix": "%WorkService"}, []),
        ({"after_time": to_proto(begin + timedelta(minutes=8))}, [10, 9]),
        ({"before_time": to_proto(begin + timedelta(minutes=2))}, [2, 1]),
        ({"refused_only": True, "after_time": to_proto(begin + timedelta(minutes=3))}, [9, 6]),
    ]
    for request, sequences in wanted:
        assert [record.sequence for record in await served_by_each.page(**request)] == sequences, request


async def test_pages_are_whole_while_more_is_written(served: Served) -> None:
    request = pb.ListAuditRecordsRequest(page_size=4)
    seen: list[int] = []
    while True:
        page = await served.stub.ListAuditRecords(request)
        seen += [record.sequence for record in page.records]
        await served.log.put(DECISION, Handling.AWAITED)
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert seen == list(range(10, 0, -1))


async def test_a_token_fits_its_request_only(served: Served) -> None:
    page = await served.stub.ListAuditRecords(pb.ListAuditRecordsRequest(page_size=4))
    for token, principal in ((page.next_page_token, "owner"), ("bad", "")):
        request = pb.ListAuditRecordsRequest(page_token=token, principal=principal)
        assert (await refused(served.stub.ListAuditRecords(request))).reason == "PAGE_TOKEN_INVALID"


async def test_what_waits_is_written_first(served: Served) -> None:
    """Who asks what has just happened should see it."""
    served.log.sink.record(DECISION._replace(principal="owner"), Handling.KEPT)
    served.log.sink.record(HOT._replace(principal="owner"), Handling.COUNTED)
    assert len(await served.page(principal="owner")) == 2


async def test_what_is_written_is_shown_while_nothing_can_be(served: Served) -> None:
    served.log.sink.record(DECISION, Handling.KEPT)
    served.log.database.set_next_error(StorageFull(service="audit"))
    assert len(await served.page()) == 10


# Verifying.


async def test_an_untouched_log_is_intact(served: Served) -> None:
    found = await served.verify()
    head = served.log.sink.head
    assert found == pb.VerifyAuditResponse(
        intact=True, records=10, head_sequence=head.sequence, head_hash=head.hash
    )
    assert (await served.verify(Head(10, head.hash))).intact


CHANGES: dict[str, Any] = {
    "time": 1,
    "principal": "owner",
    "acting_for": "principals/bob",
    "credential": "none",
    "source": "unix",
    "method": "/hopper.router.v1.TaskService/SubmitTask",
    "resources": "instances/other",
    "allowed": True,
    "reason": "",
    "rule": "the owner may",
    "count": 2,
    "previous_hash": bytes(32),
    "hash": bytes(32),
}


def test_every_column_is_changed_here() -> None:
    assert {column.name for column in RECORDS.columns} == CHANGES.keys() | {"chain", "sequence"}


async def test_a_change_of_any_column_is_found(served_by_each: Served) -> None:
    kept = await served_by_each.log.database.read(lambda conn: row(conn, 6))
    for column, value in CHANGES.items():
        assert kept[column] != value
        await served_by_each.log.database.write(tamper(RECORDS.c.sequence == 6, **{column: value}))
        found = await served_by_each.verify()
        assert (found.intact, found.broken_sequence) == (False, 6), column
        assert found.problem
        await served_by_each.log.database.write(tamper(RECORDS.c.sequence == 6, **{column: kept[column]}))
    assert (await served_by_each.verify()).intact


async def test_a_deleted_record_is_found(served: Served) -> None:
    await served.log.database.write(remove(RECORDS.c.sequence == 6))
    found = await served.verify()
    assert (found.intact, found.broken_sequence) == (False, 7)
    assert "record 6 should be here" in found.problem


async def test_a_record_moved_to_another_chain_is_missing(served_by_each: Served) -> None:
    await served_by_each.log.database.write(tamper(RECORDS.c.sequence == 6, chain="other"))
    assert (await served_by_each.verify()).broken_sequence == 7


async def test_records_that_changed_places_are_found(served: Served) -> None:
    for before, after in ((6, 99), (7, 6), (99, 7)):
        await served.log.database.write(tamper(RECORDS.c.sequence == before, sequence=after))
    assert (await served.verify()).broken_sequence == 6


async def test_a_record_put_in_at_the_end_is_found(served: Served) -> None:
    """Even one that follows: this process knows what it wrote."""
    store = AuditStore(served.log.database, served.log.sink.chain)
    await store.append([Happened(served.log.clock.now(), DECISION)], after=await store.head())
    found = await served.verify()
    assert (found.intact, found.broken_sequence) == (False, 11)
    assert "this process has not written it" in found.problem


async def test_a_cut_off_end_is_found_without_an_anchor_while_the_process_runs(served: Served) -> None:
    await served.log.database.write(remove(RECORDS.c.sequence > 7))
    found = await served.verify()
    assert (found.intact, found.broken_sequence, found.head_sequence) == (False, 10, 7)
    assert "its end was cut off" in found.problem


async def test_and_with_one_after_it_has_stopped(file_url: str) -> None:
    async with serving(file_url) as served:
        for _ in range(3):
            await served.log.put(DECISION, Handling.AWAITED)
        noted = served.log.sink.head
    async with open_log(file_url, keep=False) as log:
        await log.database.write(remove(RECORDS.c.sequence > 2))
        await log.sink.close()
    async with serving(file_url) as served:
        found = await served.verify(noted)
        assert not found.intact


@pytest.mark.parametrize(
    ("sequence", "digest", "fields"),
    [
        (1, b"", ["anchor_hash"]),
        (1, bytes(31), ["anchor_hash"]),
        (0, bytes(32), ["anchor_sequence"]),
        (-1, b"x", ["anchor_sequence", "anchor_hash"]),
    ],
)
async def test_half_an_anchor_is_refused(
    file_url: str, sequence: int, digest: bytes, fields: list[str]
) -> None:
    async with serving(file_url) as served:
        request = pb.VerifyAuditRequest(anchor_sequence=sequence, anchor_hash=digest)
        error = await refused(served.stub.VerifyAudit(request))
        assert [violation.field for violation in error.violations] == fields


# Exporting.


async def test_an_export_can_be_checked_elsewhere(served_by_each: Served) -> None:
    exported = await served_by_each.export()
    check = ChainCheck(anchors=[served_by_each.log.sink.head])
    for record in exported:
        check.add(record_from_proto(record))
    assert check.result().intact
    assert [record.sequence for record in exported] == list(range(1, 11))
    assert [record.sequence for record in await served_by_each.export(after=8)] == [9, 10]
    assert await served_by_each.export(after=10) == []


async def test_a_long_log_comes_in_parts(file_url: str) -> None:
    async with serving(file_url) as served:
        for n in range(1200):
            served.log.sink.record(DECISION._replace(resources=(f"projects/p{n}",)), Handling.KEPT)
        assert len(await served.export()) == 1201
        assert (await served.verify()).records == 1201
