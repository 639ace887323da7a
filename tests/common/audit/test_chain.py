"""The chain: whatever is changed, left out, put in or moved, it shows."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from hopper_common.audit.chain import (
    START,
    ChainCheck,
    Head,
    Verdict,
    from_line,
    hash_of,
    head_of,
    link_all,
    to_line,
)
from hopper_common.audit.model import Decision, Happened, Record

BEGIN = datetime(2026, 1, 1, 12, 0, 0, 250, tzinfo=UTC)
DECISION = Decision(
    principal="principals/robot",
    acting_for="principals/ann",
    credential="key:7k2m9q",
    source="192.168.1.7",
    method="/hopper.router.v1.WorkService/ClaimTasks",
    allowed=True,
    reason="",
    rule="agent on instances/moodle",
    resources=("instances/moodle", "projects/web"),
)


def records(count: int = 6) -> list[Record]:
    return link_all(
        START, [Happened(BEGIN + timedelta(seconds=n), DECISION, count=n + 1) for n in range(count)]
    )


def check(chain: list[Record], *anchors: Head, after: Head | None = START) -> Verdict:
    looking = ChainCheck(after=after, anchors=anchors)
    for record in chain:
        looking.add(record)
    return looking.result()


def test_a_chain_that_nobody_touched_is_intact() -> None:
    verdict = check(records(), head_of(records()[2]), head_of(records()[5]))
    assert verdict == Verdict(6, 0, "", head_of(records()[5]))
    assert verdict.intact


def test_nothing_is_intact_too_unless_something_was_noted() -> None:
    assert check([]).intact
    assert "its end was cut off" in check([], Head(3, bytes(32))).problem


CHANGES: dict[str, Callable[[Record], Record]] = {
    "time": lambda record: replace(record, time=record.time + timedelta(microseconds=1)),
    "count": lambda record: replace(record, count=record.count - 1),
    "previous_hash": lambda record: replace(record, previous_hash=bytes(32)),
    "hash": lambda record: replace(record, hash=bytes(32)),
    **{
        field: lambda record, field=field: replace(  # type: ignore[misc]
            record, decision=record.decision._replace(**{field: getattr(DECISION, field) + "x"})
        )
        for field in ("principal", "acting_for", "credential", "source", "method", "reason", "rule")
    },
    "allowed": lambda record: replace(record, decision=record.decision._replace(allowed=False)),
    "resources": lambda record: replace(
        record, decision=record.decision._replace(resources=("instances/moodle projects/web",))
    ),
    "order of resources": lambda record: replace(
        record, decision=record.decision._replace(resources=DECISION.resources[::-1])
    ),
}


def test_every_field_can_be_changed_here() -> None:
    kept = {*Record.__dataclass_fields__, *Decision._fields} - {"decision", "sequence"}
    assert kept <= CHANGES.keys()


@pytest.mark.parametrize("field", CHANGES)
def test_a_changed_field_is_found_where_it_is(field: str) -> None:
    chain = records()
    chain[3] = CHANGES[field](chain[3])
    verdict = check(chain)
    assert not verdict.intact
    assert verdict.broken_sequence == 4


@pytest.mark.parametrize("field", sorted(CHANGES.keys() - {"hash", "previous_hash"}))
def test_one_that_was_given_a_fresh_hash_is_found_at_the_next(field: str) -> None:
    chain = records()
    changed = CHANGES[field](chain[3])
    chain[3] = replace(changed, hash=hash_of(changed))
    verdict = check(chain)
    assert verdict.broken_sequence == 5
    assert "does not follow record 4" in verdict.problem


def test_a_chain_made_anew_from_there_on_is_found_by_what_was_noted() -> None:
    """All that a chain can: whoever may write everything can write another one."""
    chain = records()
    forged = [*chain[:3], *link_all(head_of(chain[2]), [Happened(BEGIN, DECISION)] * 3)]
    assert check(forged).intact
    verdict = check(forged, head_of(chain[4]))
    assert verdict.broken_sequence == 5
    assert "another hash than was noted" in verdict.problem


@pytest.mark.parametrize("missing", range(5))
def test_a_missing_record_is_found(missing: int) -> None:
    chain = records()
    del chain[missing]
    verdict = check(chain)
    assert verdict.broken_sequence == missing + 2
    assert f"record {missing + 1} should be here" in verdict.problem


def test_a_cut_off_end_is_found_by_what_was_noted() -> None:
    chain = records()
    assert check(chain[:4]).intact
    verdict = check(chain[:4], head_of(chain[5]))
    assert verdict.broken_sequence == 6
    assert "its end was cut off" in verdict.problem
    assert verdict.head == head_of(chain[3])


def test_a_record_put_in_is_found() -> None:
    chain = records()
    (extra,) = link_all(head_of(chain[2]), [Happened(BEGIN, DECISION, 99)])
    assert check([*chain[:3], extra, *chain[3:]]).broken_sequence == 4
    moved = [replace(record, sequence=record.sequence + 1) for record in chain[3:]]
    assert check([*chain[:3], extra, *moved]).broken_sequence == 5


def test_another_order_is_found() -> None:
    chain = records()
    chain[2], chain[3] = chain[3], chain[2]
    assert check(chain).broken_sequence == 4
    assert check([records()[0], *records()]).broken_sequence == 1


def test_what_begins_in_the_middle_is_checked_from_there() -> None:
    chain = records()
    assert check(chain[3:], after=None).intact
    assert check(chain[3:], head_of(chain[2]), after=None).intact
    assert not check(chain[3:], Head(3, bytes(32)), after=None).intact
    assert "it is not here" in check(chain[3:], head_of(chain[1]), after=None).problem
    assert check(chain[3:]).broken_sequence == 4


def test_the_first_thing_that_is_wrong_counts() -> None:
    chain = records()
    del chain[4]
    del chain[1]
    verdict = check(chain, Head(5, bytes(32)))
    assert (verdict.broken_sequence, verdict.records) == (3, 2)


def test_a_line_can_be_checked_by_anybody() -> None:
    """Without a line of ours: as the module says it can be done with jq and sha256sum."""
    previous = bytes(32).hex()
    for record in records():
        line = json.loads(to_line(record))
        digest = line.pop("hash")
        text = json.dumps(line, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert hashlib.sha256(text.encode()).hexdigest() == digest
        assert line["previous_hash"] == previous
        previous = digest


def test_the_form_never_changes() -> None:
    """Another one would make every log that there is a forged one."""
    first = records()[0]
    assert to_line(first) == (
        '{"acting_for":"principals/ann","allowed":true,"count":1,"credential":"key:7k2m9q",'
        '"hash":"edd8e044bb147c63e960d5a24cf9bf7d9dea86e196dc12df5060f9b0e55d8c80",'
        '"method":"/hopper.router.v1.WorkService/ClaimTasks",'
        f'"previous_hash":"{"0" * 64}","principal":"principals/robot","reason":"",'
        '"resources":["instances/moodle","projects/web"],"rule":"agent on instances/moodle","sequence":1,'
        '"source":"192.168.1.7","time":"2026-01-01T12:00:00.000250Z"}'
    )


def test_lines_are_read_as_they_were_written() -> None:
    assert [from_line(to_line(record) + "\n") for record in records()] == records()


def changed_line(**fields: Any) -> str:
    return json.dumps({**json.loads(to_line(records()[0])), **fields}, sort_keys=True, separators=(",", ":"))


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{}",
        "[1]",
        "{" * 100_000,
        to_line(records()[0])[:-1],
        " " + to_line(records()[0]),
        to_line(records()[0])[:-1] + ',"time":"2026-01-01T12:00:00.000250Z"}',
        to_line(records()[0]).replace('"count":1', '"count":"1"'),
        to_line(records()[0]).replace('"count":1', '"count":1.0'),
        to_line(records()[0]).replace('"count":1', '"count":9,"count":1'),
        changed_line(more="x"),
        changed_line(hash="00"),
        changed_line(time="yesterday"),
        changed_line(resources=7),
    ],
)
def test_what_is_no_line_of_an_export_is_refused(line: str) -> None:
    """Nor what two programs could read in two ways."""
    with pytest.raises(ValueError, match="it is no audit record"):
        from_line(line)


def test_an_anchor_is_read_as_it_is_printed() -> None:
    head = head_of(records()[-1])
    assert Head.parse(f" {head}\n") == head


@pytest.mark.parametrize(
    "text", ["", "7", f"0:{'0' * 64}", f"7:{'0' * 63}", f"-7:{'0' * 64}", f"7:{'g' * 64}"]
)
def test_what_is_no_anchor_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="SEQUENCE:HASH"):
        Head.parse(text)
