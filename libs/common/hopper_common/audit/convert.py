"""Between records and their messages."""

from hopper.common.v1.audit_service_pb2 import AuditRecord
from hopper_common.audit.model import Decision, Record
from hopper_common.timestamps import from_proto, to_proto


def record_to_proto(record: Record) -> AuditRecord:
    """The message of a record."""
    decision = record.decision
    return AuditRecord(
        sequence=record.sequence,
        time=to_proto(record.time),
        principal=decision.principal,
        acting_for=decision.acting_for,
        credential=decision.credential,
        source=decision.source,
        method=decision.method,
        resources=decision.resources,
        allowed=decision.allowed,
        reason=decision.reason,
        rule=decision.rule,
        count=record.count,
        previous_hash=record.previous_hash,
        hash=record.hash,
    )


def record_from_proto(message: AuditRecord) -> Record:
    """The record of a message."""
    return Record(
        sequence=message.sequence,
        time=from_proto(message.time),
        decision=Decision(
            principal=message.principal,
            acting_for=message.acting_for,
            credential=message.credential,
            source=message.source,
            method=message.method,
            allowed=message.allowed,
            reason=message.reason,
            rule=message.rule,
            resources=tuple(message.resources),
        ),
        count=message.count,
        previous_hash=message.previous_hash,
        hash=message.hash,
    )
