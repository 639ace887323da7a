"""What the operator may set for memory: environment variables `HOPPER_MEMORY_...`."""

from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from hopper_memory.working import MOST_CONTEXTS


class MemorySettings(BaseSettings):
    """The settings of memory, wherever it runs."""

    model_config = SettingsConfigDict(env_prefix="HOPPER_MEMORY_", env_ignore_empty=True, frozen=True)

    database: Path | None = Field(
        default=None, description="The database file. Default: memory.db in HOPPER_DATA_DIR."
    )
    contexts: int = Field(
        default=MOST_CONTEXTS,
        ge=1,
        le=MOST_CONTEXTS,
        description="How many contexts working memory holds, of up to 64 KiB each.",
    )

    @field_validator("database")
    @classmethod
    def _expand(cls, path: Path | None) -> Path | None:
        return None if path is None else path.expanduser().absolute()

    def database_path(self, data_dir: Path) -> Path:
        """Where the database is, for a process with that data directory."""
        return self.database or data_dir / "memory.db"
