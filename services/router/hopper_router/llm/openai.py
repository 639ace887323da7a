"""
Chat completions: OpenAI's API, which most servers of models speak.

Source: openai/openai-openapi, `POST /chat/completions`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BaseModel, Field, NonNegativeInt

from hopper_router.llm.dialect import Reply, ReplyProblem, Usage, parse
from hopper_router.llm.prompt import Prompt

_REFUSED: Final = frozenset({400, 404, 422, 501})
"""With these a server may mean that it does not know a field."""
_NEW_LIMIT: Final = "max_completion_tokens"
_OLD_LIMIT: Final = "max_tokens"


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Completion(BaseModel):
    model: str = ""
    choices: Annotated[list[_Choice], Field(min_length=1)]


class _Counts(BaseModel):
    prompt_tokens: NonNegativeInt
    completion_tokens: NonNegativeInt


class _Counted(BaseModel):
    usage: _Counts


class OpenAI:
    """
    Chat completions with a JSON Schema for the answer.

    Servers differ in what they know. One that refuses `json_schema` is asked for `json_object`, with the schema in the
    instructions; one that refuses `max_completion_tokens` gets its old name. Both are remembered.
    """

    path = "/chat/completions"

    def __init__(self) -> None:
        self._limit = _NEW_LIMIT
        self._takes_schema = True

    def headers(self, key: str) -> Mapping[str, str]:
        """See `Dialect`."""
        return {"authorization": f"Bearer {key}"} if key else {}

    def body(self, prompt: Prompt, *, model: str, max_tokens: int) -> dict[str, Any]:
        """See `Dialect`."""
        return {
            "model": model,
            "messages": [
                {"role": "system", "content": self._instructions(prompt)},
                {"role": "user", "content": prompt.user},
            ],
            "response_format": self._response_format(prompt),
            self._limit: max_tokens,
        }

    def _instructions(self, prompt: Prompt) -> str:
        if self._takes_schema:
            return prompt.system
        schema = json.dumps(prompt.schema, ensure_ascii=False)
        return f"{prompt.system}\nThe JSON Schema of the answer:\n{schema}\n"

    def _response_format(self, prompt: Prompt) -> dict[str, Any]:
        if not self._takes_schema:
            return {"type": "json_object"}
        schema = {"name": "advice", "strict": True, "schema": prompt.schema}
        return {"type": "json_schema", "json_schema": schema}

    def adapt(self, sent: Mapping[str, Any], status: int, text: str) -> bool:
        """See `Dialect`. What counts is what was sent: another call may have adapted in the meantime."""
        if status not in _REFUSED:
            return False
        if _NEW_LIMIT in sent and _NEW_LIMIT in text:
            self._limit = _OLD_LIMIT
            return True
        # Servers have no common words for what they do not know; these two are in all that were seen.
        if "json_schema" in sent["response_format"] and ("response_format" in text or "schema" in text):
            self._takes_schema = False
            return True
        return False

    def usage(self, content: bytes) -> Usage | None:
        """See `Dialect`."""
        try:
            counted = parse(_Counted, content).usage
        except ReplyProblem:
            return None
        return Usage(counted.prompt_tokens, counted.completion_tokens)

    def reply(self, content: bytes) -> Reply:
        """See `Dialect`."""
        completion = parse(_Completion, content)
        choice = completion.choices[0]
        if choice.finish_reason == "length":
            raise ReplyProblem("choices.0: cut off, for HOPPER_LLM_MAX_OUTPUT_TOKENS is too small")
        if choice.message.refusal or choice.finish_reason == "content_filter":
            raise ReplyProblem("choices.0: the model declines to answer")
        if not choice.message.content:
            raise ReplyProblem("choices.0.message.content: is empty")
        return Reply(choice.message.content, completion.model)
