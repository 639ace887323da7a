"""What the operator may set for memory: environment variables `HOPPER_MEMORY_...`."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from hopper_memory.working import MOST_CONTEXTS


class MemorySettings(BaseSettings):
    """The settings of memory, wherever it runs."""

    model_config = SettingsConfigDict(env_prefix="HOPPER_MEMORY_", env_ignore_empty=True, frozen=True)

    contexts: int = Field(
        default=MOST_CONTEXTS,
        ge=1,
        le=MOST_CONTEXTS,
        description="How many contexts working memory holds, of up to 64 KiB each.",
    )
