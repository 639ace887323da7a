"""
The chain: each record carries the SHA-256 of the one before and its own. Pure.

**The form that is hashed** is the record as JSON without its `hash`: keys sorted, no white space, UTF-8, the time in
UTC with six decimals, `previous_hash` in hexadecimal. A line of an export is the same JSON with `hash` in it, so no
program of ours is needed to check one:

    jq -cjS 'del(.hash)' <<< "$line" | sha256sum          # is its hash
    jq -r .hash <<< "$line"                               # which is previous_hash of the next line

`ChainCheck` does that for all, one after the other. What it can prove and what not is in README.md.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, Self

from hopper_common.audit.model import DIVERGED, Decision, Happened, Record

HASH_BYTES: Final = 32
_ANCHOR: Final = re.compile(r"([1-9][0-9]{0,17}):([0-9a-f]{64})")


class Head(NamedTuple):
    """The last record of a chain, or one that somebody noted: its sequence and hash. `str()` is `SEQUENCE:HASH`."""

    sequence: int
    hash: bytes

    def __str__(self) -> str:
        return f"{self.sequence}:{self.hash.hex()}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """
        Read what `str()` made.

        Raises:
            ValueError: It is not of that form.
        """
        match = _ANCHOR.fullmatch(text.strip().lower())
        if match is None:
            raise ValueError("an anchor is SEQUENCE:HASH, as `hopper audit verify` and the log print it")
        return cls(int(match[1]), bytes.fromhex(match[2]))


START: Final = Head(0, bytes(HASH_BYTES))
"""What the first record follows."""


# Making.


def link(after: Head, happened: Happened) -> Record:
    """The record that follows another."""
    unsealed = Record(after.sequence + 1, happened.time, happened.decision, happened.count, after.hash, b"")
    return replace(unsealed, hash=hash_of(unsealed))


def link_all(after: Head, happened: Iterable[Happened]) -> list[Record]:
    """The records that follow another, in order."""
    records = []
    for each in happened:
        records.append(link(after, each))
        after = head_of(records[-1])
    return records


def head_of(record: Record) -> Head:
    """The record as the end of a chain."""
    return Head(record.sequence, record.hash)


def hash_of(record: Record) -> bytes:
    """What the record's hash has to be."""
    return hashlib.sha256(_json(_fields(record))).digest()


def to_line(record: Record) -> str:
    """A line of an export, without its line end."""
    return _json({**_fields(record), "hash": record.hash.hex()}).decode()


def _fields(record: Record) -> dict[str, Any]:
    time = record.time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    fields = {**record.decision._asdict(), "sequence": record.sequence, "time": time, "count": record.count}
    return {**fields, "previous_hash": record.previous_hash.hex()}


def _json(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


# Reading.


def from_line(line: str) -> Record:
    """
    Read a line of an export.

    Raises:
        ValueError: It is not exactly what `to_line` writes. Two programs that read one line in two ways (a key twice,
            say) would believe different things of it.
    """
    text = line.rstrip("\r\n")
    try:
        record = _record(json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError("it is no audit record") from error
    if to_line(record) != text:
        raise ValueError("it is no audit record in the form that was hashed")
    return record


def _record(fields: dict[str, Any]) -> Record:
    given = dict(fields)
    sequence, time, count = given.pop("sequence"), given.pop("time"), given.pop("count")
    previous_hash, own = given.pop("previous_hash"), given.pop("hash")
    decision = Decision(**{**given, "resources": tuple(given["resources"])})
    return Record(
        int(sequence),
        datetime.fromisoformat(time),
        decision,
        int(count),
        _digest(previous_hash),
        _digest(own),
    )


def _digest(text: str) -> bytes:
    digest = bytes.fromhex(text)
    if len(digest) != HASH_BYTES:
        raise ValueError("a hash has 32 bytes")
    return digest


# Checking.


class Verdict(NamedTuple):
    """
    What came of a check.

    Attributes:
        records: How many were looked at.
        broken_sequence: The first that does not follow; 0 where all do.
        problem: What is wrong with it; empty where nothing is.
        head: The last record that was looked at.
    """

    records: int
    broken_sequence: int
    problem: str
    head: Head

    @property
    def intact(self) -> bool:
        """Whether every record follows from the one before, and every anchor is there."""
        return not self.problem


class ChainCheck:
    """
    Looks at the records of a chain one by one, in their order.

    Args:
        after: What the first record has to follow. None: whatever it says it follows, as in an export that begins in
            the middle; then only what comes after it is checked, and an anchor at it.
        anchors: Records that were noted elsewhere: the chain has to have them.
    """

    def __init__(self, *, after: Head | None = START, anchors: Iterable[Head] = ()) -> None:
        self._after = after
        self._anchors: dict[int, set[bytes]] = {}
        for sequence, digest in anchors:
            self._anchors.setdefault(sequence, set()).add(digest)
        self._records = 0
        self._broken = 0
        self._problem = ""
        self._reach(after)

    @property
    def broken(self) -> bool:
        """Whether something was found already: nothing after it can be trusted, and is not looked at."""
        return bool(self._problem)

    @property
    def head(self) -> Head:
        """The last record that was looked at."""
        return self._after or START

    def add(self, record: Record) -> None:
        """Look at the next record."""
        if self.broken:
            return
        self._records += 1
        if self._after is None:
            self._after = Head(record.sequence - 1, record.previous_hash)
            self._reach(self._after)
        if problem := self._wrong_with(record, self._after):
            self.fail(record.sequence, problem)
        self._after = head_of(record)
        self._reach(self._after)

    def fail(self, sequence: int, problem: str) -> None:
        """Note what is wrong; the first that is noted counts."""
        if not self._problem:
            self._broken, self._problem = sequence, problem

    def result(self) -> Verdict:
        """What came of it, when there are no more."""
        head = self._after or START
        for sequence in sorted(self._anchors):
            what = (
                "the log ends before it: its end was cut off"
                if sequence > head.sequence
                else "it is not here"
            )
            self.fail(sequence, f"record {sequence} was noted, and {what}")
        return Verdict(self._records, self._broken, self._problem, head)

    def _wrong_with(self, record: Record, after: Head) -> str:
        if record.sequence != after.sequence + 1:
            return f"record {after.sequence + 1} should be here, and record {record.sequence} is"
        if record.previous_hash != after.hash:
            return f"it does not follow record {after.sequence}: one of the two was changed"
        if record.hash != hash_of(record):
            return "it was changed: its content does not have its hash"
        if record.decision.method == DIVERGED:
            return f"the process found the log changed while it ran: {record.decision.rule}"
        return ""

    def _reach(self, head: Head | None) -> None:
        if head is not None and self._anchors.pop(head.sequence, {head.hash}) != {head.hash}:
            self.fail(head.sequence, "it has another hash than was noted: it, or one before it, was changed")
