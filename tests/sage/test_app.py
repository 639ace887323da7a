import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from hopper_sage import language_models
from hopper_sage.app import reference_mind
from hopper_sage.language_models import NoLanguageModel, installed_model
from hopper_sage.settings import SageSettings
from hopper_testing.sage_conformance import CHECKS, Sage, Started
from hopper_testing.sage_conformance.__main__ import main
from tests.sage.test_conformance import environment


class Model:
    """Stands for one that is installed."""

    name = "a model"


def install(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    found = EntryPoints(EntryPoint(name, f"{__name__}:Model", language_models.GROUP) for name in names)
    monkeypatch.setattr(language_models, "entry_points", lambda group: found.select(group=group))
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])


def test_without_an_address_no_language_model_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "a")
    monkeypatch.delenv("HOPPER_LLM_URL", raising=False)
    assert not reference_mind(SageSettings()).about.language_model


def test_with_an_address_the_installed_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "b", "a")
    monkeypatch.setenv("HOPPER_LLM_URL", "http://127.0.0.1:1/v1")
    about = reference_mind(SageSettings()).about
    assert about.language_model
    assert "asks a model" in about.description


def test_an_address_and_no_language_model_is_said_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    monkeypatch.setenv("HOPPER_LLM_URL", "http://127.0.0.1:1/v1")
    with pytest.raises(NoLanguageModel, match="unset it for the Sage, or install one"):
        reference_mind(SageSettings())
    with pytest.raises(NoLanguageModel):
        installed_model("hopper.sage.no-such-group")


async def test_the_journal_is_where_the_operator_wants_it(directory: Path) -> None:
    data, elsewhere = directory / "data", directory / "elsewhere.db"
    env = environment(data) | {
        "HOPPER_SAGE_JOURNAL": str(elsewhere),
        "HOPPER_DATABASE": "postgresql://nowhere/none",
        "HOPPER_AUDIT_DATABASE": str(directory / "audit.db"),
    }
    command = [sys.executable, "-m", "hopper_sage"]
    with Started(command, f"unix:{data / 'sage.sock'}", environment=env, log=directory / "log") as stage:
        async with Sage.connected(stage) as sage:
            await CHECKS[1].run(sage)
    assert elsewhere.stat().st_mode & 0o077 == 0
    assert not (data / "sage.db").exists()


def test_the_suite_is_a_program(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = f"unix:{directory / 'data' / 'sage.sock'}"
    start = f"env HOPPER_DATA_DIR={directory / 'data'} {sys.executable} -m hopper_sage"
    assert main([address, "--start", start, "--only", "identity"]) == 0
    assert "this Sage keeps to the contract" in capsys.readouterr().out
    assert main(["example.com:80", "--only", "identity"]) == 2
    with pytest.raises(SystemExit):
        main([address, "--only", "no-such-check"])
    assert "invalid choice" in capsys.readouterr().err
