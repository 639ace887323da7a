"""What the operator may set for memory: environment variables `HOPPER_MEMORY_...`."""

from datetime import timedelta

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from hopper_common.settings import Seconds
from hopper_memory.working import MOST_CONTEXTS


class MemorySettings(BaseSettings):
    """The settings of memory, wherever it runs. Durations are seconds (`86400`) or ISO 8601 (`P365D`)."""

    model_config = SettingsConfigDict(env_prefix="HOPPER_MEMORY_", env_ignore_empty=True, frozen=True)

    contexts: int = Field(
        default=MOST_CONTEXTS,
        ge=1,
        le=MOST_CONTEXTS,
        description="How many contexts working memory holds, of up to 64 KiB each.",
    )
    keep_lessons: Seconds = Field(
        default=timedelta(days=365),
        ge=timedelta(0),
        description="How long lessons are kept that all kept models have learned; 0: for ever.",
    )
