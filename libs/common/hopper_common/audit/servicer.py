"""The gRPC service of the audit log."""

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc.aio

from hopper.common.v1 import audit_service_pb2 as pb
from hopper.common.v1 import audit_service_pb2_grpc as pb_grpc
from hopper_common.audit.chain import HASH_BYTES, ChainCheck, Head
from hopper_common.audit.convert import record_to_proto
from hopper_common.audit.model import Record
from hopper_common.audit.sink import AuditSink
from hopper_common.audit.store import AuditStore, Wanted
from hopper_common.errors import FieldViolation, InvalidArgument, StorageFull, StorageUnavailable
from hopper_common.pagination import PageTokens, page_size
from hopper_common.timestamps import time_field

PAGE = 500

_Context = grpc.aio.ServicerContext[Any, Any]


class AuditServicer(pb_grpc.AuditServiceServicer):
    """Shows what is written; what is not written yet, it has written first."""

    def __init__(self, store: AuditStore, sink: AuditSink) -> None:
        self._store = store
        self._sink = sink
        self._tokens = PageTokens()

    async def ListAuditRecords(
        self, request: pb.ListAuditRecordsRequest, context: _Context
    ) -> pb.ListAuditRecordsResponse:
        limit = page_size(request.page_size)
        before = self._tokens.decode(request.page_token, request).get("before")
        await self._write_what_waits()
        found = await self._store.page(_wanted(request), before_sequence=before, limit=limit + 1)
        records = found[:limit]
        more = len(found) > limit
        return pb.ListAuditRecordsResponse(
            records=[record_to_proto(record) for record in records],
            next_page_token=self._tokens.encode({"before": records[-1].sequence}, request) if more else "",
        )

    async def VerifyAudit(self, request: pb.VerifyAuditRequest, context: _Context) -> pb.VerifyAuditResponse:
        # What this process has written has to be there, whatever the table says is the end.
        check = ChainCheck(anchors=[*_anchor(request), self._sink.head])
        async for records in self._pages(after=0):
            for record in records:
                check.add(record)
            if check.broken:
                break
        verdict = check.result()
        if verdict.intact and await self._sink.has_not_written(verdict.head.sequence):
            check.fail(verdict.head.sequence, "this process has not written it")
            verdict = check.result()
        return pb.VerifyAuditResponse(
            intact=verdict.intact,
            records=verdict.records,
            broken_sequence=verdict.broken_sequence,
            problem=verdict.problem,
            head_sequence=verdict.head.sequence,
            head_hash=verdict.head.hash,
        )

    async def ExportAudit(
        self, request: pb.ExportAuditRequest, context: _Context
    ) -> AsyncIterator[pb.ExportAuditResponse]:
        await self._write_what_waits()
        upto = self._sink.head.sequence
        async for records in self._pages(after=request.after_sequence):
            wanted = [record_to_proto(record) for record in records if record.sequence <= upto]
            if wanted:
                yield pb.ExportAuditResponse(records=wanted)
            if len(wanted) < len(records):
                return

    async def _pages(self, *, after: int) -> AsyncIterator[list[Record]]:
        while records := await self._store.after(after, limit=PAGE):
            yield records
            after = max(record.sequence for record in records)

    async def _write_what_waits(self) -> None:
        with suppress(StorageFull, StorageUnavailable):  # what is written can be shown all the same
            await self._sink.flushed()


def _wanted(request: pb.ListAuditRecordsRequest) -> Wanted:
    return Wanted(
        principal=request.principal,
        method_prefix=request.method_prefix,
        refused_only=request.refused_only,
        after_time=time_field(request, "after_time"),
        before_time=time_field(request, "before_time"),
    )


def _anchor(request: pb.VerifyAuditRequest) -> list[Head]:
    if not request.anchor_sequence and not request.anchor_hash:
        return []
    violations = []
    if request.anchor_sequence < 1:
        violations.append(
            FieldViolation("anchor_sequence", "must be at least 1, where there is an anchor_hash")
        )
    if len(request.anchor_hash) != HASH_BYTES:
        violations.append(FieldViolation("anchor_hash", f"must have {HASH_BYTES} bytes"))
    if violations:
        raise InvalidArgument(violations=violations)
    return [Head(request.anchor_sequence, request.anchor_hash)]
