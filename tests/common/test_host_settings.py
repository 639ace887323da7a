"""What the environment may say to a process."""

from datetime import timedelta
from pathlib import Path

import pytest

from hopper_common.settings import HostSettings, SettingsWrong, load_settings


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ana")


def test_nothing_needs_to_be_set() -> None:
    settings = load_settings()
    assert settings.data_dir == Path("/home/ana/.hopper")
    assert settings.socket_path == Path("/home/ana/.hopper/hopper.sock")
    assert settings.lock_path == Path("/home/ana/.hopper/hopper.lock")
    assert settings.listen is None
    assert settings.drain_timeout == timedelta(seconds=10)
    assert (settings.log_level, settings.log_format) == ("info", "auto")


@pytest.mark.parametrize(
    ("text", "seconds"), [("5", 5), ("0.5", 0.5), ("0", 0), ("PT2M", 120), ("00:01:00", 60), ("", 10)]
)
def test_durations_are_seconds_or_iso(monkeypatch: pytest.MonkeyPatch, text: str, seconds: float) -> None:
    monkeypatch.setenv("HOPPER_DRAIN_TIMEOUT", text)
    assert load_settings().drain_timeout == timedelta(seconds=seconds)


def test_all_that_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOPPER_DRAIN_TIMEOUT", "soon")
    monkeypatch.setenv("HOPPER_LOG_LEVEL", "loud")
    with pytest.raises(SettingsWrong) as caught:
        load_settings()
    assert "HOPPER_DRAIN_TIMEOUT: " in str(caught.value)
    assert "HOPPER_LOG_LEVEL: " in str(caught.value)


def test_a_drain_cannot_take_less_than_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOPPER_DRAIN_TIMEOUT", "-1")
    with pytest.raises(SettingsWrong, match="HOPPER_DRAIN_TIMEOUT"):
        load_settings()


def test_a_service_alone_has_a_socket_and_a_lock_of_its_own() -> None:
    settings = HostSettings(data_dir=Path("/data")).for_one("router")
    assert settings.socket_path == Path("/data/router.sock")
    assert settings.lock_path == Path("/data/hopper_router.lock")
    assert settings.data_dir == Path("/data")


def test_a_socket_that_is_set_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOPPER_SOCKET", "~/run/h.sock")
    assert load_settings().for_one("router").socket_path == Path("/home/ana/run/h.sock")


def test_another_process_is_found_by_its_socket_or_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOPPER_DATA_DIR", "/data")
    monkeypatch.setenv("HOPPER_MEMORY_ADDRESS", "127.0.0.1:8301")
    settings = load_settings()
    assert settings.address_of("registry") == "unix:/data/registry.mtls.sock"
    assert settings.address_of("memory") == "127.0.0.1:8301"


def test_a_database_is_a_file_of_the_services_name_unless_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOPPER_ROUTER_DATABASE", "~/disk/tasks.db")
    settings = load_settings()
    assert settings.database_of("registry") == "/home/ana/.hopper/registry.db"
    assert settings.database_of("router") == "/home/ana/disk/tasks.db"


def test_one_server_is_for_all_services_but_those_that_have_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOPPER_DATABASE", "postgresql://db/hopper")
    monkeypatch.setenv("HOPPER_MEMORY_DATABASE", "/data/memory.db")
    settings = load_settings()
    assert [settings.database_of(name) for name in ("registry", "router", "memory")] == [
        "postgresql://db/hopper",
        "postgresql://db/hopper",
        "/data/memory.db",
    ]


def test_a_file_for_all_services_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOPPER_DATABASE", "/data/hopper.db")
    with pytest.raises(SettingsWrong, match=r"HOPPER_DATABASE: .*share no file"):
        load_settings()


def test_a_password_is_not_shown_with_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOPPER_DATABASE", "postgresql://user:hunter2@db/hopper")
    settings = load_settings()
    assert "hunter2" not in f"{settings!r} {settings} {settings.model_dump()}"
    monkeypatch.setenv("HOPPER_DATABASE", "mysql://user:hunter2@db/hopper")
    with pytest.raises(SettingsWrong) as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)


def test_what_processes_share_lies_beside_the_identity_that_they_share(tmp_path: Path) -> None:
    assert HostSettings(data_dir=tmp_path).shared_path("mark") == tmp_path / "mark"
    shared = HostSettings(data_dir=tmp_path / "one", identity_dir=tmp_path / "alice")
    assert shared.shared_path("mark") == tmp_path / "alice.mark"
