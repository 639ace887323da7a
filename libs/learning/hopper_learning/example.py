"""A text as the experts see it: rows of the vocabulary with weights, a vector, the plain words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from hopper_learning.arrays import Floats, Indices, scale
from hopper_learning.features import Reading
from hopper_learning.vocabulary import Mark, Vocabulary

_BODY: Final = 0.7


@dataclass(frozen=True, slots=True)
class Example:
    """
    One text against the vocabulary of one moment.

    `idf` weighs every known word, rows first, then marks, to length 1 together; `values` weigh the rows alone,
    the head's to length 1 and the body's to 0.7.
    """

    reading: Reading
    rows: Indices
    idf: Floats
    values: Floats
    marks: Sequence[Mark]
    mark_idf: float
    vector: Floats | None


def look_up(reading: Reading, vector: Floats | None, vocabulary: Vocabulary) -> Example:
    """See *reading* with *vocabulary* as it is."""
    rows, marks = vocabulary.find(reading.head)
    head = len(rows)
    body_rows, body_marks = vocabulary.find(reading.body)
    rows += body_rows
    marks += body_marks
    idf = vocabulary.idf(rows)
    once = vocabulary.idf_of_marks
    length = float(np.sqrt((idf * idf).sum() + len(marks) * once * once)) or 1.0
    values = idf.copy()
    scale(values[:head], 1.0)
    scale(values[head:], _BODY)
    return Example(
        reading,
        np.array(rows, np.intp),
        idf / np.float32(length),
        values,
        marks,
        once / length,
        vector,
    )
