"""People and agents on the port: with a key, in plain text on this machine and over TLS."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hopper.registry.v1.access_service_pb2 import RevokeApiKeyRequest, WhoAmIRequest
from hopper.registry.v1.project_service_pb2 import ListProjectsRequest
from hopper.router.v1.task_service_pb2 import WatchTasksRequest
from hopper_cli.main import main
from hopper_client import AsyncHopper, Hopper
from hopper_common.clock import SystemClock
from hopper_common.errors import HopperError, Unauthenticated, Unavailable
from hopper_common.identity.certificates import to_pem
from hopper_common.identity.store import IdentityStore
from hopper_common.startup import AddressRefused
from hopper_testing.processes import HopperProcess, temporary_directory
from tests.e2e.calls import first_admin


@pytest.fixture(scope="module", params=["plain text", "TLS"])
def process(request: pytest.FixtureRequest) -> Iterator[HopperProcess]:
    secure = {"HOPPER_LISTEN_TLS": "true"} if request.param == "TLS" else {}
    with (
        temporary_directory() as directory,
        HopperProcess(directory / "data", listen="127.0.0.1:0", environment=secure) as started,
    ):
        yield started


@pytest.fixture(scope="module")
def key(process: HopperProcess) -> str:
    return first_admin(process.address)


@pytest.fixture
def trusting(process: HopperProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client knows whom it talks to, where that is TLS."""
    if "HOPPER_LISTEN_TLS" in process.environment:
        roots = tmp_path / "roots.pem"
        roots.write_bytes(to_pem(IdentityStore.open(process.identity_dir, SystemClock()).roots()))
        monkeypatch.setenv("HOPPER_CA_FILE", str(roots))


def test_a_key_in_the_environment_lets_in(
    process: HopperProcess, key: str, trusting: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOPPER_API_KEY", key)
    with Hopper(process.tcp_address, timeout=60) as hopper:
        me = hopper.access.WhoAmI(WhoAmIRequest())
        assert (me.principal, me.credential) == ("principals/admin", f"key:{key.split('_')[1]}")
        assert hopper.submit("from far away").task.name
        watch = hopper.tasks.WatchTasks(WatchTasksRequest())
        assert next(iter(watch)).ByteSize()
        watch.cancel()


async def test_a_key_in_a_file_lets_in(
    process: HopperProcess, key: str, trusting: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "key"
    file.touch(mode=0o600)
    file.write_text(f"{key}\n")
    monkeypatch.setenv("HOPPER_API_KEY_FILE", str(file))
    async with AsyncHopper(process.tcp_address, timeout=60) as hopper:
        assert (await hopper.access.WhoAmI(WhoAmIRequest())).principal == "principals/admin"
        responses = hopper.tasks.WatchTasks(WatchTasksRequest())
        assert (await anext(aiter(responses))).ByteSize()
        async for answer in hopper.submit_many(["a", "b"]):
            assert answer.task.name


def test_a_key_file_of_the_command_counts_before_the_environment(
    process: HopperProcess,
    key: str,
    trusting: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HOPPER_API_KEY", "of nobody")
    file = tmp_path / "key"
    file.touch(mode=0o600)
    file.write_text(f"{key}\n")
    asked = ["auth", "whoami", "--address", process.tcp_address]
    for arguments in ([*asked, "--key-file", str(file)], ["--key-file", str(file), *asked]):
        assert main(arguments) == 0
        assert "admin" in capsys.readouterr().out
    assert main(asked) != 0
    for mode in (0o640, 0o604, 0o660):
        file.chmod(mode)
        capsys.readouterr()
        assert main([*asked, "--key-file", str(file)]) != 0
        said = capsys.readouterr().err
        assert f"chmod 600 {file}" in said
        assert key not in said


def test_without_a_key_nobody_is_let_in_and_told_what_is_missing(
    process: HopperProcess, trusting: None
) -> None:
    with (
        Hopper(process.tcp_address, timeout=60) as hopper,
        pytest.raises(Unauthenticated, match="HOPPER_API_KEY"),
    ):
        hopper.projects.ListProjects(ListProjectsRequest())


def test_a_file_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HOPPER_API_KEY_FILE", "HOPPER_CA_FILE"):
        monkeypatch.setenv(variable, str(tmp_path / "gone"))
        with pytest.raises(Unauthenticated, match=rf"gone \({variable}\)"):
            Hopper("127.0.0.1:1")
        monkeypatch.delenv(variable)
    empty = tmp_path / "empty"
    empty.write_text("")
    monkeypatch.setenv("HOPPER_CA_FILE", str(empty))
    with pytest.raises(Unauthenticated, match="no certificates"):
        Hopper("127.0.0.1:1")


def test_plain_text_goes_nowhere_else() -> None:
    with pytest.raises(AddressRefused, match="HOPPER_CA_FILE"):
        Hopper("192.0.2.1:8300")


def test_another_hoppers_roots_do_not_vouch_for_this_one(
    process: HopperProcess, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = tmp_path / "roots.pem"
    roots.write_bytes(to_pem(IdentityStore.open(tmp_path / "other" / "identity", SystemClock()).roots()))
    monkeypatch.setenv("HOPPER_CA_FILE", str(roots))
    monkeypatch.setenv("HOPPER_API_KEY", key)
    with Hopper(process.tcp_address, timeout=2) as hopper, pytest.raises(HopperError) as refused:
        hopper.access.WhoAmI(WhoAmIRequest())
    assert isinstance(refused.value, Unavailable) or refused.value.reason == "DEADLINE_EXCEEDED"


def test_a_key_that_is_revoked_lets_in_no_more_and_ends_what_it_has_open(
    process: HopperProcess, key: str, trusting: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOPPER_API_KEY", key)
    with Hopper(process.tcp_address, timeout=60) as far, Hopper(process.address, timeout=60) as owner:
        watch = iter(far.tasks.WatchTasks(WatchTasksRequest()))
        assert next(watch).ByteSize()
        name = f"principals/admin/keys/{key.split('_')[1]}"
        owner.access.RevokeApiKey(RevokeApiKeyRequest(name=name))
        with pytest.raises(Unauthenticated) as ended:
            for _ in watch:
                pass
        assert ended.value.reason == "CREDENTIALS_REVOKED"
        with pytest.raises(Unauthenticated) as refused:
            far.access.WhoAmI(WhoAmIRequest())
        assert refused.value.reason == "CREDENTIALS_REVOKED"
