"""Where servers listen, and what they refuse."""

import os
import socket
import stat
from pathlib import Path

import grpc.aio
import pytest

from hopper_common.rpc.address import check_address, listen_tcp, listen_unix
from hopper_common.rpc.channel import open_channel
from hopper_common.rpc.server import build_server
from hopper_common.startup import AddressRefused, DirectoryShared
from tests.common.rpc_toy import Toy, pb, pb_grpc, registered


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("127.0.0.1:8300", "127.0.0.1:8300"),
        ("127.3.2.1:0", "127.3.2.1:0"),
        ("localhost:8300", "127.0.0.1:8300"),
        ("[::1]:8300", "[::1]:8300"),
        ("unix:/tmp/a.sock", "unix:/tmp/a.sock"),
    ],
)
def test_addresses_of_this_machine_are_taken(given: str, taken: str) -> None:
    assert check_address(given) == taken


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("0.0.0.0:8300", "0.0.0.0:8300 is not of this machine"),
        ("[::]:8300", "plain text"),
        ("10.0.0.1:8300", "HOPPER_CA_FILE"),
        ("example.org:8300", "not of this machine"),
        (":8300", "no address"),
        ("127.0.0.1", "no address"),
        ("127.0.0.1:http", "no address"),
        ("127.0.0.1:70000", "no address"),
        ("", "no address"),
        ("unix:/" + "d" * 200, "HOPPER_DATA_DIR"),
    ],
)
def test_other_addresses_are_refused_with_the_remedy(given: str, says: str) -> None:
    with pytest.raises(AddressRefused) as caught:
        check_address(given)
    assert says in str(caught.value)


def test_a_channel_leads_nowhere_else_either() -> None:
    with pytest.raises(AddressRefused):
        open_channel("example.org:8300")


async def test_port_zero_reports_the_real_port() -> None:
    server = build_server([registered(Toy())])
    address = listen_tcp(server, "localhost:0")
    await server.start()
    assert address.startswith("127.0.0.1:")
    assert not address.endswith(":0")
    async with open_channel(address) as channel:
        response = await pb_grpc.ToyServiceStub(channel).Put(pb.Request(name="a"))
    assert response.text == "a"
    await server.stop(None)


async def test_a_taken_port_is_refused_and_named() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(AddressRefused, match=rf"port {port} is taken.*HOPPER_LISTEN"):
            listen_tcp(build_server([]), f"127.0.0.1:{port}")


async def test_two_servers_do_not_share_a_port() -> None:
    first = build_server([])
    address = listen_tcp(first, "127.0.0.1:0")
    await first.start()
    with pytest.raises(AddressRefused, match="is taken"):
        listen_tcp(build_server([]), address)
    # Also when somebody is quicker than our own check.
    with pytest.raises(RuntimeError):
        build_server([]).add_insecure_port(address)
    await first.stop(None)


async def _answers(address: str) -> bool:
    async with open_channel(address) as channel:
        return bool((await pb_grpc.ToyServiceStub(channel).Put(pb.Request(name="a"))).text)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_a_socket_is_for_its_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "hopper.sock"
    server = build_server([registered(Toy())])
    address = listen_unix(server, path)
    await server.start()
    assert address == f"unix:{path}"
    assert (mode(path.parent), mode(path)) == (0o700, 0o600)
    assert await _answers(address)
    await server.stop(None)


async def test_the_socket_of_a_process_that_is_gone_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "hopper.sock"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
    assert path.exists()
    server = build_server([registered(Toy())])
    address = listen_unix(server, path)
    await server.start()
    assert await _answers(address)
    await server.stop(None)


async def test_a_socket_in_use_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "hopper.sock"
    first = build_server([registered(Toy())])
    address = listen_unix(first, path)
    await first.start()
    with pytest.raises(AddressRefused, match=r"another process answers on .*hopper\.sock: stop it"):
        listen_unix(build_server([]), path)
    assert await _answers(address)
    await first.stop(None)


async def test_something_else_in_its_place_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "hopper.sock"
    path.write_text("precious")
    with pytest.raises(AddressRefused, match="no socket"):
        listen_unix(build_server([]), path)
    assert path.read_text() == "precious"


async def test_a_directory_that_others_write_to_is_refused(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o777)  # noqa: S103 - refused
    with pytest.raises(DirectoryShared, match="chmod 700"):
        listen_unix(build_server([]), tmp_path / "hopper.sock")


async def test_a_path_that_is_too_long_is_explained(tmp_path: Path) -> None:
    with pytest.raises(AddressRefused, match="107 bytes"):
        listen_unix(build_server([]), tmp_path / ("d" * 120) / "hopper.sock")
    assert os.listdir(tmp_path) == []


async def test_nobody_behind_an_address_is_unavailable(tmp_path: Path) -> None:
    async with open_channel(f"unix:{tmp_path}/nobody.sock") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await pb_grpc.ToyServiceStub(channel).Put(pb.Request(name="a"))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_server_that_is_too_busy_to_greet_is_not_one_that_is_gone(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(str(tmp_path / "s"))
        busy.listen()
        async with open_channel(f"unix:{tmp_path}/s") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await pb_grpc.ToyServiceStub(channel).Put(pb.Request(name="a"), timeout=0.4)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
