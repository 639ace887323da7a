"""What the operator may set for the reference Sage: environment variables `HOPPER_SAGE_...`, and the model's."""

from pathlib import Path

from pydantic import AliasChoices, Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class SageSettings(BaseSettings):
    """The settings of a Sage, besides those of its process (`hopper_common.settings.HostSettings`)."""

    model_config = SettingsConfigDict(
        env_prefix="HOPPER_SAGE_", env_ignore_empty=True, frozen=True, populate_by_name=True
    )

    journal: Path | None = Field(
        default=None, description="The file of the journal. Default: sage.db in the data directory."
    )
    llm_url: str | None = Field(
        default=None,
        validation_alias=AliasChoices("llm_url", "HOPPER_LLM_URL"),
        description="A language model to ask. Default: none; the journal is enough to run.",
    )

    @field_validator("journal")
    @classmethod
    def _expand(cls, path: Path | None) -> Path | None:
        return None if path is None else path.expanduser().absolute()
