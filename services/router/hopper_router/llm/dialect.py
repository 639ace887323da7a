"""What differs between the APIs of models: how a question is put, and where in a response the answer is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from pydantic import BaseModel, ValidationError

from hopper_router.llm.prompt import Prompt

_M = TypeVar("_M", bound=BaseModel)


class Usage(NamedTuple):
    """Tokens that an endpoint charges for."""

    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer's text, which is to be JSON, and the model that gave it."""

    answer: str
    model: str


class ReplyProblem(ValueError):
    """The response holds no answer; the message says why, and quotes nothing of it."""


class Dialect(Protocol):
    """One API. What it learns about an endpoint (`adapt`) it keeps."""

    @property
    def path(self) -> str:
        """What follows the URL at which the API begins."""
        ...

    def headers(self, key: str) -> Mapping[str, str]:
        """How the key is shown; *key* is empty where there is none."""
        ...

    def body(self, prompt: Prompt, *, model: str, max_tokens: int) -> dict[str, Any]:
        """The request, as JSON."""
        ...

    def adapt(self, sent: Mapping[str, Any], status: int, text: str) -> bool:
        """Whether what the endpoint refused is put in another way from now on, so that asking again makes sense."""
        ...

    def usage(self, content: bytes) -> Usage | None:
        """What a response says was used, if it does."""
        ...

    def reply(self, content: bytes) -> Reply:
        """
        The answer in a response.

        Raises:
            ReplyProblem: There is none.
        """
        ...


def parse(kind: type[_M], content: bytes) -> _M:
    """
    A response, as far as we read it.

    Raises:
        ReplyProblem: It is not JSON, or not of that shape.
    """
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    raise ReplyProblem(f"{where or 'response'}: {first['type']}")
