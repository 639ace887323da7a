"""From settings to a client; and what is said when something is missing."""

import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from hopper_router.llm.errors import LlmNotConfigured
from hopper_router.llm.opening import open_advisor
from hopper_router.llm.settings import LlmSettings
from hopper_testing.clock import ManualClock

KEY = "sk-very-secret-0123456789"
SET = {"HOPPER_LLM_URL": "https://llm.example/v1", "HOPPER_LLM_MODEL": "model-1"}


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> LlmSettings:
    """What the environment says, when it says just this."""
    for name, value in request.param.items():
        monkeypatch.setenv(name, value)
    return LlmSettings()


@pytest.mark.parametrize("settings", [{}], indirect=True)
def test_without_any_there_is_none(settings: LlmSettings) -> None:
    with pytest.raises(LlmNotConfigured) as caught:
        open_advisor(settings, ManualClock())
    assert caught.value.metadata == {"missing": "HOPPER_LLM_URL"}
    assert "HOPPER_LLM_URL" in caught.value.message


@pytest.mark.parametrize(
    "settings",
    [SET | {"HOPPER_LLM_API_KEY": KEY, "HOPPER_LLM_PRICE_IN": "0.15", "HOPPER_LLM_TIMEOUT": "7"}],
    indirect=True,
)
async def test_all_of_it_is_read_and_the_key_is_shown_to_nobody(settings: LlmSettings) -> None:
    assert (settings.kind, settings.price_in, settings.timeout.total_seconds()) == (
        "openai",
        Decimal("0.15"),
        7.0,
    )
    async with open_advisor(settings, ManualClock()) as advisor:
        assert KEY not in repr(settings) + str(settings.model_dump()) + settings.model_dump_json() + repr(
            advisor
        )


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({"HOPPER_LLM_URL": "https://llm.example/v1"}, "HOPPER_LLM_MODEL"),
        (SET | {"HOPPER_LLM_URL": "llm.example"}, "HOPPER_LLM_URL"),
        (SET | {"HOPPER_LLM_URL": "ftp://llm.example"}, "HOPPER_LLM_URL"),
        (SET | {"HOPPER_LLM_URL": "https://"}, "HOPPER_LLM_URL"),
        (SET | {"HOPPER_LLM_URL": "https://llm.example:x/"}, "HOPPER_LLM_URL"),
        (SET | {"HOPPER_LLM_URL": "https://\u200b/"}, "HOPPER_LLM_URL"),
        (SET | {"HOPPER_LLM_URL": f"https://me:{KEY}@llm.example/"}, "HOPPER_LLM_URL"),
        (SET | {"HOPPER_LLM_URL": f"https://llm.example/?key={KEY}"}, "HOPPER_LLM_URL"),
        (SET | {"HOPPER_LLM_URL": "http://llm.example/v1", "HOPPER_LLM_API_KEY": KEY}, "HOPPER_LLM_URL"),
        (SET | {"HOPPER_LLM_API_KEY": f"{KEY} \n{KEY}"}, "HOPPER_LLM_API_KEY"),
        (SET | {"HOPPER_LLM_API_KEY": f"{KEY}é"}, "HOPPER_LLM_API_KEY"),
        (SET | {"HOPPER_LLM_API_KEY": KEY, "HOPPER_LLM_API_KEY_FILE": "/nowhere"}, "HOPPER_LLM_API_KEY"),
        (SET | {"HOPPER_LLM_API_KEY_FILE": "/nowhere"}, "HOPPER_LLM_API_KEY_FILE"),
        (SET | {"HOPPER_LLM_API_KEY_FILE": "/dev/null"}, "HOPPER_LLM_API_KEY_FILE"),
    ],
    indirect=["settings"],
)
def test_what_is_wrong_is_named_and_the_key_is_not(settings: LlmSettings, missing: str) -> None:
    with pytest.raises(LlmNotConfigured) as caught:
        open_advisor(settings, ManualClock())
    assert caught.value.metadata == {"missing": missing}
    assert missing in caught.value.message or missing == "HOPPER_LLM_API_KEY"
    assert KEY not in caught.value.message


@pytest.mark.parametrize(
    "settings",
    [
        SET | {"HOPPER_LLM_URL": "http://llm.example/v1"},
        SET | {"HOPPER_LLM_URL": "http://127.0.0.1:11434/v1", "HOPPER_LLM_API_KEY": KEY},
        SET | {"HOPPER_LLM_URL": "http://[::1]:11434/v1", "HOPPER_LLM_API_KEY": KEY},
    ],
    indirect=True,
)
async def test_in_the_clear_only_without_a_key_or_on_this_machine(settings: LlmSettings) -> None:
    async with open_advisor(settings, ManualClock()) as advisor:
        assert advisor


async def test_a_key_may_be_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(f"{KEY}\n")
    settings = LlmSettings(url="https://llm.example", model="m", kind="anthropic", api_key_file=path)
    async with open_advisor(settings, ManualClock()) as advisor:
        assert advisor


def test_an_address_that_is_nonsense_does_not_show_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOPPER_LLM_API_KEY", KEY)
    monkeypatch.setenv("HOPPER_LLM_KIND", KEY)
    with pytest.raises(ValueError, match="kind") as caught:
        LlmSettings()
    assert KEY not in str(caught.value)


WITHOUT = """
import sys
sys.modules["httpx"] = None
import hopper_router.app
import hopper_router.llm.budget, hopper_router.llm.decompose, hopper_router.llm.guarded, hopper_router.llm.prompt
from hopper_common.clock import SystemClock
from hopper_router.llm.errors import LlmNotConfigured
from hopper_router.llm.opening import open_advisor
from hopper_router.llm.settings import LlmSettings
try:
    open_advisor(LlmSettings(url="https://llm.example", model="m"), SystemClock())
except LlmNotConfigured as error:
    print(error.message, dict(error.metadata))
"""


def test_without_the_extra_everything_starts_and_it_is_said_what_is_missing() -> None:
    ran = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    assert ran.stdout == (
        "the client for LLMs is not installed: pip install 'hopper-mesh[llm]' {'missing': 'module httpx'}\n"
    )
