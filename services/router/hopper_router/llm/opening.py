"""Makes the advisor that the settings describe. The one place that looks whether the extra `llm` is installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from hopper_common.clock import Clock
from hopper_router.llm.anthropic import Anthropic
from hopper_router.llm.dialect import Dialect
from hopper_router.llm.errors import LlmNotConfigured
from hopper_router.llm.openai import OpenAI
from hopper_router.llm.settings import LlmSettings

if TYPE_CHECKING:
    from hopper_router.llm.endpoint import Endpoint, HttpAdvisor

_DIALECTS: Final[Mapping[str, Callable[[], Dialect]]] = {"openai": OpenAI, "anthropic": Anthropic}


def open_advisor(settings: LlmSettings, clock: Clock) -> HttpAdvisor:
    """
    A client for the LLM; nothing is asked yet. The caller closes it.

    Raises:
        LlmNotConfigured: A setting is missing or contradicts another, the key's file cannot be read, or the extra `llm`
            is not installed. The message says what to do; `missing` in its metadata names it.
    """
    try:
        from hopper_router.llm.endpoint import HttpAdvisor  # noqa: PLC0415 - only with the extra
    except ModuleNotFoundError as error:
        raise LlmNotConfigured(
            "the client for LLMs is not installed: pip install 'hopper-mesh[llm]'",
            missing=f"module {error.name}",
        ) from None
    return HttpAdvisor(_endpoint(settings), _DIALECTS[settings.kind](), clock)


def _endpoint(settings: LlmSettings) -> Endpoint:
    from hopper_router.llm.endpoint import Endpoint  # noqa: PLC0415 - only with the extra

    if not settings.url or not settings.model:
        missing = "HOPPER_LLM_MODEL" if settings.url else "HOPPER_LLM_URL"
        raise LlmNotConfigured(missing=missing)
    endpoint = Endpoint(
        url=settings.url,
        model=settings.model,
        key=_key(settings),
        price_in=settings.price_in,
        price_out=settings.price_out,
        timeout=settings.timeout,
        attempt_timeout=settings.attempt_timeout,
        attempts=settings.attempts,
        max_output_tokens=settings.max_output_tokens,
    )
    _require_safe(endpoint)
    return endpoint


def _key(settings: LlmSettings) -> str:
    if settings.api_key is not None and settings.api_key_file is not None:
        raise _wrong(
            "HOPPER_LLM_API_KEY", "HOPPER_LLM_API_KEY and HOPPER_LLM_API_KEY_FILE are both set: leave one out"
        )
    key = settings.api_key.get_secret_value() if settings.api_key else ""
    if settings.api_key_file is not None:
        key = _read(settings.api_key_file.expanduser())
    if not _one_word(key):
        raise _wrong("HOPPER_LLM_API_KEY", "the LLM's key is not one line of ASCII without spaces")
    return key


def _one_word(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


def _read(path: Path) -> str:
    try:
        key = path.read_text(encoding="ascii", errors="replace").strip()
    except OSError as error:
        raise _wrong(
            "HOPPER_LLM_API_KEY_FILE", f"HOPPER_LLM_API_KEY_FILE, {path}, cannot be read: {error.strerror}"
        ) from None
    if not key:
        raise _wrong("HOPPER_LLM_API_KEY_FILE", f"HOPPER_LLM_API_KEY_FILE, {path}, is empty")
    return key


def _require_safe(endpoint: Endpoint) -> None:
    try:
        parts = urlsplit(endpoint.url)
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        known = False
    if not (known and _one_word(endpoint.url)):
        raise _wrong("HOPPER_LLM_URL", "HOPPER_LLM_URL is not https://host/path")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise _wrong(
            "HOPPER_LLM_URL",
            "HOPPER_LLM_URL holds more than a host and a path: the key goes in HOPPER_LLM_API_KEY",
        )
    if parts.scheme == "http" and endpoint.key and not endpoint.local:
        raise _wrong(
            "HOPPER_LLM_URL",
            "the key would go over the network in the clear: give HOPPER_LLM_URL as https://",
        )


def _wrong(variable: str, message: str) -> LlmNotConfigured:
    return LlmNotConfigured(message, missing=variable)
