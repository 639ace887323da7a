"""
Text as a vector: the port, and its one implementation over the WordLlama token table.

The table and the tokenizer are read straight from the installed package: its own loader looks in the wrong folder,
tries the network, and sets up logging for the whole process.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from hopper_learning.errors import EncoderMissing

WIDTH: Final = 256
_VERSION: Final = "0.4.0.post1"
_WEIGHTS: Final = "weights/l2_supercat_256.safetensors"
_TOKENIZER: Final = "tokenizers/l2_supercat_tokenizer_config.json"
_KNOWN_WORDS: Final = 1 << 16
_WORD_CHARACTERS: Final = 40
_BEGIN: Final = "\u2581"
"""What the first token of a word begins with, and no other."""
_ALONE: Final = frozenset((_BEGIN, "<"))
"""Who has one of these may look like several words: it is one, or begins a token like `<s>`."""

Vector = NDArray[np.float32]


class Encoder(Protocol):
    """
    Turns text into a vector of meaning.

    `version` names the vectors: a model restored from a snapshot refuses those of another version.
    """

    @property
    def version(self) -> str: ...

    def encode(self, text: str) -> Vector:
        """A unit vector of `WIDTH` floats, or zeros for text that says nothing. The same text, the same vector."""
        ...


class WordLlamaEncoder:
    """
    The mean of the text's token vectors (32,000 of 256, 16 MB in the wheel, 32 MB here).

    Tokens are remembered by word, which is some twenty times quicker than tokenizing the whole text and differs only in
    how runs of spaces count. All words of a text that are not known yet are tokenized together.

    Raises:
        EncoderMissing: The extra `learned` is not installed, or is of another version.
    """

    version = f"wordllama-{_VERSION}-{WIDTH}"

    def __init__(self) -> None:
        folder = _package()
        self._table = _table(folder / _WEIGHTS)
        self._tokenizer = _tokenizer(folder / _TOKENIZER)
        self._begins = frozenset(
            token for name, token in self._tokenizer.get_vocab().items() if name.startswith(_BEGIN)
        )
        self._known: dict[str, list[int]] = {}

    def encode(self, text: str) -> Vector:
        """A unit vector of `WIDTH` floats, or zeros for text without a word."""
        words = text.split()
        known: Mapping[str, Sequence[int]] = self._known
        if not known.keys() >= set(words):
            known = self._look_up(words)
        tokens: list[int] = []
        for word in words:
            tokens += known[word]
        if not tokens:
            return np.zeros(WIDTH, np.float32)
        total = self._table.take(tokens, axis=0).sum(axis=0)
        length = np.sqrt((total * total).sum())
        return np.asarray(total / length if length > 0 else total, np.float32)

    def _look_up(self, words: Sequence[str]) -> Mapping[str, Sequence[int]]:
        """The tokens of all these words, and of others. Several threads may do that at once."""
        known = self._known
        new = [word for word in dict.fromkeys(words) if word not in known]
        if len(known) + len(new) > _KNOWN_WORDS:
            known = self._known = {}
            new = list(dict.fromkeys(words))
        together = [word for word in new if _ALONE.isdisjoint(word)]
        parts: list[list[int]] = []
        for token in self._tokens(" ".join([word[:_WORD_CHARACTERS] for word in together])):
            if token in self._begins or not parts:
                parts.append([])
            parts[-1].append(token)
        if len(parts) == len(together):
            known.update(zip(together, parts, strict=True))
        known.update((word, self._tokens(word[:_WORD_CHARACTERS])) for word in new if word not in known)
        return known

    def _tokens(self, text: str) -> list[int]:
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return found


def _package() -> Path:
    spec = importlib.util.find_spec("wordllama")
    if spec is None or spec.origin is None:
        raise EncoderMissing
    folder = Path(spec.origin).parent
    if not (folder / _WEIGHTS).is_file() or not (folder / _TOKENIZER).is_file():
        raise EncoderMissing(f"the installed wordllama is not {_VERSION}: install hopper-mesh[learned]")
    return folder


def _table(path: Path) -> Vector:
    """Read the one tensor of a safetensors file: a length, a JSON header, the bytes."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8:start])
    tensor = header["embedding.weight"]
    begin, end = tensor["data_offsets"]
    halves = np.frombuffer(data[start + begin : start + end], np.float16).reshape(tensor["shape"])
    return halves.astype(np.float32)


def _tokenizer(path: Path) -> Any:
    from tokenizers import Tokenizer  # noqa: PLC0415 - comes with the extra

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
