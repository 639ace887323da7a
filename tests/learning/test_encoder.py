"""The token table as vectors."""

import importlib.machinery
import importlib.util

import numpy as np
import pytest

from hopper_learning import EncoderMissing, WordLlamaEncoder
from hopper_learning.encoder import WIDTH

ENCODER = WordLlamaEncoder()


def test_vectors_are_of_unit_length_and_always_the_same() -> None:
    vector = ENCODER.encode("a broken build")
    assert vector.shape == (WIDTH,)
    assert vector.dtype == np.float32
    assert float(np.linalg.norm(vector)) == pytest.approx(1.0, abs=1e-5)
    assert WordLlamaEncoder().encode("a  broken\nbuild").tobytes() == vector.tobytes()


def test_text_without_a_word_is_zeros() -> None:
    assert not ENCODER.encode(" \n").any()


def test_near_in_meaning_is_near_in_direction() -> None:
    bread, dough, engine = (
        ENCODER.encode(text) for text in ("bake some bread", "knead the dough", "engine noise")
    )
    assert bread @ dough > bread @ engine + 0.1


@pytest.mark.parametrize(
    "text",
    [
        "Scrollable panels: InputStreamReader refactorisation, once more",
        "\u2581begun b\u2581 \u2581 middle\u2581of plain",
        "<s> </s> a<unk>b <s>x plain < >",
        "日本語 テスト 🙂 e\u0301 \u200b plain",
        "\x00 \ufffd \x1c plain",
        "w" * 100 + " " + "w" * 100 + "x plain",
    ],
)
def test_words_looked_up_together_are_as_each_alone(text: str) -> None:
    together, alone = WordLlamaEncoder(), WordLlamaEncoder()
    for word in text.split():
        alone.encode(word)
    assert together.encode(text).any()
    np.testing.assert_array_equal(together.encode(text), alone.encode(text))


def test_a_missing_package_is_said_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> importlib.machinery.ModuleSpec | None:
        return None

    monkeypatch.setattr(importlib.util, "find_spec", nothing)
    with pytest.raises(EncoderMissing, match=r"hopper-mesh\[learned\]"):
        WordLlamaEncoder()
