"""Snapshots: what is refused, and how."""

import numpy as np
import pytest

from hopper_learning import Model, SnapshotCorrupt, SnapshotOfOtherEncoder, SnapshotTooNew
from hopper_learning.snapshot import FORMAT, Sparse, pack, unpack
from tests.learning.streams import HashEncoder, correct, stream, taught

LESSONS = stream(80)
DATA = taught(LESSONS).snapshot()


def test_state_comes_back_as_it_was() -> None:
    table = np.full((3, 4), 0.5, np.float32)
    table[1, 2] = -2
    state = {
        "a": [1, "ü", {"b": np.arange(3)}],
        "table": Sparse(table, 0.5),
        "empty": np.zeros((0, 2)),
        "no": None,
    }
    back = unpack(pack(state))
    assert back["a"][:2] == [1, "ü"]
    assert back["a"][2]["b"].tolist() == [0, 1, 2]
    assert np.array_equal(back["table"], table)
    assert back["table"].dtype == np.float32
    assert back["empty"].shape == (0, 2)
    assert back["no"] is None


@pytest.mark.parametrize("at", [0, 3, 6, 20, 38, 100, -1])
def test_a_flipped_bit_anywhere_is_noticed(at: int) -> None:
    damaged = bytearray(DATA)
    damaged[at] ^= 1
    with pytest.raises(SnapshotCorrupt, match="fold the log"):
        Model(HashEncoder()).restore(bytes(damaged))


@pytest.mark.parametrize("length", [0, 10, 37, 38, 1000])
def test_a_snapshot_cut_short_is_noticed(length: int) -> None:
    with pytest.raises(SnapshotCorrupt):
        Model(HashEncoder()).restore(DATA[:length])


def test_a_snapshot_of_newer_code_is_refused_as_such() -> None:
    newer = DATA[:4] + (FORMAT + 1).to_bytes(2, "big") + DATA[6:]
    with pytest.raises(SnapshotTooNew, match="upgrade"):
        Model(HashEncoder()).restore(newer)


def test_vectors_of_another_kind_are_refused() -> None:
    with pytest.raises(SnapshotOfOtherEncoder):
        Model().restore(DATA)


def test_a_refused_snapshot_leaves_the_model_as_it_was() -> None:
    student = taught(LESSONS)
    with pytest.raises(SnapshotCorrupt):
        student.restore(DATA[:-1])
    assert correct(student, LESSONS) > 0.9
    assert student.snapshot() == DATA
