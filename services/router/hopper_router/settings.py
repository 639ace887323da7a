"""What an operator may set for the router: environment variables, all of them `HOPPER_ROUTER_...`."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from hopper_common.settings import Seconds


class RouterSettings(BaseSettings):
    """
    The settings of a router; where its database is, and where its neighbours are, the host knows.

    Durations are seconds (`2592000`) or ISO 8601 (`P30D`).
    """

    model_config = SettingsConfigDict(env_prefix="HOPPER_ROUTER_", env_ignore_empty=True, frozen=True)

    keep_finished: Seconds = Field(
        default=timedelta(days=30),
        ge=timedelta(0),
        description="How long finished tasks stay among the others before they are archived; 0: for ever.",
    )
    keep_archive: Seconds = Field(
        default=timedelta(0),
        ge=timedelta(0),
        description="How long after their end archived tasks are kept; 0: for ever.",
    )
