"""What an operator may set for the LLM: environment variables, all of them `HOPPER_LLM_...`."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from hopper_common.settings import Seconds


class LlmSettings(BaseSettings):
    """
    Where the LLM is and what it costs; without a URL there is none.

    What it may cost in a day, and when it is asked, each instance's policy says. Durations are seconds (`20`) or
    ISO 8601 (`PT20S`).
    """

    model_config = SettingsConfigDict(
        env_prefix="HOPPER_LLM_", env_ignore_empty=True, frozen=True, hide_input_in_errors=True
    )

    url: str | None = Field(
        default=None,
        description="Where its API begins, e.g. https://api.openai.com/v1, https://api.anthropic.com.",
    )
    kind: Literal["openai", "anthropic"] = Field(
        default="openai", description="Which API it speaks: chat completions, or messages."
    )
    model: str = Field(default="", description="The model's name, as the endpoint knows it.")
    api_key: SecretStr | None = Field(default=None, description="The key, if it wants one.")
    api_key_file: Path | None = Field(default=None, description="A file that holds the key, instead of it.")
    price_in: Decimal = Field(default=Decimal(0), ge=0, description="The price of a million input tokens.")
    price_out: Decimal = Field(default=Decimal(0), ge=0, description="The price of a million output tokens.")
    timeout: Seconds = Field(
        default=timedelta(seconds=20),
        gt=timedelta(0),
        description="How long an answer may take, attempts and pauses included.",
    )
    attempt_timeout: Seconds = Field(
        default=timedelta(seconds=12), gt=timedelta(0), description="How long one attempt may take."
    )
    attempts: int = Field(default=3, ge=1, le=10, description="How often it is asked before giving up.")
    max_output_tokens: int = Field(
        default=2_000, ge=64, le=100_000, description="The longest answer, thinking included, in tokens."
    )
