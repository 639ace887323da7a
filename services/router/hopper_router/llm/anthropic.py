"""Messages: Anthropic's API. Source: the published description of `POST /v1/messages`, version 2023-06-01."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, NonNegativeInt

from hopper_router.llm.dialect import Reply, ReplyProblem, Usage, parse
from hopper_router.llm.prompt import Prompt

VERSION: Final = "2023-06-01"
_TOOL: Final = "advise"


class _Block(BaseModel):
    type: str
    name: str = ""
    input: dict[str, Any] = {}


class _Message(BaseModel):
    model: str = ""
    content: list[_Block]
    stop_reason: str | None = None


class _Counts(BaseModel):
    input_tokens: NonNegativeInt
    output_tokens: NonNegativeInt
    cache_creation_input_tokens: NonNegativeInt | None = None
    cache_read_input_tokens: NonNegativeInt | None = None


class _Counted(BaseModel):
    usage: _Counts


class Anthropic:
    """Messages with one tool, whose input is the answer, and which the model has to use."""

    path = "/v1/messages"

    def headers(self, key: str) -> Mapping[str, str]:
        """See `Dialect`."""
        shown = {"x-api-key": key} if key else {}
        return {"anthropic-version": VERSION, **shown}

    def body(self, prompt: Prompt, *, model: str, max_tokens: int) -> dict[str, Any]:
        """See `Dialect`."""
        return {
            "model": model,
            "max_tokens": max_tokens,
            "system": prompt.system,
            "messages": [{"role": "user", "content": prompt.user}],
            "tools": [
                {
                    "name": _TOOL,
                    "description": "Gives the answer. Its input is the JSON object that was asked for.",
                    "input_schema": prompt.schema,
                }
            ],
            "tool_choice": {"type": "tool", "name": _TOOL, "disable_parallel_tool_use": True},
        }

    def adapt(self, sent: Mapping[str, Any], status: int, text: str) -> bool:
        """See `Dialect`: there is only one way."""
        return False

    def usage(self, content: bytes) -> Usage | None:
        """See `Dialect`."""
        try:
            counted = parse(_Counted, content).usage
        except ReplyProblem:
            return None
        cached = (counted.cache_creation_input_tokens or 0) + (counted.cache_read_input_tokens or 0)
        return Usage(counted.input_tokens + cached, counted.output_tokens)

    def reply(self, content: bytes) -> Reply:
        """See `Dialect`."""
        message = parse(_Message, content)
        if message.stop_reason == "max_tokens":
            raise ReplyProblem("content: cut off, for HOPPER_LLM_MAX_OUTPUT_TOKENS is too small")
        if message.stop_reason == "refusal":
            raise ReplyProblem("content: the model declines to answer")
        uses = [block for block in message.content if block.type == "tool_use" and block.name == _TOOL]
        if len(uses) != 1:
            raise ReplyProblem(f"content: {len(uses)} uses of the tool instead of one")
        return Reply(json.dumps(uses[0].input), message.model)
