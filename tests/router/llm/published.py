"""
The two APIs as they are published: whether a request keeps to the description, and responses that do.

Sources: openai/openai-openapi (`CreateChatCompletionRequest`, `CreateChatCompletionResponse`, and the guide to
structured outputs for what a strict schema may hold); Anthropic's description of `POST /v1/messages`, version
2023-06-01.
Fields that exist but that we have no business sending are not in the tables: sending one is a complaint.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

KEY: Final = "sk-very-secret-0123456789"
MODEL: Final = "model-1"


@dataclass(frozen=True)
class Sent:
    """A request, as it arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    content: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.content)


def _complaints_about_headers(sent: Sent, wanted: Mapping[str, str]) -> list[str]:
    wanted = {**wanted, "content-type": "application/json"}
    return [f"header {name}" for name, value in wanted.items() if sent.headers.get(name) != value]


def _fields(body: Mapping[str, Any], types: Mapping[str, type], required: set[str], where: str) -> list[str]:
    unknown = [f"{where}.{name}: unknown" for name in body.keys() - types.keys()]
    missing = [f"{where}.{name}: missing" for name in required - body.keys()]
    wrong = [
        f"{where}.{name}: not {kind.__name__}"
        for name, kind in types.items()
        if name in body and type(body[name]) is not kind
    ]
    return unknown + missing + wrong


def _messages(messages: list[Any], roles: tuple[str, ...]) -> list[str]:
    found = [
        complaint
        for position, message in enumerate(messages)
        for complaint in _fields(
            message, {"role": str, "content": str}, {"role", "content"}, f"messages[{position}]"
        )
    ]
    if tuple(message["role"] for message in messages) != roles:
        found.append(f"messages: roles are not {roles}")
    return found


STRICT: Final = {"type", "properties", "required", "additionalProperties", "items", "enum"}


def strict_schema(schema: Mapping[str, Any], where: str = "schema") -> list[str]:
    """What a strict endpoint has against a schema."""
    found = [f"{where}.{key}: not supported" for key in schema.keys() - STRICT]
    if schema.get("type") == "object":
        if schema.get("additionalProperties") is not False:
            found.append(f"{where}: additionalProperties must be false")
        if sorted(schema.get("required", [])) != sorted(schema["properties"]):
            found.append(f"{where}: every property must be required")
        for name, inner in schema["properties"].items():
            found += strict_schema(inner, f"{where}.{name}")
    if "items" in schema:
        found += strict_schema(schema["items"], f"{where}[]")
    return found


def check_openai(sent: Sent) -> list[str]:
    """What `POST /v1/chat/completions` has against a request."""
    found = _complaints_about_headers(sent, {"authorization": f"Bearer {KEY}"})
    if (sent.method, sent.path) != ("POST", "/v1/chat/completions"):
        return [*found, f"{sent.method} {sent.path}"]
    types = {
        **{"model": str, "messages": list, "response_format": dict},
        **{"max_completion_tokens": int, "max_tokens": int},
    }
    body = sent.body
    found += _fields(body, types, {"model", "messages"}, "body") + _messages(
        body["messages"], ("system", "user")
    )
    if "max_completion_tokens" in body and "max_tokens" in body:
        found.append("max_tokens and max_completion_tokens at the same time")
    wanted = body["response_format"]
    if wanted["type"] == "json_object":
        if "JSON" not in "".join(message["content"] for message in body["messages"]):
            found.append("json_object without the word JSON in a message")
        return found + _fields(wanted, {"type": str}, {"type"}, "response_format")
    found += _fields(
        wanted, {"type": str, "json_schema": dict}, {"type", "json_schema"}, "response_format"
    ) + _fields(
        wanted["json_schema"],
        {"name": str, "description": str, "schema": dict, "strict": bool},
        {"name"},
        "json_schema",
    )
    return found + strict_schema(wanted["json_schema"]["schema"])


def check_anthropic(sent: Sent) -> list[str]:
    """What `POST /v1/messages` has against a request."""
    found = _complaints_about_headers(sent, {"x-api-key": KEY, "anthropic-version": "2023-06-01"})
    if (sent.method, sent.path) != ("POST", "/v1/messages"):
        return [*found, f"{sent.method} {sent.path}"]
    body = sent.body
    types = {
        **{"model": str, "max_tokens": int, "messages": list},
        **{"system": str, "tools": list, "tool_choice": dict},
    }
    found += _fields(body, types, {"model", "max_tokens", "messages"}, "body")
    found += _messages(body["messages"], ("user",))
    for tool in body["tools"]:
        found += _fields(
            tool, {"name": str, "description": str, "input_schema": dict}, {"name", "input_schema"}, "tool"
        )
        if tool["input_schema"].get("type") != "object":
            found.append("input_schema: must be of an object")
    choice = body["tool_choice"]
    found += _fields(
        choice,
        {"type": str, "name": str, "disable_parallel_tool_use": bool},
        {"type", "name"},
        "tool_choice",
    )
    if choice["type"] != "tool" or choice["name"] not in [tool["name"] for tool in body["tools"]]:
        found.append("tool_choice: names no tool")
    return found


def completion(answer: str, tokens: tuple[int, int] = (120, 30), *, finish: str = "stop") -> dict[str, Any]:
    """A `CreateChatCompletionResponse`."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_767_225_600,
        "model": "model-1-2026-01-01",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": answer, "refusal": None, "annotations": []},
                "logprobs": None,
                "finish_reason": finish,
            }
        ],
        "usage": {
            "prompt_tokens": tokens[0],
            "completion_tokens": tokens[1],
            "total_tokens": sum(tokens),
        },
        "service_tier": "default",
        "system_fingerprint": None,
    }


def message(answer: str, tokens: tuple[int, int] = (120, 30), *, finish: str = "tool_use") -> dict[str, Any]:
    """A `Message`. An answer that is no JSON object is said as text, for a tool's input has to be one."""
    try:
        parsed = json.loads(answer)
    except (ValueError, RecursionError):
        parsed = None
    block: dict[str, Any] = {"type": "text", "text": answer}
    if isinstance(parsed, dict):
        block = {"type": "tool_use", "id": "toolu_1", "name": "advise", "input": parsed}
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "model-1-2026-01-01",
        "content": [block],
        "stop_reason": finish,
        "stop_sequence": None,
        "usage": {
            "input_tokens": tokens[0],
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": tokens[1],
            "service_tier": "standard",
        },
    }


def error(message: str) -> dict[str, Any]:
    """An error; what both APIs have in common of it."""
    return {"type": "error", "error": {"type": "invalid_request_error", "message": message}}


@dataclass(frozen=True)
class Api:
    """One of the two."""

    kind: str
    root: str
    """What of its path belongs to the URL that an operator sets."""
    check: Callable[[Sent], list[str]]
    respond: Callable[..., dict[str, Any]]
    cut_off: str
    """How it says that the answer grew too long."""

    def schema_of(self, sent: Sent) -> dict[str, Any]:
        body = sent.body
        schema = (
            body["response_format"]["json_schema"]["schema"]
            if self.kind == "openai"
            else body["tools"][0]["input_schema"]
        )
        assert isinstance(schema, dict)
        return schema


APIS: Final = (
    Api("openai", "/v1", check_openai, completion, "length"),
    Api("anthropic", "", check_anthropic, message, "max_tokens"),
)
